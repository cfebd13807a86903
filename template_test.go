package caddytarget

import (
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
