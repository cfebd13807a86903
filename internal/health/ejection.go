package health

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

// Reason is why an address failed, in the words of the Observer.
type Reason struct {
	Phase string // how far the request had come
	Token string // what happened, in one word
	Text  string // for people
}

// Observer is told of ejections. Its methods are called by the goroutines that record
// failures, without locks.
type Observer interface {
	// Reason returns the words for the error of a failure. It must not keep the error.
	Reason(err error) Reason

	// Ejected is called when an ejection begins: by the policies in use, an address has
	// failed often enough, or a family cannot be reached.
	Ejected(e *Ejection)

	// Ended is called when an ejection ends: not when EjectFor is over, but when it is
	// known how it went on.
	Ended(e *Ejection)
}

// Ejection is an address that is left out, from the failure by which it is ejected until
// it works.
type Ejection struct {
	Addr   netip.AddrPort // not valid: a whole family
	Family int            // 4 or 6 if that is ejected; else 0
	Target string         // for which it is ejected; empty: for all
	Limit  Limit          // under which it is ejected; empty: always

	Failures int // since it last worked
	Reason   Reason
	For      time.Duration // for how long it is ejected at first

	Lasted time.Duration // since it began
	End    End
}

// End is how an ejection ended.
type End string

// The ends of ejections.
const (
	Worked    End = "worked"    // the address works again
	Lifted    End = "lifted"    // by the operator
	Forgotten End = "forgotten" // it has not been used for long, or others needed the room
)

// Observe sets the Observer, before the first failure.
func (t *Tracker) Observe(o Observer) { t.observer = o }

// reason returns the reason of a failure.
func (t *Tracker) reason(err error) Reason {
	if t.observer == nil || err == nil {
		return Reason{}
	}
	return t.observer.Reason(err)
}

// tell passes ejections to the observer. No lock is held.
func (t *Tracker) tell(list []Ejection) {
	for i := range list {
		switch e := &list[i]; {
		case t.observer == nil:
		case e.End == "":
			t.observer.Ejected(e)
		default:
			t.observer.Ended(e)
		}
	}
}

// ejectionPolicy is the part of Policies that decides which addresses count as ejected
// where no request asks.
type ejectionPolicy struct {
	maxFails int
	ejectFor time.Duration
}

// Use makes a policy one of those in use, by which ejections are counted and told of: an
// address counts as ejected if it is for one of them. The policy is in use until release
// is called.
func (t *Tracker) Use(maxFails int, ejectFor time.Duration) (release func()) {
	if ejectFor <= 0 {
		return func() {}
	}
	p := ejectionPolicy{maxFails, ejectFor}
	t.countPolicy(p, 1)
	return func() { t.countPolicy(p, -1) }
}

// countPolicy changes how often a policy is in use. It is in the list once: the list is
// read for each failure and each record, and thousands of sites may have the same policy.
func (t *Tracker) countPolicy(p ejectionPolicy, by int) {
	t.policiesMu.Lock()
	defer t.policiesMu.Unlock()
	if t.policyUses == nil {
		t.policyUses = make(map[ejectionPolicy]int)
	}
	t.policyUses[p] += by
	if t.policyUses[p] == 0 {
		delete(t.policyUses, p)
	}
	list := slices.Collect(maps.Keys(t.policyUses))
	t.policies.Store(&list)
}

// policyFor returns the policy in use that ejects an address with so many failures for
// longest, or else the one that ejects it soonest, if it fails again. Without any, it is
// one that ejects nothing.
func (t *Tracker) policyFor(l Limit, fails int) Policy {
	best := Policy{MaxFails: math.MaxInt, Retryable: true}
	for _, p := range t.inUse() {
		other := Policy{MaxFails: p.maxFails, EjectFor: p.ejectFor, Retryable: true}
		if other.maxFails(l) > fails {
			if other.MaxFails < best.MaxFails {
				best = other
			}
		} else if best.maxFails(l) > fails || other.EjectFor > best.EjectFor {
			best = other
		}
	}
	return best
}

// longest returns the longest time for which a policy in use ejects; 0: none does.
func (t *Tracker) longest() (ejectFor time.Duration) {
	for _, p := range t.inUse() {
		ejectFor = max(ejectFor, p.ejectFor)
	}
	return ejectFor
}

// inUse returns the policies in use.
func (t *Tracker) inUse() []ejectionPolicy {
	if list := t.policies.Load(); list != nil {
		return *list
	}
	return nil
}

// appendBegun appends the ejection of a record that begins with its last failure, if one
// does; the shard's lock is held.
func (t *Tracker) appendBegun(list []Ejection, id recordID, r *record, now time.Time) []Ejection {
	if !r.ejectedAt.IsZero() || r.fails == 0 {
		return list
	}
	p := t.policyFor(id.limit, r.fails)
	if r.fails < p.maxFails(id.limit) {
		return list
	}
	r.ejectedAt = now
	return append(list, Ejection{
		Addr: id.addr, Target: id.target, Limit: id.limit, Failures: r.fails, Reason: r.reason, For: p.EjectFor,
	})
}

// appendEnded appends the ejection of a record that is deleted, if it is ejected; the
// shard's lock is held.
func (r *record) appendEnded(list []Ejection, id recordID, by End, now time.Time) []Ejection {
	if r == nil || r.ejectedAt.IsZero() {
		return list
	}
	return append(list, Ejection{
		Addr: id.addr, Target: id.target, Limit: id.limit, Failures: r.fails, Reason: r.reason, Lasted: now.Sub(r.ejectedAt), End: by,
	})
}
