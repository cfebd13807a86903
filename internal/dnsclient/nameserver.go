package dnsclient

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// defaultPort is where a nameserver listens if its address says nothing else.
const defaultPort = 53

// maxSystemNameservers is how many nameservers of a resolv.conf count (MAXNS of
// resolv.conf(5)).
const maxSystemNameservers = 3

// Nameserver is one server that can be asked. It is comparable: two equal
// values are the same server.
type Nameserver struct {
	// Network is "udp" for DNS over UDP, with TCP where a reply is truncated,
	// or "tcp" for DNS over TCP alone.
	Network string

	// AddrPort is where the server listens. IPv6 addresses may have a zone.
	AddrPort netip.AddrPort
}

// ParseNameserver reads the address of a nameserver: an IP address with an
// optional port (default 53) and an optional scheme, udp:// (default) or
// tcp://. An IPv6 address with a port stands in brackets.
//
//	10.0.0.53   10.0.1.53:5353   ::1   [::1]:5353   fe80::1%eth0   tcp://10.0.0.53
//
// Host names are refused, because looking them up would take a nameserver.
func ParseNameserver(s string) (Nameserver, error) {
	network, host, ok := strings.Cut(s, "://")
	if !ok {
		network, host = "udp", s
	}
	switch network {
	case "udp", "tcp":
	default:
		return Nameserver{}, fmt.Errorf("nameserver %q: unknown scheme %q (known are udp and tcp)", s, network)
	}

	addrPort, err := parseAddrPort(host)
	if err != nil {
		return Nameserver{}, fmt.Errorf("nameserver %q: %w", s, err)
	}
	return Nameserver{Network: network, AddrPort: addrPort}, nil
}

// parseAddrPort reads ADDRESS, [ADDRESS], IPV4:PORT or [ADDRESS]:PORT.
func parseAddrPort(s string) (netip.AddrPort, error) {
	if addrPort, err := netip.ParseAddrPort(s); err == nil {
		if addrPort.Port() == 0 {
			return netip.AddrPort{}, errors.New("port 0 cannot be asked")
		}
		return netip.AddrPortFrom(addrPort.Addr().Unmap(), addrPort.Port()), nil
	}

	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil {
		return netip.AddrPort{}, errors.New("not an IP address with an optional port (host names are not looked up)")
	}
	return netip.AddrPortFrom(addr.Unmap(), defaultPort), nil
}

// String returns the nameserver in the form that ParseNameserver reads, always
// with its port: 10.0.0.53:53, tcp://[::1]:53.
func (n Nameserver) String() string {
	if n.Network == "" || n.Network == "udp" {
		return n.AddrPort.String()
	}
	return n.Network + "://" + n.AddrPort.String()
}

// SystemNameservers reads the nameservers of a resolv.conf(5) file as the
// operating system's resolver does: the first three count, lines that it cannot
// read are skipped, and without any, or without a file, they are 127.0.0.1 and
// ::1.
func SystemNameservers(path string) ([]Nameserver, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the system's nameservers: %w", err)
	}

	var servers []Nameserver
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		servers = append(servers, Nameserver{"udp", netip.AddrPortFrom(addr.Unmap(), defaultPort)})
		if len(servers) == maxSystemNameservers {
			break
		}
	}
	if servers == nil {
		servers = []Nameserver{
			{"udp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), defaultPort)},
			{"udp", netip.AddrPortFrom(netip.IPv6Loopback(), defaultPort)},
		}
	}
	return servers, nil
}
