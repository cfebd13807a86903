package pool

import (
	"sync"
	"time"
)

const (
	// sweepInterval is the time between two sweeps.
	sweepInterval = time.Second

	// checkInterval is the time after which the sweeper checks an idle connection
	// again.
	checkInterval = 3 * time.Second

	// movedIdle is how long a connection has to have been idle before the sweeper asks
	// whether the target still has its address.
	movedIdle = 10 * time.Second
)

// sweeper is a goroutine that calls sweep while connections are open.
type sweeper struct {
	mu      sync.Mutex
	running bool
	wake    chan struct{} // makes it see that no connection is open
	done    chan struct{} // closed at its end
}

// start starts the sweeper if it is not running.
func (w *sweeper) start(p *Pool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running {
		return
	}
	w.running = true
	w.wake, w.done = make(chan struct{}, 1), make(chan struct{})
	go func(done chan<- struct{}) {
		defer close(done)
		ticker := time.NewTicker(sweepInterval)
		defer ticker.Stop()
		for w.keepRunning(p) {
			select {
			case now := <-ticker.C:
				p.sweep(now)
			case <-w.wake:
			}
		}
	}(w.done)
}

// keepRunning reports whether connections are open.
func (w *sweeper) keepRunning(p *Pool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = p.open.Load() > 0
	return w.running
}

// stop waits for the end of the sweeper if no connection is open. Otherwise the sweeper
// ends by itself, soon after the last connection.
func (w *sweeper) stop(p *Pool) {
	w.mu.Lock()
	done := w.done
	if w.running {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	w.mu.Unlock()
	if done != nil && p.open.Load() == 0 {
		select {
		case <-done:
		case <-time.After(sweepInterval): // a connection was opened meanwhile
		}
	}
}

// sweep closes connections that have been idle for too long, whose address the target
// no longer has, that the backend has closed, or whose descriptors clients need. It aborts those in use whose backend
// has gone silent.
func (p *Pool) sweep(now time.Time) {
	p.limits.relieve(p)
	for i := range p.shards {
		p.sweepShard(&p.shards[i], now)
	}
}

func (p *Pool) sweepShard(s *shard, now time.Time) {
	var closing, checking, busy []*conn
	s.mu.Lock()
	for _, d := range s.destinations {
		for _, c := range d.conns {
			if !c.idle {
				busy = append(busy, c)
				continue
			}
			idle := now.Sub(c.idleSince)
			switch t := p.config.IdleTimeout; {
			case t > 0 && idle >= t, idle >= movedIdle && d.moved != nil && d.moved(d.key.Addr.Addr()):
				closing = append(closing, c)
			case c.h2 == nil && now.Sub(c.checkedAt) >= checkInterval && idle >= sweepInterval:
				c.checkedAt = now
				checking = append(checking, c)
			}
		}
	}
	for _, c := range closing {
		p.removeConn(c)
	}
	s.mu.Unlock()
	for _, c := range closing {
		p.discard(c)
	}
	for _, c := range checking {
		p.checkIdleConn(c)
	}
	for _, c := range busy {
		if c.h2 != nil {
			c.unblock(now)
			p.streamFreed(c) // it may no longer be congested
		}
		if c.isSilent(now) {
			p.closeSilent(c, now)
		}
	}
}

// checkIdleConn closes an idle connection that is no longer quiet: see conn.quiet.
func (p *Pool) checkIdleConn(c *conn) {
	if !c.raw.peek() {
		return
	}
	s := c.destination.shard
	s.mu.Lock()
	if !c.idle { // a request has taken it meanwhile
		s.mu.Unlock()
		return
	}
	c.destination.removeIdle(c)
	s.mu.Unlock()
	if c.quiet() {
		p.putConn(c, true)
	} else {
		p.discard(c)
	}
}

// closeSilent aborts a connection whose backend has gone silent, and closes connections
// to it that have been idle for as long.
func (p *Pool) closeSilent(c *conn, now time.Time) {
	c.abort(ErrSilent)
	d := c.destination
	d.shard.mu.Lock()
	var idle []*conn
	for _, other := range d.idle {
		if now.Sub(other.idleSince) > maxSilence {
			idle = append(idle, other)
		}
	}
	for _, other := range idle {
		p.removeConn(other)
	}
	d.shard.mu.Unlock()
	for _, other := range idle {
		p.discard(other)
	}
}
