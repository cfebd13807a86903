package pool

import "time"

// SpareObserver is told about a connection that no request has asked for. Its methods must
// not block: a lock is held.
type SpareObserver interface {
	// Dialled is called once, at the end of the dial. opened reports whether there is a
	// connection now.
	Dialled(opened bool)

	// Taken is called when a request has had its response over the connection, for the
	// first time.
	Taken()

	// Wasted is called instead if the connection is closed before that, so long after it
	// was opened.
	Wasted(age time.Duration)
}

// Spare opens a connection in the background, for requests to come. It is idle then, until
// a request takes it. Nothing is sent over it but what opens it, and no other connection is
// closed to make room for it. Spare opens none, and reports false, if the key has most
// connections and dials already, if these are as many as MaxPerKey or MaxIdlePerKey allows,
// or if less than an eighth of MaxIdle is left.
func (p *Pool) Spare(o *Order, most int, observer SpareObserver) bool {
	most = min(most, p.config.MaxIdlePerKey)
	if p.closed.Load() || p.config.DisableKeepAlive || p.open.Load() >= int64(p.config.MaxIdle/8*7) {
		return false
	}
	s := p.shard(&o.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.destination(p, o)
	if len(d.conns)+len(d.dials) >= most || !p.mayDial(d) {
		s.dropUnused(d)
		return false
	}
	p.startDial(d, o, observer)
	return true
}

// spare is what a connection has that was opened by Spare and that no request has used.
type spare struct{ observer SpareObserver }

// taken notes that a request has had its response over the connection.
func (c *conn) taken() {
	if s := c.spare.Load(); s != nil && c.spare.CompareAndSwap(s, nil) {
		s.observer.Taken()
	}
}

// wasted notes that the connection is closed.
func (c *conn) wasted() {
	if s := c.spare.Load(); s != nil && c.spare.CompareAndSwap(s, nil) {
		s.observer.Wasted(time.Since(c.openedAt))
	}
}
