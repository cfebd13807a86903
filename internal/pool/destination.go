package pool

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// destination is a Key that is in use: its connections, the requests that wait for
// one, and the dials under way. shard.mu guards it. It goes with the last of them.
type destination struct {
	key   Key
	shard *shard
	slot  int    // in shard.slots
	group string // what its connections count for in Limits

	conns       []*conn // all that are open
	idle        []*conn // those of HTTP/1.1 that are idle, the one used last at the end
	h2Conns     []*conn // those of HTTP/2 that take requests, idle or not
	waiters     []*waiter
	limited     int // how many of them have waiter.limited
	dials       []*dial
	speaksHTTP2 bool // the last connection that was opened is one of HTTP/2

	dialCount int           // how often delayNextDial was asked
	dialDelay time.Duration // see firstDialDelay

	source any                        // Owner.Source of the last order
	moved  func(addr netip.Addr) bool // Owner.Watch of the last order
}

// destination returns the destination of an order, a new one if need be; s.mu is held.
func (s *shard) destination(p *Pool, o *Order) *destination {
	d := s.destinations[o.Key]
	if d == nil {
		d = &destination{key: o.Key, shard: s, dialDelay: firstDialDelay, speaksHTTP2: o.Key.Protocol == HTTP2}
		// a name may be a substring of something large
		d.key.Host = strings.Clone(o.Key.Host)
		d.key.ServerName = d.key.Host
		if o.Key.ServerName != o.Key.Host {
			d.key.ServerName = strings.Clone(o.Key.ServerName)
		}
		d.group = p.limits.groupOf(d.key.Host, o.Key.Addr)
		s.destinations[d.key] = d
		s.slots.add(d)
	}
	if o.Owner != nil && o.Owner.Source() != d.source {
		d.source, d.moved = o.Owner.Source(), o.Owner.Watch()
	}
	return d
}

// dropUnused removes a destination that has nothing left; s.mu is held.
func (s *shard) dropUnused(d *destination) {
	if len(d.conns)+len(d.waiters)+len(d.dials) == 0 && s.destinations[d.key] == d {
		delete(s.destinations, d.key)
		s.slots.remove(d)
	}
}

// takeAvailable returns a connection of HTTP/2 with a free stream, or the idle
// connection of HTTP/1.1 that was used last, or nil; shard.mu is held. It is in use
// from then on.
func (d *destination) takeAvailable() *conn {
	for _, c := range d.h2Conns {
		if c.reserveStream() {
			return c
		}
	}
	n := len(d.idle) - 1
	if n < 0 {
		return nil
	}
	c := d.idle[n]
	d.idle[n] = nil
	d.idle = d.idle[:n]
	d.shard.unlistIdle(c)
	return c
}

// putConn gives back a connection of HTTP/1.1 after a response, or a new one that no
// request has taken: it is delivered to a waiter, becomes idle, or is closed. stillIdle
// is true if it was idle before and was only checked.
func (p *Pool) putConn(c *conn, stillIdle bool) {
	d := c.destination
	s := d.shard
	now := time.Now()
	s.mu.Lock()
	if !stillIdle {
		c.idleSince = now
	}
	keep := true
	if !p.deliver(d, c, nil) {
		if keep = !p.closed.Load() && len(d.idle) < p.config.MaxIdlePerKey; keep {
			d.idle = append(d.idle, c)
			s.listIdle(c)
		}
	}
	s.mu.Unlock()
	if !keep {
		p.discard(c)
		return
	}
	p.closeSurplus()
}

// addConn adds a new connection to its destination; shard.mu is held.
func (p *Pool) addConn(d *destination, c *conn) {
	c.index = len(d.conns)
	d.conns = append(d.conns, c)
	c.counted = true
	c.added.Store(true)
	d.shard.count.open[c.protocol()]++
	if c.h2 != nil {
		d.h2Conns = append(d.h2Conns, c)
	}
	p.open.Add(1)
}

// discard removes a connection from its destination and closes it. It may be called
// more than once.
func (p *Pool) discard(c *conn) {
	d := c.destination
	s := d.shard
	s.mu.Lock()
	p.removeConn(c)
	counted := c.counted
	c.counted = false
	if c.detached {
		c.detached = false
		s.count.upgraded--
	}
	c.wasted()
	s.mu.Unlock()
	c.close()
	if counted {
		p.open.Add(-1)
		p.limits.release(d.group)
		p.dialLimited(d)
	}
}

// detach removes a connection that changes its protocol from its destination. It
// counts as open until it is discarded.
func (p *Pool) detach(c *conn) {
	s := c.destination.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	p.removeConn(c)
	if c.counted { // else it was discarded
		c.detached = true
		s.count.upgraded++
	}
}

// removeConn removes a connection from its destination, if it is there; shard.mu is
// held. Waiters may dial in its place.
func (p *Pool) removeConn(c *conn) {
	d := c.destination
	if c.index < 0 {
		return
	}
	last := len(d.conns) - 1
	other := d.conns[last]
	d.conns[c.index], other.index = other, c.index
	d.conns[last] = nil
	d.conns = d.conns[:last]
	c.index = -1
	d.shard.count.open[c.protocol()]--
	if i := slices.Index(d.h2Conns, c); i >= 0 {
		d.h2Conns = slices.Delete(d.h2Conns, i, i+1)
	}
	c.destination.removeIdle(c)
	p.assignDials(d)
	d.shard.dropUnused(d)
}

// deliver gives a connection to the request that has waited longest. If it was just
// opened, by is its dial, else nil. It reports whether a request waited; shard.mu is
// held.
func (p *Pool) deliver(d *destination, c *conn, by *dial) bool {
	if len(d.waiters) == 0 {
		return false
	}
	w := d.waiters[0]
	p.removeWaiter(d, w)
	w.ready <- answer{conn: c, fresh: by != nil, dial: by}
	return true
}
