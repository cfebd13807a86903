package caddytarget

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// TestConfinement checks that a value stays below the folder in which its placeholder
// stands, in the path of either template.
func TestConfinement(t *testing.T) {
	const ok, no = true, false
	for _, test := range []struct {
		template, x, y string
		ok             bool
	}{
		{"/fixed/{x}", "a", "", ok},
		{"/fixed/{x}", "a/b?c=../../d", "", ok},
		{"/fixed/{x}", "a#../../d", "", ok},
		{"/fixed/{x}", "a/../b", "", ok},
		{"/fixed/{x}", "a/./b", "", ok},
		{"/fixed/{x}", "...", "", ok},
		{"/fixed/{x}", "..a/b..", "", ok},
		{"/fixed/{x}", "", "", ok},
		{"/fixed/{x}", "..", "", no},
		{"/fixed/{x}", "../x", "", no},
		{"/fixed/{x}", "../../x", "", no},
		{"/fixed/{x}", "/../x", "", no},
		{"/fixed/{x}", "./../x", "", no},
		{"/fixed/{x}", "a/../../x", "", no},
		{"/fixed/{x}", "a//../../x", "", no},
		{"/fixed/{x}", "%2e%2e/x", "", no},
		{"/fixed/{x}", ".%2E/x", "", no},
		{"/fixed/{x}", "%2E./x", "", no},
		{"/fixed/{x}", "a%2f..%2f../x", "", no},
		{"/fixed/{x}", "..%2Fx", "", no},
		{"/fixed/{x}", "..%5cx", "", no},
		{"/fixed/{x}", "%252e%252e%252fx", "", no},
		{"/fixed/{x}", "..;a=b/x", "", no},
		{"/fixed/{x}", "..?q", "", no},
		{"/fixed/{x}/rest", "..", "", no},
		{"/fixed/{x}/rest", "a/..", "", ok},
		{"/fixed/{x}/../rest", "a", "", ok}, // that is the operator's
		{"/fixed/.{x}", "./x", "", no},
		{"/fixed/{x}.", ".", "", no},
		{"/fixed/{x}.json", "../x", "", no},
		{"/fixed/a{x}", "../x", "", ok}, // a.. is a name
		{"/fixed/{x}{y}", ".", "./x", no},
		{"/fixed/{x}/b/{y}", "a", "../../c", no},
		{"/fixed/{x}/{y}", "", "..", no},
		{"/fixed?q={x}", "../../x", "", ok},
		{"/{x}", "../x", "", ok}, // there is nothing above it
		{"{x}", "/../x", "", ok},
		{"/{x}/{y}", "a", "../b", no},
		{"fixed/{x}", "../b", "", no},
	} {
		repl := caddy.NewEmptyReplacer()
		repl.Set("x", test.x)
		repl.Set("y", test.y)
		want := strings.NewReplacer("{x}", test.x, "{y}", test.y).Replace(test.template)
		got, err := confinePath(test.template).expand(repl, test.template)
		if (err == nil) != test.ok || err == nil && got != want {
			t.Errorf("path %s with %q and %q: %q, %v", test.template, test.x, test.y, got, err)
		}
		if !strings.HasPrefix(test.template, "/") {
			continue
		}
		for _, before := range []string{"http://a.example", "https://a.example:8443", "http://{y}.example"} {
			template := before + test.template
			want := strings.NewReplacer("{x}", test.x, "{y}", test.y).Replace(template)
			got, err := confineURL(template).expand(repl, template)
			if (err == nil) != test.ok || err == nil && got != want {
				t.Errorf("url %s with %q and %q: %q, %v", template, test.x, test.y, got, err)
			}
		}
	}
	for _, template := range []string{"{x}", "http://{x}", "http://a.example", "http://a.example/b", "http://a.example{x}"} {
		if confineURL(template).pathStart != nil && template != "http://a.example{x}" {
			t.Errorf("url %s is confined, which has no folder", template)
		}
	}
	repl := caddy.NewEmptyReplacer()
	repl.Set("x", "a\x02b")
	if _, err := confinePath("/a/{x}").expand(repl, "/a/{x}"); err == nil {
		t.Error("a value brought a mark")
	}
	_, _ = confinePath("/a/\x02{x}").expand(repl, "/a/\x02{x}")
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
