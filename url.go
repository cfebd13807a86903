package caddytarget

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"caddytarget/internal/guard"
)

// targetURL is where a request is to go, taken apart and in its normal form.
type targetURL struct {
	scheme string // lower case; never empty
	host   string // lower-case ASCII name without trailing dot, or an IP address without brackets
	addr   netip.Addr
	port   uint16

	hostport string // the host as it goes into a Host header: with the port, unless it is the scheme's default

	hasPath bool
	path    string // percent-encoded as it is to be sent; set if hasPath
	query   string // without question mark
	hasArgs bool   // there was a question mark
}

// maxTargetLen bounds a target, in octets.
const maxTargetLen = 8192

var (
	errNoTarget = errors.New("no target")
	errUserinfo = errors.New("target has userinfo")
)

// shown is the part of a target that an error shows: path and query may be
// secrets.
func shown(s string) string {
	from := 0
	if i := strings.Index(s, "://"); i >= 0 {
		from = i + len("://")
	}
	if i := strings.IndexAny(s[from:], "/?#\\"); i >= 0 {
		return s[:from+i] + "…"
	}
	return s
}

// parseTarget takes apart scheme://host[:port][/path][?query] or host[:port].
// It accepts only what has one meaning; everything else is an error.
func parseTarget(s string) (u targetURL, err error) {
	switch {
	case s == "":
		return u, errNoTarget
	case len(s) > maxTargetLen:
		return u, fmt.Errorf("target of %d octets is too long", len(s))
	}
	if strings.IndexByte(s, '@') >= 0 {
		defer func() {
			if err != nil && err != errUserinfo {
				err = errors.New("target cannot be read; it may hold a password and is not shown")
			}
		}()
	}
	if err := checkBytes(s); err != nil {
		return u, fmt.Errorf("target %q: %w", shown(s), err)
	}

	rest, authority := "", s
	if scheme, after, ok := strings.Cut(s, "://"); ok && isScheme(scheme) {
		u.scheme = strings.ToLower(scheme)
		authority = after
		if i := strings.IndexAny(after, "/?#"); i >= 0 {
			authority, rest = after[:i], after[i:]
		}
	} else if i := strings.IndexAny(s, "/?#"); i > 0 && s[i-1] != ':' {
		return u, fmt.Errorf("target %q: the scheme is missing: a target with a path begins with http:// or https://", shown(s))
	} else if i >= 0 {
		return u, fmt.Errorf("target %q: neither scheme://host[:port][/path] nor host[:port]", shown(s))
	}
	if strings.IndexByte(authority, '@') >= 0 {
		return u, errUserinfo
	}

	host, port, err := splitHostPort(authority)
	if err != nil {
		return u, fmt.Errorf("target %q: %w", shown(s), err)
	}
	if u.host, u.addr, err = normalizeHost(host); err != nil {
		return u, fmt.Errorf("target %q: %w", shown(s), err)
	}
	if u.scheme == "" {
		u.scheme = "http"
		if port == 443 {
			u.scheme = "https"
		}
	}
	if u.port = port; port == 0 {
		u.port = defaultPort(u.scheme) // still 0: the guard knows no such scheme
	}
	if port != defaultPort(u.scheme) && len(authority) > len(u.host)+1 &&
		authority[:len(u.host)] == u.host && authority[len(u.host)] == ':' && authority[len(u.host)+1] != '0' {
		u.hostport = authority // as it would be made now
	} else {
		u.hostport = hostport(u.scheme, u.host, u.port)
	}

	rest, _, _ = strings.Cut(rest, "#")
	u.setPathAndQuery(rest)
	return u, nil
}

// setPathAndQuery sets what follows the authority.
func (u *targetURL) setPathAndQuery(s string) {
	var path string
	path, u.query, u.hasArgs = strings.Cut(s, "?")
	u.query = encodeQuery(u.query)
	u.hasPath = path != "" || u.hasArgs
	if u.hasPath {
		if path == "" {
			path = "/"
		}
		u.path = encode(path, isPathByte)
	}
}

// hostport returns a host as it goes into a Host header: with the port, unless
// it is the scheme's default.
func hostport(scheme, host string, port uint16) string {
	if strings.IndexByte(host, ':') >= 0 {
		host = "[" + host + "]"
	}
	if port == defaultPort(scheme) {
		return host
	}
	return host + ":" + strconv.Itoa(int(port))
}

// apply makes the path and the query those of u.
func (u *targetURL) apply(to *url.URL) {
	to.Path = u.path
	to.RawPath = ""
	if strings.IndexByte(u.path, '%') >= 0 || needsRawPath(u.path) {
		// every percent sign in it starts an octet: see encode
		to.Path, _ = url.PathUnescape(u.path)
		to.RawPath = u.path
	}
	to.RawQuery = u.query
	to.ForceQuery = u.hasArgs && u.query == ""
}

// needsRawPath tells whether net/url would encode a path otherwise than it
// stands, if it were only given the path.
func needsRawPath(path string) bool {
	return strings.ContainsAny(path, "!'()*[]")
}

func defaultPort(scheme string) uint16 {
	switch scheme {
	case "http", "h2c":
		return 80
	case "https":
		return 443
	}
	return 0
}

func isScheme(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if c < 'a' || c > 'z' {
			if i == 0 || !isDigit(s[i]) && s[i] != '+' && s[i] != '-' && s[i] != '.' {
				return false
			}
		}
	}
	return s != ""
}

// checkBytes refuses what has no place anywhere in a URL and is read
// differently by different programs.
func checkBytes(s string) error {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f:
			return errors.New("control character")
		case c == ' ':
			return errors.New("space")
		case c == '\\':
			return errors.New("backslash")
		}
	}
	if !utf8.ValidString(s) {
		return errors.New("not UTF-8")
	}
	return nil
}

// splitHostPort takes apart host[:port]; no port is 0.
func splitHostPort(s string) (host string, port uint16, err error) {
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 || colon < strings.LastIndexByte(s, ']') {
		return s, 0, nil
	}
	port, err = parsePort(s[colon+1:])
	return s[:colon], port, err
}

func parsePort(s string) (uint16, error) {
	if s == "" {
		return 0, errors.New("no port after the colon")
	}
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, fmt.Errorf("port %q is not a number", s)
		}
	}
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %q is not in 1 to 65535", s)
	}
	return uint16(port), nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// normalizeHost returns a host in the form in which it is judged, resolved,
// sent and verified; and the address, if it is one.
func normalizeHost(host string) (string, netip.Addr, error) {
	switch {
	case host == "":
		return "", netip.Addr{}, errors.New("no host")
	case host[0] == '[' && host[len(host)-1] == ']':
		host = host[1 : len(host)-1]
		if strings.IndexByte(host, ':') < 0 {
			return "", netip.Addr{}, fmt.Errorf("host %q is in brackets but not an IPv6 address", host)
		}
	case strings.IndexByte(host, ':') >= 0:
		return "", netip.Addr{}, fmt.Errorf("host %q: IPv6 address without brackets", host)
	}
	normal, err := guard.NormalizeHost(host)
	if err != nil {
		return "", netip.Addr{}, fmt.Errorf("host %q: %w", host, err)
	}
	var addr netip.Addr
	if isDigit(normal[len(normal)-1]) || strings.IndexByte(normal, ':') >= 0 {
		addr, _ = netip.ParseAddr(normal) // a name is no address: that is no error
	}
	return normal, addr, nil
}

// encode percent-encodes what may not stand in a part of a URL and leaves
// everything else, existing escapes too, as it is.
func encode(s string, allowed func(byte) bool) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = allowed(s[i])
	}
	if clean {
		return s
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+8)
	for i := range len(s) {
		c := s[i]
		if allowed(c) || c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

// encodeQuery is encode for a query, where a percent sign that begins no escape stays
// as it is: queries hold macros such as %%CACHEBUSTER%%, and servers take them.
func encodeQuery(s string) string {
	return encode(s, func(c byte) bool { return isQueryByte(c) || c == '%' })
}

// encodeURI is encode for a path and a query.
func encodeURI(s string) string {
	path, query, ok := strings.Cut(s, "?")
	if path = encode(path, isQueryByte); !ok {
		return path
	}
	return path + "?" + encodeQuery(query)
}

func isHex(c byte) bool {
	return isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// isPathByte tells whether c is a pchar or a slash (RFC 3986, section 3.3), or
// a square bracket, which everybody sends as it is.
func isPathByte(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || isDigit(c) || strings.IndexByte("-._~!$&'()*+,;=:@/[]", c) >= 0
}

func isQueryByte(c byte) bool {
	return isPathByte(c) || strings.IndexByte("?|{}^`", c) >= 0
}
