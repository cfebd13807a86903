// Package localnet asks the operating system two questions about this machine: whether an
// address is one of its own (isLocal, [Addresses]), and on which TCP sockets this process
// listens ([Sockets]). It reads no configuration for that: one address can be configured in
// many ways, and each way can be spelled in several. Where the system has no answer, the
// error is errUnsupported.
//
// [Listeners] joins both: it finds out whether an address and port is one of this process,
// and whether a site listens there.
//
// Where to find what:
//
//   - listeners.go: Listeners, how long their answers hold; [Sites], the sockets of sites.
//   - account.go: [Account], where the system does not show the sockets; [IDsOf] listeners.
//   - hosts.go: under which hosts a configuration may have a listener.
//   - routes_linux.go: the local addresses by the kernel's routes.
//   - sockets_linux.go: the sockets.
//   - netlink_linux.go: how the kernel is asked for both.
package localnet

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// errUnsupported is the error for a question that the system has no answer to.
var errUnsupported = errors.New("not supported on this system")

// listener is a TCP socket on which this process listens.
type listener struct {
	ID   uint64 // of the socket; descriptors of one socket have the same
	Addr netip.AddrPort

	// OnlyIPv6 is set if a socket on an IPv6 address takes no IPv4 connections.
	OnlyIPv6 bool
}

// hears reports whether a connection to an address of this machine may end at
// the listener. The address is not an IPv4-mapped one.
func (l listener) hears(a netip.AddrPort) bool {
	on := l.Addr.Addr()
	switch {
	case l.Addr.Port() != a.Port():
		return false
	case on == netip.IPv6Unspecified():
		return a.Addr().Is6() || !l.OnlyIPv6
	case on.IsUnspecified():
		return a.Addr().Is4()
	}
	return on == a.Addr()
}

// isLocal reports whether packets to an address stay on this machine. That is so
// for the addresses of its interfaces, and for all others that a route of type
// local has, which no interface lists.
func isLocal(a netip.Addr) bool {
	a = a.Unmap()
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	local, err := routesHere(a)
	if err != nil {
		local, _ = isOwnSource(a)
	}
	return local
}

// isOwnSource reports whether packets to an address would have the same one as
// their source. Then it is local, but a local one may have another source. Nothing
// is sent.
func isOwnSource(a netip.Addr) (bool, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	source := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	return source.Unmap().WithZone("") == a.WithZone(""), nil
}

// Addresses returns the addresses of this machine: those of its interfaces, and
// the ranges of its table of local routes where the system shows it. An address may
// be local that is not among them, see isLocal.
func Addresses() ([]netip.Prefix, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addr := p.Addr().Unmap()
			all = append(all, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	routes, err := localRoutes()
	if err != nil && !errors.Is(err, errUnsupported) {
		return all, err
	}
	return append(all, routes...), nil
}

// connID returns the ID of the socket of a listener.
func connID(c syscall.Conn) (id uint64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if controlErr := raw.Control(func(fd uintptr) { id, err = socketID(int(fd)) }); controlErr != nil {
		return 0, controlErr
	}
	return id, err
}
