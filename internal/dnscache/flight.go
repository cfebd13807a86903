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
	cache  *Cache
	node   *node
	call   *call
	ctx    context.Context
	cancel context.CancelFunc
	landed func() // called at the end

	// Of a flight for readers.
	reader bool
	way    *way

	old   *entry
	order Family
	start time.Duration

	mu      sync.Mutex
	left    int  // families that have not been answered
	unasked bool // IPv6 is to be asked for, but not yet
	replies [2]reply
	early   bool        // its slot has been given back
	second  *time.Timer // until IPv6 is asked for anyway; nil if it was at once
	slow    *time.Timer // until that; nil if it is not likely to take long
	grace   *time.Timer // until those who wait wait no longer; nil before the first addresses
	overdue *time.Timer // until another family has to be refreshed; nil if none will have to
}

func (c *Cache) newFlight(n *node, cl *call) *flight {
	f := &flight{cache: c, node: n, call: cl}
	f.ctx, f.cancel = context.WithTimeout(c.ctx, c.cfg.Deadline)
	return f
}

// beginForReader begins a flight that has one of the slots for readers.
func (f *flight) beginForReader() {
	f.reader = true
	f.way = f.cache.turns.watch(f.cancel)
	f.begin()
}

// begin asks. It may end the flight as well.
func (f *flight) begin() {
	c := f.cache
	f.old, f.start = f.node.entry.Load(), c.cfg.Now()
	f.order = services
	if !f.old.service() {
		f.order = c.cfg.Family()
	}
	asked := f.old.more.wanted(f.order, f.start, f.call.renewal)
	f.left = len(asked)
	if f.reader && f.old.more.limited() {
		f.slow = time.AfterFunc(slotTime, f.takesLong)
	}
	// A family that takes long must not keep the other one from being refreshed.
	if patience := f.old.more.patience(asked, f.start); patience < math.MaxInt64 {
		f.overdue = time.AfterFunc(patience, f.cancel)
	}
	if len(asked) > 1 && c.cfg.Sequential() {
		asked, f.unasked = []family{v4}, true
		f.second = time.AfterFunc(c.cfg.Deadline/2, f.askSecond)
	}
	for _, of := range asked {
		f.ask(of)
	}
}

// askSecond asks for the family that was left for later, if that was not done yet.
func (f *flight) askSecond() {
	f.mu.Lock()
	unasked := f.unasked
	f.unasked = false
	f.mu.Unlock()
	if unasked {
		f.ask(v6)
	}
}

// ask puts one question.
func (f *flight) ask(of family) {
	ex, name := f.cache.ex, f.old.name()
	if f.old.service() {
		ex.AskSRV(f.ctx, name, func(records []net.SRV, ttl time.Duration, err error) {
			f.got(reply{family: of, services: records, ttl: ttl, err: err})
		})
		return
	}
	ex.Ask(f.ctx, name, of.qtype(), func(addrs []netip.Addr, ttl time.Duration, err error) {
		f.got(reply{family: of, addrs: addrs, ttl: ttl, err: err})
	})
}

// got takes what came back for one family.
func (f *flight) got(r reply) {
	c := f.cache
	if r.err != nil {
		r.addrs, r.services = nil, nil
		switch {
		case c.ctx.Err() != nil:
			r.err = ErrClosed
		case f.reader && f.way.gaveWay():
			r.err = ErrOverloaded
		}
	}
	r.done, r.at = true, c.cfg.Now()
	f.take(r)
	f.askSecond()
}

func (f *flight) take(r reply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replies[r.family] = r
	switch f.left--; {
	case f.left == 0:
		f.land()
	case len(r.addrs) > 0:
		f.grace = time.AfterFunc(familyGrace, f.goOnAlone)
	}
}

// takesLong is called when the rest is likely to take long.
func (f *flight) takesLong() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left > 0 {
		f.leaveSlot()
	}
}

// goOnAlone lets those go who wait, when one family has been answered.
func (f *flight) goOnAlone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		return
	}
	f.call.entry = f.publish()
	close(f.call.done)
	f.leaveSlot()
	for of, r := range f.replies {
		if r.done {
			rest := f.call.entry.more.overdue(family(of)) - r.at
			if f.overdue != nil {
				f.overdue.Stop()
			}
			f.overdue = time.AfterFunc(rest, f.cancel)
		}
	}
}

// leaveSlot gives the slot back early, if there are not too many that did.
func (f *flight) leaveSlot() {
	c := f.cache
	if !f.reader || f.early {
		return
	}
	select {
	case c.slow <- struct{}{}:
		f.early = true
		f.way.close()
		c.pending.leave(f.call.domain)
		<-c.slots
	default:
	}
}

// publish makes what has come back known.
func (f *flight) publish() *entry {
	c, now := f.cache, f.cache.cfg.Now()
	e := merge(&c.cfg, f.old, f.replies, f.order, now)
	c.fit(e, f.node.entry.Load())
	e.more.slow = now-f.start > slotTime
	if f.call.renewal && slices.Equal(e.addrs(), f.old.addrs()) {
		e.more.asked = min(f.old.more.asked, maxRenewals) + 1
	}
	c.publish(f.node, e, f.call.entry == nil)
	return e
}

// land ends the flight.
func (f *flight) land() {
	c := f.cache
	for _, timer := range []*time.Timer{f.second, f.slow, f.grace, f.overdue} {
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
	c.plan(f.node, e)
	if waiting {
		close(f.call.done)
	}
	switch {
	case f.early:
		<-c.slow
	case f.reader:
		c.pending.leave(f.call.domain)
		<-c.slots
		f.way.close()
	}
	if f.landed != nil {
		f.landed()
	}
	c.wg.Done()
}
