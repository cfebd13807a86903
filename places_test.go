package caddytarget

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"caddytarget/internal/testlab"
)

// TestTargetProxyPlaces: the shortcut works wherever Caddy takes a directive.
func TestTargetProxyPlaces(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	teapot := testlab.NewBackend(t, testlab.BackendConfig{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusTeapot) })})
	w.dns.Has("name.example", "127.0.0.2")
	const proxy = "target_proxy MATCHER {header.X-Target} {\nallow_ips 127.0.0.0/8\n}"
	plain, matched := strings.Replace(proxy, "MATCHER ", "", 1), strings.Replace(proxy, "MATCHER", "@matched", 1)
	const matcher = "@matched path /x\n"
	for _, test := range []struct{ name, site string }{
		{"handle", "handle /x {\n" + plain + "\n}"},
		{"handle_path", "handle_path /x {\n" + plain + "\n}"},
		{"route", "route /x {\n" + plain + "\n}"},
		{"route with more", "route /x {\nvars a b\n" + plain + "\nrespond 599\n}"},
		{"a matcher", matcher + matched},
		{"a path", strings.Replace(proxy, "MATCHER", "/x", 1)},
		{"nested", "handle /x {\nroute {\nhandle {\n" + matcher + matched + "\n}\n}\n}"},
		{"named route", "invoke /x call\n---\n&(call) {\n" + plain + "\n}"},
		{"named route with a matcher", "invoke /x call\n---\n&(call) {\n" + matcher + matched + "\n}"},
		{"named route with more", "invoke /x call\n---\n&(call) {\nvars a b\n" + plain + "\n}"},
		{"named route in a named route", "invoke /x outer\n---\n&(outer) {\ninvoke call\n}\n&(call) {\n" + plain + "\n}"},
		{"handle in a named route", "invoke /x call\n---\n&(call) {\nhandle {\n" + plain + "\n}\n}"},
		{"handle_errors", "error /x 500\nhandle_errors {\n" + plain + "\n}"},
		{"handle_errors of a status", "error /x 503\nhandle_errors 5xx {\n" + matcher + matched + "\n}"},
		{"handle_response", fmt.Sprintf("reverse_proxy /x 127.0.0.1:%s {\n@teapot status 418\nhandle_response @teapot {\n%s\n}\n}", teapot.Port, plain)},
		{"handle_response without a matcher", fmt.Sprintf("reverse_proxy /x 127.0.0.1:%s {\nhandle_response {\n%s\n}\n}", teapot.Port, plain)},
		{"forward_auth", fmt.Sprintf("route /x {\nforward_auth 127.0.0.1:%s {\nuri /\n@teapot status 418\nhandle_response @teapot {\n%s\n}\n}\n}", teapot.Port, plain)},
		{"intercept", "intercept /x {\n@teapot status 418\nhandle_response @teapot {\n" + plain + "\n}\n}\nrespond /x 418"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.run(test.site)
			res := w.get("/x", "http://name.example:"+b.Port)
			if res.StatusCode != http.StatusOK || res.seen.Address != "127.0.0.2" || res.seen.Host != "name.example:"+b.Port || res.seen.Header["X-Target"] != nil {
				t.Errorf("got %v, X-Target %q, want status 200 from 127.0.0.2 for name.example, without X-Target", res, res.seen.Header["X-Target"])
			}
		})
	}
}
