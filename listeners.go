package caddytarget

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/localnet"
)

// newListeners returns what finds this server's own listeners, so that targets do not reach
// them. The kernel is asked for the addresses of this machine and for the sockets of this
// process, so the spelling of an address does not matter, nor how it was configured.
//
// Where the system does not show the sockets of this process, Caddy's account of its
// listeners is asked instead, those of the admin API and of all apps included. It does not
// have listeners that were handed over as file descriptors, or whose address has an unusual
// spelling.
func newListeners(ctx caddy.Context, s *shared) *localnet.Listeners {
	// when the first request asks, all apps are provisioned
	sites := sync.OnceValue(func() siteListeners {
		app, err := ctx.AppIfConfigured("http")
		if err != nil {
			return siteListeners{}
		}
		return listenersOf(app.(*caddyhttp.App))
	})
	return localnet.NewListeners(localnet.Config{
		Addresses: localnet.Addresses,
		Sockets:   s.sockets,
		Sites:     &s.sites,
		Account:   func(a netip.AddrPort) localnet.Owner { return sites().owner(a) },
	})
}

// siteSocketsOf returns the sockets on which the sites of an HTTP app listen. The app has
// been started.
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

// socketOf returns the socket below the wrappers that Caddy, TLS and listener wrappers put
// around it: they embed the listener that they wrap. It returns nil for wrappers that do
// not, and their sites are not known as sites.
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

// siteListeners are the listeners of the HTTP app.
type siteListeners struct {
	addrs map[listenAddr]bool
	hosts []string // of the listeners, except IP addresses in their usual spelling
}

// listenAddr is Caddy's name of a listener.
type listenAddr struct{ network, hostport string }

func listenersOf(app *caddyhttp.App) siteListeners {
	s := siteListeners{addrs: make(map[listenAddr]bool)}
	for _, server := range app.Servers {
		for _, listen := range server.Listen {
			na, err := caddy.ParseNetworkAddress(listen)
			if err != nil {
				continue // Caddy cannot listen there
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

// owner returns the owner of an address and port of this machine by Caddy's account of its
// listeners.
func (s siteListeners) owner(a netip.AddrPort) (o localnet.Owner) {
	port := strconv.Itoa(int(a.Port()))
	for _, host := range slices.Concat(localnet.ListenHosts(a.Addr()), s.hosts) {
		for _, network := range []string{"tcp", "tcp4", "tcp6"} {
			switch at := (listenAddr{network, net.JoinHostPort(host, port)}); {
			case caddy.ListenerUsage(at.network, at.hostport) == 0:
			case s.addrs[at]:
				o = localnet.OwnSite
			default:
				return localnet.OwnOther
			}
		}
	}
	return o
}
