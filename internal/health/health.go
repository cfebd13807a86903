// Package health remembers which addresses failed, so that they can be left out
// while others remain.
//
// A Tracker keeps a record of failures for each address and port, and for each
// pair of a target and an address. A connection that cannot be opened counts for
// the address and port, whatever the target. A failed TLS handshake, a reset or
// no response counts for the target on that address only: one bad site on the
// address of a CDN does not take the address from the others. A failure that is a
// matter of a configured limit, such as a timeout, counts for those who have the
// same limit. Where the client has chosen the timeout of its request, several of them
// in a row count, for requests that have no more time: see RanOut. State classifies an
// address by these records. Families of addresses
// (IPv4, IPv6) are tracked beside them: if nothing of a family can be reached,
// all of its addresses are left out.
//
// The records are spread over shards, each with a lock of its own. Nobody takes
// the lock of a shard in which nothing has failed.
package health

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Tracker remembers failures of addresses. It is safe for concurrent use.
type Tracker struct {
	now      func() time.Time
	seed     maphash.Seed
	shards   [256]shard
	families [2]family // IPv4, IPv6
	usual    usualTimes
}

type shard struct {
	size atomic.Int32 // of failed

	mu      sync.Mutex
	failed  map[recordID]*record
	checked time.Time // when old records were last removed
}

// recordID is what a record is about: an address and port, a target on it, or a target
// on it under a limit.
type recordID struct {
	target string // empty: all targets
	addr   netip.AddrPort
	limit  Limit // empty: the failure counts whatever the limits are
}

// record is what is known of an address that has failed since it last worked.
type record struct {
	fails int
	last  time.Time // of the last failure
	sent  bool      // a request may have been sent before the last failure
	trial time.Time // when somebody last tried whether it works again
	slow  time.Time // until then a connection attempt that was given up is still under way
}

// Limit names a limit that a site has configured, such as "timeout 200ms". A
// failure that only this limit makes one counts only for requests with the same
// limit.
type Limit string

// Policy says what failures mean to a request.
type Policy struct {
	MaxFails int           // after how many failures in a row an address is ejected
	EjectFor time.Duration // for how long

	// Retryable says that the request may be sent again if an address fails after
	// the request was sent. A request that may not is kept from an address that
	// failed in this way for twice as long, unless retryable ones show before that
	// it works again.
	Retryable bool

	// Limits are those under which failures count for the request; empty ones mean
	// nothing.
	Limits [2]Limit

	// Timeout is what the client has chosen for this request; zero: it has not. What
	// requests taught that had as much time, or more, counts for the request.
	Timeout time.Duration
}

// State classifies an address.
type State int

// The states of an address, each worse than the one before it.
const (
	Healthy    State = iota
	NeedsProbe       // EjectFor is over: opening a connection shows whether it works again
	NeedsTrial       // EjectFor is over: it takes a request to find out
	Ejected
)

const (
	// forgetAfter is how long a failure is remembered at most.
	forgetAfter = time.Hour

	// maxRecords bounds the records of a shard.
	maxRecords = 256

	// trialTime is how long a probe or a trial may take before there is another.
	trialTime = 5 * time.Second

	// maxRanOut is how many requests in a row an address has to let run out before
	// their timeouts count, which clients have chosen.
	maxRanOut = 3

	// A family counts as unreachable when connections to addresses in deadNetworks
	// different networks failed, each within familyTime of the one before, and none
	// was opened meanwhile.
	deadNetworks = 3
	familyTime   = 5 * time.Minute
)

// New returns a Tracker without records.
func New() *Tracker {
	return &Tracker{now: time.Now, seed: maphash.MakeSeed()}
}

func (t *Tracker) shard(addr netip.AddrPort) *shard {
	return &t.shards[maphash.Comparable(t.seed, addr)%uint64(len(t.shards))]
}

// Len returns how many records there are.
func (t *Tracker) Len() (n int) {
	for i := range t.shards {
		n += int(t.shards[i].size.Load())
	}
	return n
}

// Failed records a failure of an address: for one target, or for all if target is
// empty. sent is true if a request may have been sent before.
func (t *Tracker) Failed(target string, addr netip.AddrPort, sent bool) {
	t.fail(recordID{target: target, addr: addr}, sent)
}

// Exceeded records that an address exceeded a limit for a target.
func (t *Tracker) Exceeded(limit Limit, target string, addr netip.AddrPort) {
	t.fail(recordID{target, addr, limit}, true)
}

func (t *Tracker) fail(id recordID, sent bool) {
	t.update(id, func(r *record, now time.Time) {
		r.fails++
		r.last, r.sent = now, sent
		r.trial, r.slow = time.Time{}, time.Time{}
	})
}

// RanOut records that the time of a request was over that its client has chosen:
// timeout, of which the request spent what lies between begun and deadline at the
// address. (What passes after that, on a busy machine, is not the address's.) That
// counts if another address of the target usually takes no longer, and if the request
// began after the one before had run out: a short pause of the backend is one failure,
// however many requests it meets. So no client can take a healthy address from others: its
// requests have to run out in a row, each has to be given the time that is usual,
// nothing may succeed in between, and only requests with as little time are kept from
// the address.
func (t *Tracker) RanOut(target string, addr netip.AddrPort, timeout time.Duration, begun, deadline time.Time) {
	if usual, ok := t.usual.elsewhere(target, addr, t.now()); !ok || deadline.Sub(begun) < usual {
		return
	}
	t.update(recordID{target, addr, timeoutLimits[timeoutClass(timeout)]}, func(r *record, now time.Time) {
		if begun.Before(r.last) {
			return
		}
		r.fails++
		r.last, r.sent, r.trial = now, true, time.Time{}
	})
}

// timeoutLimits name the classes of timeouts that clients choose: those of class n
// take less than 2^n milliseconds, and half of that or more.
var timeoutLimits = [16]Limit{
	"client 1ms", "client 2ms", "client 4ms", "client 8ms", "client 16ms", "client 32ms", "client 64ms", "client 128ms",
	"client 256ms", "client 512ms", "client 1s", "client 2s", "client 4s", "client 8s", "client 16s", "client more",
}

func timeoutClass(d time.Duration) int {
	return min(bits.Len64(uint64(d/time.Millisecond)), len(timeoutLimits)-1)
}

// Slow records that a connection attempt did not succeed in the time that it was
// given. The attempt goes on for at most left.
func (t *Tracker) Slow(target string, addr netip.AddrPort, left time.Duration) {
	t.update(recordID{target: target, addr: addr}, func(r *record, now time.Time) {
		r.slow = now.Add(left)
	})
}

func (t *Tracker) update(id recordID, change func(r *record, now time.Time)) {
	s := t.shard(id.addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.now()
	if now.Sub(s.checked) > time.Minute {
		s.checked = now
		for id, r := range s.failed {
			if now.Sub(r.last) > forgetAfter && now.After(r.slow) {
				delete(s.failed, id)
			}
		}
	}
	r := s.failed[id]
	if r == nil {
		if s.failed == nil {
			s.failed = make(map[recordID]*record)
		}
		if len(s.failed) >= maxRecords {
			for other := range s.failed {
				delete(s.failed, other)
				break
			}
		}
		r = new(record)
		id.target = strings.Clone(id.target) // it may be a part of something large
		s.failed[id] = r
	}
	change(r, now)
	s.size.Store(int32(len(s.failed)))
}

// Worked records that an address works: for a target, within these limits, and
// so for all targets.
func (t *Tracker) Worked(target string, addr netip.AddrPort, limits ...Limit) {
	s := t.shard(addr)
	if s.size.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failed, recordID{addr: addr})
	delete(s.failed, recordID{target: target, addr: addr})
	for _, limit := range limits {
		delete(s.failed, recordID{target, addr, limit})
	}
	s.size.Store(int32(len(s.failed)))
}

// WorkedIn is Worked for a response that took so long, to a request whose client has
// chosen a timeout; zero: it has none.
func (t *Tracker) WorkedIn(took, timeout time.Duration, target string, addr netip.AddrPort, limits ...Limit) {
	t.usual.took(target, addr, took, t.now())
	t.Worked(target, addr, limits...)
	s := t.shard(addr)
	if s.size.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// those with so much time, and with as much as this one, would have got it too
	from := timeoutClass(took) + 1
	if timeout > 0 {
		from = min(from, timeoutClass(timeout))
	}
	for _, limit := range timeoutLimits[min(from, len(timeoutLimits)):] {
		delete(s.failed, recordID{target, addr, limit})
	}
	s.size.Store(int32(len(s.failed)))
}

// State classifies an address for a request to target.
func (t *Tracker) State(p *Policy, target string, addr netip.AddrPort) State {
	return t.state(p, target, addr, time.Time{})
}

// Claim is State for a request that is going to probe or try the address, if that
// is what it needs. For others the address is ejected until that has ended: until its
// outcome is recorded, the Trial is released, or some time is over.
func (t *Tracker) Claim(p *Policy, target string, addr netip.AddrPort) (State, Trial) {
	now := t.now()
	return t.state(p, target, addr, now), Trial{t, *p, target, addr, now}
}

// Trial is the claim of a request to probe or try an address.
type Trial struct {
	tracker *Tracker
	policy  Policy
	target  string
	addr    netip.AddrPort
	claimed time.Time
}

// Release gives a claim up, unless an outcome has been recorded: another request may
// probe or try the address.
func (l *Trial) Release() {
	s, family := l.tracker.shard(l.addr), l.tracker.family(l.addr.Addr())
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.records(&l.policy, l.target, l.addr) {
		if r.trial.Equal(l.claimed) {
			r.trial = time.Time{}
		}
	}
	family.release(l.claimed)
}

// state is State and, if claimed is not zero, Claim.
func (t *Tracker) state(p *Policy, target string, addr netip.AddrPort, claimed time.Time) State {
	s, family := t.shard(addr), t.family(addr.Addr())
	if s.size.Load() == 0 && !family.dead() {
		return Healthy
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := claimed
	if claimed.IsZero() {
		now = t.now()
	}
	state := Healthy
	var buf [4]*record
	due := buf[:0]
	for r, maxFails := range s.records(p, target, addr) {
		switch {
		case now.Before(r.slow):
			return Ejected
		case r.fails < maxFails:
			continue
		case now.Sub(r.last) < p.EjectFor || now.Sub(r.trial) < trialTime:
			return Ejected
		case r.sent && !p.Retryable && now.Sub(r.last) < 2*p.EjectFor:
			return Ejected
		case r.sent:
			state = NeedsTrial
		default:
			state = max(state, NeedsProbe)
		}
		due = append(due, r)
	}
	if family.dead() {
		state = max(state, family.state(now, p.EjectFor, !claimed.IsZero()))
	}
	if state != Ejected && !claimed.IsZero() {
		for _, r := range due {
			r.trial = now
		}
	}
	return state
}

// records yields the records that count for a request to target, each with the number
// of failures from which on it does; s.mu is held.
func (s *shard) records(p *Policy, target string, addr netip.AddrPort) iter.Seq2[*record, int] {
	return func(yield func(*record, int) bool) {
		if r := s.failed[recordID{addr: addr}]; r != nil && !yield(r, p.MaxFails) {
			return
		}
		if r := s.failed[recordID{target: target, addr: addr}]; r != nil && !yield(r, p.MaxFails) {
			return
		}
		for _, limit := range p.Limits {
			if limit == "" {
				continue
			}
			if r := s.failed[recordID{target, addr, limit}]; r != nil && !yield(r, p.MaxFails) {
				return
			}
		}
		if p.Timeout == 0 {
			return
		}
		for _, limit := range timeoutLimits[timeoutClass(p.Timeout):] {
			if r := s.failed[recordID{target, addr, limit}]; r != nil && !yield(r, max(p.MaxFails, maxRanOut)) {
				return
			}
		}
	}
}

// family is how many networks of a family could not be reached since one could.
type family struct {
	count atomic.Int32 // of networks

	mu       sync.Mutex
	networks [deadNetworks]netip.Prefix
	last     time.Time
	trial    time.Time // as in record
}

func (t *Tracker) family(addr netip.Addr) *family {
	if addr.Is4() {
		return &t.families[0]
	}
	return &t.families[1]
}

// Reached records whether a connection to an address was opened (ok), or nothing
// came back from it or there is no route to it.
func (t *Tracker) Reached(addr netip.Addr, ok bool) {
	f := t.family(addr)
	switch {
	case !addr.IsValid():
	case !ok:
		f.unreached(addr, t.now())
	case f.count.Load() > 0:
		f.mu.Lock()
		f.count.Store(0)
		f.mu.Unlock()
	}
}

func (f *family) unreached(addr netip.Addr, now time.Time) {
	bits := 16
	if addr.Is6() {
		bits = 48
	}
	network, _ := addr.Prefix(bits)
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.count.Load()
	if now.Sub(f.last) > familyTime {
		n = 0
	}
	f.last, f.trial = now, time.Time{}
	if int(n) < deadNetworks && !slices.Contains(f.networks[:n], network) {
		f.networks[n] = network
		n++
	}
	f.count.Store(n)
}

// dead reports whether nothing of the family can be reached.
func (f *family) dead() bool { return f.count.Load() >= deadNetworks }

func (f *family) state(now time.Time, ejectFor time.Duration, claim bool) State {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.dead():
		return Healthy
	case now.Sub(f.last) < ejectFor || now.Sub(f.trial) < trialTime:
		return Ejected
	}
	if claim {
		f.trial = now
	}
	return NeedsProbe
}

// release gives up the claim of that time.
func (f *family) release(claimed time.Time) {
	if !f.dead() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trial.Equal(claimed) {
		f.trial = time.Time{}
	}
}
