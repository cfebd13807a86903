package dnscache

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Purge chooses names to be forgotten or asked for again: those for which all fields
// hold that are set. The zero value chooses none.
type Purge struct {
	Name   string     // this name, as a host and as a service
	Suffix string     // this name and all below it; a dot: all names
	Addr   netip.Addr // names that have this address

	// AskAgain is whether the names are asked for again in the background, while what is
	// known of them goes on to serve. Otherwise they are forgotten: the next reader waits
	// for a lookup.
	AskAgain bool

	// Chosen is called with the addresses of each name that was chosen, before it is
	// forgotten; nil: it is not called.
	Chosen func(addrs []netip.Addr)
}

// Purge returns how many names it chose. The next reader of a name that was forgotten
// gets nothing from a lookup that began before the purge. A lookup that asks again begins
// after the purge too, unless there is an outage or very many names are asked for: 1000 a
// second. It asks for all types, even for those that hold or have failed just now.
func (c *Cache) Purge(p Purge) int {
	nodes := c.chosen(p)
	if p.AskAgain {
		return c.sched.askAgain(nodes, c.cfg.Now())
	}
	c.preloadMu.Lock()
	defer c.preloadMu.Unlock()
	n := 0
	var preload []*node
	for _, old := range nodes {
		wasPinned, ok := c.forget(old)
		if !ok {
			continue
		}
		n++
		if wasPinned {
			preload = append(preload, c.pin(old.entry.Load().name()))
		}
	}
	if len(preload) > 0 {
		c.sched.preload(preload, c.cfg.Now())
	}
	return n
}

// chosen returns the nodes of the names that p chooses.
func (c *Cache) chosen(p Purge) (nodes []*node) {
	entries := c.scan(0)
	switch {
	case p.Name != "":
		entries = c.entriesOf(p.Name)
	case p.Suffix == "" && !p.Addr.IsValid():
		return nil
	}
	for e := range entries {
		if e != nil && p.matches(e) {
			if p.Chosen != nil {
				p.Chosen(e.addrs())
			}
			nodes = append(nodes, e.state.node)
		}
	}
	return nodes
}

func (p *Purge) matches(e *entry) bool {
	return (p.Suffix == "" || IsBelow(e.name(), p.Suffix)) &&
		(!p.Addr.IsValid() || slices.Contains(e.addrs(), p.Addr))
}

// Chooses reports whether the purge chooses the name of a record.
func (p *Purge) Chooses(r *Record) bool {
	if p.Name == "" && p.Suffix == "" && !p.Addr.IsValid() {
		return false
	}
	return (p.Name == "" || p.Name == r.Name) && (p.Suffix == "" || IsBelow(r.Name, p.Suffix)) &&
		(!p.Addr.IsValid() || slices.Contains(r.Addrs[0], p.Addr) || slices.Contains(r.Addrs[1], p.Addr))
}

// IsBelow reports whether a name is a suffix or below it.
func IsBelow(name, suffix string) bool {
	rest, ok := strings.CutSuffix(name, suffix)
	return suffix == "." || ok && (rest == "" || rest[len(rest)-1] == '.')
}

// forget removes a node, whatever lookup of it is in flight. It reports whether it was one
// of Config.Preload, or not ok if it was evicted before.
func (c *Cache) forget(n *node) (wasPinned, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.evicted {
		return false, false
	}
	c.unlink(n)
	if wasPinned = n.pinned.Swap(false); wasPinned {
		c.preloaded--
	} else {
		n.links[evictionList].in.remove(n)
	}
	return wasPinned, true
}

// askChunk is for how many nodes askAgain holds the lock of the scheduler at a time.
const askChunk = 256

// askAgain parks nodes, as preload does, for lookups of all types. It returns how many
// were not evicted before.
func (s *scheduler) askAgain(nodes []*node, now time.Duration) (asked int) {
	for chunk := range slices.Chunk(nodes, askChunk) {
		s.mu.Lock()
		if s.parked.len == 0 {
			s.credit, s.creditedAt = recoveryRate/4, now
			s.sorted = true
		}
		for _, n := range chunk {
			if n.evicted {
				continue
			}
			asked++
			if planAgain(n, now) && !s.isWaiting(n) {
				s.unschedule(n)
				s.parked.push(n)
			}
		}
		s.mu.Unlock()
	}
	s.dispatch(now)
	return asked
}

// planAgain plans a lookup of all types. If one is planned or in flight already, it sees
// to it that another one follows, and reports false.
func planAgain(n *node, now time.Duration) bool {
	cl := newCall(now)
	cl.allTypes = true
	for !n.call.CompareAndSwap(nil, cl) {
		if before := n.call.Load(); before != nil {
			before.again.Store(true)
			if n.call.Load() == before {
				return false // callEnded is still to come
			}
		}
	}
	return true
}

// callEnded is called when a node has no call any more. It asks again if that was wanted
// meanwhile.
func (s *scheduler) callEnded(n *node, cl *call) {
	if cl.again.Load() {
		s.askAgain([]*node{n}, s.cache.cfg.Now())
	}
}
