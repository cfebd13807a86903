package dnscache

import (
	"errors"
	"fmt"
)

// Len returns the number of names, those of Config.Preload included.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queues.len() + c.preloaded
}

// check reports where the table and the lists of c disagree.
func (c *Cache) check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sched.mu.Lock()
	defer c.sched.mu.Unlock()
	known, err := c.checkTable()
	return errors.Join(err, c.checkQueues(known), c.sched.check(known))
}

// checkTable reports what is wrong with the table, and returns its nodes.
func (c *Cache) checkTable() (map[*node]bool, error) {
	seen := make(map[*node]bool)
	past := make(map[*bucket]uint64)
	for e := range c.table.all() {
		n := e.state.node
		hash := c.hash(e.name())
		b, at := c.table.slot(hash, e, func(b *bucket) { past[b]++ })
		switch {
		case seen[n]:
			return nil, fmt.Errorf("%s is twice in the table", e.name())
		case n.entry.Load() != e:
			return nil, fmt.Errorf("%s: an old entry is in the table", e.name())
		case c.table.find(hash, e.name(), e.size) != e:
			return nil, fmt.Errorf("%s is not found", e.name())
		case b.tags.Load()>>(8*at)&0xff != tag(hash):
			return nil, fmt.Errorf("%s: a wrong tag", e.name())
		case n.evicted:
			return nil, fmt.Errorf("%s is evicted, but in the table", e.name())
		case n.pinned.Load() && n.links[evictionList].in != nil:
			return nil, fmt.Errorf("%s is of Config.Preload, but in a queue", e.name())
		}
		seen[n] = true
	}
	for i := range c.table {
		b := &c.table[i]
		tags := b.tags.Load()
		if tags>>56 != past[b] {
			return nil, fmt.Errorf("bucket %d: %d entries went past, the count is %d", i, past[b], tags>>56)
		}
		for at := range b.slots {
			if (tags>>(8*at)&0xff == 0) != (b.slots[at].Load() == nil) {
				return nil, fmt.Errorf("bucket %d: tags %x do not match the slots", i, tags)
			}
		}
	}
	return seen, nil
}

// checkQueues reports what is wrong with the queues, if these nodes are in the table.
func (c *Cache) checkQueues(known map[*node]bool) error {
	if err := errors.Join(c.queues.small.check(known), c.queues.main.check(known)); err != nil {
		return err
	}
	n, limit := c.queues.len(), c.cfg.Size
	if n+c.preloaded != len(known) || n > limit {
		return fmt.Errorf("%d nodes in the table, %d in the queues and at most %d allowed, %d preloaded", len(known), n, limit, c.preloaded)
	}
	if main, mainLimit := c.queues.main.len, limit-max(1, limit/10); main > mainLimit {
		return fmt.Errorf("%d nodes in the main queue, want at most %d", main, mainLimit)
	}
	return nil
}

// check reports what is wrong with the lists of s, if these nodes are in the table.
func (s *scheduler) check(known map[*node]bool) error {
	inWheel := 0
	for i := range s.wheel {
		if err := s.wheel[i].check(known); err != nil {
			return err
		}
		inWheel += s.wheel[i].len
	}
	if inWheel != s.forecast.total {
		return fmt.Errorf("%d nodes in the wheel, %d in the forecast", inWheel, s.forecast.total)
	}
	var sum int
	for _, n := range s.forecast.seconds {
		if n < 0 {
			return errors.New("a second of the forecast is negative")
		}
		sum += int(n)
	}
	if sum != inWheel {
		return fmt.Errorf("%d nodes in the wheel, %d in the forecast's seconds", inWheel, sum)
	}
	return errors.Join(s.due[fastClass].check(known), s.due[slowClass].check(known), s.parked.check(known))
}

// check reports what is wrong with a list, if these nodes are in the table.
func (l *list) check(known map[*node]bool) error {
	count := 0
	var prev *node
	for n := l.head; n != nil; n = n.links[l.kind].next {
		if !known[n] {
			return fmt.Errorf("%s is in a list of kind %d, but not in the table", n.name(), l.kind)
		}
		if at := n.links[l.kind]; at.in != l || at.prev != prev {
			return fmt.Errorf("%s: broken links of kind %d", n.name(), l.kind)
		}
		prev = n
		count++
	}
	if prev != l.tail || count != l.len {
		return fmt.Errorf("a list of kind %d has a length of %d, and %d nodes", l.kind, l.len, count)
	}
	return nil
}
