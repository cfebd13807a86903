package dnscache

import (
	"errors"
	"sync"
)

// SetPreload replaces the names of Config.Preload, of which it takes the first
// MaxPreload. Those that are new are looked up, at the rate that holds after an outage.
// Those that it no longer has stay in the cache as any other name. It is for after Start.
func (c *Cache) SetPreload(names []string) {
	c.preloadMu.Lock()
	defer c.preloadMu.Unlock()
	names = names[:min(len(names), c.cfg.MaxPreload)]
	pinned := make(map[string]bool, len(names)) // as of now
	for _, name := range names {
		pinned[name] = len(name) <= maxName
	}
	for name := range c.pinned {
		if !pinned[name] {
			c.unpin(name)
		}
	}
	var nodes []*node
	for _, name := range names {
		if pinned[name] && !c.pinned[name] {
			nodes = append(nodes, c.pin(name))
		}
	}
	c.pinned = pinned
	c.sched.preload(nodes, c.cfg.Now())
}

// pin returns the node of a name, which from now on is never evicted.
func (c *Cache) pin(name string) *node {
	hash, size := c.hash(name), uint16(len(name))
	c.mu.Lock()
	defer c.mu.Unlock()
	var n *node
	if e := c.table.find(hash, name, size); e == nil {
		n = c.add(hash, name, size, nil)
	} else if n = e.state.node; !n.pinned.Load() {
		n.links[evictionList].in.remove(n)
	}
	if !n.pinned.Swap(true) {
		c.preloaded++
	}
	return n
}

// unpin makes a name one that may be evicted.
func (c *Cache) unpin(name string) {
	hash, size := c.hash(name), uint16(len(name))
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.table.find(hash, name, size)
	if e == nil || !e.state.node.pinned.Swap(false) {
		return
	}
	c.preloaded--
	c.unresolved.remove(name)
	c.makeRoom()
	c.queues.add(e.state.node, hash, c.cfg.Size)
}

// unresolved are the names of Config.Preload that cannot be resolved. The zero value has
// none.
type unresolved struct {
	mu    sync.Mutex
	names map[string]bool
}

// add adds the name of a node, unless it is no longer one of Config.Preload: then remove
// was, or will be, called for the last time. It reports whether that is a change.
func (u *unresolved) add(n *node, name string) (changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.names[name] || !n.pinned.Load() {
		return false
	}
	if u.names == nil {
		u.names = make(map[string]bool)
	}
	u.names[name] = true
	return true
}

// remove removes a name, and reports whether it was there.
func (u *unresolved) remove(name string) (changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.names[name] {
		return false
	}
	delete(u.names, name)
	return true
}

// checkPreloaded calls Config.PreloadChanged if the lookup of a node that has just ended has
// changed whether a name of Config.Preload can be resolved. One that was given up on this
// side shows nothing.
func (c *Cache) checkPreloaded(n *node) {
	if c.cfg.PreloadChanged == nil || !n.pinned.Load() {
		return
	}
	e := n.entry.Load()
	switch reason := e.state.err; e.nameState(c.cfg.Now()) {
	case NameNegative, NameFailing:
		if !errors.Is(reason, ErrClosed) && !errors.Is(reason, ErrOverloaded) && c.unresolved.add(n, e.name()) {
			c.cfg.PreloadChanged(e.name(), reason)
		}
	case NameFresh:
		if c.unresolved.remove(e.name()) {
			c.cfg.PreloadChanged(e.name(), nil)
		}
	}
}
