package localnet

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"syscall"
)

// Account finds the owners of addresses by a server's own account of its listeners, which has
// them by network and host as they were configured.
type Account struct {
	// Usage returns how many listeners the server has at a network, and a host and port.
	Usage func(network, hostport string) int

	sites map[listenAddr]bool
	hosts []string // of the listeners of sites, except IP addresses in their usual spelling
}

// listenAddr is the server's name of a listener.
type listenAddr struct{ network, hostport string }

// AddSite adds a listener of a site.
func (c *Account) AddSite(network, hostport string) {
	if c.sites == nil {
		c.sites = make(map[listenAddr]bool)
	}
	c.sites[listenAddr{network, hostport}] = true
}

// AddHost adds the host of listeners of a site: one that is a name, or is spelled in an
// unusual way, may be any address of this machine.
func (c *Account) AddHost(host string) {
	if addr, err := netip.ParseAddr(host); err == nil && addr.String() == host {
		return
	}
	if i, ok := slices.BinarySearch(c.hosts, host); !ok {
		c.hosts = slices.Insert(c.hosts, i, host)
	}
}

// Owner returns the owner of an address and port of this machine.
func (c *Account) Owner(a netip.AddrPort) (o Owner) {
	port := strconv.Itoa(int(a.Port()))
	for _, host := range slices.Concat(listenHosts(a.Addr()), c.hosts) {
		hostport := net.JoinHostPort(host, port)
		for _, network := range []string{"tcp", "tcp4", "tcp6"} {
			switch at := (listenAddr{network, hostport}); {
			case c.Usage(network, hostport) == 0:
			case c.sites[at]:
				o = OwnSite
			default:
				return OwnOther
			}
		}
	}
	return o
}

// maxWrappers bounds how many wrappers a listener has.
const maxWrappers = 32

// IDsOf returns the IDs of the sockets of listeners. Unknown ones are left out: wrappers that
// a server, TLS and others put around a socket have to embed the listener that they wrap.
func IDsOf(listeners []net.Listener) (ids []uint64) {
	for _, l := range listeners {
		if socket := socketOf(l); socket != nil {
			if id, err := connID(socket); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// socketOf returns the socket below the wrappers of a listener; nil if one of them does not
// embed what it wraps.
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
