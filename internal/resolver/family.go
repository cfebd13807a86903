package resolver

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"caddytarget/internal/dnscache"
)

// autoFamily is the Config.Family that depends on the machine.
const autoFamily = "auto"

// families are the other values of Config.Family.
var families = map[string]dnscache.Family{
	"ipv4":        dnscache.IPv4,
	"ipv6":        dnscache.IPv6,
	"prefer_ipv4": dnscache.PreferIPv4,
	"prefer_ipv6": dnscache.PreferIPv6,
}

// family returns which addresses are asked for now.
func (r *Resolver) family() dnscache.Family {
	if fixed, ok := families[r.config.Family]; ok {
		return fixed
	}
	if r.ipv6Route.exists() {
		return dnscache.Interleaved
	}
	return dnscache.IPv4
}

// systemFamily is family for the nameservers of resolv.conf.
func (r *Resolver) systemFamily() dnscache.Family {
	if conf := r.system.Load(); conf != nil && conf.noAAAA && r.config.Family == autoFamily {
		return dnscache.IPv4
	}
	return r.family()
}

// systemSequential reports whether the nameservers of resolv.conf are asked for AAAA only
// once they have replied for A.
func (r *Resolver) systemSequential() bool {
	conf := r.system.Load()
	return conf != nil && conf.singleRequest
}

// ofFamily returns the addresses without those of a family that is not wanted.
func (r *Resolver) ofFamily(addrs []netip.Addr) []netip.Addr {
	switch families[r.config.Family] {
	case dnscache.IPv4:
		return slices.DeleteFunc(slices.Clone(addrs), netip.Addr.Is6)
	case dnscache.IPv6:
		return slices.DeleteFunc(slices.Clone(addrs), netip.Addr.Is4)
	}
	return addrs
}

// routeProbe remembers for routeTime whether this machine has a route for IPv6.
type routeProbe struct {
	mu      sync.Mutex
	until   time.Time
	present bool
}

const routeTime = 30 * time.Second

func (p *routeProbe) exists() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.After(p.until) {
		p.until = now.Add(routeTime)
		// connecting a UDP socket looks up the route and sends nothing; the
		// address is one for documentation (RFC 3849)
		conn, err := net.Dial("udp6", "[2001:db8::1]:9")
		if p.present = err == nil; p.present {
			_ = conn.Close()
		}
	}
	return p.present
}
