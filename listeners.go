package caddytarget

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go4.org/netipx"

	"caddytarget/internal/guard"
	"caddytarget/internal/localnet"
)

// listeners knows where this server itself listens, and on which addresses it can
// be reached. The kernel is asked for both, so it does not matter how an address is
// written or how it came to be one of this machine.
//
// Where the system does not show the sockets of this process, Caddy's account of
// its listeners is asked instead, those of the admin API and of all apps included.
// Not known then are listeners that were handed over as file descriptors, or whose
// address is written in an unusual way. In any case addresses are not known that
// lead here by way of another machine.
type listeners struct {
	sockets *localnet.Sockets // nil: Caddy's account is asked
	sites   *siteSockets
	account func() siteListeners

	// All are replaced as a whole. What stands in them may be out of date: it is
	// renewed whenever a connection is opened or refused.
	table   atomic.Pointer[localTable]
	learned atomic.Pointer[map[netip.Addr]struct{}]
	owners  atomic.Pointer[map[netip.AddrPort]owner]

	mu      sync.Mutex // held by who replaces one of them
	renewed time.Time  // when table was; under mu
}

const (
	// tableTime is how long the table of local addresses holds.
	tableTime = time.Second

	// maxOwners bounds listeners.owners, and maxLearned listeners.learned.
	maxOwners  = 256
	maxLearned = 256
)

// localTable is the addresses of this machine that are known without asking for
// each one.
type localTable struct {
	single map[netip.Addr]struct{}
	ranges *netipx.IPSet // nil: none but loopback
}

func (t *localTable) has(a netip.Addr) bool {
	_, ok := t.single[a]
	return ok || t.ranges != nil && t.ranges.Contains(a)
}

// newListeners returns what a configuration has to know of the process's listeners.
func newListeners(ctx caddy.Context, s *shared) *listeners {
	l := &listeners{sockets: s.sockets, sites: &s.sites, account: sync.OnceValue(func() siteListeners {
		// by the first request that has to know, all apps are there
		app, err := ctx.AppIfConfigured("http")
		if err != nil {
			return siteListeners{}
		}
		return listenersOf(app.(*caddyhttp.App))
	})}
	l.table.Store(new(localTable))
	l.learned.Store(new(map[netip.Addr]struct{}))
	l.owners.Store(new(map[netip.AddrPort]owner))
	l.refresh()
	return l
}

// siteSockets is the sockets on which sites listen, of all configurations that are
// in use. Whatever else this process listens on is not for sites.
type siteSockets struct {
	mu  sync.Mutex
	ids map[uint64]int // how many configurations have each: one that was handed over stays the same
}

// closeTime is how long after the end of a configuration its sockets may still be
// open.
const closeTime = 10 * time.Second

func (s *siteSockets) add(ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = make(map[uint64]int)
	}
	for _, id := range ids {
		s.ids[id]++
	}
}

// leave is called at the end of a configuration. Caddy may still be closing its
// sockets.
func (s *siteSockets) leave(ids []uint64) {
	if len(ids) > 0 {
		time.AfterFunc(closeTime, func() { s.remove(ids) })
	}
}

func (s *siteSockets) remove(ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.ids[id]--; s.ids[id] == 0 {
			delete(s.ids, id)
		}
	}
}

func (s *siteSockets) has(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[id] > 0
}

// siteSocketsOf returns the sockets on which the sites of an HTTP app listen. The
// app has been started.
func siteSocketsOf(app *caddyhttp.App) (ids []uint64) {
	for _, server := range app.Servers {
		for _, l := range server.Listeners() {
			if socket := socketOf(l); socket != nil {
				if id, err := localnet.IDOf(socket); err == nil {
					ids = append(ids, id)
				}
			}
		}
	}
	return ids
}

// maxWrappers bounds how many wrappers a listener has.
const maxWrappers = 32

// socketOf returns what a listener is made of, below the wrappers that Caddy, TLS
// and listener wrappers put around it: they embed the listener that they wrap. It
// returns nil for those that do otherwise, and their sites are not known as such.
func socketOf(l net.Listener) syscall.Conn {
	for range maxWrappers {
		if socket, ok := l.(syscall.Conn); ok {
			return socket
		}
		wrapper := reflect.Indirect(reflect.ValueOf(l))
		if wrapper.Kind() != reflect.Struct {
			return nil
		}
		field := wrapper.FieldByName("Listener")
		if !field.IsValid() || !field.CanInterface() {
			return nil
		}
		l, _ = reflect.TypeAssert[net.Listener](field)
	}
	return nil
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

// refresh renews the table unless that was done just now.
func (l *listeners) refresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.renewed) < tableTime {
		return
	}
	l.renewed = time.Now()
	list, err := localnet.Addresses()
	if err != nil && len(list) == 0 {
		return // the old ones are better than none
	}
	t := &localTable{single: make(map[netip.Addr]struct{}, len(list))}
	var ranges netipx.IPSetBuilder
	wide := false
	for _, p := range list {
		switch {
		case p.IsSingleIP():
			t.single[p.Addr()] = struct{}{}
		case p.Addr().IsLoopback() && p.Bits() >= 8: // known without a table
		default:
			ranges.AddPrefix(p)
			wide = true
		}
	}
	if wide {
		t.ranges, _ = ranges.IPSet() // the prefixes are valid
	}
	l.table.Store(t)
}

// local reports whether an address, or an IPv4 address in it, is known to be one of
// this machine.
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
	if a.IsLoopback() || a.IsUnspecified() || l.table.Load().has(a) {
		return true
	}
	learned := *l.learned.Load()
	if len(learned) == 0 {
		return false
	}
	_, ok := learned[a]
	return ok
}

// isHere finds out whether an address is one of this machine.
func (l *listeners) isHere(a netip.Addr) bool {
	switch {
	case !a.IsValid():
		return false
	case a.IsLoopback() || a.IsUnspecified() || l.table.Load().has(a):
		return true
	}
	here := localnet.IsLocal(a)
	l.learn(a, here)
	return here
}

// learn takes down whether an address that is not in the table is one of this
// machine.
func (l *listeners) learn(a netip.Addr, here bool) {
	if l.isLocal(a) == here {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	learned := make(map[netip.Addr]struct{})
	if before := *l.learned.Load(); len(before) < maxLearned {
		maps.Copy(learned, before)
	}
	if here {
		learned[a] = struct{}{}
	} else {
		delete(learned, a)
	}
	l.learned.Store(&learned)
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
	if !l.local(a.Addr()) || l.sockets != nil && !l.sockets.MayHear(a.Port()) {
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
	here := l.isHere(addr)
	if here {
		o = l.owner(netip.AddrPortFrom(addr, a.Port()))
	}
	if addr.Is6() {
		for _, v4 := range guard.Embedded(addr) {
			if o == somebodyElse && l.isHere(v4) {
				here = true
				o, embedded = l.owner(netip.AddrPortFrom(v4, a.Port())), v4
			}
		}
	}
	if !here {
		return somebodyElse, netip.Addr{}
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
		for _, loopback := range [...]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
			o = max(o, l.owner(netip.AddrPortFrom(loopback, a.Port())))
		}
		return o
	}
	if l.sockets == nil {
		return l.ownerByAccount(a)
	}
	ids, err := l.sockets.Hearing(a)
	if err != nil {
		return l.ownerByAccount(a)
	}
	for _, id := range ids {
		if !l.sites.has(id) {
			return ownOther
		}
		o = ownSite
	}
	return o
}

// ownerByAccount is owner by Caddy's account of its listeners.
func (l *listeners) ownerByAccount(a netip.AddrPort) (o owner) {
	sites := l.account()
	// a listener on a name of this machine may be on any of its addresses; and
	// with the network tcp 0.0.0.0 means IPv6, too
	hosts := slices.Concat(spellings(a.Addr()), wildcards, machineNames(), sites.hosts)
	if a.Addr().IsLoopback() {
		hosts = append(hosts, "localhost", "LOCALHOST", "Localhost")
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
