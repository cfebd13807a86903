package dnscache

import (
	"hash/maphash"
	"strings"
	"sync"

	"golang.org/x/net/publicsuffix"
)

// admission counts the lookups for readers, in flight and waiting, and decides
// whether another one may begin. One domain may have a quarter of what is still
// free (Choudhury and Hahne, "Dynamic queue length thresholds for shared memory
// packet switches", 1998). So names below a domain whose nameservers are silent,
// however many, leave room for the others, and the more domains are busy the less
// one of them gets.
type admission struct {
	limit int

	mu      sync.Mutex
	pending int
	domains map[uint64]int // those pending, by the hash of their domain
}

// domainShare is the part of what is free that one domain may have.
const domainShare = 4

func newAdmission(limit int) admission {
	return admission{limit: limit, domains: make(map[uint64]int)}
}

// admit counts a lookup and reports whether it may begin. One that is exempt is
// refused only if there are too many in all, not for its domain.
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

// release undoes admit.
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

// DomainOf returns the registrable domain of a name: the public suffix and one
// label more. A name that has no more than a suffix is its own domain.
func DomainOf(name string) string {
	suffix, _ := publicsuffix.PublicSuffix(name)
	dot := len(name) - len(suffix) - 1
	if dot <= 0 {
		return name
	}
	return name[strings.LastIndexByte(name[:dot], '.')+1:]
}
