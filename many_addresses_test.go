package caddytarget

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"caddytarget/internal/testlab"
)

// A name with 200 addresses behind a whole gateway: all of them are used, unless
// the policy sticks to what stays the same; then they are as many as max_upstreams
// says, and the same after a restart.
func TestManyAddresses(t *testing.T) {
	w := newWorld(t)
	const n = 200
	var addrs []string
	for i := range n {
		addrs = append(addrs, fmt.Sprintf("127.0.3.%d", i+1))
	}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs})
	w.dns.Has("many.example", addrs...)
	var srv []string
	for i := range n {
		name := fmt.Sprintf("t%d.example", i)
		w.dns.Has(name, addrs[i])
		srv = append(srv, fmt.Sprintf("0 0 %s %s.", b.Port, name))
	}
	w.dns.Set("_http._tcp.many.example", testlab.Reply{SRV: srv, TTL: 60})
	used := func(site string, requests int, change func(i int) func(*http.Request)) (seen map[string]int) {
		w.run(site)
		seen = make(map[string]int)
		for i := range requests {
			var changes []func(*http.Request)
			if change != nil {
				changes = append(changes, change(i))
			}
			seen[w.mustGet("/", "http://many.example:"+b.Port, changes...).seen.Address]++
		}
		return seen
	}
	service := func(options string) string {
		return "reverse_proxy {\ndynamic target _http._tcp.many.example {\n" + options + "\n}\ntransport target\nlb_retries 2\n"
	}
	key := func(i int) func(*http.Request) { return header("X-Key", fmt.Sprint(i)) }

	// 800 draws of one of 200 are never of less than 180 different ones
	for name, site := range map[string]string{
		"default":         w.proxy(),
		"least_conn":      w.proxy("lb_policy least_conn"),
		"round_robin":     w.proxy("lb_policy round_robin"),
		"max_upstreams":   w.proxy(fmt.Sprintf("max_upstreams %d", n)),
		"service":         service("") + "}",
		"another 200":     w.proxy("lb_policy header X-Key", fmt.Sprintf("max_upstreams %d", n)),
		"another service": service(fmt.Sprintf("max_upstreams %d", n)) + "lb_policy header X-Key\n}",
	} {
		t.Run(name, func(t *testing.T) {
			if seen := used(site, 800, key); len(seen) < 180 {
				t.Errorf("%d of %d addresses are used", len(seen), n)
			}
		})
	}
	for _, policy := range []string{"ip_hash", "client_ip_hash", "uri_hash", "first", "header X-Key", "cookie lb secret"} {
		for name, site := range map[string]string{
			"target":  w.proxy("lb_policy "+policy, "max_upstreams 6"),
			"service": service("max_upstreams 6") + "lb_policy " + policy + "\n}",
		} {
			t.Run(policy+" "+name, func(t *testing.T) {
				vary, want := key, 6
				if !strings.HasPrefix(policy, "header") && !strings.HasPrefix(policy, "cookie") {
					want = 1 // all requests are alike
				}
				seen := used(site, 60, vary)
				again := used(site+"\n", 60, vary)
				for address := range again {
					if seen[address] == 0 {
						t.Errorf("%s is new, want one of those before", address)
					}
				}
				if len(seen) > want || len(seen) < min(want, 4) {
					t.Errorf("%d addresses are used, want %d", len(seen), want)
				}
			})
		}
	}
}
