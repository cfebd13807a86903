package health

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestCauses: what is shown of failures agrees with the State.
func TestCauses(t *testing.T) {
	p := &Policy{MaxFails: 1, EjectFor: duration, Retryable: true, Limits: [2]Limit{"timeout 1s", "header 2s"}}
	h, advance := testHealth()
	if got := h.Causes(p, "a.example", addrA); got != nil {
		t.Errorf("got %+v, want none", got)
	}
	h.Failed("", addrA, false, nil)
	advance(time.Second)
	h.Failed("a.example", addrA, true, nil)
	h.Exceeded("header 2s", "a.example", addrA, nil)
	h.Exceeded("header 3s", "a.example", addrA, nil)
	h.Failed("b.example", addrA, true, nil)
	h.StillDialing("a.example", addrA, 2*time.Second)
	advance(time.Second)
	want := []Cause{
		{Fails: 1, MaxFails: 1, Age: 2 * time.Second, Left: duration - 2*time.Second},
		{ForTarget: true, Fails: 1, MaxFails: 1, Age: time.Second, Left: duration - time.Second, Dialling: time.Second},
		{ForTarget: true, Limit: "header 2s", Fails: 1, MaxFails: 1, Age: time.Second, Left: duration - time.Second},
	}
	if got := h.Causes(p, "a.example", addrA); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// a request that may not be sent again is kept away for longer
	once := *p
	once.Retryable = false
	if got := h.Causes(&once, "a.example", addrA); len(got) != 3 || got[1].Left != 2*duration-time.Second {
		t.Errorf("got %+v, want the second for %s", got, 2*duration-time.Second)
	}
	// it is ejected for as long as a cause says
	for h.State(p, "a.example", addrA) == Ejected {
		left := time.Duration(0)
		for _, c := range h.Causes(p, "a.example", addrA) {
			left = max(left, c.Left, c.Dialling)
		}
		if left <= 0 {
			t.Fatalf("it is ejected, and no cause says for how long")
		}
		advance(left)
	}
	for _, c := range h.Causes(p, "a.example", addrA) {
		if c.Left != 0 || c.Dialling != 0 || c.Fails == 0 {
			t.Errorf("got %+v after the ejection, want a failure that is over", c)
		}
	}
	if h.State(p, "a.example", addrA) != NeedsTrial {
		t.Errorf("state %d, want %d: nothing was claimed", h.State(p, "a.example", addrA), NeedsTrial)
	}
}

// TestCausesOfFamily: that a family cannot be reached is a cause for all its addresses.
func TestCausesOfFamily(t *testing.T) {
	h, advance := testHealth()
	for i := range deadNetworks {
		h.Reached(netip.AddrFrom4([4]byte{byte(i + 1)}), false)
	}
	advance(time.Second)
	p := &Policy{MaxFails: 1, EjectFor: duration}
	want := []Cause{{Family: true, Fails: deadNetworks, MaxFails: deadNetworks, Age: time.Second, Left: duration - time.Second}}
	if got := h.Causes(p, "a.example", addrB); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := h.Causes(p, "a.example", addr6); got != nil {
		t.Errorf("got %+v for IPv6, want none", got)
	}
}
