package failover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
)

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:443")
	addrB = netip.MustParseAddrPort("192.0.2.2:443")
	addr6 = netip.MustParseAddrPort("[2001:db8::1]:443")
)

const ejectFor = 10 * time.Second

// newSource returns a source that offers so many addresses at most.
func newSource(h *health.Tracker, max int) *Source {
	return &Source{Health: h, Max: max, MaxFails: 1, EjectFor: ejectFor}
}

// planFor returns a plan with one target.
func planFor(t *Target) *Plan {
	p := new(Plan)
	p.Add(t)
	return p
}

// next returns the addresses that are offered next.
func next(ctx context.Context, s *Source, p *Plan, t *Target) []netip.AddrPort {
	o := s.Next(ctx, p, t, true)
	return o.Append(nil, t.Port, s.Max)
}

// TestNext has what a request is offered, by what has failed and what it has tried.
// It is long because its table is.
func TestNext(t *testing.T) {
	dialled := func(addrs ...netip.AddrPort) (tries []try) {
		for _, a := range addrs {
			tries = append(tries, try{addr: a, final: true})
		}
		return tries
	}
	tests := []struct {
		name      string
		preferred int
		tries     []try
		do        func(h *health.Tracker, advance func(time.Duration))
		want      []netip.AddrPort
	}{
		{"all healthy", 3, nil, func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addrA, addrB, addr6}},
		{"the preferred ones", 2, nil, func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addrA, addrB}},
		{"tried", 3, dialled(addrA), func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addrB, addr6}},
		{"all preferred ones tried", 2, dialled(addrA, addrB), func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addr6}},
		{"all tried", 3, dialled(addrA, addrB, addr6), func(*health.Tracker, func(time.Duration)) {}, nil},
		{"all tried, one connection broke", 3, append(dialled(addrA, addrB), try{addr: addr6}), func(*health.Tracker, func(time.Duration)) {}, []netip.AddrPort{addr6}},
		{"and again", 3, append(dialled(addrA, addrB), try{addr: addr6}, try{addr: addr6}), func(*health.Tracker, func(time.Duration)) {}, nil},
		{"a connection broke, and there is another address", 3, append(dialled(addrA), try{addr: addr6}), func(h *health.Tracker, _ func(time.Duration)) {
			h.Failed("", addrB, false, nil)
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
		{"ejected", 3, nil, func(h *health.Tracker, _ func(time.Duration)) { h.Failed("", addrB, false, nil) }, []netip.AddrPort{addrA, addr6}},
		{"ejected, but the others were tried", 3, dialled(addrA, addr6), func(h *health.Tracker, _ func(time.Duration)) { h.Failed("", addrB, false, nil) }, []netip.AddrPort{addrB}},
		{"on trial: alone", 3, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("a.example", addrB, true, nil)
			advance(ejectFor)
		}, []netip.AddrPort{addrB}},
		{"to be probed", 3, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("", addrB, false, nil)
			advance(ejectFor)
		}, []netip.AddrPort{addrA, addr6}},
		{"to be probed, and there is no other", 3, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("", addrB, false, nil)
			advance(ejectFor)
			h.Failed("", addrA, false, nil)
			h.Failed("", addr6, false, nil)
		}, []netip.AddrPort{addrB}},
		{"what is not preferred is not tried while something preferred is healthy", 2, nil, func(h *health.Tracker, advance func(time.Duration)) {
			h.Failed("", addr6, false, nil)
			h.Failed("", addrA, false, nil)
			advance(ejectFor)
			h.Failed("", addrA, false, nil)
		}, []netip.AddrPort{addrB}},
		{"all ejected", 3, nil, func(h *health.Tracker, _ func(time.Duration)) {
			for _, a := range []netip.AddrPort{addrA, addrB, addr6} {
				h.Failed("", a, false, nil)
			}
		}, []netip.AddrPort{addrA, addrB, addr6}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := health.New()
				test.do(h, time.Sleep)
				target := &Target{Host: "a.example", Port: 443, Retryable: true, Preferred: test.preferred}
				target.Addrs = []netip.Addr{addrA.Addr(), addrB.Addr(), addr6.Addr()}
				plan := planFor(target)
				target.tries = test.tries
				if got := next(t.Context(), newSource(h, 4), plan, target); !slices.Equal(got, test.want) {
					t.Errorf("got %v, want %v", got, test.want)
				}
				if probed := test.name == "to be probed"; probed != (len(target.probes) == 1) {
					t.Errorf("%d addresses are probed, want one: %t", len(target.probes), probed)
				}
			})
		})
	}
}

// Where a request is tried again for some time, all addresses are offered once more.
func TestRetriesByTime(t *testing.T) {
	s := newSource(health.New(), 4)
	target := &Target{Host: "a.example", Port: 443, Addrs: []netip.Addr{addrA.Addr()}, Preferred: 1}
	plan := planFor(target)
	target.Skip(addrA)
	if got := next(t.Context(), s, plan, target); got != nil {
		t.Errorf("got %v, want no address", got)
	}
	s.RetriesByTime = true
	if got := next(t.Context(), s, plan, target); !slices.Equal(got, []netip.AddrPort{addrA}) || plan.Tries() != 0 {
		t.Errorf("got %v after %d tries, want %v after none", got, plan.Tries(), addrA)
	}
}

// A request whose body cannot be sent again is offered healthy addresses alone.
func TestNotResendable(t *testing.T) {
	h := health.New()
	s := newSource(h, 4)
	target := &Target{Host: "a.example", Port: 443, Addrs: []netip.Addr{addrA.Addr()}, Preferred: 1}
	plan := planFor(target)
	for _, want := range []int{1, 0} {
		o := s.Next(t.Context(), plan, target, false)
		if got := o.Append(nil, 443, 4); len(got) != want {
			t.Errorf("got %v, want %d addresses", got, want)
		}
		h.Failed("", addrA, false, nil)
	}
}

// TestOffersBeside: what makes an attempt the last one, where a plan has several
// targets.
func TestOffersBeside(t *testing.T) {
	s, via := newSource(health.New(), 4), &Transport{Retries: 3}
	plan := new(Plan)
	named := &Target{Host: "named.example", Port: 80, Addrs: []netip.Addr{addrA.Addr()}, Preferred: 1}
	target := &Target{Host: "a.example", Port: 80, Addrs: []netip.Addr{addrB.Addr()}, Preferred: 1}
	plan.Add(named)
	plan.Add(target)
	plan.Add(target)
	if len(plan.targets) != 2 {
		t.Fatalf("%d targets, want 2", len(plan.targets))
	}
	last := func(t *Target) bool {
		var o pool.Order
		plan.FillOrder(t, via, &o)
		return o.Last
	}
	next(t.Context(), s, plan, named)
	if !last(named) || last(target) {
		t.Error("only the name's address is offered: want it to be the last one for the name alone")
	}
	next(t.Context(), s, plan, target)
	if last(named) || last(target) {
		t.Error("both addresses are offered: want neither to be the last one")
	}
	for range via.Retries {
		named.Skip(addrA)
	}
	if !last(target) {
		t.Error("want the last attempt after all retries")
	}
}

// TestClaims has what happens to a claim that does not end in an attempt.
func TestClaims(t *testing.T) {
	const host = "a.example"
	orderFor := func(addr netip.AddrPort) *pool.Order { return &pool.Order{Key: pool.Key{Addr: addr}} }
	started := func(*pool.Order) bool { return true }
	full := func(*pool.Order) bool { return false }
	for _, sent := range []bool{true, false} {
		for _, test := range []struct {
			name string
			do   func(h *health.Tracker, p *Plan, t *Target, cancel func())
			free bool
		}{
			{"the request goes on", func(*health.Tracker, *Plan, *Target, func()) {}, false},
			{"the request has ended", func(_ *health.Tracker, _ *Plan, _ *Target, cancel func()) { cancel() }, true},
			{"the attempt has ended without an outcome", func(_ *health.Tracker, p *Plan, t *Target, _ func()) {
				p.Begin(t, orderFor(addrA), full)
				p.Release()
			}, true},
			{"another address was called", func(_ *health.Tracker, p *Plan, t *Target, _ func()) {
				p.Begin(t, orderFor(addrB), full)
				p.Release()
			}, true},
			{"another target was called", func(_ *health.Tracker, p *Plan, _ *Target, _ func()) {
				other := &Target{Host: "other.example"}
				p.Add(other)
				p.Begin(other, orderFor(addrA), full)
				p.Release()
			}, true},
			{"the attempt failed", func(h *health.Tracker, p *Plan, t *Target, _ func()) {
				p.Begin(t, orderFor(addrA), started)
				h.Failed(host, addrA, sent, nil)
				p.Release()
			}, false},
		} {
			t.Run(fmt.Sprint(test.name, ", sent ", sent), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := health.New()
					s := newSource(h, 4)
					h.Failed(host, addrA, sent, nil)
					time.Sleep(ejectFor)
					policy := &health.Policy{MaxFails: 1, EjectFor: ejectFor, Retryable: true}
					want := h.State(policy, host, addrA)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					target := &Target{Host: host, Port: 443, Retryable: true, Addrs: []netip.Addr{addrA.Addr(), addrB.Addr()}, Preferred: 2}
					plan := planFor(target)
					next(ctx, s, plan, target)
					if got := h.State(policy, host, addrA); got != health.Ejected {
						t.Fatalf("got state %d, want %d, since it is claimed", got, health.Ejected)
					}
					test.do(h, plan, target, cancel)
					synctest.Wait()
					if !test.free {
						want = health.Ejected
					}
					if got := h.State(policy, host, addrA); got != want {
						t.Errorf("state %d, want %d", got, want)
					}
				})
			})
		}
	}
}

// A probe of an address of another target asks for a connection of that target.
func TestProbeOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New()
		s := newSource(h, 4)
		h.Failed("", addrA, false, nil)
		time.Sleep(ejectFor)
		a := &Target{Host: "a.example", Port: 443, Addrs: []netip.Addr{addrA.Addr(), addr6.Addr()}, Preferred: 2}
		b := &Target{Host: "b.example", Port: 443, Addrs: []netip.Addr{addrB.Addr()}, Preferred: 1}
		plan := new(Plan)
		plan.Add(a)
		plan.Add(b)
		next(t.Context(), s, plan, a)
		next(t.Context(), s, plan, b)
		var got []pool.Key
		plan.Begin(b, &pool.Order{Key: pool.Key{Addr: addrB, Host: "b.example", ServerName: "b.example", Protocol: pool.TLS}}, func(o *pool.Order) bool {
			got = append(got, o.Key)
			return true
		})
		if want := []pool.Key{{Addr: addrA, Host: "a.example", ServerName: "a.example", Protocol: pool.TLS}}; !slices.Equal(got, want) {
			t.Errorf("probes of %+v, want %+v", got, want)
		}
	})
}

// BenchmarkManyAddresses is what a source does for a request where a name has more
// addresses than a request is offered.
func BenchmarkManyAddresses(b *testing.B) {
	s := newSource(health.New(), 4)
	for _, n := range []int{4, 10, 64, 200, 1000} {
		b.Run(fmt.Sprintf("addresses=%d", n), func(b *testing.B) {
			target := &Target{Host: "a.example", Port: 80, Retryable: true, Addrs: manyAddrs(n), Preferred: n}
			plan := planFor(target)
			var buf [4]netip.AddrPort
			b.ReportAllocs()
			for b.Loop() {
				o := s.Next(b.Context(), plan, target, true)
				if list := o.Append(buf[:0], 80, s.Max); len(list) != s.Max {
					b.Fatalf("%d addresses, want %d", len(list), s.Max)
				}
			}
		})
	}
}

// An address whose trial another request has claimed meanwhile counts as ejected, as one
// whose probe it has: some address has to be tried.
func TestClaimedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := health.New()
		s := newSource(h, 4)
		h.Failed("a.example", addrA, true, nil)
		time.Sleep(ejectFor)
		target := &Target{Host: "a.example", Port: 443, Retryable: true, Addrs: []netip.Addr{addrA.Addr()}, Preferred: 1}
		plan, p := planFor(target), s.policy(target)
		c := s.classify(plan, target, &p, 0)
		h.Claim(&p, target.Host, addrA) // another request is first
		if _, ok := s.claimAll(t.Context(), target, &p, &c); ok || !slices.Equal(c.ejected, target.Addrs) {
			t.Errorf("claimed %t, ejected %v, want the address of another request's trial to count as ejected, as that of its probe does", ok, c.ejected)
		}
	})
}

// The time that an address takes with a request is not time for dialling the others.
func TestResponseTakesNoDialTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		via := &Transport{Health: health.New(), Timeouts: [2]time.Duration{3 * time.Second, 5 * time.Second}, Retries: 7}
		target := &Target{Host: "a.example", Port: 443, Retryable: true, Addrs: []netip.Addr{addrA.Addr(), addrB.Addr(), addr6.Addr()}, Preferred: 3}
		plan := planFor(target)
		plan.Failed(target, via, Failure{Addr: addrA, Err: &pool.Error{Phase: pool.Connect, Err: context.DeadlineExceeded, Pending: &pool.Pending{Addr: addrA}}})
		var o pool.Order
		plan.FillOrder(target, via, &o)
		time.Sleep(5 * time.Second) // B has the request and takes its time, then resets the connection
		plan.Failed(target, via, Failure{Addr: addrB, Err: &pool.Error{Phase: pool.Response, Sent: pool.All, Err: errors.New("reset")}})
		next(t.Context(), newSource(via.Health, 4), plan, target)
		plan.FillOrder(target, via, &o)
		if left := time.Until(o.Deadlines[pool.Connect]); !o.Last || left < time.Second {
			t.Errorf("last %t, %s left to dial after 300ms of dialling, want more than a second", o.Last, left)
		}
	})
}

// TestAddForgetsOffer: what was offered of a target in one plan is not offered in
// another one, so an attempt at another target there may be the last.
func TestAddForgetsOffer(t *testing.T) {
	h := health.New()
	s := newSource(h, 4)
	shared := &Target{Host: "a.example", Port: 443, Addrs: []netip.Addr{addrA.Addr(), addrB.Addr()}, Preferred: 2}
	next(t.Context(), s, planFor(shared), shared)

	other := &Target{Host: "b.example", Port: 443, Addrs: []netip.Addr{addr6.Addr()}, Preferred: 1}
	p := planFor(other)
	next(t.Context(), s, p, other)
	p.Add(shared)
	var o pool.Order
	p.FillOrder(other, &Transport{Health: h, Retries: 3}, &o)
	if !o.Last {
		t.Error("got Last false, want true: no other address is offered in this plan")
	}
}
