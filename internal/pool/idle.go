package pool

import (
	"math"
	"slices"
)

// addIdle puts a connection at the end of the idle ones of a shard; s.mu is held.
func (s *shard) addIdle(c *conn, moment uint64) {
	c.pool.limits.idle.Add(1)
	c.idle, c.idleSeq = true, moment
	c.prev, c.next = s.newest, nil
	if s.newest != nil {
		s.newest.next = c
	} else {
		s.oldest = c
	}
	s.newest = c
}

func (s *shard) removeIdle(c *conn) {
	if !c.idle {
		return
	}
	c.pool.limits.idle.Add(-1)
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.oldest = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		s.newest = c.prev
	}
	c.idle, c.prev, c.next = false, nil, nil
}

// unlistIdle takes an idle connection of HTTP/1.1; shard.mu is held.
func (p *Pool) unlistIdle(c *conn) {
	d := c.destination
	d.shard.removeIdle(c)
	if i := slices.Index(d.idle, c); i >= 0 {
		d.idle = slices.Delete(d.idle, i, i+1)
	}
}

// closeSurplus closes idle connections while there are more than there should be.
func (p *Pool) closeSurplus() {
	if p.open.Load() > int64(p.config.MaxIdle) {
		p.closeIdle(int64(p.config.MaxIdle))
	}
}

// closeIdle closes idle connections, the one longest idle first, while there are
// more open ones than limit. It returns how many it closed.
func (p *Pool) closeIdle(limit int64) (closed int) {
	p.closing.Lock()
	defer p.closing.Unlock()
	for p.open.Load() > limit && p.closeOldest() {
		closed++
	}
	return closed
}

// closeOldest closes the connection that has been idle longest. It reports whether
// there was one.
func (p *Pool) closeOldest() bool {
	for {
		var from *shard
		first := uint64(math.MaxUint64)
		for i := range p.shards {
			s := &p.shards[i]
			s.mu.Lock()
			if s.oldest != nil && s.oldest.idleSeq < first {
				from, first = s, s.oldest.idleSeq
			}
			s.mu.Unlock()
		}
		if from == nil {
			return false // all are in use
		}
		from.mu.Lock()
		c := from.oldest
		if c != nil && c.idleSeq == first {
			p.removeConn(c)
		} else {
			c = nil
		}
		from.mu.Unlock()
		if c != nil {
			p.discard(c)
			return true
		}
	}
}
