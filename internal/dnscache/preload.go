package dnscache

import (
	"errors"
	"sync"
)

// unresolved are the names of Config.Preload that cannot be resolved. The zero value has
// none.
type unresolved struct {
	mu    sync.Mutex
	names map[string]bool
}

// set makes a name one that cannot be resolved, or no longer one. It reports whether that
// is a change.
func (u *unresolved) set(name string, is bool) (changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.names[name] == is {
		return false
	}
	if !is {
		delete(u.names, name)
		return true
	}
	if u.names == nil {
		u.names = make(map[string]bool)
	}
	u.names[name] = true
	return true
}

// checkPreloaded calls Config.PreloadChanged if the lookup that has just ended has
// changed whether a name of Config.Preload can be resolved. One that was given up on this
// side shows nothing.
func (c *Cache) checkPreloaded(n *node) {
	if c.cfg.PreloadChanged == nil {
		return
	}
	e := n.entry.Load()
	switch reason := e.state.err; e.nameState(c.cfg.Now()) {
	case NameNegative, NameFailing:
		if !errors.Is(reason, ErrClosed) && !errors.Is(reason, ErrOverloaded) && c.unresolved.set(e.name(), true) {
			c.cfg.PreloadChanged(e.name(), reason)
		}
	case NameFresh:
		if c.unresolved.set(e.name(), false) {
			c.cfg.PreloadChanged(e.name(), nil)
		}
	}
}
