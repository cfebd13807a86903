package caddytarget

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// failures returns how many failures are remembered.
func failures(h *health) int {
	n := 0
	for i := range h.shards {
		n += int(h.shards[i].size.Load())
	}
	return n
}

func testHealth() (h *health, advance func(time.Duration)) {
	h = newHealth()
	now := time.Unix(1e9, 0)
	h.now = func() time.Time { return now }
	return h, func(d time.Duration) { now = now.Add(d) }
}

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:443")
	addrB = netip.MustParseAddrPort("192.0.2.2:443")
	addr6 = netip.MustParseAddrPort("[2001:db8::1]:443")
)

func TestHealth(t *testing.T) {
	const duration = 10 * time.Second
	tests := []struct {
		name string
		do   func(h *health, advance func(time.Duration))
		host string
		want verdict
	}{
		{"nothing failed", func(*health, func(time.Duration)) {}, "a.example", good},
		{"TCP counts for all targets", func(h *health, _ func(time.Duration)) { h.fail(healthID{addr: addrA}, false) }, "b.example", ejected},
		{"TLS counts for the target", func(h *health, _ func(time.Duration)) { h.fail(healthID{"a.example", addrA}, false) }, "a.example", ejected},
		{"and for no other", func(h *health, _ func(time.Duration)) { h.fail(healthID{"a.example", addrA}, false) }, "b.example", good},
		{"nor for another address", func(h *health, _ func(time.Duration)) { h.fail(healthID{addr: addrB}, false) }, "a.example", good},
		{"it works again", func(h *health, _ func(time.Duration)) {
			h.fail(healthID{addr: addrA}, false)
			h.fail(healthID{"a.example", addrA}, false)
			h.works("a.example", addrA)
		}, "a.example", good},
		{"the time is over", func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addrA}, false)
			advance(duration)
		}, "a.example", onProbe},
		{"somebody tries it", func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addrA}, false)
			advance(duration)
			h.judge(&judging{"b.example", 1, duration, true}, addrA, true)
		}, "a.example", ejected},
		{"who tried it was never heard of", func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addrA}, false)
			advance(duration)
			h.judge(&judging{"b.example", 1, duration, true}, addrA, true)
			advance(trialTime)
		}, "a.example", onProbe},
		{"looking is not trying", func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addrA}, false)
			advance(duration)
			h.judge(&judging{"b.example", 1, duration, true}, addrA, false)
		}, "a.example", onProbe},
		{"due for one level, ejected for the other: no trial is used up", func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addrA}, false)
			advance(duration / 2)
			h.fail(healthID{"b.example", addrA}, false)
			advance(duration / 2)
			if h.judge(&judging{"b.example", 1, duration, true}, addrA, true) != ejected {
				panic("not ejected")
			}
		}, "a.example", onProbe},
		{"a request failed, and the time is over", func(h *health, advance func(time.Duration)) {
			h.fail(healthID{"a.example", addrA}, true)
			advance(duration)
		}, "a.example", onTrial},
		{"a request failed, and then a connection", func(h *health, advance func(time.Duration)) {
			h.fail(healthID{"a.example", addrA}, true)
			h.fail(healthID{addr: addrA}, false)
			advance(duration)
		}, "a.example", onTrial},
		{"a cut dial is under way", func(h *health, _ func(time.Duration)) { h.suspect(healthID{addr: addrA}, time.Second) }, "a.example", ejected},
		{"and is over", func(h *health, advance func(time.Duration)) {
			h.suspect(healthID{addr: addrA}, time.Second)
			advance(2 * time.Second)
		}, "a.example", good},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, advance := testHealth()
			test.do(h, advance)
			if got := h.judge(&judging{test.host, 1, duration, true}, addrA, false); got != test.want {
				t.Errorf("verdict %d, want %d", got, test.want)
			}
		})
	}

	t.Run("what cannot be repeated is tried later", func(t *testing.T) {
		get, post := judging{"a.example", 1, duration, true}, judging{"a.example", 1, duration, false}
		h, advance := testHealth()
		h.fail(healthID{"a.example", addrA}, true)
		advance(duration)
		if g, p := h.judge(&get, addrA, false), h.judge(&post, addrA, false); g != onTrial || p != ejected {
			t.Errorf("%d for what can be repeated, %d for what cannot", g, p)
		}
		advance(duration)
		if p := h.judge(&post, addrA, false); p != onTrial {
			t.Errorf("%d for what cannot be repeated, when nothing else came", p)
		}
		h.fail(healthID{"a.example", addrA}, false)
		advance(duration)
		if p := h.judge(&post, addrA, false); p != onProbe {
			t.Errorf("%d for what cannot be repeated, where it would not be sent", p)
		}
	})
	t.Run("max_fails", func(t *testing.T) {
		h, _ := testHealth()
		for i, want := range []verdict{good, good, ejected} {
			h.fail(healthID{addr: addrA}, false)
			if got := h.judge(&judging{"a.example", 3, duration, true}, addrA, false); got != want {
				t.Errorf("after %d failures: %d, want %d", i+1, got, want)
			}
		}
	})
	t.Run("old failures are forgotten", func(t *testing.T) {
		h, advance := testHealth()
		h.fail(healthID{"a.example", addrA}, false)
		advance(forgetAfter + time.Minute)
		h.fail(healthID{"b.example", addrA}, false)
		if n := failures(h); n != 1 {
			t.Errorf("%d are remembered", n)
		}
	})
	t.Run("bound", func(t *testing.T) {
		h, _ := testHealth()
		for i := range 2 * maxFailing {
			h.fail(healthID{fmt.Sprint(i), addrA}, false)
		}
		if n := failures(h); n != maxFailing {
			t.Errorf("%d are remembered", n)
		}
	})
}

// TestFamilies: a family of which nothing can be reached is left out as a whole.
func TestFamilies(t *testing.T) {
	const duration = 10 * time.Second
	dead := []string{"2001:db8:1::1", "2001:db8:2::1", "2001:db8:3::1"}
	tests := []struct {
		name string
		do   func(h *health, advance func(time.Duration), unreached func(addrs ...string))
		want verdict
	}{
		{"two networks", func(_ *health, _ func(time.Duration), unreached func(...string)) {
			unreached(dead[0], dead[1], "2001:db8:1::2", "2001:db8:1:1::1")
		}, good},
		{"three networks", func(_ *health, _ func(time.Duration), unreached func(...string)) { unreached(dead...) }, ejected},
		{"more networks", func(_ *health, _ func(time.Duration), unreached func(...string)) {
			unreached(append(dead, "2001:db8:4::1", "2001:db8:5::1")...)
		}, ejected},
		{"of another family", func(_ *health, _ func(time.Duration), unreached func(...string)) {
			unreached("192.0.2.1", "198.51.100.1", "203.0.113.1")
		}, good},
		{"one was reached", func(h *health, _ func(time.Duration), unreached func(...string)) {
			unreached(dead[:2]...)
			h.reached(netip.MustParseAddr("2001:db8:4::1"))
			unreached(dead[2])
		}, good},
		{"one of another family was reached", func(h *health, _ func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			h.reached(addrA.Addr())
			h.reached(netip.Addr{})
		}, ejected},
		{"too long ago", func(_ *health, advance func(time.Duration), unreached func(...string)) {
			unreached(dead[:2]...)
			advance(familyTime + time.Second)
			unreached(dead[2])
		}, good},
		{"the time is over", func(_ *health, advance func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			advance(duration)
		}, onProbe},
		{"somebody tries it", func(h *health, advance func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			advance(duration)
			if h.judge(&judging{"b.example", 1, duration, true}, netip.MustParseAddrPort("[2001:db8:9::1]:80"), true) != onProbe {
				panic("no trial")
			}
		}, ejected},
		{"and fails", func(_ *health, advance func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			advance(duration)
			unreached("2001:db8:9::1")
			advance(duration - time.Second)
		}, ejected},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, advance := testHealth()
			test.do(h, advance, func(addrs ...string) {
				for _, a := range addrs {
					h.unreached(netip.MustParseAddr(a))
				}
			})
			if got := h.judge(&judging{"a.example", 1, duration, true}, addr6, false); got != test.want {
				t.Errorf("verdict %d, want %d", got, test.want)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	dialled := func(addrs ...netip.AddrPort) (tried []try) {
		for _, a := range addrs {
			tried = append(tried, try{addr: a, final: true})
		}
		return tried
	}
	tests := []struct {
		name      string
		preferred int
		tried     []try
		do        func(h *health, advance func(time.Duration))
		want      []netip.AddrPort
	}{
		{"all good", 3, nil, func(*health, func(time.Duration)) {}, []netip.AddrPort{addrA, addrB, addr6}},
		{"the preferred ones", 2, nil, func(*health, func(time.Duration)) {}, []netip.AddrPort{addrA, addrB}},
		{"tried", 3, dialled(addrA), func(*health, func(time.Duration)) {}, []netip.AddrPort{addrB, addr6}},
		{"all preferred ones tried", 2, dialled(addrA, addrB), func(*health, func(time.Duration)) {}, []netip.AddrPort{addr6}},
		{"all tried", 3, dialled(addrA, addrB, addr6), func(*health, func(time.Duration)) {}, nil},
		{"all tried, one connection broke", 3, append(dialled(addrA, addrB), try{addr: addr6}), func(*health, func(time.Duration)) {}, []netip.AddrPort{addr6}},
		{"and again", 3, append(dialled(addrA, addrB), try{addr: addr6}, try{addr: addr6}), func(*health, func(time.Duration)) {}, nil},
		{"a connection broke, and there is another address", 3, append(dialled(addrA), try{addr: addr6}), func(h *health, _ func(time.Duration)) {
			h.fail(healthID{addr: addrB}, false)
		}, []netip.AddrPort{addrB}},
		{"a dead family", 3, nil, func(h *health, _ func(time.Duration)) {
			for i := range deadNetworks {
				h.unreached(netip.AddrFrom4([4]byte{byte(i + 1)}))
			}
		}, []netip.AddrPort{addr6}},
		{"dead families", 3, nil, func(h *health, _ func(time.Duration)) {
			for i := range deadNetworks {
				h.unreached(netip.AddrFrom4([4]byte{byte(i + 1)}))
				h.unreached(netip.AddrFrom16([16]byte{byte(i + 1)}))
			}
		}, []netip.AddrPort{addrA, addrB, addr6}},
		{"ejected", 3, nil, func(h *health, _ func(time.Duration)) { h.fail(healthID{addr: addrB}, false) }, []netip.AddrPort{addrA, addr6}},
		{"ejected, but the others were tried", 3, dialled(addrA, addr6), func(h *health, _ func(time.Duration)) { h.fail(healthID{addr: addrB}, false) }, []netip.AddrPort{addrB}},
		{"on trial: alone", 3, nil, func(h *health, advance func(time.Duration)) {
			h.fail(healthID{"a.example", addrB}, true)
			advance(defaultFailDuration)
		}, []netip.AddrPort{addrB}},
		{"to be probed", 3, nil, func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addrB}, false)
			advance(defaultFailDuration)
		}, []netip.AddrPort{addrA, addr6}},
		{"to be probed, and there is no other", 3, nil, func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addrB}, false)
			advance(defaultFailDuration)
			h.fail(healthID{addr: addrA}, false)
			h.fail(healthID{addr: addr6}, false)
		}, []netip.AddrPort{addrB}},
		{"what is not preferred is not tried while something preferred is good", 2, nil, func(h *health, advance func(time.Duration)) {
			h.fail(healthID{addr: addr6}, false)
			h.fail(healthID{addr: addrA}, false)
			advance(defaultFailDuration)
			h.fail(healthID{addr: addrA}, false)
		}, []netip.AddrPort{addrB}},
		{"all ejected", 3, nil, func(h *health, _ func(time.Duration)) {
			for _, a := range []netip.AddrPort{addrA, addrB, addr6} {
				h.fail(healthID{addr: a}, false)
			}
		}, []netip.AddrPort{addrA, addrB, addr6}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, advance := testHealth()
			test.do(h, advance)
			u := &Upstreams{MaxUpstreams: defaultMaxUpstreams, MaxFails: 1, failDuration: defaultFailDuration, health: h}
			c := &call{host: "a.example", port: 443, tried: test.tried, repeats: true}
			c.addrs, c.preferred = []netip.Addr{addrA.Addr(), addrB.Addr(), addr6.Addr()}, test.preferred
			var got []netip.AddrPort
			for _, up := range u.offer(t.Context(), c) {
				got = append(got, netip.MustParseAddrPort(up.Dial))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if probed := test.name == "to be probed"; probed != (len(c.probe) == 1) {
				t.Errorf("probed: %v", c.probe)
			}
		})
	}
}

// slowBody is a request body that stops in the middle.
type slowBody struct{ release chan struct{} }

func (b slowBody) Read(p []byte) (int, error) {
	<-b.release
	return 0, io.ErrUnexpectedEOF
}

// TestTimeoutIsFair checks whose fault it is if there is no answer in time.
func TestTimeoutIsFair(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"}
	slow := newBackend(t, backendConfig{addrs: addrs, handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	})}).port
	w.dns.has("slow.example", addrs...)
	shared := acquireShared()
	defer releaseShared()
	h := shared.health
	w.run(w.proxy("timeout 200ms", "max_requests 1"))

	t.Run("stalled upload", func(t *testing.T) {
		body := slowBody{make(chan struct{})}
		defer close(body.release)
		res, err := w.try(http.MethodPost, "/", "http://slow.example:"+slow, io.MultiReader(strings.NewReader("abc"), body), func(r *http.Request) { r.ContentLength = 100_000 })
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("status %d", res.StatusCode)
		}
		if n := failures(h); n != 0 {
			t.Errorf("%d failures are remembered", n)
		}
	})
	t.Run("slow backend", func(t *testing.T) {
		res, err := w.try(http.MethodGet, "/", "http://slow.example:"+slow, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("status %d, the place of the stalled request was not freed?", res.StatusCode)
		}
		if n := failures(h); n != 1 {
			t.Errorf("%d failures are remembered, but one address was asked", n)
		}
	})
}
