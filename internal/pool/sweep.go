package pool

import (
	"sync"
	"time"
)

const (
	// sweepInterval is how often idle connections are looked at.
	sweepInterval = time.Second

	// lookInterval is how long an idle connection is not looked at again.
	checkInterval = 3 * time.Second

	// movedIdle is for how long a connection must have been idle before it is
	// compared with the answers of the resolver.
	movedIdle = 10 * time.Second
)

// sweeper is a goroutine that runs while there are connections.
type sweeper struct {
	mu      sync.Mutex
	running bool
	wake    chan struct{} // ends it if nothing is left to do
	done    chan struct{} // closed at its end
}

// start starts the sweeper if it does not run.
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

// keepRunning reports whether there is something left to sweep.
func (w *sweeper) keepRunning(p *Pool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = p.open.Load() > 0
	return w.running
}

// stop ends the sweeper if there are no connections any more. Else it ends by
// itself, soon after the last one.
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
		case <-time.After(sweepInterval): // a connection was opened just now
		}
	}
}

// sweep closes connections that have been idle for too long, that lead to where
// the target is no more, or that the backend has closed; and ends those in use
// whose backend has gone silent.
func (p *Pool) sweep(now time.Time) {
	for i := range p.shards {
		p.sweepShard(&p.shards[i], now)
	}
}

func (p *Pool) sweepShard(s *shard, now time.Time) {
	var closing, look, busy []*conn
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
				look = append(look, c)
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
	for _, c := range look {
		p.checkIdleConn(c)
	}
	for _, c := range busy {
		if c.h2 != nil {
			c.unblock(now)
			p.streamFreed(c) // its clients may read again
		}
		if c.isSilent(now) {
			p.closeSilent(c, now)
		}
	}
}

// checkIdleConn closes an idle connection that the backend has closed, or over which
// something has come.
func (p *Pool) checkIdleConn(c *conn) {
	if !c.raw.peek() {
		return
	}
	s := c.destination.shard
	s.mu.Lock()
	if !c.idle { // it is in use by now
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

// closeSilent ends a connection whose backend has gone silent. Idle connections to it
// from before are closed: they would be no better.
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
