package failover

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"caddytarget/internal/health"
)

// TestPeek: who only looks is offered what the next request is offered, and changes
// nothing about that.
func TestPeek(t *testing.T) {
	for _, test := range []struct {
		name  string
		fail  func(h *health.Tracker)
		state health.State
		want  []netip.AddrPort
	}{
		{"healthy", func(*health.Tracker) {}, health.Healthy, []netip.AddrPort{addrA, addrB}},
		{"needs a probe", func(h *health.Tracker) { h.Failed("", addrA, false, nil) }, health.NeedsProbe, []netip.AddrPort{addrB}},
		{"needs a trial", func(h *health.Tracker) { h.Failed("a.example", addrA, true, nil) }, health.NeedsTrial, []netip.AddrPort{addrA}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := health.New()
				s := newSource(h, 4)
				peek := *s
				peek.Peek = true
				test.fail(h)
				time.Sleep(ejectFor)
				newTarget := func() (*Target, *Plan) {
					target := &Target{Host: "a.example", Port: 443, Retryable: true, Addrs: []netip.Addr{addrA.Addr(), addrB.Addr()}, Preferred: 2}
					return target, planFor(target)
				}
				for range 2 {
					target, plan := newTarget()
					if got := next(t.Context(), &peek, plan, target); !slices.Equal(got, test.want) {
						t.Errorf("looked at %v, want %v", got, test.want)
					}
					if got := s.State(target, addrA.Addr()); got != test.state {
						t.Errorf("state %d, want %d", got, test.state)
					}
					if failed := test.state != health.Healthy; failed != (len(s.Causes(target, addrA.Addr())) == 1) {
						t.Errorf("causes %+v, want one: %t", s.Causes(target, addrA.Addr()), failed)
					}
					plan.Release()
				}
				target, plan := newTarget()
				if got := next(t.Context(), s, plan, target); !slices.Equal(got, test.want) {
					t.Errorf("offered %v, want %v", got, test.want)
				}
				if claimed := test.state != health.Healthy; claimed != (s.State(target, addrA.Addr()) == health.Ejected) {
					t.Errorf("state %d after a request, want that it has claimed the address: %t", s.State(target, addrA.Addr()), claimed)
				}
				plan.Release()
			})
		})
	}
	s := newSource(health.New(), 4)
	s.EjectFor = 0
	s.Health.Failed("", addrA, false, nil)
	target := &Target{Host: "a.example", Port: 443}
	if got := s.Causes(target, addrA.Addr()); got != nil || s.State(target, addrA.Addr()) != health.Healthy {
		t.Errorf("got %+v where nothing is ejected, want none", got)
	}
}
