package failover

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
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
						s := newSource(h, most)
						for _, a := range addrs[:dead] {
							h.Failed("", netip.AddrPortFrom(a, 80), false, nil)
						}
						const each = 64
						count := make(map[string]int)
						for range each * (n - dead) {
							target := &Target{Host: "a.example", Port: 80, Retryable: true, Addrs: addrs, Preferred: n}
							offer := next(t.Context(), s, planFor(target), target)
							if len(offer) != min(most, n-dead) {
								t.Fatalf("%d addresses, want %d", len(offer), min(most, n-dead))
							}
							chosen := offer[rand.N(len(offer))].String() // as the default policy does
							count[chosen]++
							if len(offered[instance]) < 100 {
								offered[instance] = append(offered[instance], offer[0].String())
							}
						}
						for i, a := range addrs {
							got := count[netip.AddrPortFrom(a, 80).String()]
							// 6 sigmas at least; next to dead ones it may be more
							switch {
							case i < dead && got > 0:
								t.Errorf("%s, which is dead, got %d of the requests, want none", a, got)
							case i >= dead && got < each-6*8:
								t.Errorf("%s got %d of the requests, want at least %d", a, got, each-6*8)
							case i >= dead && dead == 0 && got > each+6*8:
								t.Errorf("%s got %d of the requests, want at most %d", a, got, each+6*8)
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
			c := &Target{Addrs: manyAddrs(n), Preferred: preferred}
			for first := range n {
				seen := make(map[int]bool)
				for k := range n {
					i := c.place(first, k)
					if seen[i] || (k < preferred) != (i < preferred) {
						t.Fatalf("%d addresses, %d preferred, beginning with %d: the %d-th is %d, want each once, the preferred ones first", n, preferred, first, k, i)
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
	s := newSource(h, 4)
	for range 200 {
		c := &Target{Host: "a.example", Port: 80, Retryable: true, Addrs: addrs, Preferred: n}
		plan := planFor(c)
		for len(c.tries) < n {
			offer := next(t.Context(), s, plan, c)
			if len(offer) != min(4, n-len(c.tries)) {
				t.Fatalf("%d addresses after %d tries, want %d", len(offer), len(c.tries), min(4, n-len(c.tries)))
			}
			for _, a := range offer {
				if slices.ContainsFunc(c.tries, func(tr try) bool { return tr.addr == a }) {
					t.Fatalf("%s is offered again", a)
				}
			}
			if more := len(c.tries) < n-1; c.more != more {
				t.Fatalf("more is %t after %d tries, want %t", c.more, len(c.tries), more)
			}
			c.Skip(offer[0])
		}
	}
}

// Of the records of a large service each request has to do with some, drawn in
// proportion to their weights. It is long because its table is.
func TestSample(t *testing.T) {
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
	s := &Source{Max: 4}
	const draws = 4000
	t.Run("weights", func(t *testing.T) {
		first := make(map[string]int)
		for range draws {
			got, drawn := s.Sample(records(1, weights...))
			if len(got) != minSample || !drawn {
				t.Fatalf("%d records, drawn: %t; want %d, true", len(got), drawn, minSample)
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
			got, drawn := s.Sample(records(1, equal...))
			if len(got) != minSample || drawn {
				t.Fatalf("%d records, drawn: %t; want %d, false", len(got), drawn, minSample)
			}
			for _, r := range got {
				count[r.Target]++
			}
		}
		for i := range equal {
			name, want := fmt.Sprintf("t%d.example", i), float64(draws*minSample)/200
			if got := float64(count[name]); math.Abs(got-want) > 6*math.Sqrt(want) {
				t.Errorf("%s is in %.0f draws, want %.0f", name, got, want)
			}
		}
	})
	t.Run("sticky", func(t *testing.T) {
		all := records(1, equal...)
		for _, most := range []int{4, 50} {
			s := &Source{Max: most, Sticky: true}
			got, _ := s.Sample(all)
			if want := all[:max(minSample, most)]; !slices.Equal(got, want) {
				t.Errorf("max_upstreams %d: got %v, want the first %d records", most, got, len(want))
			}
		}
	})
	t.Run("priorities", func(t *testing.T) {
		all := slices.Concat(records(1, 1, 3), records(2, weights...), records(3, equal...), records(4, weights...), records(5, weights...))
		got, drawn := s.Sample(all)
		var n [6]int
		for _, r := range got {
			n[r.Priority]++
		}
		if want := [6]int{0, 2, 32, 32, 32, 32}; n != want || !drawn || !slices.IsSortedFunc(got, func(a, b net.SRV) int { return int(a.Priority) - int(b.Priority) }) {
			t.Errorf("records by priority: %v, drawn: %t; want %v, true, sorted by priority", n, drawn, want)
		}
	})
	t.Run("few", func(t *testing.T) {
		all := records(1, weights[:32]...)
		if got, drawn := s.Sample(all); !slices.Equal(got, all) || drawn {
			t.Errorf("%d of 32 records, drawn: %t; want all of them in their order, false", len(got), drawn)
		}
	})
	t.Run("nearly all of the weight", func(t *testing.T) {
		heavy := slices.Clone(weights)
		heavy[0] = math.MaxUint16
		for i := range heavy[1:] {
			heavy[1+i] = 0
		}
		if got, _ := s.Sample(records(1, heavy...)); len(got) != minSample || got[0].Target != "t0.example" {
			t.Errorf("got %d records, %v; want %d, t0.example first", len(got), got, minSample)
		}
	})
}
