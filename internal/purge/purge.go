// Package purge forgets what an operator wants to be forgotten: names of caches, ejections of
// their addresses, and idle connections to them. A Scope is what is forgotten; its Names
// come first, because they add their addresses to it.
package purge

import (
	"net/netip"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
)

// Scope is what a purge is about: a name, a name and all below it, or an address.
type Scope struct {
	names dnscache.Purge
	addrs map[netip.Addr]struct{} // those of the names, before they were purged
}

// New returns the scope of the names that p chooses.
func New(p dnscache.Purge) *Scope {
	s := &Scope{names: p, addrs: make(map[netip.Addr]struct{})}
	if p.Addr.IsValid() { // other addresses of the same names are not in the scope
		s.addrs[p.Addr] = struct{}{}
		return s
	}
	if addr, err := netip.ParseAddr(p.Name); err == nil {
		s.addrs[addr] = struct{}{}
	}
	s.names.Chosen = s.add
	return s
}

// add adds addresses of a name in the scope.
func (s *Scope) add(addrs []netip.Addr) {
	for _, a := range addrs {
		s.addrs[a] = struct{}{}
	}
}

// Names purges the names of a resolver and returns how many these were. Their addresses
// are in the scope from then on, also those of the hosts file.
func (s *Scope) Names(r *resolver.Resolver) int {
	if s.names.Name != "" {
		if report, ok := r.Name(s.names.Name); ok {
			s.add(report.Addrs)
		}
	}
	return r.Purge(s.names)
}

// includes reports whether a target is in the scope: by its name or, if the scope is an
// address, because it is at that address. An empty host stands for all targets at the
// address.
func (s *Scope) includes(host string, addr netip.Addr) bool {
	switch {
	case s.all():
		return true
	case s.names.Addr.IsValid(), host == "":
		_, ok := s.addrs[addr]
		return ok
	case s.names.Name != "":
		return host == s.names.Name
	}
	return dnscache.IsBelow(host, s.names.Suffix)
}

// all reports whether everything is in the scope.
func (s *Scope) all() bool { return s.names.Suffix == "." }

// Ejections ends the ejections of what is in the scope and returns how many these were.
func (s *Scope) Ejections(t *health.Tracker) int {
	ended := t.Lift(func(target string, addr netip.AddrPort) bool { return s.includes(target, addr.Addr()) })
	for _, family := range s.families() {
		if t.LiftFamily(family) {
			ended++
		}
	}
	return ended
}

// Connections closes the idle connections of a pool to what is in the scope and returns how
// many these were.
func (s *Scope) Connections(p *pool.Pool) int {
	return p.CloseIdle(func(key *pool.Key) bool { return s.includes(key.Host, key.Addr.Addr()) })
}

// families returns an address of each family that is in the scope, as a whole: that of the
// address, or both if everything is.
func (s *Scope) families() []netip.Addr {
	switch {
	case s.all():
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	case s.names.Addr.IsValid():
		return []netip.Addr{s.names.Addr}
	}
	return nil
}
