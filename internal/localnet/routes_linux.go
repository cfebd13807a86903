package localnet

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// routesHere asks the kernel for the route to an address.
func routesHere(a netip.Addr) (bool, error) {
	request := newRequest(unix.RTM_GETROUTE, 0, routeQuery(a))
	local := false
	err := ask(unix.NETLINK_ROUTE, request, func(kind uint16, data []byte) {
		if kind == unix.RTM_NEWROUTE && len(data) >= unix.SizeofRtMsg {
			local = isLocalRoute(data)
		}
	})
	if _, ok := errors.AsType[replyError](err); ok {
		return false, nil // there is no route
	}
	return local, err
}

// routeQuery is an rtmsg with the destination.
func routeQuery(a netip.Addr) []byte {
	dst := a.AsSlice()
	b := make([]byte, unix.SizeofRtMsg, unix.SizeofRtMsg+unix.SizeofRtAttr+len(dst))
	b[0], b[1] = familyOf(a), byte(a.BitLen())
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(dst)))
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_DST)
	return append(b, dst...)
}

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// isLocalRoute reports whether the route that begins with an rtmsg ends here.
func isLocalRoute(rtmsg []byte) bool {
	return rtmsg[7] == unix.RTN_LOCAL || rtmsg[7] == unix.RTN_ANYCAST
}

// localRoutes returns the ranges of the kernel's table of local routes.
func localRoutes() ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		query := make([]byte, unix.SizeofRtMsg)
		query[0], query[4] = family, unix.RT_TABLE_LOCAL
		request := newRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP, query)
		err := ask(unix.NETLINK_ROUTE, request, func(kind uint16, data []byte) {
			if kind == unix.RTM_NEWROUTE && len(data) >= unix.SizeofRtMsg && isLocalRoute(data) && data[4] == unix.RT_TABLE_LOCAL {
				list = append(list, destinationOf(data))
			}
		})
		if _, ok := errors.AsType[replyError](err); err != nil && !ok { // else there is no such table
			return nil, err
		}
	}
	return list, nil
}

// destinationOf returns the destination of a route: an rtmsg and its attributes.
func destinationOf(route []byte) netip.Prefix {
	addr := netip.IPv4Unspecified()
	if route[0] == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	for kind, value := range attributes(route[unix.SizeofRtMsg:]) {
		if a, ok := netip.AddrFromSlice(value); ok && kind == unix.RTA_DST {
			addr = a
		}
	}
	return netip.PrefixFrom(addr, int(route[1])) // without a destination it has 0 bits
}
