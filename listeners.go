package caddytarget

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/guard"
)

// listeners knows where this server itself listens. Caddy keeps account of its
// listeners, those of the admin API and of all apps included; what it has no
// account of are the addresses of this machine, and which listeners are for
// sites.
//
// Not known are the addresses of listeners that were handed over as file
// descriptors, or that are not for sites and were configured with a name that is
// neither localhost nor the host name; and addresses that lead here by way of
// another machine.
type listeners struct {
	sites func() siteListeners

	// Both maps are replaced as a whole. What stands in owners may be out of
	// date: it is renewed whenever a connection is opened or refused.
	addrs  atomic.Pointer[map[netip.Addr]struct{}]
	owners atomic.Pointer[map[netip.AddrPort]owner]

	mu      sync.Mutex // held by who replaces one of them
	renewed time.Time  // when addrs was; under mu
}

const (
	// interfacesTime is how long the addresses of the interfaces hold.
	interfacesTime = time.Second

	// maxOwners bounds listeners.owners.
	maxOwners = 256
)

func newListeners(ctx caddy.Context) *listeners {
	l := &listeners{sites: sync.OnceValue(func() siteListeners {
		// by the first request that has to know, all apps are there
		app, err := ctx.AppIfConfigured("http")
		if err != nil {
			return siteListeners{}
		}
		return listenersOf(app.(*caddyhttp.App))
	})}
	l.addrs.Store(new(map[netip.Addr]struct{}))
	l.owners.Store(new(map[netip.AddrPort]owner))
	l.refresh()
	return l
}

// siteListeners is what is to be known of the listeners of the HTTP app.
type siteListeners struct {
	addrs map[listenAddr]bool
	hosts []string // those that are not written as an IP address is
}

// listenAddr is how Caddy names a listener.
type listenAddr struct{ network, hostport string }

func listenersOf(app *caddyhttp.App) siteListeners {
	s := siteListeners{addrs: make(map[listenAddr]bool)}
	for _, server := range app.Servers {
		for _, listen := range server.Listen {
			na, err := caddy.ParseNetworkAddress(listen)
			if err != nil {
				continue // nobody listens there
			}
			for i := range na.PortRangeSize() {
				s.addrs[listenAddr{na.Network, na.JoinHostPort(i)}] = true
			}
			if addr, err := netip.ParseAddr(na.Host); err != nil || addr.String() != na.Host {
				s.hosts = append(s.hosts, na.Host)
			}
		}
	}
	slices.Sort(s.hosts)
	s.hosts = slices.Compact(s.hosts)
	return s
}

// refresh renews the addresses of the interfaces unless that was done just now.
func (l *listeners) refresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.renewed) < interfacesTime {
		return
	}
	l.renewed = time.Now()
	list, err := net.InterfaceAddrs()
	if err != nil {
		return // the old ones are better than none
	}
	addrs := make(map[netip.Addr]struct{}, len(list))
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs[p.Addr().Unmap()] = struct{}{}
		}
	}
	l.addrs.Store(&addrs)
}

// local tells whether an address, or an IPv4 address in it, is one of this
// machine.
func (l *listeners) local(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if l.isLocal(a) {
		return true
	}
	if a.Is4() {
		return false
	}
	for _, v4 := range guard.Embedded(a) {
		if l.isLocal(v4) {
			return true
		}
	}
	return false
}

func (l *listeners) isLocal(a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	_, ok := (*l.addrs.Load())[a]
	return ok || a.IsLoopback() || a.IsUnspecified()
}

// owner is who listens on an address and port.
type owner int

const (
	somebodyElse owner = iota
	ownSite            // this server, for a site
	ownOther           // this server, for something else: the admin API or another app
)

// known returns who listened on an address and port when that was last found
// out, if it was.
func (l *listeners) known(a netip.AddrPort) (owner, bool) {
	if !l.local(a.Addr()) {
		return somebodyElse, true
	}
	o, ok := (*l.owners.Load())[a]
	return o, ok
}

// find finds out who listens on an address and port. If it is an IPv4 address
// in the IPv6 address that leads here, that is returned too.
func (l *listeners) find(a netip.AddrPort) (o owner, embedded netip.Addr) {
	l.refresh()
	addr := a.Addr().Unmap().WithZone("")
	if !l.local(addr) {
		return somebodyElse, netip.Addr{}
	}
	if l.isLocal(addr) {
		o = l.owner(netip.AddrPortFrom(addr, a.Port()))
	}
	if addr.Is6() {
		for _, v4 := range guard.Embedded(addr) {
			if o == somebodyElse && l.isLocal(v4) {
				o, embedded = l.owner(netip.AddrPortFrom(v4, a.Port())), v4
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := *l.owners.Load()
	if before, ok := known[a]; ok && before == o {
		return o, embedded
	}
	owners := make(map[netip.AddrPort]owner)
	if len(known) < maxOwners {
		maps.Copy(owners, known)
	}
	owners[a] = o
	l.owners.Store(&owners)
	return o, embedded
}

// owner returns who listens on an address and port of this machine. There may be
// several listeners, on all addresses and on this one; if one of them is not for
// sites, that counts.
func (l *listeners) owner(a netip.AddrPort) (o owner) {
	if a.Addr().IsUnspecified() { // where a connection ends on the loopback interface
		for _, loopback := range localhost {
			o = max(o, l.owner(netip.AddrPortFrom(loopback, a.Port())))
		}
		return o
	}
	sites := l.sites()
	// a listener on a name of this machine may be on any of its addresses; and
	// with the network tcp 0.0.0.0 means IPv6, too
	hosts := slices.Concat(spellings(a.Addr()), wildcards, machineNames(), sites.hosts)
	if a.Addr().IsLoopback() {
		hosts = append(hosts, "localhost", "LOCALHOST")
	}
	port := strconv.Itoa(int(a.Port()))
	for _, host := range hosts {
		for _, network := range []string{"tcp", "tcp4", "tcp6"} {
			switch at := (listenAddr{network, net.JoinHostPort(host, port)}); {
			case caddy.ListenerUsage(at.network, at.hostport) == 0:
			case sites.addrs[at]:
				o = ownSite
			default:
				return ownOther
			}
		}
	}
	return o
}

// wildcards are the ways to write that a listener is on all addresses.
var wildcards = append([]string{"", "0.0.0.0", "::ffff:0.0.0.0"}, spellings(netip.IPv6Unspecified())...)

// spellings returns the ways in which an address is likely to be written.
func spellings(a netip.Addr) []string {
	list := []string{a.String()}
	if a.Is4() {
		mapped := netip.AddrFrom16(a.As16())
		return append(list, mapped.String(), mapped.StringExpanded())
	}
	var groups []string
	in := a.As16()
	for i := 0; i < len(in); i += 2 {
		groups = append(groups, strconv.FormatUint(uint64(in[i])<<8|uint64(in[i+1]), 16))
	}
	long := strings.Join(groups, ":")
	list = append(list, a.StringExpanded(), long, strings.ToUpper(list[0]), strings.ToUpper(long))
	if a.IsUnspecified() {
		list = append(list, "::0", "0::0", "0::")
	}
	return list
}

// machineNames returns the names that this machine has of itself.
func machineNames() []string {
	name, err := os.Hostname()
	if err != nil {
		return nil
	}
	short, _, _ := strings.Cut(name, ".")
	return []string{name, short}
}
