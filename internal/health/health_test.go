package health

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func testHealth() (h *Tracker, advance func(time.Duration)) {
	h = New()
	now := time.Unix(1e9, 0)
	h.now = func() time.Time { return now }
	return h, func(d time.Duration) { now = now.Add(d) }
}

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:443")
	addrB = netip.MustParseAddrPort("192.0.2.2:443")
	addr6 = netip.MustParseAddrPort("[2001:db8::1]:443")
)

// duration is for how long an address is ejected.
const duration = 10 * time.Second

// healthTests are what failures do to the state of address A for a host.
var healthTests = []struct {
	name string
	do   func(h *Tracker, advance func(time.Duration))
	host string
	want State
}{
	{"nothing failed", func(*Tracker, func(time.Duration)) {}, "a.example", Healthy},
	{"TCP counts for all targets", func(h *Tracker, _ func(time.Duration)) { h.Failed("", addrA, false, nil) }, "b.example", Ejected},
	{"TLS counts for the target", func(h *Tracker, _ func(time.Duration)) { h.Failed("a.example", addrA, false, nil) }, "a.example", Ejected},
	{"and for no other", func(h *Tracker, _ func(time.Duration)) { h.Failed("a.example", addrA, false, nil) }, "b.example", Healthy},
	{"nor for another address", func(h *Tracker, _ func(time.Duration)) { h.Failed("", addrB, false, nil) }, "a.example", Healthy},
	{"it works again", func(h *Tracker, _ func(time.Duration)) {
		h.Failed("", addrA, false, nil)
		h.Failed("a.example", addrA, false, nil)
		h.Worked("a.example", addrA)
	}, "a.example", Healthy},
	{"the time is over", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, nil)
		advance(duration)
	}, "a.example", NeedsProbe},
	{"another request probes it", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, nil)
		advance(duration)
		h.Claim(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, "b.example", addrA)
	}, "a.example", Ejected},
	{"the outcome of the probe never came", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, nil)
		advance(duration)
		h.Claim(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, "b.example", addrA)
		advance(claimTimeout)
	}, "a.example", NeedsProbe},
	{"State claims nothing", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, nil)
		advance(duration)
		h.State(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, "b.example", addrA)
	}, "a.example", NeedsProbe},
	{"due for one level, Ejected for the other: nothing is claimed", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, nil)
		advance(duration / 2)
		h.Failed("b.example", addrA, false, nil)
		advance(duration / 2)
		if s, _ := h.Claim(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, "b.example", addrA); s != Ejected {
			panic("not ejected")
		}
	}, "a.example", NeedsProbe},
	{"a request failed, and the time is over", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("a.example", addrA, true, nil)
		advance(duration)
	}, "a.example", NeedsTrial},
	{"a request failed, and then a connection", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("a.example", addrA, true, nil)
		h.Failed("", addrA, false, nil)
		advance(duration)
	}, "a.example", NeedsTrial},
	{"a dial that was given up is under way", func(h *Tracker, _ func(time.Duration)) { h.StillDialing("", addrA, time.Second) }, "a.example", Ejected},
	{"and must have ended", func(h *Tracker, advance func(time.Duration)) {
		h.StillDialing("", addrA, time.Second)
		advance(2 * time.Second)
	}, "a.example", Healthy},
}

func TestHealth(t *testing.T) {
	for _, test := range healthTests {
		t.Run(test.name, func(t *testing.T) {
			h, advance := testHealth()
			test.do(h, advance)
			if got := h.State(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, test.host, addrA); got != test.want {
				t.Errorf("state %d, want %d", got, test.want)
			}
		})
	}

	t.Run("requests that are not retryable try an address later", func(t *testing.T) {
		get, post := Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, Policy{MaxFails: 1, EjectFor: duration}
		h, advance := testHealth()
		h.Failed("a.example", addrA, true, nil)
		advance(duration)
		if g, p := h.State(&get, "a.example", addrA), h.State(&post, "a.example", addrA); g != NeedsTrial || p != Ejected {
			t.Errorf("state %d for a retryable request, %d for another one, want %d and %d", g, p, NeedsTrial, Ejected)
		}
		advance(duration)
		if p := h.State(&post, "a.example", addrA); p != NeedsTrial {
			t.Errorf("state %d for a request that is not retryable, when no other one came, want %d", p, NeedsTrial)
		}
		h.Failed("a.example", addrA, false, nil)
		advance(duration)
		if p := h.State(&post, "a.example", addrA); p != NeedsProbe {
			t.Errorf("state %d for a request that is not retryable, after a failed connection, want %d", p, NeedsProbe)
		}
	})
	t.Run("max_fails", func(t *testing.T) {
		h, _ := testHealth()
		for i, want := range []State{Healthy, Healthy, Ejected} {
			h.Failed("", addrA, false, nil)
			if got := h.State(&Policy{MaxFails: 3, EjectFor: duration, Retryable: true}, "a.example", addrA); got != want {
				t.Errorf("after %d failures: %d, want %d", i+1, got, want)
			}
		}
	})
	t.Run("old failures are forgotten", func(t *testing.T) {
		h, advance := testHealth()
		h.Failed("a.example", addrA, false, nil)
		advance(forgetAfter + time.Minute)
		h.Failed("b.example", addrA, false, nil)
		if n := h.Len(); n != 1 {
			t.Errorf("%d records, want 1", n)
		}
	})
	t.Run("bound", func(t *testing.T) {
		h, _ := testHealth()
		for i := range 2 * maxRecords {
			h.Failed(fmt.Sprint(i), addrA, false, nil)
		}
		if n := h.Len(); n != maxRecords {
			t.Errorf("%d records, want %d", n, maxRecords)
		}
	})
}

// TestFamilies: all addresses of a family are left out if none can be reached.
func TestFamilies(t *testing.T) {
	dead := []string{"2001:db8:1::1", "2001:db8:2::1", "2001:db8:3::1"}
	tests := []struct {
		name string
		do   func(h *Tracker, advance func(time.Duration), unreached func(addrs ...string))
		want State
	}{
		{"two networks", func(_ *Tracker, _ func(time.Duration), unreached func(...string)) {
			unreached(dead[0], dead[1], "2001:db8:1::2", "2001:db8:1:1::1")
		}, Healthy},
		{"three networks", func(_ *Tracker, _ func(time.Duration), unreached func(...string)) { unreached(dead...) }, Ejected},
		{"more networks", func(_ *Tracker, _ func(time.Duration), unreached func(...string)) {
			unreached(append(dead, "2001:db8:4::1", "2001:db8:5::1")...)
		}, Ejected},
		{"of another family", func(_ *Tracker, _ func(time.Duration), unreached func(...string)) {
			unreached("192.0.2.1", "198.51.100.1", "203.0.113.1")
		}, Healthy},
		{"one was reached", func(h *Tracker, _ func(time.Duration), unreached func(...string)) {
			unreached(dead[:2]...)
			h.Reached(netip.MustParseAddr("2001:db8:4::1"), true)
			unreached(dead[2])
		}, Healthy},
		{"one of another family was reached", func(h *Tracker, _ func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			h.Reached(addrA.Addr(), true)
			h.Reached(netip.Addr{}, true)
		}, Ejected},
		{"too long ago", func(_ *Tracker, advance func(time.Duration), unreached func(...string)) {
			unreached(dead[:2]...)
			advance(familyTime + time.Second)
			unreached(dead[2])
		}, Healthy},
		{"the time is over", func(_ *Tracker, advance func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			advance(duration)
		}, NeedsProbe},
		{"another request probes it", func(h *Tracker, advance func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			advance(duration)
			if s, _ := h.Claim(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, "b.example", netip.MustParseAddrPort("[2001:db8:9::1]:80")); s != NeedsProbe {
				panic("no trial")
			}
		}, Ejected},
		{"and fails", func(_ *Tracker, advance func(time.Duration), unreached func(...string)) {
			unreached(dead...)
			advance(duration)
			unreached("2001:db8:9::1")
			advance(duration - time.Second)
		}, Ejected},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, advance := testHealth()
			test.do(h, advance, func(addrs ...string) {
				for _, a := range addrs {
					h.Reached(netip.MustParseAddr(a), false)
				}
			})
			if got := h.State(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, "a.example", addr6); got != test.want {
				t.Errorf("state %d, want %d", got, test.want)
			}
		})
	}
}
