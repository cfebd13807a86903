package targeturl

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// SingleValues are the header fields and the query parameters that templates take from a
// request. A request may have only one of each: Caddy joins several by commas, and it is
// unclear which one is meant.
type SingleValues struct{ fields, parameters []string }

// SingleValuesOf returns what some templates take.
func SingleValuesOf(templates ...string) (v SingleValues) {
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
	return SingleValues{slices.Compact(v.fields), slices.Compact(v.parameters)}
}

// Check returns an error if a request has one of them more than once.
func (v *SingleValues) Check(r *http.Request) error {
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

// HeaderOf returns the name of the header field that a template consists of.
func HeaderOf(template string) (string, bool) {
	name, ok := strings.CutPrefix(template, "{http.request.header.")
	if !ok {
		return "", false
	}
	name, ok = strings.CutSuffix(name, "}")
	return http.CanonicalHeaderKey(name), ok && !strings.ContainsAny(name, "{}")
}

// LacksBraces reports whether a template looks like a placeholder without braces: it
// has neither a scheme nor a port, and is one word, such as X-Target, or begins like a
// placeholder, as in header.X-Target.
func LacksBraces(template string) bool {
	if template == "" || strings.ContainsAny(template, "{:/") || strings.EqualFold(template, "localhost") {
		return false
	}
	if _, err := netip.ParseAddr(template); err == nil {
		return false
	}
	first, _, dotted := strings.Cut(template, ".")
	return !dotted || slices.Contains(placeholderRoots, first)
}

// placeholderRoots are the first words of placeholders from which a target may come.
var placeholderRoots = []string{"header", "query", "vars", "http", "cookie", "path", "uri", "re", "rp", "resp", "labels", "host", "env", "file"}
