package health

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// This file is for operators: what is known of addresses. Nothing in it claims an address,
// and it holds the lock of one shard at a time.

// Record is what is known of an address that has failed, or whose dial was given up. Times
// are from now on.
type Record struct {
	Addr   netip.AddrPort
	Target string // for which the failures count; empty: for all
	Limit  Limit  // under which they count; empty: always

	// State is that of the address by this record alone, for the policies in use.
	State State

	Failures int           // since the address last worked
	Last     time.Duration // how long ago the last one was; 0 without failures
	Reason   Reason        // of the last one

	// Left is for how long the address remains ejected because of its failures; 0: no
	// longer, or it never was.
	Left time.Duration

	// Since is how long ago the ejection began that has not ended; 0: there is none. It
	// ends when the address works.
	Since time.Duration

	Claimed  bool          // a request is finding out whether the address works again
	Dialling time.Duration // for how long a dial may go on that a request has given up; 0: there is none
}

// describe returns what is known of a record, by a policy in use.
func (r *record) describe(id recordID, p *Policy, now time.Time) Record {
	of := Record{
		Addr: id.addr, Target: id.target, Limit: id.limit, Failures: r.fails, Reason: r.reason,
		State:   r.state(now, p.maxFails(id.limit), p),
		Claimed: now.Sub(r.claimedAt) < claimTimeout, Dialling: max(0, r.dialEnds.Sub(now)),
	}
	if r.fails > 0 {
		of.Last = now.Sub(r.lastFailed)
	}
	if r.fails >= p.maxFails(id.limit) {
		of.Left = max(0, p.ejectFor(r)-of.Last)
	}
	if !r.ejectedAt.IsZero() {
		of.Since = now.Sub(r.ejectedAt)
	}
	return of
}

// Family is what is known of a family, IPv4 or IPv6.
type Family struct {
	State    State         // of all its addresses
	Networks int           // that could not be reached since one could
	Last     time.Duration // how long ago the last one failed; 0 without any
	Left     time.Duration // for how long the family remains ejected
}

// Families returns what is known of IPv4 and IPv6, by the policies in use.
func (t *Tracker) Families() (list [2]Family) {
	now, ejectFor := t.now(), t.longest()
	for i := range t.families {
		f, of := &t.families[i], &list[i]
		of.State = f.state(now, ejectFor, false)
		if c := f.cause(now, ejectFor); c.Fails > 0 {
			of.Networks, of.Last = c.Fails, c.Age
			if c.Fails >= c.MaxFails {
				of.Left = c.Left
			}
		}
	}
	return list
}

// Records returns records that match, for which the state is by the policies in use. It
// begins after a position, which is that of a page before, or 0. It returns up to limit of
// them and, if there are more, the position to go on from; else 0. A record that is there
// from the first page to the last one is on one page. match is called with a lock held.
func (t *Tracker) Records(after uint64, limit int, match func(*Record) bool) (page []Record, next uint64) {
	first, seq := after>>seqBits, after&(1<<seqBits-1)
	for i := first; i < uint64(len(t.shards)); i++ {
		for _, r := range t.recordsOf(&t.shards[i], seq, match) {
			if len(page) == limit {
				return page, after
			}
			page = append(page, r.Record)
			after = i<<seqBits | r.seq
		}
		seq = 0
	}
	return page, 0
}

// seqBits is how many bits of a position have a record's seq; the others have its shard.
const seqBits = 56

// sequenced is a record in the order in which records were made.
type sequenced struct {
	Record
	seq uint64
}

// recordsOf returns the records of a shard that match and that were made after another
// one, in order. It deletes old ones first.
func (t *Tracker) recordsOf(s *shard, after uint64, match func(*Record) bool) (list []sequenced) {
	if s.size.Load() == 0 {
		return nil
	}
	s.mu.Lock()
	now := t.now()
	ended := s.clean(now)
	s.size.Store(int32(len(s.records)))
	for id, r := range s.records {
		if r.seq <= after {
			continue
		}
		p := t.policyFor(id.limit, r.fails)
		of := r.describe(id, &p, now)
		if match(&of) {
			list = append(list, sequenced{of, r.seq})
		}
	}
	s.mu.Unlock()
	t.tell(ended)
	slices.SortFunc(list, func(a, b sequenced) int { return cmp.Compare(a.seq, b.seq) })
	return list
}

// States returns how many records there are by State, but for healthy ones, by the
// policies in use.
func (t *Tracker) States() (count [Ejected + 1]int) {
	for i := range t.shards {
		t.recordsOf(&t.shards[i], 0, func(r *Record) bool {
			if r.State != Healthy {
				count[r.State]++
			}
			return false
		})
	}
	return count
}

// Lift deletes the records that match, and so ends their ejections. It returns how many
// ejections these were. match is called with a lock held.
func (t *Tracker) Lift(match func(target string, addr netip.AddrPort) bool) (lifted int) {
	var ended []Ejection
	for i := range t.shards {
		s := &t.shards[i]
		if s.size.Load() == 0 {
			continue
		}
		s.mu.Lock()
		now := t.now()
		for id, r := range s.records {
			if match(id.target, id.addr) {
				ended = r.appendEnded(ended, id, Lifted, now)
				delete(s.records, id)
			}
		}
		s.size.Store(int32(len(s.records)))
		s.mu.Unlock()
	}
	t.tell(ended)
	return len(ended)
}

// LiftFamily ends the ejection of the family of an address, and reports whether there was
// one.
func (t *Tracker) LiftFamily(addr netip.Addr) bool {
	f := t.family(addr)
	f.mu.Lock()
	dead := f.dead()
	ended := f.reset(Lifted, t.now())
	f.mu.Unlock()
	t.tell(ended)
	return dead
}
