package targeturl

import (
	"errors"
	"fmt"
	"strings"
)

// ErrDowngrade is the error of [URL.Resolve] for a reference from https to http.
var ErrDowngrade = errors.New("it leads from https to http")

// Resolve returns the URL that a reference names which is relative to u (RFC 3986, section
// 5.2). That is how a client reads the Location field of the response to a request for u (RFC
// 9110, section 10.2.2). Schemes other than http, h2c and https are errors.
//
// With [ErrDowngrade] it returns the URL, too.
func (u *URL) Resolve(ref string) (to URL, err error) {
	scheme, authority := u.Scheme, JoinHostPort(u.Scheme, u.Host, u.Port)
	rest, _, _ := strings.Cut(ref, "#")
	if before, after, ok := strings.Cut(rest, ":"); ok && !strings.ContainsAny(before, "/?") {
		if !strings.HasPrefix(after, "//") {
			return to, fmt.Errorf("%q is neither a URL with a host nor a relative one", before+":…")
		}
		scheme, rest = before, after
	}
	if after, ok := strings.CutPrefix(rest, "//"); ok {
		end := strings.IndexAny(after+"/", "/?")
		authority, rest = after[:end], after[end:]
	} else {
		rest = u.merge(rest)
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	if path = removeDotSegments(path); hasQuery {
		path += "?" + query
	}
	to, err = Parse(scheme + "://" + authority + encodeAsBrowser(path))
	switch {
	case err != nil:
		return to, err
	case DefaultPort(to.Scheme) == 0:
		return to, fmt.Errorf("%q has another scheme than http and https", shown(ref))
	case u.Scheme == "https" && to.Scheme != "https":
		return to, ErrDowngrade
	case u.Scheme == "h2c" && to.Scheme == "http" && SameOrigin(u, &to):
		to.Scheme = "h2c" // which the backend knows as http
	}
	return to, nil
}

// SameOrigin reports whether two URLs have the same scheme, host and port. The scheme h2c
// is the same as http.
func SameOrigin(a, b *URL) bool {
	return (a.Scheme == "https") == (b.Scheme == "https") && a.Host == b.Host && a.Port == b.Port
}

// merge returns the path and the query of a reference without scheme and authority, that is
// relative to u (RFC 3986, section 5.2.2).
func (u *URL) merge(ref string) string {
	switch {
	case ref == "" && u.HasQuery:
		return u.Path + "?" + u.Query
	case ref == "":
		return u.Path
	case ref[0] == '/':
		return ref
	case ref[0] == '?':
		return u.Path + ref
	}
	return u.Path[:strings.LastIndexByte(u.Path, '/')+1] + ref
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
