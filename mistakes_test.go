package caddytarget

import (
	"strings"
	"testing"

	"caddytarget/internal/targeturl"

	"github.com/caddyserver/caddy/v2"
)

func TestLacksBraces(t *testing.T) {
	for _, template := range []string{"X-Target", "x-target", "header.X-Target", "query.to", "vars.to", "http.request.header.X-Target", "rp.header.Location", "to"} {
		if !targeturl.LacksBraces(template) {
			t.Errorf("%s is not seen", template)
		}
	}
	for _, template := range []string{
		"", "{header.X-Target}", "localhost", "localhost:9001", "backend:80", "http://backend", "api.example.com", "10.0.0.1", "[::1]", "http://{query.to}", "{X-Target}",
	} {
		if targeturl.LacksBraces(template) {
			t.Errorf("%s is taken for a mistake", template)
		}
	}
}

// TestMistakes has configurations that are valid and can hardly be meant, beside
// those that can.
func TestMistakes(t *testing.T) {
	const used = "reverse_proxy {\ndynamic target\ntransport target\n}"
	const stock = "reverse_proxy 127.0.0.1:1"
	const target = "target {header.X-Target}"
	for _, test := range []struct {
		name, site string
		message    string // "": no warning
		place      string // the end of it
	}{
		{"no braces", "target_proxy X-Target", warnNoBraces, "/handle/0"},
		{"no braces, a place of a placeholder", "target_proxy header.X-Target", warnNoBraces, "/handle/0"},
		{"ignored", target + "\n" + stock, warnIgnored, "/handle/0"},
		{"ignored in a route", "route {\n" + target + "\nvars a b\n" + stock + "\n}", warnIgnored, "/handle/0"},
		{"ignored, deeper", "route {\n" + target + "\nroute {\nroute {\n" + stock + "\n}\n}\n}", warnIgnored, "/handle/0"},
		{"ignored, outside", "route {\nroute {\n" + target + "\n}\n" + stock + "\n}", warnIgnored, "/handle/0"},
		{"ignored, another source", target + "\nreverse_proxy {\ndynamic a {\nname a.example\nport 80\n}\n}", warnIgnored, "/handle/0"},
		{"ignored by the errors", "handle_errors {\nroute {\n" + target + "\n" + stock + "\n}\n}", warnIgnored, "/handle/0"},
		{"ignored by what follows a response", used + "\nroute {\n" + target + "\nreverse_proxy {\ndynamic target\ntransport target\nhandle_response {\nroute {\n" + target + "\n" + stock + "\n}\n}\n}\n}", warnIgnored, "/handle/0"},
		{"used", target + "\n" + used, "", ""},
		{"the shortcut", "target_proxy {header.X-Target}", "", ""},
		{"the shortcut beside another proxy", "target_proxy /a {header.X-Target}\n" + stock, "", ""},
		{"used by a static upstream", target + "\nreverse_proxy 127.0.0.1:1 {\ntransport target\n}", "", ""},
		{"used by the second", "route {\n" + target + "\n" + strings.Replace(stock, "reverse_proxy", "reverse_proxy /a", 1) + "\n" + used + "\n}", "", ""},
		{"used outside", "route {\nroute {\n" + target + "\n}\n" + used + "\n}", "", ""},
		{"in another branch", "handle /a {\n" + target + "\nrespond {http.target.host}\n}\nhandle {\n" + stock + "\n}", "", ""},
		{"no proxy", target + "\nrespond {http.target.host}", "", ""},
		{"before it", "route {\nreverse_proxy /a 127.0.0.1:1\n" + target + "\n" + used + "\n}", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			lines := w.logTo("WARN", "target", warnNoBraces, warnIgnored)
			config, err := adapt(w.caddyfile(test.site))
			if err != nil {
				t.Fatal(err)
			}
			if err := caddy.Load(config, true); err != nil {
				t.Fatal(err)
			}
			got := lines()
			switch {
			case test.message == "" && len(got) > 0:
				t.Errorf("warned: %v, want no warning", got)
			case test.message == "":
			case len(got) != 1 || got[0]["msg"] != test.message || got[0]["level"] != "warn":
				t.Errorf("logged %v, want %s", got, test.message)
			default:
				place, _ := got[0]["place"].(string)
				if !strings.HasPrefix(place, "apps/http/servers/") || !strings.HasSuffix(place, test.place) {
					t.Errorf("the place is %s", place)
				}
			}
		})
	}
}

// TestMistakesInCaddyfiles checks the warnings that have a file and a line.
func TestMistakesInCaddyfiles(t *testing.T) {
	w := newWorld(t)
	lines := w.logTo("WARN", "config.adapter.caddyfile", warnNoBraces)
	w.run("respond ok") // so that its log is used
	for text, want := range map[string]float64{
		":80 {\n\ttarget_proxy X-Target\n}":                    2,
		":80 {\n\n\ttarget header.X-Target {\n\t}\n}":          3,
		":80 {\n\ttarget_proxy {header.X-Target}\n}":           0,
		":80 {\n\thandle {\n\t\ttarget_proxy query.to\n\t}\n}": 3,
	} {
		before := len(lines())
		if _, _, err := adaptText(text); err != nil {
			t.Fatal(err)
		}
		got := lines()[before:]
		switch {
		case want == 0 && len(got) > 0:
			t.Errorf("%s: got %v, want no line", text, got)
		case want == 0:
		case len(got) != 1 || got[0]["line"] != want || got[0]["file"] != "Testfile":
			t.Errorf("%s: %v, want line %v", text, got, want)
		}
	}
}
