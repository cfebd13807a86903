package pool

import (
	"context"
	"time"
)

// This file is for operators: which connections there are. Nothing in it opens or uses
// one, and it holds the lock of one shard at a time, for a limited number of connections.

// Usage is what there is for a Key. Times are from now on.
type Usage struct {
	Key Key

	HTTP2    bool // the last connection that was opened is one of HTTP/2
	Idle     int  // connections that no request uses
	InUse    int  // connections that requests use
	Requests int  // that use them
	Waiting  int  // requests that wait for a connection
	Dialling int  // dials under way, also those that no request waits for

	Oldest   time.Duration // how long ago the first of its connections was opened; 0: there is none
	Newest   time.Duration // how long ago the last one was
	Unused   time.Duration // how long the connection that was used last has been idle; 0: none is idle
	DialPast time.Duration // how long ago the first of its dials began a phase; 0: none is under way
	Phase    Phase         // which phase that is
}

// Protocol returns what is spoken over the connections: http/1.1, or h2 over TLS, or h2c. It
// is empty if that has not been negotiated yet.
func (u *Usage) Protocol() string {
	switch {
	case u.Key.Protocol == HTTP2:
		return "h2c"
	case u.HTTP2:
		return "h2"
	case u.Key.Protocol == TLS && u.Idle+u.InUse == 0:
		return ""
	}
	return "http/1.1"
}

// usage returns what there is for a destination; shard.mu is held.
func (d *destination) usage(now time.Time) Usage {
	u := Usage{Key: d.key, HTTP2: d.speaksHTTP2, InUse: len(d.conns), Waiting: len(d.waiters), Dialling: len(d.dials)}
	for _, c := range d.conns {
		age := now.Sub(c.openedAt)
		if u.Oldest = max(u.Oldest, age); u.Newest == 0 || age < u.Newest {
			u.Newest = age
		}
		switch {
		case c.idle:
			u.Idle++
			u.InUse--
			if unused := now.Sub(c.idleSince); u.Unused == 0 || unused < u.Unused {
				u.Unused = unused
			}
		case c.h2 != nil:
			u.Requests += c.active
		default:
			u.Requests++
		}
	}
	for _, n := range d.dials {
		if past := now.Sub(n.phaseBegan); past > u.DialPast {
			u.DialPast, u.Phase = past, n.phase
		}
	}
	return u
}

// Usages returns what there is for keys, page by page: for those that match, of which the
// rest has to match, too. It begins at a position, which is that of a page before, or 0,
// and returns up to limit and, if there may be more, the position to go on from; else 0.
// A key that is in use from the first page to the last one is on one page. key and rest
// are called with a lock held. The error is that of ctx.
//
// A position is one more than that of scan, so that none but the beginning is 0.
func (p *Pool) Usages(ctx context.Context, from uint64, limit int, key func(*Key) bool, rest func(*Usage) bool) (page []Usage, next uint64, err error) {
	for at, d := range p.scan(max(from, 1) - 1) {
		if d == nil { // no lock is held
			if err := context.Cause(ctx); err != nil {
				return nil, 0, err
			}
			continue
		}
		if !key(&d.key) {
			continue
		}
		u := d.usage(time.Now())
		if !rest(&u) {
			continue
		}
		if len(page) == limit {
			return page, at + 1, nil
		}
		page = append(page, u)
	}
	return page, 0, nil
}

// CloseIdle closes the idle connections of the keys that match, and returns how many these
// were. match is called with a lock held.
func (p *Pool) CloseIdle(match func(*Key) bool) (closed int) {
	var closing []*conn
	for _, d := range p.scan(0) {
		if d == nil { // no lock is held
			for _, c := range closing {
				p.discard(c)
			}
			closed += len(closing)
			closing = closing[:0]
			continue
		}
		if !match(&d.key) {
			continue
		}
		first := len(closing)
		for _, c := range d.conns {
			if c.idle {
				closing = append(closing, c)
			}
		}
		for _, c := range closing[first:] {
			p.removeConn(c)
		}
	}
	return closed
}

// Counts is how many connections a pool has, by protocol: of HTTP/1.1 and of HTTP/2.
type Counts struct {
	Idle, InUse [protocolCount]int
	Upgraded    int                 // connections whose protocol was switched, as for a WebSocket
	Dialling    [dialPhaseCount]int // dials under way, by phase
}

const protocolCount = 2

// connCount counts the connections of a shard, by protocol.
type connCount struct {
	open, idle [protocolCount]int // those of destinations; idle is a part of open
	upgraded   int                // those that were detached
	dials      [dialPhaseCount]int
}

// protocol returns the index of the connection's protocol in a connCount.
func (c *conn) protocol() int {
	if c.h2 != nil {
		return 1
	}
	return 0
}

// Counts returns how many connections there are.
func (p *Pool) Counts() (sum Counts) {
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		for protocol, open := range s.count.open {
			sum.Idle[protocol] += s.count.idle[protocol]
			sum.InUse[protocol] += open - s.count.idle[protocol]
		}
		sum.Upgraded += s.count.upgraded
		for phase, n := range s.count.dials {
			sum.Dialling[phase] += n
		}
		s.mu.Unlock()
	}
	return sum
}
