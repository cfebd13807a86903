package caddytarget

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// confinement keeps what a placeholder brings below the folder in which it stands
// in a template. The zero value does not.
type confinement struct {
	// pathStart returns where the path begins in the expanded template; nil: nothing
	// is checked, since no placeholder stands in a path.
	pathStart func(s string) int
}

// confinePath returns the confinement of a template of a path.
func confinePath(template string) confinement {
	if !strings.Contains(template, "{") {
		return confinement{}
	}
	return confinement{func(string) int { return 0 }}
}

// confineURL returns the confinement of a template of a URL. What stands before its
// path may bring a path of its own.
func confineURL(template string) confinement {
	if !strings.Contains(template[authorityEnd(template):], "{") {
		return confinement{}
	}
	return confinement{authorityEnd}
}

// authorityEnd returns where the authority of a URL ends.
func authorityEnd(s string) int {
	start := 0
	if i := strings.Index(s, "://"); i >= 0 {
		start = i + len("://")
	}
	if i := strings.IndexByte(s[start:], '/'); i >= 0 {
		return start + i
	}
	return len(s)
}

var errLeavesFolder = errors.New("a placeholder's value leaves the folder of the template by dot segments")

// valueStart and valueEnd enclose what a placeholder brings, while a template is
// expanded. No target has them.
const (
	valueStart = "\x01"
	valueEnd   = "\x02"
)

// expand puts values in the place of a template's placeholders.
func (c confinement) expand(repl *caddy.Replacer, template string) (string, error) {
	if c.pathStart == nil {
		return repl.ReplaceAll(template, ""), nil
	}
	marked, err := repl.ReplaceFunc(template, func(_ string, value any) (any, error) {
		text := caddy.ToString(value)
		if err := checkBytes(text); err != nil {
			return nil, err
		}
		return valueStart + text + valueEnd, nil
	})
	if err != nil {
		return "", err
	}
	return c.check(marked)
}

// check takes the marks out of an expanded template and checks what was between
// them.
func (c confinement) check(marked string) (string, error) {
	var (
		text   strings.Builder
		values [][2]int // where they begin and end
	)
	for i := range len(marked) {
		switch marked[i : i+1] {
		case valueStart:
			values = append(values, [2]int{text.Len(), text.Len()})
		case valueEnd:
			if len(values) > 0 {
				values[len(values)-1][1] = text.Len()
			}
		default:
			text.WriteByte(marked[i])
		}
	}
	s := text.String()
	path := s
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		path = s[:i]
	}
	start := c.pathStart(path)
	for _, v := range values {
		if v[0] < start || v[0] > len(path) {
			continue
		}
		folder := max(start, strings.LastIndexByte(path[:v[0]], '/')+1)
		if strings.Trim(path[start:folder], "/") == "" {
			continue // nothing is above it
		}
		end := min(v[1], len(path))
		if n := strings.IndexByte(path[end:], '/'); n >= 0 {
			end += n
		} else {
			end = len(path)
		}
		if leaves(path[folder:end]) {
			return "", errLeavesFolder
		}
	}
	return s, nil
}

// leaves reports whether a relative path leads out of the folder to which it is
// relative. Dots and slashes that are percent-encoded count, since there are servers
// that decode them first.
func leaves(path string) bool {
	if !strings.Contains(path, ".") && !strings.Contains(path, "%") {
		return false
	}
	depth := 0
	for segment := range strings.SplitSeq(plainPath.Replace(path), "/") {
		switch segment, _, _ = strings.Cut(segment, ";"); segment {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// plainPath decodes what matters for the segments of a path, and what is encoded
// twice, too.
var plainPath = strings.NewReplacer(
	"%2e", ".", "%2E", ".", "%252e", ".", "%252E", ".",
	"%2f", "/", "%2F", "/", "%252f", "/", "%252F", "/",
	"%5c", "/", "%5C", "/", "%255c", "/", "%255C", "/",
)

// singleValues are the header fields and the query parameters that templates take
// from a request. Caddy joins several of a name by commas; which of them is meant,
// nothing can tell.
type singleValues struct{ fields, parameters []string }

// singleValuesOf returns what some templates take.
func singleValuesOf(templates ...string) (v singleValues) {
	for _, t := range templates {
		for t != "" {
			_, after, _ := strings.Cut(t, "{")
			var name string
			name, t, _ = strings.Cut(after, "}")
			if field, ok := strings.CutPrefix(name, "http.request.header."); ok {
				v.fields = append(v.fields, http.CanonicalHeaderKey(field))
			}
			if parameter, ok := strings.CutPrefix(name, "http.request.uri.query."); ok {
				v.parameters = append(v.parameters, parameter)
			}
		}
	}
	slices.Sort(v.fields)
	slices.Sort(v.parameters)
	return singleValues{slices.Compact(v.fields), slices.Compact(v.parameters)}
}

// check returns an error if a request has one of them more than once.
func (v *singleValues) check(r *http.Request) error {
	for _, field := range v.fields {
		if n := len(r.Header[field]); n > 1 {
			return fmt.Errorf("the request has the header field %s %d times", field, n)
		}
	}
	if len(v.parameters) == 0 {
		return nil
	}
	query, _ := url.ParseQuery(r.URL.RawQuery) // as Caddy does it
	for _, parameter := range v.parameters {
		if n := len(query[parameter]); n > 1 {
			return fmt.Errorf("the request has the query parameter %q %d times", parameter, n)
		}
	}
	return nil
}
