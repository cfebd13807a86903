package caddytarget

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/targeturl"
)

// expand puts values in the place of a template's placeholders. It is an error if one of
// them leaves its folder.
func expand(repl *caddy.Replacer, template string, c targeturl.Confinement) (string, error) {
	if c.IsZero() {
		return repl.ReplaceAll(template, ""), nil
	}
	marked, err := repl.ReplaceFunc(template, func(_ string, value any) (any, error) {
		return targeturl.Mark(caddy.ToString(value))
	})
	if err != nil {
		return "", err
	}
	return c.Unmark(marked)
}

// singleValues are the header fields and the query parameters that templates take from a
// request. A request may have only one of each: Caddy joins several by commas, and it is
// unclear which one is meant.
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
