package topk

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// size returns n, or a twentieth of it under the race detector.
func size(n int) int {
	if raced {
		return n / 20
	}
	return n
}

// sum returns the counts of a list and of all others together.
func sum(list []Entry, other Counts) Counts {
	for _, e := range list {
		other.add(e.Counts)
	}
	return other
}

// checkSums compares the sums of each order, with short and long lists, with the truth.
func checkSums(t *testing.T, s *Sketch, want Counts) {
	t.Helper()
	for _, by := range []By{Requests, Failures, Latency, Connections} {
		for _, n := range []int{0, 1, 20, 1 << 20} {
			list, other := s.Top(by, n)
			if got := sum(list, other); got != want {
				t.Fatalf("Top(%v, %d) and other add up to %+v, want %+v", by, n, got, want)
			}
			for i := 1; i < len(list); i++ {
				if by.of(&list[i].Counts) > by.of(&list[i-1].Counts) {
					t.Fatalf("Top(%v, %d): entry %d is higher than the one before it", by, n, i)
				}
			}
		}
	}
	if got := sum(s.Series()); got != want {
		t.Fatalf("Series and other add up to %+v, want %+v", got, want)
	}
}

// A million targets, then a flood in which each request is to a new name and fails: the
// true 20 busiest and 20 most failing targets are the first 20 of the lists, before and
// after.
func TestFindsBusiestAndMostFailing(t *testing.T) {
	s := New(Config{K: 50})
	st := newStream(1, size(1_000_000))
	check := func(when string) {
		t.Helper()
		for _, by := range []By{Requests, Failures} {
			list, _ := s.Top(by, 20)
			if found := st.found(by, 20, list); found < 20 {
				t.Errorf("%s: Top(%v, 20) has %d of the true 20 first, want 20", when, by, found)
			}
			list, _ = s.Series()
			if found := st.found(by, 20, list); found < 20 {
				t.Errorf("%s: Series has %d of the true 20 first of order %v, want 20", when, found, by)
			}
		}
		checkSums(t, s, st.total)
	}
	st.observe(s, size(4_000_000))
	check("before the flood")
	st.observeFlood(s, size(4_000_000), 1)
	check("after the flood")
	st.observeFlood(s, size(2_000_000), 0)
	check("after a second flood")
}

// Targets with twice the rate of each name of a flood keep their slots, whether the
// requests of the flood fail or not. The flood has 30 times as many names as there are
// slots.
func TestFloodDoesNotDisplace(t *testing.T) {
	for _, failed := range []bool{false, true} {
		t.Run(fmt.Sprintf("failed=%v", failed), func(t *testing.T) {
			const targets, known, rounds = 20, 20, 50
			s := New(Config{K: 1, Size: 640})
			names := 30 * slots * len(s.shards)
			r := rand.New(rand.NewPCG(1, 1))
			b := make([]byte, 0, 32)
			for range known {
				for i := range targets {
					s.Observe(targetName(i), Observation{Failed: i%2 == 1})
				}
			}
			for range rounds {
				for range 2 {
					for i := range targets {
						s.Observe(targetName(i), Observation{Failed: i%2 == 1})
					}
					for range names / 2 {
						b = appendTarget(append(b[:0], "flood-"...), r.IntN(names))
						s.Observe(string(b), Observation{Failed: failed})
					}
				}
			}
			list, _ := s.Top(Requests, 0)
			kept := 0
			for _, e := range list {
				if !strings.HasPrefix(e.Target, "flood") && e.Requests == known+2*rounds {
					kept++
				}
			}
			if kept != targets {
				t.Errorf("%d of %d targets kept their slots, want all", kept, targets)
			}
		})
	}
}

// A flood of names each of which is seen once pushes out no target that is seen ten
// times in a million requests.
func TestFloodOfNewNamesDoesNotDisplace(t *testing.T) {
	const targets = 200
	s := New(Config{})
	st := newStream(2, targets)
	// That targets do not lose their slots is seen from their counts, which would begin
	// again.
	flood := size(4_000_000)
	every := flood / 40
	n := uint64(5)
	for range n {
		for i := range targets {
			s.Observe(targetName(i), Observation{})
		}
	}
	for i := 0; i < flood; i += every {
		n++
		for i := range targets {
			s.Observe(targetName(i), Observation{})
		}
		st.observeFlood(s, every, 1)
	}
	list, _ := s.Top(Requests, 0)
	kept := 0
	for _, e := range list {
		if strings.HasPrefix(e.Target, "t") && e.Requests == n {
			kept++
		}
	}
	if kept != targets {
		t.Errorf("%d of %d targets kept their slots, want all", kept, targets)
	}
}

// A target that is not busy and begins to fail when all slots are taken is found among
// the most failing.
func TestFindsFailingAmongBusy(t *testing.T) {
	s := New(Config{Size: 16 * DefaultK})
	st := newStream(3, 100_000)
	st.observe(s, size(200_000))
	const failures = 40
	for range failures {
		st.observe(s, size(5000))
		s.Observe("failing.example", Observation{Failed: true})
	}
	if list, _ := s.Top(Failures, 20); !has(list, "failing.example") {
		t.Errorf("Top(Failures, 20) does not have failing.example with %d failures: %v", failures, list)
	}
	if list, _ := s.Series(); !has(list, "failing.example") {
		t.Errorf("Series does not have failing.example with %d failures: %v", failures, list)
	}
}

// A target gets the slot of another only if its score is more than twice as high.
func TestSlotFor(t *testing.T) {
	s := New(Config{K: 1, Size: 16})
	sh := &s.shards[0]
	for i := range slots {
		for range 10 {
			s.Observe(targetName(i), Observation{Failed: i >= groupSize})
		}
	}
	for _, c := range []struct {
		score score
		want  int
	}{
		{score{20, 0}, -1},
		{score{21, 0}, -1},
		{score{22, 0}, 0},
		{score{20, 20}, 0}, // more failures than a busy target with as many requests
		{score{1, 20}, -1},
		{score{1, 22}, groupSize},
	} {
		if got := sh.slotFor(c.score); got != c.want {
			t.Errorf("slotFor(%+v): got %d, want %d", c.score, got, c.want)
		}
	}
}

func has(list []Entry, target string) bool {
	for _, e := range list {
		if e.Target == target {
			return true
		}
	}
	return false
}

// A small sketch gives and takes slots all the time. All sums are exact after each step.
func TestSumsAreExact(t *testing.T) {
	s := New(Config{K: 2, Size: 32})
	st := newStream(4, 3000)
	checkSums(t, s, Counts{})
	for range size(2000) {
		st.observe(s, 100)
		st.observeFlood(s, 50, 0.3)
		checkSums(t, s, st.total)
	}
	if s.halvings.Load() == 0 && !raced {
		t.Error("the scores were never halved, want several times")
	}
}

func TestTop(t *testing.T) {
	s := New(Config{})
	for _, o := range []struct {
		target string
		o      Observation
	}{
		{"a", Observation{Latency: time.Second, NewConn: true}},
		{"a", Observation{Latency: 2*time.Second + 999*time.Nanosecond}},
		{"a", Observation{}},
		{"b", Observation{Failed: true, NewConn: true, Latency: -time.Hour}},
		{"b", Observation{Failed: true, NewConn: true, Latency: 1500 * time.Microsecond}},
		{"c", Observation{Latency: time.Minute}},
		{"", Observation{Failed: true}},
		{strings.Repeat("x", MaxTarget+1), Observation{NewConn: true}},
		{strings.Repeat("x", MaxTarget), Observation{}},
	} {
		s.Observe(o.target, o.o)
	}
	longest := strings.Repeat("x", MaxTarget)
	for _, c := range []struct {
		by   By
		want string
	}{
		{Requests, "a b c " + longest},
		{Failures, "b a c " + longest},
		{Latency, "c a b " + longest},
		{Connections, "b a c " + longest},
	} {
		list, other := s.Top(c.by, 0)
		var got []string
		for _, e := range list {
			got = append(got, e.Target)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("Top(%v, 0): got %q, want %q", c.by, got, c.want)
		}
		if want := (Counts{Requests: 2, Failures: 1, Connections: 1}); other != want {
			t.Errorf("Top(%v, 0): other is %+v, want %+v", c.by, other, want)
		}
	}
	list, other := s.Top(Requests, 1)
	if want := (Counts{3, 0, 1, 3_000_000}); len(list) != 1 || list[0].Counts != want {
		t.Errorf("Top(Requests, 1): got %+v, want a with %+v", list, want)
	}
	if want := (Counts{6, 3, 3, 60_001_500}); other != want {
		t.Errorf("Top(Requests, 1): other is %+v, want %+v", other, want)
	}
	if got := other.Seconds(); got != 60.0015 {
		t.Errorf("Seconds: got %v, want 60.0015", got)
	}
}

// A target that is part of a buffer is copied.
func TestTargetIsCopied(t *testing.T) {
	s := New(Config{})
	b := []byte("a.example")
	s.Observe(unsafe.String(&b[0], len(b)), Observation{})
	b[0] = 'z'
	if list, _ := s.Top(Requests, 0); len(list) != 1 || list[0].Target != "a.example" {
		t.Errorf("got %v, want a.example", list)
	}
}

// At the default size a sketch full of the longest targets takes at most 8 MB, and all of
// it from the beginning.
func TestMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := New(Config{})
	pad := strings.Repeat("x", MaxTarget-8)
	for i := range size(1_000_000) {
		s.Observe(fmt.Sprintf("%08d%s", i, pad), Observation{Failed: i%2 == 0})
	}
	s.Series()
	runtime.GC()
	runtime.ReadMemStats(&after)
	list, _ := s.Top(Requests, 0)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 8_000_000 {
		t.Errorf("a sketch of %d targets takes %d octets, want at most 8000000", len(list), got)
	}
	if len(list) != DefaultSize {
		t.Errorf("%d targets have a slot, want %d", len(list), DefaultSize)
	}
	if got := unsafe.Sizeof(shard{}); got != 128 {
		t.Errorf("a shard has %d octets, want 128: two cache lines", got)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	s := New(Config{K: 1})
	targets := make([]string, 10_000)
	for i := range targets {
		targets[i] = targetName(i)
	}
	i := 0
	if got := testing.AllocsPerRun(len(targets), func() {
		// The second and third time most targets have no slot, and some get one.
		s.Observe(targets[i%len(targets)], Observation{Failed: true})
		s.Observe(targets[i%100], Observation{})
		i++
	}); got != 0 {
		t.Errorf("an observation makes %v allocations, want 0", got)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		config        Config
		k, wantShards int
	}{
		{Config{}, DefaultK, DefaultSize / 16},
		{Config{K: -1, Size: -1}, DefaultK, DefaultSize / 16},
		{Config{Size: 1}, DefaultK, DefaultK},
		{Config{K: 1, Size: 17}, 1, 2},
		{Config{K: 1000, Size: 1000}, 1000, 1000},
	} {
		if s := New(c.config); s.k != c.k || len(s.shards) != c.wantShards {
			t.Errorf("New(%+v): got K %d and %d shards, want %d and %d", c.config, s.k, len(s.shards), c.k, c.wantShards)
		}
	}
}

// Goroutines observe, on the same targets and on different ones, while others read. Each
// reader finds sums that never fall, and at the end nothing is lost.
func TestConcurrent(t *testing.T) {
	const writers = 4
	s := New(Config{K: 3, Size: 48})
	totals := make([]Counts, writers)
	var writing, reading sync.WaitGroup
	done := make(chan struct{})
	for i := range writers {
		writing.Go(func() {
			st := newStream(uint64(i), 1000)
			for range 100 {
				st.observe(s, size(10_000)/10)
				st.observeFlood(s, size(1000)/10, 0.5)
			}
			totals[i] = st.total
		})
	}
	for range 2 {
		reading.Go(func() {
			var last Counts
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				got := sum(s.Top(By(n%4), n%50))
				if n%2 == 1 {
					got = sum(s.Series())
				}
				if fell(last, got) {
					t.Errorf("a sum fell from %+v to %+v", last, got)
					return
				}
				last = got
			}
		})
	}
	writing.Wait()
	close(done)
	reading.Wait()
	var want Counts
	for _, c := range totals {
		want.add(c)
	}
	checkSums(t, s, want)
}

func fell(from, to Counts) bool {
	return to.Requests < from.Requests || to.Failures < from.Failures ||
		to.Connections < from.Connections || to.Microseconds < from.Microseconds
}

// The counters of a filter do not overflow, and estimates are never too low.
func TestFilter(t *testing.T) {
	var c counters
	r := rand.New(rand.NewPCG(1, 1))
	hashes := make([]uint64, 500)
	truth := make([]uint32, len(hashes))
	for i := range hashes {
		hashes[i] = r.Uint64()
	}
	exact := 0
	for range 50_000 {
		i := r.IntN(len(hashes))
		truth[i]++
		c.add(hashes[i])
	}
	for i, h := range hashes {
		if got := c.get(h); got < truth[i] {
			t.Errorf("the estimate is %d, want at least %d", got, truth[i])
		} else if got == truth[i] {
			exact++
		}
	}
	if exact < len(hashes)*2/3 {
		t.Errorf("%d of %d estimates are exact, want two thirds", exact, len(hashes))
	}
	for range 3 * math.MaxUint16 {
		c.add(hashes[0])
	}
	if got := c.get(hashes[0]); got != math.MaxUint16 {
		t.Errorf("the estimate is %d, want %d", got, math.MaxUint16)
	}
	other := r.Uint64()
	c.raise(other, math.MaxUint16+1)
	if got := c.get(other); got != math.MaxUint16 {
		t.Errorf("the estimate is %d, want %d", got, math.MaxUint16)
	}
	c.halve(1)
	if got := c.get(hashes[0]); got != math.MaxUint16/2 {
		t.Errorf("the estimate is %d after halving, want %d", got, math.MaxUint16/2)
	}
}
