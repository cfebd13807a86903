package caddytarget

import (
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/targeturl"
)

// TestExpand checks that values replace the placeholders of a template, and that all of them
// are checked.
func TestExpand(t *testing.T) {
	for _, test := range []struct {
		template, x string
		want        string // empty: an error
	}{
		{"/a/{x}/{y}/{x}", "b", "/a/b/2/b"},
		{"/a/{x}", "b/../c", "/a/b/../c"},
		{"/a/{unknown}", "", "/a/"},
		{"/a/b", "", "/a/b"},
		{"/a/{x}", "..", ""},
		{"/a/b/{y}/{x}", "../../..", ""},
		{"/a/{x}", "\x02..", ""},
	} {
		repl := caddy.NewEmptyReplacer()
		repl.Set("x", test.x)
		repl.Set("y", 2)
		got, err := expand(repl, test.template, targeturl.ConfinePath(test.template))
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s with %q: got %q, %v, want %q", test.template, test.x, got, err, test.want)
		}
	}
}

// TestSingleValues checks which requests have a value twice that a template takes.
func TestSingleValues(t *testing.T) {
	v := singleValuesOf("{http.request.header.x-target}", "/{http.request.uri.query.p}/{http.request.header.X-P}", "", "{unclosed")
	for _, test := range []struct {
		uri    string
		header http.Header
		ok     bool
	}{
		{"/", nil, true},
		{"/?p=1&q=1&q=2", http.Header{"X-Target": {"a,b"}, "X-P": {""}, "X-Other": {"a", "b"}}, true},
		{"/", http.Header{"X-Target": {"a", "b"}}, false},
		{"/", http.Header{"X-Target": {"a", "a"}}, false},
		{"/", http.Header{"X-Target": {"a", ""}}, false},
		{"/", http.Header{"X-P": {"a", "b"}}, false},
		{"/?p=1&p=2", nil, false},
		{"/?p=1&%70=2", nil, false},
		{"/?p&p", nil, false},
	} {
		r, err := http.NewRequest(http.MethodGet, test.uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = test.header
		if err := v.check(r); (err == nil) != test.ok {
			t.Errorf("%s %v: %v", test.uri, test.header, err)
		}
	}
}
