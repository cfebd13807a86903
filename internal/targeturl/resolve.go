package targeturl

import (
	"errors"
	"fmt"
	"strings"
)

// ErrDowngrade is the error of [URL.Resolve] for a reference from https to http.
var ErrDowngrade = errors.New("it leads from https to http")

// Resolve returns the URL that a reference names which is relative to base (RFC 3986,
// section 5.2). That is how a client reads the Location field of the response to a request
// for base (RFC 9110, section 10.2.2). Only http, h2c and https are read.
//
// With [ErrDowngrade] it returns the URL, too.
func (base *URL) Resolve(ref string) (u URL, err error) {
	scheme, authority := base.Scheme, JoinHostPort(base.Scheme, base.Host, base.Port)
	rest, _, _ := strings.Cut(ref, "#")
	if before, after, ok := strings.Cut(rest, ":"); ok && !strings.ContainsAny(before, "/?") {
		if !strings.HasPrefix(after, "//") {
			return u, fmt.Errorf("%q is neither a URL with a host nor a relative one", before+":…")
		}
		scheme, rest = before, after
	}
	if after, ok := strings.CutPrefix(rest, "//"); ok {
		end := strings.IndexAny(after+"/", "/?")
		authority, rest = after[:end], after[end:]
	} else {
		rest = base.merge(rest)
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	if path = removeDotSegments(path); hasQuery {
		path += "?" + query
	}
	u, err = Parse(scheme + "://" + authority + encodeAsBrowser(path))
	switch {
	case err != nil:
		return u, err
	case DefaultPort(u.Scheme) == 0:
		return u, fmt.Errorf("%q has another scheme than http and https", shown(ref))
	case base.Scheme == "https" && u.Scheme != "https":
		return u, ErrDowngrade
	case base.Scheme == "h2c" && u.Scheme == "http" && SameOrigin(base, &u):
		u.Scheme = "h2c" // which the backend knows as http
	}
	return u, nil
}

// SameOrigin reports whether two URLs have the same scheme, host and port. The scheme h2c
// is the same as http.
func SameOrigin(a, b *URL) bool {
	return (a.Scheme == "https") == (b.Scheme == "https") && a.Host == b.Host && a.Port == b.Port
}

// merge returns the path and the query of a reference without scheme and authority, that is
// relative to base (RFC 3986, section 5.2.2).
func (base *URL) merge(ref string) string {
	switch {
	case ref == "" && base.HasQuery:
		return base.Path + "?" + base.Query
	case ref == "":
		return base.Path
	case ref[0] == '/':
		return ref
	case ref[0] == '?':
		return base.Path + ref
	}
	return base.Path[:strings.LastIndexByte(base.Path, '/')+1] + ref
}

// removeDotSegments resolves the segments . and .. of a path that begins with a slash (RFC
// 3986, section 5.2.4).
func removeDotSegments(path string) string {
	if !strings.Contains(path, "/.") {
		return path
	}
	segments := strings.Split(path[1:], "/")
	kept := segments[:0]
	for i, s := range segments {
		switch s {
		case "..":
			kept = kept[:max(0, len(kept)-1)]
		case ".":
		default:
			kept = append(kept, s)
			continue
		}
		if i == len(segments)-1 {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// encodeAsBrowser percent-encodes the octets that servers write into the path and the query
// of a Location although they are not allowed there, and that browsers encode: spaces, and
// what is not ASCII.
func encodeAsBrowser(s string) string {
	return encode(s, func(c byte) bool { return c > ' ' && c < 0x80 || c < ' ' })
}
