package topk

import (
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"time"
)

// stream is a reproducible sequence of observations and what a table without bounds
// would count of them.
type stream struct {
	r     *rand.Rand
	until []float64 // until[i] is the probability of targets 0 to i
	truth []Counts  // by target
	total Counts
	flood int // names of the flood so far
	name  []byte
}

// newStream returns a stream of targets with a Zipf distribution: the probability of the
// target with number i is proportional to 1/(i+1).
func newStream(seed uint64, targets int) *stream {
	st := &stream{r: rand.New(rand.NewPCG(seed, 13)), truth: make([]Counts, targets), until: make([]float64, targets)}
	sum := 0.0
	for i := range st.until {
		sum += 1 / float64(i+1)
		st.until[i] = sum
	}
	for i := range st.until {
		st.until[i] /= sum
	}
	return st
}

// target returns the number of a target.
func (st *stream) target() int {
	return min(sort.SearchFloat64s(st.until, st.r.Float64()), len(st.until)-1)
}

// fails returns the probability that a request to a target fails. One of 37 targets, most
// of them far from the busiest, fails half of the time.
func fails(target int) float64 {
	if target%37 == 5 {
		return 0.5
	}
	return 0.001
}

// observe adds n observations of the targets to a sketch.
func (st *stream) observe(s *Sketch, n int) {
	for range n {
		i := st.target()
		o := st.observation(fails(i))
		st.truth[i].observe(o)
		st.total.observe(o)
		st.name = appendTarget(st.name[:0], i)
		s.Observe(string(st.name), o)
	}
}

// observeFlood adds n observations, each of a new name, which fails with a probability.
func (st *stream) observeFlood(s *Sketch, n int, failed float64) {
	for range n {
		st.flood++
		o := st.observation(failed)
		st.total.observe(o)
		st.name = append(strconv.AppendInt(append(st.name[:0], 'x'), int64(st.flood), 36), ".flood.example"...)
		s.Observe(string(st.name), o)
	}
}

func (st *stream) observation(failed float64) Observation {
	return Observation{
		Failed:  st.r.Float64() < failed,
		Latency: time.Duration(st.r.IntN(int(time.Second))),
		NewConn: st.r.IntN(4) == 0,
	}
}

// found returns how many of a list are among the true n first in an order.
func (st *stream) found(by By, n int, list []Entry) int {
	counts := make([]uint64, len(st.truth))
	for i := range st.truth {
		counts[i] = by.of(&st.truth[i])
	}
	order := slices.Clone(counts)
	slices.Sort(order)
	limit := order[len(order)-n]
	names := make(map[string]bool)
	for _, e := range list {
		names[e.Target] = true
	}
	found := 0
	for i, c := range counts {
		if c >= limit && names[targetName(i)] {
			found++
		}
	}
	return min(found, n)
}

func appendTarget(b []byte, i int) []byte {
	return append(strconv.AppendInt(append(b, 't'), int64(i), 10), ".example"...)
}

func targetName(i int) string {
	return string(appendTarget(nil, i))
}
