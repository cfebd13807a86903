package dnsclient

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// defaultPorts are the ports of nameservers whose address has none.
var defaultPorts = map[string]uint16{"udp": 53, "tcp": 53, "tls": 853, "https": 443}

// defaultPath is the path for HTTPS if the address of the nameserver has none.
const defaultPath = "/dns-query"

// Nameserver is one server that can be asked. It is comparable: two equal
// values are the same server.
type Nameserver struct {
	// Network is "udp" for DNS over UDP, with TCP if a reply is truncated,
	// "tcp" for DNS over TCP only, "tls" for DNS over TLS (RFC 7858), or
	// "https" for DNS over HTTPS (RFC 8484).
	Network string

	// AddrPort is where the server listens. IPv6 addresses may have a zone. With
	// "tls" and "https" the address may be the zero value; then the operating
	// system looks up Name for each connection.
	AddrPort netip.AddrPort

	// Name is the host name that the certificate of the server must be for, with
	// "tls" and "https". Without one it must be for the address.
	Name string

	// Path is the path, and the query if there is one, of the URL, with "https".
	Path string
}

// ParseNameserver reads the address of a nameserver: an IP address with an
// optional port and an optional scheme, udp:// (default), tcp://, tls:// or
// https://. The port is 53, with tls 853 and with https 443. An IPv6 address
// with a port stands in brackets.
//
//	10.0.0.53   10.0.1.53:5353   ::1   [::1]:5353   fe80::1%eth0   tcp://10.0.0.53
//	tls://9.9.9.9#dns.quad9.net   https://9.9.9.9/dns-query#dns.quad9.net
//
// With tls and https the certificate must be for the host name after #, or for
// the address itself if there is none. A path, with https, is /dns-query unless
// it is given; it may have a query.
//
// tls and https also accept a host name in place of the address. The operating
// system looks it up for each connection, so its resolver must not depend on this
// nameserver. The other schemes refuse host names, since looking them up needs a
// nameserver.
func ParseNameserver(s string) (Nameserver, error) {
	network, rest, ok := strings.Cut(s, "://")
	if !ok {
		network, rest = "udp", s
	}
	if defaultPorts[network] == 0 {
		return Nameserver{}, fmt.Errorf("nameserver %q: unknown scheme %q (known are udp, tcp, tls and https)", s, network)
	}
	ns, err := parseRest(network, rest)
	if err == errUser {
		return Nameserver{}, fmt.Errorf("nameserver with %w", err) // perhaps with a password
	}
	if err != nil {
		return Nameserver{}, fmt.Errorf("nameserver %q: %w", s, err)
	}
	return ns, nil
}

// parseRest reads what follows the scheme.
func parseRest(network, s string) (Nameserver, error) {
	ns := Nameserver{Network: network}
	s, name, named := strings.Cut(s, "#")
	certified := network == "tls" || network == "https"
	if named && !certified {
		return Nameserver{}, errors.New("a name after # is for tls and https")
	}
	if network == "https" {
		host, path := s, ""
		if i := strings.IndexAny(s, "/?"); i >= 0 {
			host, path = s[:i], s[i:]
		}
		if !strings.HasPrefix(path, "/") {
			path = defaultPath + path
		}
		if u, err := url.Parse("https://host" + path); err != nil || u.RequestURI() != path {
			return Nameserver{}, fmt.Errorf("path %q cannot be sent as it is", path)
		}
		s, ns.Path = host, path
	}

	if certified && strings.Contains(s, "@") {
		return Nameserver{}, errUser
	}
	var err error
	ns.AddrPort, err = parseAddrPort(s, defaultPorts[network])
	if err == errNoAddress && certified {
		if named {
			return Nameserver{}, errors.New("a name after # needs an IP address before it")
		}
		ns.AddrPort, name, err = parseHostPort(s, defaultPorts[network])
		named = true
	}
	if err != nil {
		return Nameserver{}, err
	}
	if named {
		host, ok := hostName(name)
		if !ok {
			return Nameserver{}, fmt.Errorf("%q is not a host name", name)
		}
		ns.Name = host
	}
	return ns, nil
}

var (
	errNoAddress = errors.New("not an IP address with an optional port (host names are not looked up)")
	errUser      = errors.New("a user name: it has no meaning to a nameserver")
)

func errPort(port string) error { return fmt.Errorf("port %q is not a number from 1 to 65535", port) }

// parseAddrPort reads ADDRESS, [ADDRESS], IPV4:PORT or [ADDRESS]:PORT.
func parseAddrPort(s string, defaultPort uint16) (netip.AddrPort, error) {
	if addrPort, err := netip.ParseAddrPort(s); err == nil {
		if addrPort.Port() == 0 {
			return netip.AddrPort{}, errPort("0")
		}
		return netip.AddrPortFrom(addrPort.Addr().Unmap(), addrPort.Port()), nil
	}

	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil {
		if host, port, splitErr := net.SplitHostPort(s); splitErr == nil {
			if _, err := netip.ParseAddr(host); err == nil {
				return netip.AddrPort{}, errPort(port)
			}
		}
		return netip.AddrPort{}, errNoAddress
	}
	return netip.AddrPortFrom(addr.Unmap(), defaultPort), nil
}

// parseHostPort reads NAME or NAME:PORT. It returns the port with the zero
// address.
func parseHostPort(s string, defaultPort uint16) (netip.AddrPort, string, error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPortFrom(netip.Addr{}, defaultPort), name, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	switch {
	case err != nil:
		return netip.AddrPort{}, "", errors.New("neither a host name nor an IP address, with an optional port")
	case port == 0:
		return netip.AddrPort{}, "", errPort(text)
	}
	return netip.AddrPortFrom(netip.Addr{}, uint16(port)), name, nil
}

// hostName returns s in lower case and without a trailing dot, if it is a host
// name that a certificate can be for: not an address, and nothing that looks
// like one.
func hostName(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	labels := strings.Split(s, ".")
	valid := func(label string) bool {
		return label != "" && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-' &&
			!strings.ContainsFunc(label, func(r rune) bool { return !alphanumeric(r) && r != '-' && r != '_' })
	}
	last := labels[len(labels)-1]
	if len(s) > maxName-2 || slices.ContainsFunc(labels, func(label string) bool { return !valid(label) }) ||
		strings.Trim(last, "0123456789") == "" {
		return "", false
	}
	return strings.ToLower(s), true
}

func alphanumeric(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// String returns the nameserver in the form that ParseNameserver reads, always
// with its port, and with its path if it has one: 10.0.0.53:53,
// tcp://[::1]:53, https://9.9.9.9:443/dns-query#dns.quad9.net.
func (n Nameserver) String() string {
	if n.Network == "" || n.Network == "udp" {
		return n.AddrPort.String()
	}
	s := n.Network + "://" + n.hostPort() + n.Path
	if n.Name != "" && n.AddrPort.Addr().IsValid() {
		s += "#" + n.Name
	}
	return s
}

// hostPort returns what a connection to n is made to.
func (n Nameserver) hostPort() string {
	if n.AddrPort.Addr().IsValid() {
		return n.AddrPort.String()
	}
	return n.Name + ":" + strconv.Itoa(int(n.AddrPort.Port()))
}

// identity returns what the certificate of n must be for: its name or, if it has
// none, its address.
func (n Nameserver) identity() string {
	if n.Name != "" {
		return n.Name
	}
	return n.AddrPort.Addr().WithZone("").String()
}
