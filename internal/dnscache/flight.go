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

// flight is a lookup while it is in flight. All families are asked for at once
// (unless Config.Sequential says otherwise), and what comes back is published: once when that is enough for those who wait,
// and once more if another family is late.
//
// It has no goroutine of its own, but goes on where a reply comes or a time is
// up: while very many names are never answered, what each one holds counts.
type flight struct {
	cache    *Cache
	node     *node
	call     *call
	ctx      context.Context
	cancel   context.CancelFunc
	onFinish func() // called at the end

	// Of a flight for readers.
	forReader bool
	lease     *way

	old   *entry
	order Family
	start time.Duration

	mu           sync.Mutex
	unanswered   int  // families that have not been answered
	v6Unasked    bool // IPv6 is to be asked for, but not yet
	replies      [2]reply
	released     bool        // its slot has been given back
	v6Timer      *time.Timer // until IPv6 is asked for anyway; nil if it was at once
	slowTimer    *time.Timer // until that; nil if it is not likely to take long
	graceTimer   *time.Timer // until those who wait wait no longer; nil before the first addresses
	overdueTimer *time.Timer // until another family has to be refreshed; nil if none will have to
}

func (c *Cache) newFlight(n *node, cl *call) *flight {
	f := &flight{cache: c, node: n, call: cl}
	f.ctx, f.cancel = context.WithTimeout(c.ctx, c.cfg.Deadline)
	return f
}

// beginForReader begins a flight that has one of the slots for readers.
func (f *flight) beginForReader() {
	f.forReader = true
	f.lease = f.cache.turns.watch(f.cancel)
	f.begin()
}

// begin asks. It may end the flight as well.
func (f *flight) begin() {
	c := f.cache
	f.old, f.start = f.node.entry.Load(), c.cfg.Now()
	f.order = serviceRecords
	if !f.old.isService() {
		f.order = c.cfg.Family()
	}
	asked := f.old.state.wanted(f.order, f.start, f.call.renewal)
	f.unanswered = len(asked)
	if f.forReader && f.old.state.likelySlow() {
		f.slowTimer = time.AfterFunc(slowAfter, f.releaseIfUnanswered)
	}
	// A family that takes long must not keep the other one from being refreshed.
	if patience := f.old.state.untilOverdue(asked, f.start); patience < math.MaxInt64 {
		f.overdueTimer = time.AfterFunc(patience, f.cancel)
	}
	if len(asked) > 1 && c.cfg.Sequential() {
		asked, f.v6Unasked = []family{v4}, true
		f.v6Timer = time.AfterFunc(c.cfg.Deadline/2, f.askV6)
	}
	for _, of := range asked {
		f.ask(of)
	}
}

// askSecond asks for the family that was left for later, if that was not done yet.
func (f *flight) askV6() {
	f.mu.Lock()
	v6Unasked := f.v6Unasked
	f.v6Unasked = false
	f.mu.Unlock()
	if v6Unasked {
		f.ask(v6)
	}
}

// ask puts one question.
func (f *flight) ask(of family) {
	ex, name := f.cache.ex, f.old.name()
	if f.old.isService() {
		ex.AskSRV(f.ctx, name, func(records []net.SRV, ttl time.Duration, err error) {
			f.received(reply{family: of, records: records, ttl: ttl, err: err})
		})
		return
	}
	ex.Ask(f.ctx, name, of.qtype(), func(addrs []netip.Addr, ttl time.Duration, err error) {
		f.received(reply{family: of, addrs: addrs, ttl: ttl, err: err})
	})
}

// got takes what came back for one family.
func (f *flight) received(r reply) {
	c := f.cache
	if r.err != nil {
		r.addrs, r.records = nil, nil
		switch {
		case c.ctx.Err() != nil:
			r.err = ErrClosed
		case f.forReader && f.lease.gaveWay():
			r.err = ErrOverloaded
		}
	}
	r.done, r.at = true, c.cfg.Now()
	f.record(r)
	f.askV6()
}

func (f *flight) record(r reply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replies[r.family] = r
	switch f.unanswered--; {
	case f.unanswered == 0:
		f.finish()
	case len(r.addrs) > 0:
		f.graceTimer = time.AfterFunc(familyGrace, f.answerWaiters)
	}
}

// takesLong is called when the rest is likely to take long.
func (f *flight) releaseIfUnanswered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unanswered > 0 {
		f.releaseSlot()
	}
}

// goOnAlone lets those go who wait, when one family has been answered.
func (f *flight) answerWaiters() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unanswered == 0 {
		return
	}
	f.call.entry = f.publish()
	close(f.call.done)
	f.releaseSlot()
	for of, r := range f.replies {
		if r.done {
			rest := f.call.entry.state.overdueAt(family(of)) - r.at
			if f.overdueTimer != nil {
				f.overdueTimer.Stop()
			}
			f.overdueTimer = time.AfterFunc(rest, f.cancel)
		}
	}
}

// leaveSlot gives the slot back early, if there are not too many that did.
func (f *flight) releaseSlot() {
	c := f.cache
	if !f.forReader || f.released {
		return
	}
	select {
	case c.slowLookups <- struct{}{}:
		f.released = true
		f.lease.close()
		c.pending.release(f.call.domain)
		<-c.slots
	default:
	}
}

// publish makes what has come back known.
func (f *flight) publish() *entry {
	c, now := f.cache, f.cache.cfg.Now()
	e := merge(&c.cfg, f.old, f.replies, f.order, now)
	c.trim(e, f.node.entry.Load())
	e.state.slow = now-f.start > slowAfter
	if f.call.renewal && slices.Equal(e.addrs(), f.old.addrs()) {
		e.state.asked = min(f.old.state.asked, maxRenewals) + 1
	}
	c.publish(f.node, e, f.call.entry == nil)
	return e
}

// land ends the flight.
func (f *flight) finish() {
	c := f.cache
	for _, timer := range []*time.Timer{f.v6Timer, f.slowTimer, f.graceTimer, f.overdueTimer} {
		if timer != nil {
			timer.Stop()
		}
	}
	f.cancel()
	e := f.publish()
	waiting := f.call.entry == nil
	if waiting {
		f.call.entry = e
	}
	f.node.call.Store(nil)
	c.scheduleNext(f.node, e)
	if waiting {
		close(f.call.done)
	}
	switch {
	case f.released:
		<-c.slowLookups
	case f.forReader:
		c.pending.release(f.call.domain)
		<-c.slots
		f.lease.close()
	}
	if f.onFinish != nil {
		f.onFinish()
	}
	c.wg.Done()
}
