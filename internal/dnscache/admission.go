package dnscache

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/publicsuffix"
)

// admission counts the lookups for readers, in flight and waiting, and says
// whether there may be another one: one domain may have a quarter of what is
// still free (Choudhury and Hahne, "Dynamic queue length thresholds for shared
// memory packet switches", 1998). So names below a domain whose nameservers are
// silent, however many, leave room for the others, and the more domains are
// busy the less one of them gets.
type admission struct {
	most int

	mu      sync.Mutex
	pending int
	domains map[uint64]int // those pending, by the hash of their domain
}

// sharePart is the part of what is free that one domain may have.
const sharePart = 4

func newAdmission(most int) admission {
	return admission{most: most, domains: make(map[uint64]int)}
}

// enter counts a lookup, unless there are too many; if it is privileged, only
// too many in all.
func (a *admission) enter(domain uint64, privileged bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	free := a.most - a.pending
	if free <= 0 || !privileged && a.domains[domain] >= max(1, free/sharePart) {
		return false
	}
	a.pending++
	a.domains[domain]++
	return true
}

// leave undoes enter.
func (a *admission) leave(domain uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending--
	if a.domains[domain]--; a.domains[domain] == 0 {
		delete(a.domains, domain)
	}
}

// domain returns the hash of the domain that a name is counted for.
func (c *Cache) domain(name string) uint64 {
	return maphash.String(c.seed, domainOf(name))
}

// domainOf returns the domain that was registered for a name: the public suffix
// and one label more. A name that has no more than a suffix is its own domain.
func domainOf(name string) string {
	suffix, _ := publicsuffix.PublicSuffix(name)
	dot := len(name) - len(suffix) - 1
	if dot <= 0 {
		return name
	}
	return name[strings.LastIndexByte(name[:dot], '.')+1:]
}

// stragglers are lookups that take long. If there are too many, one of them has to
// give up, at random: of those that will be answered at all most are soon, and
// were it always the oldest, none would be where all take equally long.
type stragglers struct {
	most int

	mu  sync.Mutex
	all []*straggler
}

// straggler is one of them.
type straggler struct {
	giveUp func()
	at     int // in stragglers.all; -1: not any more
}

// enter puts in a lookup.
func (c *stragglers) enter(giveUp func()) *straggler {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) >= c.most {
		s := c.all[rand.IntN(len(c.all))]
		c.remove(s)
		defer s.giveUp()
	}
	s := &straggler{giveUp, len(c.all)}
	c.all = append(c.all, s)
	return s
}

// leave takes a lookup out that has ended.
func (c *stragglers) leave(s *straggler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(s)
}

// remove takes out s if it is still there; c.mu is held.
func (c *stragglers) remove(s *straggler) {
	if s.at < 0 {
		return
	}
	last := c.all[len(c.all)-1]
	c.all[s.at], last.at = last, s.at
	c.all = slices.Delete(c.all, len(c.all)-1, len(c.all))
	s.at = -1
}
