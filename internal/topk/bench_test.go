package topk

import (
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var sample = Observation{Latency: 3 * time.Millisecond, NewConn: true}

// observeAll observes targets in a loop, from goroutines that begin at different ones.
func observeAll(b *testing.B, s *Sketch, targets []string, parallel bool) {
	b.ReportAllocs()
	b.ResetTimer()
	if !parallel {
		i := 0
		for b.Loop() {
			s.Observe(targets[i], sample)
			if i++; i == len(targets) {
				i = 0
			}
		}
		return
	}
	var goroutines atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		i := int(goroutines.Add(1)*7919) % len(targets)
		for pb.Next() {
			s.Observe(targets[i], sample)
			if i++; i == len(targets) {
				i = 0
			}
		}
	})
}

// inOrder returns n targets, which stand in memory in this order: in a server the target
// of a request is in the cache when the request is counted.
func inOrder(n int, next func() int) []string {
	var b strings.Builder
	ends := make([]int, n)
	for i := range ends {
		b.Write(appendTarget(nil, next()))
		ends[i] = b.Len()
	}
	targets := make([]string, n)
	begin := 0
	for i, end := range ends {
		targets[i] = b.String()[begin:end]
		begin = end
	}
	return targets
}

func BenchmarkObserve(b *testing.B) {
	zipf := newStream(1, 1_000_000)
	i := 0
	r := rand.New(rand.NewPCG(1, 2))
	sequences := map[string][]string{
		"zipf":  inOrder(1_000_000, zipf.target),
		"flood": inOrder(1_000_000, func() int { return r.IntN(10_000_000) }),
	}
	for _, c := range []struct {
		name    string
		targets []string
	}{
		{"one target", sequences["zipf"][:1]},
		{"a thousand targets", inOrder(1000, func() int { i++; return i })},
		{"zipf", sequences["zipf"]},
		{"flood", sequences["flood"]},
	} {
		for _, parallel := range []bool{false, true} {
			name := c.name + "/serial"
			if parallel {
				name = c.name + "/parallel"
			}
			b.Run(name, func(b *testing.B) {
				s := New(Config{})
				for _, target := range sequences["zipf"] {
					s.Observe(target, sample)
				}
				observeAll(b, s, c.targets, parallel)
			})
		}
	}
}

func BenchmarkSeries(b *testing.B) {
	s := New(Config{})
	newStream(1, 100_000).observe(s, 1_000_000)
	b.ReportAllocs()
	for b.Loop() {
		s.Series()
	}
}
