package health

import (
	"hash/maphash"
	"net/netip"
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
	seq      atomic.Uint64 // the last record.seq

	observer   Observer                         // nil: none
	policies   atomic.Pointer[[]ejectionPolicy] // those in use
	policiesMu sync.Mutex                       // held to change the two
	policyUses map[ejectionPolicy]int           // how often each of them is in use
}

// A record is deleted when its last failure is longer ago than forgetAfter, within about a
// minute if others of its shard change. A shard has no more than maxRecords records: beyond
// that, another one is forgotten.
const (
	forgetAfter = time.Hour
	maxRecords  = 256
)

// shard has the records of the addresses that have the same hash.
type shard struct {
	size atomic.Int32 // the number of records

	mu      sync.Mutex
	records map[recordID]*record
	cleaned time.Time // when old records were last deleted
}

// recordID names an address and port, a target at it, or a target at it under a limit.
type recordID struct {
	target string // empty: all targets
	addr   netip.AddrPort
	limit  Limit // empty: the failure counts under all limits
}

// record has the failures since the address last worked. One without failures is there for
// dialEnds alone.
type record struct {
	fails      int
	lastFailed time.Time
	sent       bool      // a request may have been sent before the last failure
	claimedAt  time.Time // when a request last claimed the address, see Tracker.Claim; zero: no claim is open
	dialEnds   time.Time // when a dial that was given up must have ended, see StillDialing; that is no failure
	reason     Reason    // of the last failure
	ejectedAt  time.Time // when the Ejection began that has not ended; zero: there is none
	seq        uint64    // the order in which records were made
}

// New returns a Tracker without records.
func New() *Tracker {
	t := &Tracker{now: time.Now, seed: maphash.MakeSeed()}
	t.families[0].version, t.families[1].version = 4, 6
	return t
}

// shard returns the shard of an address.
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
// empty. sent is true if a request may have been sent before. It decides how the address
// is tried again: by a request (NeedsTrial) if it was sent, else by a connection
// (NeedsProbe). err is for the Observer, and may be nil.
func (t *Tracker) Failed(target string, addr netip.AddrPort, sent bool, err error) {
	t.fail(recordID{target: target, addr: addr}, sent, err)
}

// Exceeded records that an address exceeded a limit for a target. A request may have
// been sent. err is as in Failed.
func (t *Tracker) Exceeded(limit Limit, target string, addr netip.AddrPort, err error) {
	t.fail(recordID{target, addr, limit}, true, err)
}

// fail counts a failure.
func (t *Tracker) fail(id recordID, sent bool, err error) {
	reason := t.reason(err)
	t.update(id, func(r *record, now time.Time) {
		r.fails++
		r.lastFailed, r.sent, r.reason = now, sent, reason
		r.claimedAt, r.dialEnds = time.Time{}, time.Time{} // the outcome of the claim, or of the dial, is known now
	})
}

// StillDialing records that a request gave up a dial, which goes on for at most left. That
// is no failure, but until then, or until the outcome of the dial is recorded, the address
// is ejected. The target is as in Failed.
func (t *Tracker) StillDialing(target string, addr netip.AddrPort, left time.Duration) {
	t.update(recordID{target: target, addr: addr}, func(r *record, now time.Time) {
		r.dialEnds = now.Add(left)
	})
}

// update changes a record, which is a new one if there is none.
func (t *Tracker) update(id recordID, change func(r *record, now time.Time)) {
	s := t.shard(id.addr)
	s.mu.Lock()
	now := t.now()
	ejections := s.clean(now)
	r := s.records[id]
	if r == nil {
		r = &record{seq: t.seq.Add(1)}
		id.target = strings.Clone(id.target) // it may be a substring of something large
		ejections = s.add(ejections, id, r, now)
	}
	change(r, now)
	ejections = t.appendBegun(ejections, id, r, now)
	s.size.Store(int32(len(s.records)))
	s.mu.Unlock()
	t.tell(ejections)
}

// clean deletes old records, once a minute. It returns the ejections that end by it; s.mu
// is held.
func (s *shard) clean(now time.Time) (ended []Ejection) {
	if now.Sub(s.cleaned) <= time.Minute {
		return nil
	}
	s.cleaned = now
	for id, r := range s.records {
		if now.Sub(r.lastFailed) > forgetAfter && now.After(r.dialEnds) {
			ended = r.appendEnded(ended, id, Forgotten, now)
			delete(s.records, id)
		}
	}
	return ended
}

// add adds a record. If there are too many, it deletes another one, whose ejection it
// appends to those that end; s.mu is held.
func (s *shard) add(ended []Ejection, id recordID, r *record, now time.Time) []Ejection {
	if s.records == nil {
		s.records = make(map[recordID]*record)
	}
	if len(s.records) >= maxRecords {
		for other, old := range s.records {
			ended = old.appendEnded(ended, other, Forgotten, now)
			delete(s.records, other)
			break
		}
	}
	s.records[id] = r
	return ended
}

// Worked records that an address works: for the target, under these limits, and so at
// the level of the address, too.
func (t *Tracker) Worked(target string, addr netip.AddrPort, limits ...Limit) {
	s := t.shard(addr)
	if s.size.Load() == 0 {
		return
	}
	s.mu.Lock()
	now := t.now()
	ended := s.delete(nil, recordID{addr: addr}, now)
	ended = s.delete(ended, recordID{target: target, addr: addr}, now)
	for _, limit := range limits {
		ended = s.delete(ended, recordID{target, addr, limit}, now)
	}
	s.size.Store(int32(len(s.records)))
	s.mu.Unlock()
	t.tell(ended)
}

// delete deletes the record of an address that works, and appends its ejection to those
// that end; s.mu is held.
func (s *shard) delete(ended []Ejection, id recordID, now time.Time) []Ejection {
	if r := s.records[id]; r != nil {
		ended = r.appendEnded(ended, id, Worked, now)
		delete(s.records, id)
	}
	return ended
}
