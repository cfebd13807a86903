package dnscache

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
)

// admission counts the lookups for readers, in flight and waiting, and says
// whether there may be another one: one domain may have a quarter of what is
// still free (Choudhury and Hahne, "Dynamic queue length thresholds for shared
// memory packet switches", 1998). So names below a domain whose nameservers are
// silent, however many, leave room for the others, and the more domains are
// busy the less one of them gets.
type admission struct {
	limit int

	mu      sync.Mutex
	pending int
	domains map[uint64]int // those pending, by the hash of their domain
}

// sharePart is the part of what is free that one domain may have.
const domainShare = 4

func newAdmission(limit int) admission {
	return admission{limit: limit, domains: make(map[uint64]int)}
}

// enter counts a lookup, unless there are too many; if it is privileged, only
// too many in all.
func (a *admission) admit(domain uint64, exempt bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	free := a.limit - a.pending
	if free <= 0 || !exempt && a.domains[domain] >= max(1, free/domainShare) {
		return false
	}
	a.pending++
	a.domains[domain]++
	return true
}

// leave undoes enter.
func (a *admission) release(domain uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending--
	if a.domains[domain]--; a.domains[domain] == 0 {
		delete(a.domains, domain)
	}
}

// domain returns the hash of the domain that a name is counted for.
func (c *Cache) domain(name string) uint64 {
	return maphash.String(c.seed, DomainOf(name))
}

// DomainOf returns the domain that was registered for a name: the public suffix
// and one label more. A name that has no more than a suffix is its own domain.
func DomainOf(name string) string {
	suffix, _ := publicsuffix.PublicSuffix(name)
	dot := len(name) - len(suffix) - 1
	if dot <= 0 {
		return name
	}
	return name[strings.LastIndexByte(name[:dot], '.')+1:]
}

// turns sees to it that lookups that wait for a slot get one: each makes one of
// those that have had theirs for long give way. Were it the first to come that
// was refused, a few that are never answered would keep out all others.
type turns struct {
	mu      sync.Mutex
	waiting int
	leaving int // that give way, but still have their slots
}

// wait and waited enclose the time in which a lookup waits.
func (t *turns) wait()   { t.add(&t.waiting, 1) }
func (t *turns) waited() { t.add(&t.waiting, -1) }

func (t *turns) add(to *int, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*to += n
}

// way is a lookup that may have to give way.
type way struct {
	turns  *turns
	timer  *time.Timer
	giveUp func()
	gave   bool // under turns.mu, as is closed
	closed bool
}

// watch makes a lookup give way once it has had its slot for long and another one
// waits.
func (t *turns) watch(giveUp func()) *way {
	w := &way{turns: t, giveUp: giveUp}
	t.mu.Lock()
	defer t.mu.Unlock()
	w.timer = time.AfterFunc(preemptAfter, w.look)
	return w
}

func (w *way) look() {
	w.turns.mu.Lock()
	defer w.turns.mu.Unlock()
	switch {
	case w.closed:
	case w.turns.waiting > w.turns.leaving:
		w.turns.leaving++
		w.gave = true
		w.giveUp()
	default:
		w.timer.Reset(slowAfter)
	}
}

// gaveWay says whether the lookup had to.
func (w *way) gaveWay() bool {
	w.turns.mu.Lock()
	defer w.turns.mu.Unlock()
	return w.gave
}

// close ends that: the lookup has given its slot back.
func (w *way) close() {
	w.turns.mu.Lock()
	defer w.turns.mu.Unlock()
	w.closed = true
	w.timer.Stop()
	if w.gave {
		w.turns.leaving--
	}
}
