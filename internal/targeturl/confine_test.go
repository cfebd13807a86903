package targeturl

import (
	"strings"
	"testing"
)

// expand expands a template as the caller of this package does.
func expand(template string, c Confinement, values ...string) (string, error) {
	if !c.IsZero() {
		for i := 1; i < len(values); i += 2 {
			marked, err := Mark(values[i])
			if err != nil {
				return "", err
			}
			values[i] = marked
		}
	}
	text := strings.NewReplacer(values...).Replace(template)
	if c.IsZero() {
		return text, nil
	}
	return c.Unmark(text)
}

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
		{"/fixed/{x}/../rest", "a", "", ok}, // the operator wrote it
		{"/fixed/.{x}", "./x", "", no},
		{"/fixed/{x}.", ".", "", no},
		{"/fixed/{x}.json", "../x", "", no},
		{"/fixed/a{x}", "../x", "", ok}, // a.. is a name
		{"/fixed/{x}{y}", ".", "./x", no},
		{"/fixed/{x}/b/{y}", "a", "../../c", no},
		{"/fixed/{x}/{y}", "", "..", no},
		{"/fixed?q={x}", "../../x", "", ok},
		{"/{x}", "../x", "", ok}, // no folder is above it
		{"{x}", "/../x", "", ok},
		{"/{x}/{y}", "a", "../b", no},
		{"fixed/{x}", "../b", "", no},
	} {
		want := strings.NewReplacer("{x}", test.x, "{y}", test.y).Replace(test.template)
		got, err := expand(test.template, ConfinePath(test.template), "{x}", test.x, "{y}", test.y)
		if (err == nil) != test.ok || err == nil && got != want {
			t.Errorf("path %s with %q and %q: got %q, %v, want %q, ok %t", test.template, test.x, test.y, got, err, want, test.ok)
		}
		if !strings.HasPrefix(test.template, "/") {
			continue
		}
		for _, before := range []string{"http://a.example", "https://a.example:8443", "http://{y}.example"} {
			template := before + test.template
			want := strings.NewReplacer("{x}", test.x, "{y}", test.y).Replace(template)
			got, err := expand(template, ConfineURL(template), "{x}", test.x, "{y}", test.y)
			if (err == nil) != test.ok || err == nil && got != want {
				t.Errorf("url %s with %q and %q: got %q, %v, want %q, ok %t", template, test.x, test.y, got, err, want, test.ok)
			}
		}
	}
	for _, template := range []string{"{x}", "http://{x}", "http://a.example", "http://a.example/b", "http://a.example{x}"} {
		if !ConfineURL(template).IsZero() && template != "http://a.example{x}" {
			t.Errorf("url %s has no folder, but it is confined", template)
		}
	}
	if _, err := expand("/a/{x}", ConfinePath("/a/{x}"), "{x}", "a\x02b"); err == nil {
		t.Error("a value with a mark was accepted")
	}
	// a mark in a template does no harm
	_, _ = expand("/a/\x02{x}", ConfinePath("/a/\x02{x}"), "{x}", "a")
}
