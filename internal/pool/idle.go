package pool

import (
	"math"
	"math/rand/v2"
	"slices"
)

// listIdle appends a connection, of either protocol, to the idle ones of a shard;
// s.mu is held.
func (s *shard) listIdle(c *conn) {
	c.pool.limits.idle.Add(1)
	c.group.idle.Add(1)
	s.count.idle[c.protocol()]++
	c.idle, c.idleSeq = true, c.pool.idleSeq.Add(1)
	c.prev, c.next = s.newest, nil
	if s.newest != nil {
		s.newest.next = c
	} else {
		s.oldest = c
	}
	s.newest = c
}

// unlistIdle removes a connection from the idle ones, if it is there; s.mu is held.
func (s *shard) unlistIdle(c *conn) {
	if !c.idle {
		return
	}
	c.pool.limits.idle.Add(-1)
	c.group.idle.Add(-1)
	s.count.idle[c.protocol()]--
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

// removeIdle removes a connection from the idle ones of its destination and of the
// shard, if it is there; shard.mu is held.
func (d *destination) removeIdle(c *conn) {
	d.shard.unlistIdle(c)
	if i := slices.Index(d.idle, c); i >= 0 {
		d.idle = slices.Delete(d.idle, i, i+1)
	}
}

// closeSurplus closes idle connections while more than MaxIdle are open.
func (p *Pool) closeSurplus() {
	if p.open.Load() > int64(p.config.MaxIdle) {
		p.closeIdle(int64(p.config.MaxIdle))
	}
}

// closeIdle closes idle connections, the one longest idle first, while more than limit
// are open.
func (p *Pool) closeIdle(limit int64) {
	p.closingIdle.Lock()
	defer p.closingIdle.Unlock()
	for p.open.Load() > limit && p.closeOldest() {
	}
}

// closeOldest closes the connection that has been idle longest. It reports whether one was
// idle.
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

// closeOldestOf closes a connection of a group, the one that has been idle longest of those
// of a random shard: to find that of all would take a look at all that are idle. It reports
// whether one was idle.
func (p *Pool) closeOldestOf(g *connGroup) bool {
	from := rand.N(len(p.shards))
	for i := range p.shards {
		s := &p.shards[(from+i)%len(p.shards)]
		s.mu.Lock()
		c := s.oldest
		for c != nil && c.group != g {
			c = c.next
		}
		if c != nil {
			p.removeConn(c)
		}
		s.mu.Unlock()
		if c != nil {
			p.discard(c)
			return true
		}
	}
	return false
}
