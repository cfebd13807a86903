package health

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Limit names a limit that a site has configured, such as "timeout 200ms", or a class of
// timeouts that clients choose (timeoutLimits). A failure that was one only by a limit
// counts only for requests with the same limit. It bounds nothing itself; pool.Limits
// does.
type Limit string

// Policy is what failures mean to a request.
type Policy struct {
	MaxFails int           // the number of failures in a row for which an address is ejected
	EjectFor time.Duration // for how long

	// Retryable is true if the request may be sent to another address after one that
	// has got it fails. If an address failed after a request was sent, only a request
	// shows whether it works again. After EjectFor that is a retryable one, which loses
	// nothing. Requests that are not retryable are kept from the address for twice that
	// time, in case no retryable one comes.
	Retryable bool

	// Limits are the limits of the request; empty ones are ignored.
	Limits [2]Limit

	// Timeout is the one that the client has chosen for this request; zero: none. It
	// makes failures count that RanOut recorded for timeouts of about this length or
	// longer.
	Timeout time.Duration
}

// State classifies an address for a request.
type State int

// The states of an address, each worse than the one before it.
const (
	Healthy    State = iota
	NeedsProbe       // EjectFor is over: a connection will show whether it works again
	NeedsTrial       // EjectFor is over: only a request will show it
	Ejected          // EjectFor is not over, a dial that was given up goes on, or another request has claimed it
)

var stateNames = [...]string{"healthy", "needs_probe", "needs_trial", "ejected"}

// String returns a lower-case word, such as "needs_probe", that may be the label of a
// metric.
func (s State) String() string { return stateNames[s] }

// ParseState returns the state with the name s, as String returns it.
func ParseState(s string) (State, error) {
	if i := slices.Index(stateNames[:], s); i >= 0 {
		return State(i), nil
	}
	return 0, fmt.Errorf("unknown state %q: expecting %s", s, strings.Join(stateNames[:], ", "))
}

// claimTimeout is how long a probe or a trial may take, from the claim, before another
// request may claim the address.
const claimTimeout = 5 * time.Second

// State classifies an address for a request to target.
func (t *Tracker) State(p *Policy, target string, addr netip.AddrPort) State {
	return t.state(p, target, addr, time.Time{})
}

// Claim is State for a request that will probe or try the address if it needs that. If
// the State is NeedsProbe or NeedsTrial, the address is Ejected for other requests, until
// the outcome is recorded, the Claim is released, or claimTimeout is over. Else nothing
// is claimed.
func (t *Tracker) Claim(p *Policy, target string, addr netip.AddrPort) (State, Claim) {
	now := t.now()
	return t.state(p, target, addr, now), Claim{t, *p, target, addr, now}
}

// Claim is the claim of one request to probe or try an address: see Tracker.Claim.
type Claim struct {
	tracker *Tracker
	policy  Policy
	target  string
	addr    netip.AddrPort
	at      time.Time // identifies the claim in the records
}

// Release gives the claim up, unless its outcome was recorded. Another request may then
// claim the address.
func (c *Claim) Release() {
	s, family := c.tracker.shard(c.addr), c.tracker.family(c.addr.Addr())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.relevant(&c.policy, c.target, c.addr) {
		if r.claimedAt.Equal(c.at) {
			r.claimedAt = time.Time{}
		}
	}
	family.release(c.at)
}

// state is State, or Claim at that time if claimAt is not zero.
func (t *Tracker) state(p *Policy, target string, addr netip.AddrPort, claimAt time.Time) State {
	s, family := t.shard(addr), t.family(addr.Addr())
	if s.size.Load() == 0 && !family.dead() {
		return Healthy
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := claimAt
	if claimAt.IsZero() {
		now = t.now()
	}
	state := Healthy
	var buf [4]*record
	due := buf[:0]
	for id, r := range s.relevant(p, target, addr) {
		switch of := r.state(now, p.maxFails(id.limit), p); of {
		case Healthy:
			continue
		case Ejected:
			return Ejected
		default:
			state = max(state, of)
		}
		due = append(due, r)
	}
	if family.dead() {
		state = max(state, family.state(now, p.EjectFor, !claimAt.IsZero()))
	}
	if state != Ejected && !claimAt.IsZero() {
		for _, r := range due {
			r.claimedAt = now
		}
	}
	return state
}

// ejectFor returns for how long a request of this policy is kept from the address of a
// record.
func (p *Policy) ejectFor(r *record) time.Duration {
	if r.sent && !p.Retryable {
		return 2 * p.EjectFor
	}
	return p.EjectFor
}

// state classifies an address by one of its records.
func (r *record) state(now time.Time, maxFails int, p *Policy) State {
	switch {
	case now.Before(r.dialEnds):
		return Ejected
	case r.fails < maxFails:
		return Healthy
	case now.Sub(r.lastFailed) < p.ejectFor(r) || now.Sub(r.claimedAt) < claimTimeout:
		return Ejected
	case r.sent:
		return NeedsTrial
	}
	return NeedsProbe
}

// maxFails returns the number of failures under a limit for which an address is ejected.
func (p *Policy) maxFails(l Limit) int {
	if l.ofClient() {
		return max(p.MaxFails, maxRanOut)
	}
	return p.MaxFails
}

// relevant yields the records that count for a request to target; s.mu is held.
func (s *shard) relevant(p *Policy, target string, addr netip.AddrPort) iter.Seq2[recordID, *record] {
	return func(yield func(recordID, *record) bool) {
		next := func(id recordID) bool {
			r := s.records[id]
			return r == nil || yield(id, r)
		}
		if !next(recordID{addr: addr}) || !next(recordID{target: target, addr: addr}) {
			return
		}
		for _, limit := range p.Limits {
			if limit != "" && !next(recordID{target, addr, limit}) {
				return
			}
		}
		if p.Timeout == 0 {
			return
		}
		for _, limit := range timeoutLimits[timeoutClass(p.Timeout):] {
			if !next(recordID{target, addr, limit}) {
				return
			}
		}
	}
}
