package pool

import (
	"slices"
	"time"
)

// A request over HTTP/2 gets a stream in two steps. reserveStream takes one by what the
// pool knows. It is called with shard.mu held, so it must not wait for the client of
// HTTP/2, whose locks are held during writes. claimStream then asks the client, without
// shard.mu. releaseStream is called at the end of the request.

// reserveStream reserves a stream for a request and reports whether there may be one;
// shard.mu is held.
func (c *conn) reserveStream() bool {
	// Before the backend's SETTINGS are known, it takes one request.
	if c.retired || c.full || c.gone.Load() || c.active > 0 && !c.settingsRead.Load() || c.congested() {
		return false
	}
	c.active++
	c.unclaimed.Add(1)
	c.destination.shard.unlistIdle(c)
	return true
}

// claimStream reserves a stream of the client of HTTP/2, for a request for which the pool
// has reserved one. If the client has none, the connection counts as full, and the pool
// releases the stream.
func (c *conn) claimStream() bool {
	defer c.unclaimed.Add(-1)
	if c.h2.ReserveNewRequest() {
		return true
	}
	p, s := c.pool, c.destination.shard
	ending := c.gone.Load() || !c.settingsRead.Load() && !c.h2.CanTakeNewRequest()
	s.mu.Lock()
	c.active--
	c.full, c.wasFull = true, true
	over := c.active == 0 && ending || p.idleOrSurplus(c)
	s.mu.Unlock()
	if over {
		p.discard(c)
	} else {
		go p.recheck(c)
	}
	return false
}

// recheckTime is how long recheck waits for a free stream.
const recheckTime = 200 * time.Millisecond

// recheck waits until a connection that was full takes requests again: the client of
// HTTP/2 notices the end of a stream a little later than the reader of its response. A
// connection that takes no request although none uses it, after a GOAWAY, is closed.
func (p *Pool) recheck(c *conn) {
	for wait := 50 * time.Microsecond; wait < recheckTime && !c.gone.Load(); wait *= 2 {
		if c.h2.CanTakeNewRequest() {
			p.streamFreed(c)
			return
		}
		time.Sleep(wait)
	}
	s := c.destination.shard
	s.mu.Lock()
	over := c.active == 0
	s.mu.Unlock()
	if over {
		p.discard(c)
	}
}

// serveWaiters gives streams of a connection to requests that wait, and reports whether the
// connection is in use; shard.mu is held. If the connection was just opened, by is its dial,
// else nil.
func (p *Pool) serveWaiters(c *conn, by *dial) bool {
	d := c.destination
	for len(d.waiters) > 0 && c.index >= 0 && c.reserveStream() {
		p.deliver(d, c, by)
		by = nil
	}
	return c.active > 0
}

// streamFreed is called when a connection takes requests again.
func (p *Pool) streamFreed(c *conn) {
	s := c.destination.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	c.full = false
	p.serveWaiters(c, nil)
	p.assignDials(c.destination)
}

// othersTakeRequests reports whether a connection of HTTP/2 other than c takes requests, so
// that c, a new one, is not needed; shard.mu is held. One with a stream that is not claimed
// yet does not count: it may refuse that.
func (d *destination) othersTakeRequests(c *conn) bool {
	return slices.ContainsFunc(d.h2Conns, func(other *conn) bool {
		return other != c && !other.full && other.unclaimed.Load() == 0
	})
}

// idleOrSurplus lists a connection as idle if no request uses it. It reports whether the
// connection is to be closed instead; shard.mu is held.
func (p *Pool) idleOrSurplus(c *conn) (surplus bool) {
	d := c.destination
	if c.active > 0 || c.index < 0 || c.idle {
		return false
	}
	if c.retired || p.closed.Load() || p.config.DisableKeepAlive {
		return true
	}
	c.idleSince = time.Now()
	d.shard.listIdle(c)
	return false
}

// releaseStream is called when a request has ended. It reports whether the connection was
// ever full.
func (p *Pool) releaseStream(c *conn) (wasFull bool) {
	s := c.destination.shard
	s.mu.Lock()
	wasFull = c.wasFull
	c.active--
	recheck := c.full
	if !recheck && len(c.destination.waiters) > 0 {
		if recheck = wasFull; !recheck {
			p.serveWaiters(c, nil)
		}
	}
	surplus := p.idleOrSurplus(c)
	s.mu.Unlock()
	if recheck && !surplus {
		go p.recheck(c)
	}
	if surplus {
		p.discard(c)
	}
	p.closeSurplus()
	return wasFull
}

// retire keeps further requests from a connection. It is closed when no request uses it.
func (p *Pool) retire(c *conn) {
	d := c.destination
	d.shard.mu.Lock()
	defer d.shard.mu.Unlock()
	c.retired = true
	if i := slices.Index(d.h2Conns, c); i >= 0 {
		d.h2Conns = slices.Delete(d.h2Conns, i, i+1)
	}
}
