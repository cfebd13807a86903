package failover

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"caddytarget/internal/health"
)

// TestDraw: what is drawn is in proportion to the weights.
func TestDraw(t *testing.T) {
	const draws = 200_000
	random := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		weights []uint16
		shares  []float64 // nil: all are offered
	}{
		{weights: []uint16{0}},
		{weights: []uint16{7}},
		{weights: []uint16{0, 0, 0}},
		{weights: []uint16{5, 5}},
		{weights: []uint16{1, 2}, shares: []float64{1. / 3, 2. / 3}},
		{weights: []uint16{60, 20, 20}, shares: []float64{.6, .2, .2}},
		{weights: []uint16{65535, 65535, 1}, shares: []float64{65535. / 131071, 65535. / 131071, 1. / 131071}},
		{weights: []uint16{0, 1}, shares: []float64{1. / 257, 256. / 257}},
		{weights: []uint16{0, 100, 0}, shares: []float64{1. / 25602, 25600. / 25602, 1. / 25602}},
	} {
		var s Service
		var candidates []int
		for i, w := range test.weights {
			s.records = append(s.records, Record{Weight: w})
			candidates = append(candidates, i)
		}
		if test.shares == nil {
			if got := s.draw(candidates, random.Uint64N); !slices.Equal(got, candidates) {
				t.Errorf("weights %d: got %v, want all records: %v", test.weights, got, candidates)
			}
			continue
		}
		counts := make([]int, len(candidates))
		for range draws {
			got := s.draw(candidates, random.Uint64N)
			if len(got) != 1 {
				t.Fatalf("weights %d: got %v, want one record", test.weights, got)
			}
			counts[got[0]]++
		}
		for i, p := range test.shares {
			mean, sigma := draws*p, math.Sqrt(draws*p*(1-p))
			if math.Abs(float64(counts[i])-mean) > 3*sigma {
				t.Errorf("weights %d: the one of %d was drawn %d times, want %.0f ± %.0f", test.weights, test.weights[i], counts[i], mean, 3*sigma)
			}
		}
	}
}

// TestServiceNext has the addresses that are offered after some have failed or
// were tried.
func TestServiceNext(t *testing.T) {
	type record struct {
		addr             string
		priority, weight uint16
	}
	two := []record{{"192.0.2.1", 1, 0}, {"192.0.2.2", 1, 0}, {"192.0.2.3", 2, 0}}
	heavy := []record{{"192.0.2.1", 1, 9}, {"192.0.2.2", 1, 1}, {"192.0.2.3", 2, 0}}
	for _, test := range []struct {
		name          string
		records       []record
		failed, tried []string
		later         time.Duration
		want          string
	}{
		{name: "all work", records: two, want: "[192.0.2.1:80 192.0.2.2:80]"},
		{name: "one failed", records: two, failed: []string{"192.0.2.1"}, want: "[192.0.2.2:80]"},
		{name: "a priority failed", records: two, failed: []string{"192.0.2.1", "192.0.2.2"}, want: "[192.0.2.3:80]"},
		{name: "all failed", records: two, failed: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}, want: "[192.0.2.1:80 192.0.2.2:80]"},
		{name: "one is on trial", records: two, failed: []string{"192.0.2.2"}, later: time.Minute, want: "[192.0.2.2:80]"},
		{name: "a better one is on trial", records: two[1:], failed: []string{"192.0.2.2"}, later: time.Minute, want: "[192.0.2.2:80]"},
		{name: "a worse one is on trial", records: two, failed: []string{"192.0.2.3"}, later: time.Minute, want: "[192.0.2.1:80 192.0.2.2:80]"},
		{name: "one was tried", records: two, tried: []string{"192.0.2.2"}, want: "[192.0.2.1:80]"},
		{name: "a priority was tried", records: two, tried: []string{"192.0.2.1", "192.0.2.2"}, want: "[192.0.2.3:80]"},
		{name: "tried or failed", records: two, tried: []string{"192.0.2.1", "192.0.2.3"}, failed: []string{"192.0.2.2"}, want: "[192.0.2.2:80]"},
		{name: "all were tried", records: two, tried: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}, want: "[]"},
		{name: "the heavy one failed", records: heavy, failed: []string{"192.0.2.1"}, want: "[192.0.2.2:80]"},
		{name: "the heavy one was tried", records: heavy, tried: []string{"192.0.2.1"}, want: "[192.0.2.2:80]"},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := health.New()
			src := newSource(h, 4)
			plan := new(Plan)
			s := NewService(nil, false, nil)
			for _, r := range test.records {
				target := &Target{Host: r.addr, Port: 80, Addrs: []netip.Addr{netip.MustParseAddr(r.addr)}, Preferred: 1, service: s}
				plan.Add(target)
				s.records = append(s.records, Record{target, r.priority, r.weight})
				addr := target.addr(target.Addrs[0])
				if slices.Contains(test.failed, r.addr) {
					h.Failed("", addr, false, nil)
				}
				if slices.Contains(test.tried, r.addr) {
					target.Skip(addr)
				}
			}
			s.resolved, s.names = len(s.records), sameNames{}
			time.Sleep(test.later)
			got, parts, found := s.Next(t.Context(), src, plan, true)
			for _, p := range parts {
				for _, a := range got[p.From:p.To] {
					if host := s.records[p.Record].Host; host != a.Addr().String() {
						t.Errorf("%s: %s is offered for %s", test.name, a, host)
					}
				}
			}
			if !found || fmt.Sprint(got) != test.want {
				t.Errorf("%s: %s, %t, want %s", test.name, got, found, test.want)
			}
			if got := plan.Tries(); got != len(test.tried) {
				t.Errorf("%s: %d attempts, want %d", test.name, got, len(test.tried))
			}
		})
	}
}

// sameNames are names whose addresses do not change.
type sameNames struct{}

func (sameNames) Resolve(context.Context, int, int, bool) {}

func (sameNames) Renew(context.Context, int) bool { return false }
