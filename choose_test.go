package caddytarget

import (
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"caddytarget/internal/health"
)

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:443")
	addrB = netip.MustParseAddrPort("192.0.2.2:443")
	addr6 = netip.MustParseAddrPort("[2001:db8::1]:443")
)

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
		do        func(h *health.Tracker, advance func(time.Duration))
		want      []netip.AddrPort
	}{
		{"all good", 3, nil, func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addrA, addrB, addr6}},
		{"the preferred ones", 2, nil, func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addrA, addrB}},
		{"tried", 3, dialled(addrA), func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addrB, addr6}},
		{"all preferred ones tried", 2, dialled(addrA, addrB), func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addr6}},
		{"all tried", 3, dialled(addrA, addrB, addr6), func(*health.Tracker, func(time.Duration)) {}, nil},
		{"all tried, one connection broke", 3, append(dialled(addrA, addrB), try{addr: addr6}), func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addr6}},
		{"and again", 3, append(dialled(addrA, addrB), try{addr: addr6}, try{addr: addr6}), func(*health.Tracker, func(time.Duration)) {}, nil},
		{"a connection broke, and there is another address", 3, append(dialled(addrA), try{addr: addr6}), func(h *health.Tracker, _ func(time.Duration)) {
			h.Failed("", addrB, false)
		}, []netip.AddrPort{addrB}},
		{"a dead family", 3, nil, func(h *health.Tracker, _ func(time.Duration)) {
			for i := range 3 {
				h.Reached(netip.AddrFrom4([4]byte{byte(i + 1)}), false)
			}
		}, []netip.AddrPort{addr6}},
		{"dead families", 3, nil, func(h *health.Tracker, _ func(time.Duration)) {
			for i := range 3 {
				h.Reached(netip.AddrFrom4([4]byte{byte(i + 1)}), false)
				h.Reached(netip.AddrFrom16([16]byte{byte(i + 1)}), false)
			}
		}, []netip.AddrPort{addrA, addrB, addr6}},
		{"ejected", 3, nil, func(h *health.Tracker, _ func(time.Duration)) { h.Failed("", addrB, false) }, []netip.AddrPort{addrA, addr6}},
		{"ejected, but the others were tried", 3, dialled(addrA, addr6), func(h *health.Tracker, _ func(time.Duration)) { h.Failed("", addrB, false) }, []netip.AddrPort{addrB}},
		{"on trial: alone", 3, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("a.example", addrB, true)
			advance(defaultFailDuration)
		}, []netip.AddrPort{addrB}},
		{"to be probed", 3, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("", addrB, false)
			advance(defaultFailDuration)
		}, []netip.AddrPort{addrA, addr6}},
		{"to be probed, and there is no other", 3, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("", addrB, false)
			advance(defaultFailDuration)
			h.Failed("", addrA, false)
			h.Failed("", addr6, false)
		}, []netip.AddrPort{addrB}},
		{"what is not preferred is not tried while something preferred is good", 2, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("", addr6, false)
			h.Failed("", addrA, false)
			advance(defaultFailDuration)
			h.Failed("", addrA, false)
		}, []netip.AddrPort{addrB}},
		{"all ejected", 3, nil, func(h *health.Tracker, _ func(time.Duration)) {
			for _, a := range []netip.AddrPort{addrA, addrB, addr6} {
				h.Failed("", a, false)
			}
		}, []netip.AddrPort{addrA, addrB, addr6}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := health.New()
				test.do(h, time.Sleep)
				u := &Upstreams{MaxUpstreams: defaultMaxUpstreams, MaxFails: 1, failDuration: defaultFailDuration, health: h}
				c := &call{host: "a.example", port: 443, tried: test.tried, repeats: true}
				c.Addrs, c.Preferred = []netip.Addr{addrA.Addr(), addrB.Addr(), addr6.Addr()}, test.preferred
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
		if n := h.Len(); n != 0 {
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
		if n := h.Len(); n != 1 {
			t.Errorf("%d failures are remembered, but one address was asked", n)
		}
	})
}
