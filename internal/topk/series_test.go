package topk

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// The popularity of targets changes all the time, in a sketch that is too small for them.
// From one call to the next no series falls and "other" does not, a new series begins at
// 0, and the sum is exact.
func TestSeriesNeverFall(t *testing.T) {
	s := New(Config{K: 3, Size: 48})
	r := rand.New(rand.NewPCG(1, 7))
	var total, lastOther Counts
	last := make(map[string]Counts)
	joined, left, again := 0, 0, 0
	admissions := make(map[string]uint32)
	for round := range size(8_000) {
		for range 200 {
			// Most requests are to a few targets, other ones in each round.
			i := round/40*7 + int(r.ExpFloat64()*20)
			o := Observation{Failed: r.IntN(1+i%9) == 0, NewConn: r.IntN(2) == 0, Latency: 1e6}
			s.Observe(targetName(i%1000), o)
			total.observe(o)
		}
		list, other := s.Series()
		if got := sum(list, other); got != total {
			t.Fatalf("round %d: the sum is %+v, want %+v", round, got, total)
		}
		if fell(lastOther, other) {
			t.Fatalf("round %d: other fell from %+v to %+v", round, lastOther, other)
		}
		lastOther = other
		if len(list) > 6 {
			t.Fatalf("round %d: %d series, want at most 6", round, len(list))
		}
		now := make(map[string]Counts)
		for _, e := range list {
			before, ok := last[e.Target]
			if !ok {
				joined++
				if e.Counts != (Counts{}) {
					t.Fatalf("round %d: new series %s begins at %+v, want 0", round, e.Target, e.Counts)
				}
			} else if a := s.series[e.Target].admission; a != admissions[e.Target] {
				again++
			}
			admissions[e.Target] = s.series[e.Target].admission
			if fell(before, e.Counts) {
				t.Fatalf("round %d: %s fell from %+v to %+v", round, e.Target, before, e.Counts)
			}
			now[e.Target] = e.Counts
		}
		for target := range last {
			if _, ok := now[target]; !ok {
				left++
			}
		}
		last = now
	}
	t.Logf("%d series began, %d ended, %d went on after their target lost its slot", joined, left, again)
	if joined < 10 || left < 10 {
		t.Errorf("%d series began and %d ended, want at least 10", joined, left)
	}
}

// A target that lost its slot and got one again between two calls goes on where it was:
// what was counted between is in "other".
func TestSeriesOfTargetThatLostItsSlot(t *testing.T) {
	s := New(Config{K: 1, Size: 16})
	observe := func(target string, n int) {
		for range n {
			s.Observe(target, Observation{Failed: true})
		}
	}
	shown := func() Counts {
		list, _ := s.Series()
		for _, e := range list {
			if e.Target == "a" {
				return e.Counts
			}
		}
		t.Fatalf("Series: got %v, want a", list)
		return Counts{}
	}
	observe("a", 5)
	if got := shown(); got != (Counts{}) {
		t.Errorf("a new series begins at %+v, want 0", got)
	}
	observe("a", 10)
	if got := shown().Requests; got != 10 {
		t.Errorf("after 10 requests: got %d, want 10", got)
	}
	for i := range slots {
		observe(fmt.Sprint("b", i), 100)
	}
	a := func() *entry { return s.shards[0].find("a", s.hash("a")) }
	if a() != nil {
		t.Fatal("a has a slot, want others to have pushed it out")
	}
	if got := s.shards[0].filter.requests.get(s.hash("a")); got < 15 {
		t.Errorf("the estimate of a is %d after it lost its slot, want at least its score, 15", got)
	}
	requests := uint64(15 + 100*slots)
	for a() == nil {
		observe("a", 1)
		requests++
	}
	observe("a", 4)
	requests += 4
	list, other := s.Series()
	if len(list) != 1 || list[0].Target != "a" || list[0].Requests != 10+5 {
		t.Errorf("got %v, want a with 15 requests: 10 before it lost its slot and 5 since it has one", list)
	}
	if got := sum(list, other).Requests; got != requests {
		t.Errorf("the sum is %d, want %d", got, requests)
	}
}

// The series follow a change of traffic, but not one back and forth between equal targets.
func TestSeriesFollowRate(t *testing.T) {
	s := New(Config{K: 1, Size: 16})
	observe := func(target string, n int) {
		for range n {
			s.Observe(target, Observation{})
		}
	}
	selected := func(want string) {
		t.Helper()
		list, _ := s.Series()
		if len(list) != 1 || list[0].Target != want {
			t.Fatalf("Series: got %v, want %s", list, want)
		}
	}
	observe("a", 1000)
	selected("a")
	observe("b", 1100)
	selected("a")
	observe("b", 200)
	selected("b")
	// Far more requests than those to b so far, and then only requests to c, which has
	// fewer than a quarter more in all when the old ones count for less.
	observe("b", 10*halfLife)
	selected("b")
	observe("c", 3*halfLife)
	selected("c")
}
