package caddytarget

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"caddytarget/internal/health"
)

// manyAddrs returns so many addresses.
func manyAddrs(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
	}
	return list
}

// The requests to a name are spread over all of its addresses, in each instance,
// however few a request is offered; those that fail are left to the others.
func TestSpread(t *testing.T) {
	for _, n := range []int{4, 5, 10, 64, 200, 1000} {
		for _, dead := range []int{0, n / 3} {
			for _, most := range []int{1, 4, 64} {
				if n < most || n > 200 && most == 64 {
					continue
				}
				t.Run(fmt.Sprintf("addresses=%d/dead=%d/max_upstreams=%d", n, dead, most), func(t *testing.T) {
					addrs := manyAddrs(n)
					var offered [2][]string // by instance
					for instance := range offered {
						h := health.New()
						u := &Upstreams{MaxUpstreams: most, MaxFails: 1, failDuration: defaultFailDuration, health: h}
						for _, a := range addrs[:dead] {
							h.Failed("", netip.AddrPortFrom(a, 80), false)
						}
						const each = 64
						count := make(map[string]int)
						for range each * (n - dead) {
							c := &call{host: "a.example", port: 80, repeats: true}
							c.Addrs, c.Preferred = addrs, n
							upstreams := u.offer(t.Context(), c)
							if len(upstreams) != min(most, n-dead) {
								t.Fatalf("%d upstreams", len(upstreams))
							}
							chosen := upstreams[rand.N(len(upstreams))].Dial // as the default policy does
							count[chosen]++
							if len(offered[instance]) < 100 {
								offered[instance] = append(offered[instance], upstreams[0].Dial)
							}
						}
						for i, a := range addrs {
							got := count[netip.AddrPortFrom(a, 80).String()]
							// 6 sigmas at least; next to dead ones it may be more
							switch {
							case i < dead && got > 0:
								t.Errorf("%s, which is dead, got %d of the requests", a, got)
							case i >= dead && got < each-6*8:
								t.Errorf("%s got %d of the requests", a, got)
							case i >= dead && dead == 0 && got > each+6*8:
								t.Errorf("%s got %d of the requests", a, got)
							}
						}
					}
					if n > most && n >= 64 && slices.Equal(offered[0], offered[1]) {
						t.Error("two instances are offered the same")
					}
				})
			}
		}
	}
}

// The preferred addresses come first, whichever it begins with, and each one once.
func TestPlace(t *testing.T) {
	for _, n := range []int{1, 2, 5, 100} {
		for preferred := 1; preferred <= n; preferred++ {
			c := new(call)
			c.Addrs, c.Preferred = manyAddrs(n), preferred
			for first := range n {
				seen := make(map[int]bool)
				for k := range n {
					i := c.place(first, k)
					if seen[i] || (k < preferred) != (i < preferred) {
						t.Fatalf("%d addresses, %d preferred, beginning with %d: the %d-th is %d", n, preferred, first, k, i)
					}
					seen[i] = true
				}
			}
		}
	}
}

// Where some of a draw have failed or were tried, others are offered.
func TestSpreadFailover(t *testing.T) {
	const n = 100
	addrs := manyAddrs(n)
	h := health.New()
	u := &Upstreams{MaxUpstreams: 4, MaxFails: 1, failDuration: defaultFailDuration, health: h}
	for range 200 {
		c := &call{host: "a.example", port: 80, repeats: true}
		c.Addrs, c.Preferred = addrs, n
		for len(c.tried) < n {
			upstreams := u.offer(t.Context(), c)
			if len(upstreams) != min(4, n-len(c.tried)) {
				t.Fatalf("%d upstreams after %d tries", len(upstreams), len(c.tried))
			}
			for _, o := range upstreams {
				if slices.ContainsFunc(c.tried, func(tr try) bool { return tr.addr.String() == o.Dial }) {
					t.Fatalf("%s is offered again", o.Dial)
				}
			}
			if more := len(c.tried) < n-1; c.more != more {
				t.Fatalf("more is %t after %d tries", c.more, len(c.tried))
			}
			c.tried = append(c.tried, try{addr: netip.MustParseAddrPort(upstreams[0].Dial), final: true})
		}
	}
}

// Of the records of a large service each request has to do with some, drawn in
// proportion to their weights.
func TestSomeRecords(t *testing.T) {
	records := func(priority uint16, weights ...uint16) (list []net.SRV) {
		for i, weight := range weights {
			list = append(list, net.SRV{Target: fmt.Sprintf("t%d.example", i), Port: 80, Priority: priority, Weight: weight})
		}
		slices.SortStableFunc(list, func(a, b net.SRV) int { return int(b.Weight) - int(a.Weight) }) // as the cache does
		return list
	}
	weights := make([]uint16, 200)
	equal := slices.Repeat([]uint16{5}, 200)
	for i := range weights {
		weights[i] = 1
	}
	weights[0], weights[1] = 100, 99 // 100, 99 and 198 of 397
	u := &Upstreams{MaxUpstreams: 4}
	const draws = 4000
	t.Run("weights", func(t *testing.T) {
		first := make(map[string]int)
		for range draws {
			got, drawn := u.someRecords(records(1, weights...))
			if len(got) != minServiceRecords || !drawn {
				t.Fatalf("%d records, drawn: %t", len(got), drawn)
			}
			names := make(map[string]bool)
			for _, r := range got {
				names[r.Target] = true
			}
			if len(names) != len(got) {
				t.Fatal("a record is drawn twice")
			}
			first[got[0].Target]++
		}
		for name, want := range map[string]float64{"t0.example": 100. / 397, "t1.example": 99. / 397} {
			if got := float64(first[name]) / draws; math.Abs(got-want) > 6*math.Sqrt(want/draws) {
				t.Errorf("%s is the first of %.3f of the draws, want %.3f", name, got, want)
			}
		}
	})
	t.Run("equal", func(t *testing.T) {
		count := make(map[string]int)
		for range draws {
			got, drawn := u.someRecords(records(1, equal...))
			if len(got) != minServiceRecords || drawn {
				t.Fatalf("%d records, drawn: %t", len(got), drawn)
			}
			for _, r := range got {
				count[r.Target]++
			}
		}
		for i := range equal {
			name, want := fmt.Sprintf("t%d.example", i), float64(draws*minServiceRecords)/200
			if got := float64(count[name]); math.Abs(got-want) > 6*math.Sqrt(want) {
				t.Errorf("%s is in %.0f draws, want %.0f", name, got, want)
			}
		}
	})
	t.Run("sticky", func(t *testing.T) {
		all := records(1, equal...)
		for _, most := range []int{4, 50} {
			u := &Upstreams{MaxUpstreams: most, sticky: true}
			got, _ := u.someRecords(all)
			if want := all[:max(minServiceRecords, most)]; !slices.Equal(got, want) {
				t.Errorf("max_upstreams %d: %d records", most, len(got))
			}
		}
	})
	t.Run("priorities", func(t *testing.T) {
		all := slices.Concat(records(1, 1, 3), records(2, weights...), records(3, equal...), records(4, weights...), records(5, weights...))
		got, drawn := u.someRecords(all)
		var n [6]int
		for _, r := range got {
			n[r.Priority]++
		}
		if n != [6]int{0, 2, 32, 32, 32, 32} || !drawn || !slices.IsSortedFunc(got, func(a, b net.SRV) int { return int(a.Priority) - int(b.Priority) }) {
			t.Errorf("records by priority: %v, drawn: %t", n, drawn)
		}
	})
	t.Run("few", func(t *testing.T) {
		all := records(1, weights[:32]...)
		if got, drawn := u.someRecords(all); !slices.Equal(got, all) || drawn {
			t.Errorf("%d of 32 records, drawn: %t", len(got), drawn)
		}
	})
	t.Run("nearly all of the weight", func(t *testing.T) {
		heavy := slices.Clone(weights)
		heavy[0] = math.MaxUint16
		for i := range heavy[1:] {
			heavy[1+i] = 0
		}
		if got, _ := u.someRecords(records(1, heavy...)); len(got) != minServiceRecords || got[0].Target != "t0.example" {
			t.Errorf("%d records", len(got))
		}
	})
}

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
	b := newBackend(t, backendConfig{addrs: addrs})
	w.dns.has("many.example", addrs...)
	var srv []string
	for i := range n {
		name := fmt.Sprintf("t%d.example", i)
		w.dns.has(name, addrs[i])
		srv = append(srv, fmt.Sprintf("0 0 %s %s.", b.port, name))
	}
	w.dns.set("_http._tcp.many.example", dnsName{srv: srv, ttl: 60})
	used := func(site string, requests int, change func(i int) func(*http.Request)) (seen map[string]int) {
		w.run(site)
		seen = make(map[string]int)
		for i := range requests {
			var changes []func(*http.Request)
			if change != nil {
				changes = append(changes, change(i))
			}
			seen[w.mustGet("/", "http://many.example:"+b.port, changes...).seen.Address]++
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
						t.Errorf("%s is new", address)
					}
				}
				if len(seen) > want || len(seen) < min(want, 4) {
					t.Errorf("%d addresses are used, want %d", len(seen), want)
				}
			})
		}
	}
}
