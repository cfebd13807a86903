package health

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

var addrC = netip.MustParseAddrPort("192.0.2.3:443")

const (
	target = "a.example"
	usual  = 50 * time.Millisecond // of addresses B and C
)

// world is a Tracker with a clock that tests advance.
type world struct {
	h       *Tracker
	advance func(time.Duration)
}

func newWorld() world {
	h, advance := testHealth()
	return world{h, advance}
}

// ranOut is a request to address A that begins now and runs out of time.
func (w world) ranOut(timeout time.Duration) {
	begun := w.h.now()
	w.advance(timeout)
	w.h.RanOut(target, addrA, timeout, begun, w.h.now(), nil)
}

// worked is a request to an address that begins now and gets a response.
func (w world) worked(addr netip.AddrPort, took, timeout time.Duration) {
	w.advance(took)
	w.h.WorkedIn(took, timeout, target, addr)
}

// inARow is so many requests that run out of time, one after the other.
func inARow(n int, timeout time.Duration) func(w world) {
	return func(w world) {
		for range n {
			w.ranOut(timeout)
		}
	}
}

// ranOutTests are what requests that run out of time do to the state of address A.
var ranOutTests = []struct {
	name    string
	do      func(w world)
	timeout time.Duration // of the request that asks
	want    State
}{
	{"three in a row", inARow(3, 200*time.Millisecond), 200 * time.Millisecond, Ejected},
	{"two in a row", inARow(2, 200*time.Millisecond), 200 * time.Millisecond, Healthy},
	{"requests with less time", inARow(3, 200*time.Millisecond), 20 * time.Millisecond, Ejected},
	{"requests with about as much time", inARow(3, 200*time.Millisecond), 250 * time.Millisecond, Ejected},
	{"requests with more time", inARow(3, 200*time.Millisecond), time.Second, Healthy},
	{"requests with any time", inARow(3, 200*time.Millisecond), 0, Healthy},
	{"an hour", inARow(3, 200*time.Millisecond), time.Hour, Healthy},
	{"in an hour", inARow(3, 20*time.Minute), time.Hour, Ejected},
	{"shorter than usual", inARow(1000, 49*time.Millisecond), 49 * time.Millisecond, Healthy},
	{"a millisecond, ever again", inARow(10_000, time.Millisecond), time.Millisecond, Healthy},
	{"a millisecond, ever again, for others", inARow(10_000, time.Millisecond), 200 * time.Millisecond, Healthy},
	{"this machine is busy", func(w world) {
		for range 10 {
			begun := w.h.now()
			w.advance(time.Second)
			w.h.RanOut(target, addrA, time.Millisecond, begun, begun.Add(time.Millisecond), nil)
		}
	}, time.Millisecond, Healthy},
	{"at the same time", func(w world) {
		begun := w.h.now()
		w.advance(200 * time.Millisecond)
		for range 1000 {
			w.h.RanOut(target, addrA, 200*time.Millisecond, begun, w.h.now(), nil)
		}
	}, 200 * time.Millisecond, Healthy},
	{"the request was at other addresses for most of the time", func(w world) {
		for range 10 {
			w.advance(160 * time.Millisecond)
			begun := w.h.now()
			w.advance(40 * time.Millisecond)
			w.h.RanOut(target, addrA, 200*time.Millisecond, begun, w.h.now(), nil)
		}
	}, 200 * time.Millisecond, Healthy},
	{"with a success between", func(w world) {
		for range 100 {
			inARow(2, 200*time.Millisecond)(w)
			w.worked(addrA, 50*time.Millisecond, 200*time.Millisecond)
		}
	}, 200 * time.Millisecond, Healthy},
	{"with a success between that took longer than they have", func(w world) {
		for range 3 {
			w.ranOut(200 * time.Millisecond)
			w.worked(addrA, 500*time.Millisecond, time.Second)
		}
	}, 200 * time.Millisecond, Ejected},
	{"and a quick success of one that has more time", func(w world) {
		inARow(3, 200*time.Millisecond)(w)
		w.worked(addrA, 60*time.Millisecond, time.Second)
	}, 200 * time.Millisecond, Healthy},
	{"with a success elsewhere between", func(w world) {
		for range 3 {
			w.ranOut(200 * time.Millisecond)
			w.worked(addrB, 50*time.Millisecond, 200*time.Millisecond)
		}
	}, 200 * time.Millisecond, Ejected},
	{"its time is over", func(w world) {
		inARow(3, 200*time.Millisecond)(w)
		w.advance(10 * time.Second)
	}, 200 * time.Millisecond, NeedsTrial},
	{"its time is over, and the trial fails", func(w world) {
		inARow(3, 200*time.Millisecond)(w)
		w.advance(10 * time.Second)
		w.ranOut(200 * time.Millisecond)
	}, 200 * time.Millisecond, Ejected},
	{"its time is over, and the trial works", func(w world) {
		inARow(3, 200*time.Millisecond)(w)
		w.advance(10 * time.Second)
		w.worked(addrA, 150*time.Millisecond, 200*time.Millisecond)
	}, 200 * time.Millisecond, Healthy},
	{"one other address is slow, too", func(w world) {
		for range 100 {
			w.worked(addrC, time.Second, 0)
		}
		inARow(3, 200*time.Millisecond)(w)
	}, 200 * time.Millisecond, Ejected},
	{"all other addresses are slow, too", func(w world) {
		for range 100 {
			w.worked(addrC, time.Second, 0)
			w.worked(addrB, time.Second, 0)
		}
		inARow(3, 200*time.Millisecond)(w)
	}, 200 * time.Millisecond, Healthy},
}

// TestRanOut has the cases in which timeouts that clients choose eject an address.
func TestRanOut(t *testing.T) {
	for _, test := range ranOutTests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			for range 30 {
				w.worked(addrB, usual, 0)
				w.worked(addrC, usual, 0)
			}
			test.do(w)
			if got := w.h.State(&Policy{MaxFails: 1, EjectFor: 10 * time.Second, Retryable: true, Timeout: test.timeout}, target, addrA); got != test.want {
				t.Errorf("state %d, want %d", got, test.want)
			}
			if got := w.h.State(&Policy{MaxFails: 1, EjectFor: 10 * time.Second, Retryable: true, Timeout: time.Millisecond}, "b.example", addrA); got != Healthy {
				t.Errorf("state %d for another target, want %d", got, Healthy)
			}
		})
	}

	t.Run("nothing is known of other addresses", func(t *testing.T) {
		w := newWorld()
		for range 30 {
			w.worked(addrA, usual, 0)
			w.h.WorkedIn(usual, 0, target, netip.AddrPortFrom(addrB.Addr(), 80)) // which is another service
		}
		inARow(10, time.Second)(w)
		if n := w.h.Len(); n != 0 {
			t.Errorf("%d records, want none", n)
		}
	})
	t.Run("max_fails", func(t *testing.T) {
		w := newWorld()
		for range 30 {
			w.worked(addrB, usual, 0)
		}
		for i := range 6 {
			w.ranOut(time.Second)
			got, want := w.h.State(&Policy{MaxFails: 5, EjectFor: time.Hour, Timeout: time.Second}, target, addrA), Healthy
			if i >= 4 {
				want = Ejected
			}
			if got != want {
				t.Errorf("after %d: state %d, want %d", i+1, got, want)
			}
		}
	})
}

// TestUsual: about one response of 20 takes longer than the estimate, which follows
// changes. The number of targets and addresses has bounds.
func TestUsual(t *testing.T) {
	h, _ := testHealth()
	now := h.now()
	for i := range 10_000 {
		h.usual.took("a.example", addrA, time.Duration(1+i*37%100)*time.Millisecond, now)
	}
	if usual, ok := h.usual.elsewhere("a.example", addrB, now); !ok || usual < 85*time.Millisecond || usual > 101*time.Millisecond {
		t.Errorf("the usual time is %s, %t, want about 95 ms", usual, ok)
	}
	for range 1000 {
		h.usual.took("a.example", addrA, time.Millisecond, now)
	}
	if usual, _ := h.usual.elsewhere("a.example", addrB, now); usual > 2*time.Millisecond {
		t.Errorf("the usual time is %s after the address has become faster, want at most 2 ms", usual)
	}
	if _, ok := h.usual.elsewhere("a.example", addrB, now.Add(2*forgetAfter)); ok {
		t.Error("a usual time is known after forgetAfter, want none")
	}
	for i := range 2 * maxUsualAddrs {
		h.usual.took("a.example", netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 443), time.Second, now.Add(time.Duration(i)))
	}
	for i := range 2 * maxUsualTargets * len(h.usual.shards) {
		h.usual.took(fmt.Sprint(i), addrA, time.Second, now)
	}
	for i := range h.usual.shards {
		s := &h.usual.shards[i]
		if len(s.targets) > maxUsualTargets || len(s.targets["a.example"]) > maxUsualAddrs {
			t.Errorf("%d targets, %d addresses, want no more than the bounds", len(s.targets), len(s.targets["a.example"]))
		}
	}
}

// TestRelease: a request that has claimed an address and does not try it releases its
// own claim, and none that another request has made since.
func TestRelease(t *testing.T) {
	h, advance := testHealth()
	p := &Policy{MaxFails: 1, EjectFor: time.Second, Retryable: true, Limits: [2]Limit{"a", "b"}}
	h.Failed("", addrA, false, nil)
	h.Exceeded("b", "a.example", addrA, nil)
	advance(time.Second)
	state, first := h.Claim(p, "a.example", addrA)
	if state != NeedsTrial || h.State(p, "a.example", addrA) != Ejected {
		t.Fatalf("state %d when it was claimed, want %d, and %d for others", state, NeedsTrial, Ejected)
	}
	first.Release()
	if got := h.State(p, "a.example", addrA); got != NeedsTrial {
		t.Errorf("state %d after the claim was released, want %d", got, NeedsTrial)
	}
	_, first = h.Claim(p, "a.example", addrA)
	advance(claimTimeout)
	_, second := h.Claim(p, "a.example", addrA)
	first.Release()
	if got := h.State(p, "a.example", addrA); got != Ejected {
		t.Errorf("state %d while the second request has the claim, want %d", got, Ejected)
	}
	h.Exceeded("b", "a.example", addrA, nil)
	second.Release()
	if got := h.State(p, "a.example", addrA); got != Ejected {
		t.Errorf("state %d after the trial failed, want %d", got, Ejected)
	}
	for i := range deadNetworks {
		h.Reached(netip.AddrFrom4([4]byte{byte(i + 1)}), false)
	}
	advance(time.Second)
	state, claim := h.Claim(p, "b.example", addrB)
	if state != NeedsProbe {
		t.Fatalf("state %d of the family, want %d", state, NeedsProbe)
	}
	claim.Release()
	if got := h.State(p, "b.example", addrB); got != NeedsProbe {
		t.Errorf("state %d of the family after the claim was released, want %d", got, NeedsProbe)
	}
}

// BenchmarkWorkedIn is what a response costs where clients choose timeouts.
func BenchmarkWorkedIn(b *testing.B) {
	h := New()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			h.WorkedIn(time.Millisecond, time.Second, "a.example", addrA)
		}
	})
}
