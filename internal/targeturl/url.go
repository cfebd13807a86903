// Package targeturl reads the URLs of targets. Programs do not agree on what some strings
// mean: one calls this host, another that one. Such a string is an error here.
//
//   - [Parse] takes a target apart and brings it into its normal form, a [URL].
//   - [URL.Resolve] finds out which target the Location field of a response names
//     (resolve.go).
//   - A [Confinement] keeps what a placeholder brings to a path below the folder in
//     which the placeholder stands (confine.go).
//   - [SingleValues] refuses requests that have a field or parameter of a template twice
//     (template.go).
//
// encode.go has the percent-encoding.
package targeturl

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"caddytarget/internal/guard"
)

// URL is a target in its normal form.
type URL struct {
	Scheme string     // lower case; never empty
	Host   string     // lower-case ASCII name without trailing dot, or an IP address without brackets
	Addr   netip.Addr // the host, if it is an IP address
	Port   uint16     // 0 if there is none and the scheme has no default

	// HostPort is the Host header field: the host, and the port unless it is the
	// scheme's default.
	HostPort string

	HasPath  bool
	Path     string // percent-encoded, as it is sent; empty unless HasPath
	Query    string // without question mark
	HasQuery bool   // there is a question mark
}

// MaxLen is the largest length of a target in octets.
const MaxLen = 8192

var (
	// ErrNoTarget is the error of [Parse] for an empty string.
	ErrNoTarget = errors.New("no target")

	// ErrUserinfo is the error of [Parse] for a URL with a user name.
	ErrUserinfo = errors.New("target has userinfo")
)

// shown returns the part of a target that an error shows: path and query may be
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

// Parse parses scheme://host[:port][/path][?query] or host[:port]. Without a scheme it is
// http, or https on port 443. A fragment is dropped. A string that different programs may
// read differently is an error.
func Parse(s string) (u URL, err error) {
	switch {
	case s == "":
		return u, ErrNoTarget
	case len(s) > MaxLen:
		return u, fmt.Errorf("target of %d octets is too long", len(s))
	}
	if strings.IndexByte(s, '@') >= 0 {
		defer func() {
			if err != nil && err != ErrUserinfo {
				err = errors.New("target cannot be read; it may hold a password and is not shown")
			}
		}()
	}
	if err := CheckBytes(s); err != nil {
		return u, fmt.Errorf("target %q: %w", shown(s), err)
	}

	rest, authority := "", s
	if scheme, after, ok := strings.Cut(s, "://"); ok && isScheme(scheme) {
		u.Scheme = strings.ToLower(scheme)
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
		return u, ErrUserinfo
	}

	host, port, err := splitHostPort(authority)
	if err != nil {
		return u, fmt.Errorf("target %q: %w", shown(s), err)
	}
	if u.Host, u.Addr, err = NormalizeHost(host); err != nil {
		return u, fmt.Errorf("target %q: %w", shown(s), err)
	}
	if u.Scheme == "" {
		u.Scheme = "http"
		if port == 443 {
			u.Scheme = "https"
		}
	}
	if u.Port = port; port == 0 {
		u.Port = DefaultPort(u.Scheme) // may still be 0: the guard refuses such a scheme
	}
	if port != DefaultPort(u.Scheme) && len(authority) > len(u.Host)+1 &&
		authority[:len(u.Host)] == u.Host && authority[len(u.Host)] == ':' && authority[len(u.Host)+1] != '0' {
		u.HostPort = authority // saves building the same string
	} else {
		u.HostPort = JoinHostPort(u.Scheme, u.Host, u.Port)
	}

	rest, _, _ = strings.Cut(rest, "#")
	u.SetPathAndQuery(rest)
	return u, nil
}

// SetPathAndQuery sets the path and the query to s, which is [path][?query], and
// percent-encodes them where that is missing. A query without a path has the path /.
func (u *URL) SetPathAndQuery(s string) {
	path, query, hasQuery := strings.Cut(s, "?")
	if path == "" && hasQuery {
		path = "/"
	}
	u.Path, u.HasPath = encode(path, isPathByte), path != ""
	u.Query, u.HasQuery = encodeQuery(query), hasQuery
}

// JoinHostPort returns the Host header field for a host: with the port, unless it is the
// scheme's default.
func JoinHostPort(scheme, host string, port uint16) string {
	if strings.IndexByte(host, ':') >= 0 {
		host = "[" + host + "]"
	}
	if port == DefaultPort(scheme) {
		return host
	}
	return host + ":" + strconv.Itoa(int(port))
}

// Apply sets the path and the query of a [url.URL] to those of u.
func (u *URL) Apply(to *url.URL) {
	to.Path = u.Path
	to.RawPath = ""
	if strings.IndexByte(u.Path, '%') >= 0 || needsRawPath(u.Path) {
		// it has no bare percent sign: see encode
		to.Path, _ = url.PathUnescape(u.Path)
		to.RawPath = u.Path
	}
	to.RawQuery = u.Query
	to.ForceQuery = u.HasQuery && u.Query == ""
}

// needsRawPath reports whether net/url would encode the path differently, if it had only
// the decoded path.
func needsRawPath(path string) bool {
	return strings.ContainsAny(path, "!'()*[]")
}

// DefaultPort returns the default port of http, h2c and https, and 0 for other schemes.
func DefaultPort(scheme string) uint16 {
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

// CheckBytes returns an error if s has an octet that may stand nowhere in a URL and that
// different programs read differently: a control character, a space, a backslash, or one
// that is not UTF-8.
func CheckBytes(s string) error {
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

// splitHostPort splits host[:port]. The port is 0 if there is none.
func splitHostPort(s string) (host string, port uint16, err error) {
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 || colon < strings.LastIndexByte(s, ']') {
		return s, 0, nil
	}
	port, err = guard.ParsePort(s[colon+1:])
	return s[:colon], port, err
}

// NormalizeHost returns the normal form of a host, with which it is checked, resolved, sent
// and verified: that of [guard.NormalizeHost]. An IPv6 address is given in brackets and
// returned without. If the host is an IP address, that is returned too.
func NormalizeHost(host string) (string, netip.Addr, error) {
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
		addr, _ = netip.ParseAddr(normal) // an error means that it is a name
	}
	return normal, addr, nil
}

// IsHostHeader reports whether a Host header can be sent as it is. The zone of an
// address cannot: over HTTP/1 net/http takes it out.
func IsHostHeader(s string) bool {
	if strings.HasPrefix(s, "[") && strings.Contains(s, "%") {
		return false
	}
	return httpguts.ValidHostHeader(s)
}
