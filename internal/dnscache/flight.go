package dnscache

import (
	"context"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// flight is a lookup while it is in flight. It asks for all families at once,
// unless Config.Sequential says otherwise, and publishes what comes back: once
// when that is enough for the readers who wait, and once more if another family
// is late.
//
// It has no goroutine of its own, but goes on when a reply comes or a timer fires.
// While very many names are never answered, the memory of each flight counts.
type flight struct {
	cache    *Cache
	node     *node
	call     *call
	ctx      context.Context
	cancel   context.CancelFunc
	onFinish func() // nil: nothing

	// Of a flight for readers.
	forReader bool
	lease     *lease

	old   *entry // when the lookup began
	order Family
	start time.Duration

	mu           sync.Mutex
	base         *entry  // into which replies are merged: old, or what was restored after the beginning
	unanswered   int     // families that are asked for and have not been answered
	unasked      [2]bool // families to be asked for, but not yet
	held         bool    // one family is not asked for, since its NODATA holds
	replies      [2]reply
	released     bool        // the lease was released before the end
	v6Timer      *time.Timer // until IPv6 is asked for anyway; nil if it was asked for at once
	slowTimer    *time.Timer // until the slot is released; nil if the name is not likely to be slow
	graceTimer   *time.Timer // until the readers get what there is; nil before the first addresses
	overdueTimer *time.Timer // until another family has to be refreshed; nil if none will have to
}

func (c *Cache) newFlight(n *node, cl *call) *flight {
	f := &flight{cache: c, node: n, call: cl}
	f.ctx, f.cancel = context.WithTimeout(c.ctx, c.cfg.Deadline)
	return f
}

// beginForReader begins a flight that has taken one of the slots for readers.
func (f *flight) beginForReader() {
	f.forReader = true
	f.lease = f.cache.slots.lease(f.cancel)
	f.begin()
}

// begin asks. The flight may have ended when it returns.
func (f *flight) begin() {
	c := f.cache
	f.old, f.start = f.node.entry.Load(), c.cfg.Now()
	f.base = f.old
	f.order = serviceRecords
	if !f.old.isService() {
		f.order = c.cfg.Family()
	}
	asked := f.old.state.wanted(f.order, f.start, f.call.renewal)
	if f.call.allTypes {
		asked = families(f.order)
	}
	f.unanswered = len(asked)
	f.held = len(asked) == 1 && len(families(f.order)) > 1 && f.old.state.holdsNoData(1-asked[0], f.start)
	if f.forReader && f.old.state.likelySlow() {
		f.slowTimer = time.AfterFunc(slowAfter, f.releaseIfUnanswered)
	}
	// A slow family must not keep the other one from being refreshed.
	if rest := f.old.state.untilOverdue(asked, f.start); rest < math.MaxInt64 {
		f.overdueTimer = time.AfterFunc(rest, f.cancel)
	}
	if len(asked) > 1 && c.cfg.Sequential() {
		asked, f.unasked[v6] = []family{v4}, true
		f.v6Timer = time.AfterFunc(c.cfg.Deadline/2, f.askUnasked)
	}
	for _, fam := range asked {
		f.ask(fam)
	}
}

// askUnasked asks for the family for which that was put off, if there is one.
func (f *flight) askUnasked() {
	f.mu.Lock()
	unasked := f.unasked
	f.unasked = [2]bool{}
	f.mu.Unlock()
	for fam, is := range unasked {
		if is {
			f.ask(family(fam))
		}
	}
}

// ask sends one question.
func (f *flight) ask(fam family) {
	ex, name := f.cache.ex, f.old.name()
	if f.old.isService() {
		ex.AskSRV(f.ctx, name, func(records []net.SRV, ttl time.Duration, err error) {
			f.received(reply{family: fam, records: records, ttl: ttl, err: err})
		})
		return
	}
	ex.Ask(f.ctx, name, fam.qtype(), func(addrs []netip.Addr, ttl time.Duration, err error) {
		f.received(reply{family: fam, addrs: addrs, ttl: ttl, err: err})
	})
}

// received handles what came back for one family.
func (f *flight) received(r reply) {
	c := f.cache
	if r.err != nil {
		r.addrs, r.records = nil, nil
		switch {
		case c.ctx.Err() != nil:
			r.err = ErrClosed
		case f.forReader && f.lease.wasPreempted():
			r.err = ErrOverloaded
		}
	}
	r.done, r.at = true, c.cfg.Now()
	if f.record(r) {
		c.checkPreloaded(f.node)
		c.wg.Done()
		return
	}
	f.askUnasked()
}

// record stores a reply. The last one ends the flight: then record returns true, and
// Close waits for the caller.
func (f *flight) record(r reply) (ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replies[r.family] = r
	if _, negative := negativeTTL(&f.cache.cfg, r.err); f.held && negative && r.empty() {
		// A name that had addresses must not be taken to have none unless both
		// families were asked for: it may have moved to the other one.
		f.held = false
		f.unasked[1-r.family] = true
		f.unanswered++
		if !f.forReader {
			f.cache.sched.chargeOne(f.node)
		}
	}
	switch f.unanswered--; {
	case f.unanswered == 0:
		f.finish()
		return true
	case len(r.addrs) > 0:
		f.graceTimer = time.AfterFunc(familyGrace, f.answerReaders)
	}
	return false
}

// releaseIfUnanswered releases the slot of a slow lookup.
func (f *flight) releaseIfUnanswered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unanswered > 0 {
		f.releaseSlot()
	}
}

// answerReaders gives the readers who wait the family that was answered, and goes
// on waiting for the other one.
func (f *flight) answerReaders() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unanswered == 0 {
		return
	}
	f.call.entry = f.publish()
	close(f.call.done)
	f.releaseSlot()
	for fam, r := range f.replies {
		if r.done {
			rest := f.call.entry.state.overdueAt(family(fam)) - r.at
			if f.overdueTimer != nil {
				f.overdueTimer.Stop()
			}
			f.overdueTimer = time.AfterFunc(rest, f.cancel)
		}
	}
}

// releaseSlot releases a reader's slot before the end of the flight, unless too
// many flights in progress have done so; f.mu is held.
func (f *flight) releaseSlot() {
	c := f.cache
	if !f.forReader || f.released {
		return
	}
	select {
	case c.slowLookups <- struct{}{}:
		f.released = true
		c.pending.release(f.call.domain)
		f.lease.release()
	default:
	}
}

// publish merges what has come back into the cache; f.mu is held.
func (f *flight) publish() *entry {
	c, now := f.cache, f.cache.cfg.Now()
	for {
		if current := f.node.entry.Load(); current.state.restored {
			f.base = current // maybe after the lookup began
		}
		e := merge(&c.cfg, f.base, f.replies, f.order, now)
		c.trim(e, f.node.entry.Load())
		e.state.slow = now-f.start > slowAfter
		if f.call.renewal && slices.Equal(e.addrs(), f.base.addrs()) {
			e.state.renewals = min(f.base.state.renewals+1, maxRenewals)
		}
		if c.publish(f.node, f.base, e, f.call.entry == nil) {
			return e
		}
	}
}

// finish ends the flight; f.mu is held.
func (f *flight) finish() {
	c := f.cache
	for _, timer := range []*time.Timer{f.v6Timer, f.slowTimer, f.graceTimer, f.overdueTimer} {
		if timer != nil {
			timer.Stop()
		}
	}
	f.cancel()
	e := f.publish()
	readersWait := f.call.entry == nil
	if readersWait {
		f.call.entry = e
	}
	f.node.call.Store(nil)
	c.scheduleNext(f.node, e)
	c.sched.callEnded(f.node, f.call)
	if readersWait {
		close(f.call.done)
	}
	switch {
	case f.released:
		<-c.slowLookups
	case f.forReader:
		c.pending.release(f.call.domain)
		f.lease.release()
	}
	if f.onFinish != nil {
		f.onFinish()
	}
}
