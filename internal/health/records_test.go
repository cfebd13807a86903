package health

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// observed is an Observer that keeps what it is told.
type observed struct {
	mu   sync.Mutex
	list []Ejection
}

// Reason implements Observer.
func (*observed) Reason(err error) Reason { return Reason{Phase: "connect", Text: err.Error()} }

// Ejected implements Observer.
func (o *observed) Ejected(e *Ejection) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, *e)
}

// Ended implements Observer.
func (o *observed) Ended(e *Ejection) { o.Ejected(e) }

// take returns what was told since the last call, in words.
func (o *observed) take() (words []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.list {
		what := e.Addr.String()
		if e.Family != 0 {
			what = fmt.Sprintf("IPv%d", e.Family)
		}
		word := fmt.Sprintf("%s %s%s: %d failures, %s, for %s", what, e.Target, e.Limit, e.Failures, e.Reason.Text, e.For)
		if e.End != "" {
			word = fmt.Sprintf("%s %s%s: %s after %s", what, e.Target, e.Limit, e.End, e.Lasted)
		}
		words = append(words, word)
	}
	o.list = nil
	return words
}

var errRefused = errors.New("refused")

// ejectionTests are what a tracker tells of ejections. The policies in use eject
// after 2 failures for 10 s, after 3 for 20 s, and after 9 for an hour.
var ejectionTests = []struct {
	name string
	do   func(h *Tracker, advance func(time.Duration))
	want []string
}{
	{"one failure is not enough", func(h *Tracker, _ func(time.Duration)) { h.Failed("", addrA, false, errRefused) }, nil},
	{"failures of an address", func(h *Tracker, advance func(time.Duration)) {
		for range 4 {
			h.Failed("", addrA, false, errRefused)
		}
		advance(15 * time.Second)
		h.Worked("a.example", addrA)
		h.Worked("a.example", addrA)
	}, []string{"192.0.2.1:443 : 2 failures, refused, for 10s", "192.0.2.1:443 : worked after 15s"}},
	{"the time is over, and it fails again", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("a.example", addrA, true, errRefused)
		h.Failed("a.example", addrA, true, errRefused)
		advance(30 * time.Second)
		h.Failed("a.example", addrA, true, errRefused)
		advance(time.Second)
		h.Worked("a.example", addrA)
	}, []string{"192.0.2.1:443 a.example: 2 failures, refused, for 10s", "192.0.2.1:443 a.example: worked after 31s"}},
	{"under a limit", func(h *Tracker, _ func(time.Duration)) {
		h.Exceeded("limit", "a.example", addrA, errRefused)
		h.Exceeded("limit", "a.example", addrA, errRefused)
		h.Worked("a.example", addrA, "limit")
	}, []string{"192.0.2.1:443 a.examplelimit: 2 failures, refused, for 10s", "192.0.2.1:443 a.examplelimit: worked after 0s"}},
	{"timeouts of clients", func(h *Tracker, advance func(time.Duration)) {
		for range minUsualCount {
			h.WorkedIn(10*time.Millisecond, 0, "a.example", addrB)
		}
		for range 4 {
			begun := h.now()
			advance(time.Second)
			h.RanOut("a.example", addrA, time.Second, begun, h.now(), errRefused)
		}
		h.WorkedIn(time.Millisecond, time.Second, "a.example", addrA)
	}, []string{"192.0.2.1:443 a.exampleclient 1s: 3 failures, refused, for 20s", "192.0.2.1:443 a.exampleclient 1s: worked after 1s"}},
	{"forgotten", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, errRefused)
		h.Failed("", addrA, false, errRefused)
		advance(2 * forgetAfter)
		h.Failed("other.example", addrA, false, errRefused)
	}, []string{"192.0.2.1:443 : 2 failures, refused, for 10s", "192.0.2.1:443 : forgotten after 2h0m0s"}},
	{"forgotten when the records are read", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, errRefused)
		h.Failed("", addrA, false, errRefused)
		advance(2 * forgetAfter)
		if n := h.States(); n != [4]int{} || h.Len() != 0 {
			panic("a record is left")
		}
	}, []string{"192.0.2.1:443 : 2 failures, refused, for 10s", "192.0.2.1:443 : forgotten after 2h0m0s"}},
	{"lifted", func(h *Tracker, advance func(time.Duration)) {
		h.Failed("", addrA, false, errRefused)
		h.Failed("", addrA, false, errRefused)
		h.Failed("", addrB, false, errRefused)
		h.Failed("", addrB, false, errRefused)
		h.Failed("a.example", addrA, false, errRefused)
		advance(time.Second)
		if n := h.Lift(func(_ string, addr netip.AddrPort) bool { return addr == addrA }); n != 1 || h.Len() != 1 {
			panic(fmt.Sprintf("%d ejections were lifted and %d records are left, want 1 of each", n, h.Len()))
		}
	}, []string{
		"192.0.2.1:443 : 2 failures, refused, for 10s", "192.0.2.2:443 : 2 failures, refused, for 10s", "192.0.2.1:443 : lifted after 1s",
	}},
	{"a family", func(h *Tracker, advance func(time.Duration)) {
		for i := range 5 {
			h.Reached(netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::1", i)), false)
		}
		advance(time.Second)
		h.Reached(addrA.Addr(), true)
		h.Reached(addr6.Addr(), true)
		h.Reached(addr6.Addr(), true)
	}, []string{"IPv6 : 3 failures, , for 1h0m0s", "IPv6 : worked after 1s"}},
	{"a family that is lifted", func(h *Tracker, _ func(time.Duration)) {
		for i := range 3 {
			h.Reached(netip.MustParseAddr(fmt.Sprintf("192.%d.2.1", i)), false)
		}
		if !h.LiftFamily(addrA.Addr()) || h.LiftFamily(addrA.Addr()) || h.LiftFamily(addr6.Addr()) {
			panic("IPv4 was not lifted, or twice, or IPv6 was")
		}
	}, []string{"IPv4 : 3 failures, , for 1h0m0s", "IPv4 : lifted after 0s"}},
	{"a dial that was given up", func(h *Tracker, _ func(time.Duration)) {
		h.StillDialing("", addrA, time.Second)
		h.Worked("a.example", addrA)
	}, nil},
}

func TestEjections(t *testing.T) {
	for _, test := range ejectionTests {
		t.Run(test.name, func(t *testing.T) {
			h, advance := testHealth()
			var o observed
			h.Observe(&o)
			h.Use(9, time.Hour)
			h.Use(2, 10*time.Second)
			h.Use(3, 20*time.Second)
			h.Use(1, 0)
			test.do(h, advance)
			if got := o.take(); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	t.Run("room for others", func(t *testing.T) {
		h, _ := testHealth()
		var o observed
		h.Observe(&o)
		h.Use(1, time.Minute)
		for i := range maxRecords + 7 {
			h.Failed(fmt.Sprint(i), addrA, false, nil)
		}
		ended := 0
		for _, e := range o.list {
			if e.End == Forgotten {
				ended++
			}
		}
		if len(o.list) != maxRecords+2*7 || ended != 7 {
			t.Errorf("told of %d, of which %d have ended, want %d and 7", len(o.list), ended, maxRecords+2*7)
		}
	})
	t.Run("no policy is in use", func(t *testing.T) {
		h, _ := testHealth()
		var o observed
		h.Observe(&o)
		release, again := h.Use(1, time.Minute), h.Use(1, time.Minute)
		h.Use(5, time.Minute)()
		if list := h.inUse(); len(list) != 1 {
			t.Errorf("got the policies %v, want one", list)
		}
		release()
		if list := h.inUse(); len(list) != 1 {
			t.Errorf("got the policies %v while one is still used, want it", list)
		}
		again()
		h.Failed("", addrA, false, errRefused)
		if got, states := o.take(), h.States(); got != nil || states != [4]int{} {
			t.Errorf("got %q and the states %v, want none", got, states)
		}
	})
}

// TestRecords pages through records while others come and go.
func TestRecords(t *testing.T) {
	h, advance := testHealth()
	h.Use(1, duration)
	want := make(map[string]bool)
	for i := range 3000 {
		target := fmt.Sprintf("t%d", i)
		h.Failed(target, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 7 >> 8), byte(i / 7)}), 80), false, nil)
		want[target] = true
	}
	all := func(*Record) bool { return true }
	for _, limit := range []int{1, 7, 999, 5000} {
		got := make(map[string]bool)
		after, pages := uint64(0), 0
		for {
			var page []Record
			page, after = h.Records(after, limit, all)
			for _, r := range page {
				if got[r.Target] {
					t.Fatalf("limit %d: got %s twice", limit, r.Target)
				}
				if r.Target[0] == 't' {
					got[r.Target] = true
				}
			}
			if pages++; after == 0 {
				break
			}
			name := fmt.Sprint("x", limit, "-", pages)
			h.Failed(name, addrA, false, nil)
			h.Lift(func(target string, _ netip.AddrPort) bool { return target == name })
		}
		if !maps.Equal(got, want) {
			t.Errorf("limit %d: got %d records, want %d", limit, len(got), len(want))
		}
		if least := (len(want) + limit - 1) / limit; pages != least {
			t.Errorf("limit %d: got %d pages, want %d", limit, pages, least)
		}
	}
	page, _ := h.Records(0, 10, func(r *Record) bool { return r.Target == "t5" })
	if len(page) != 1 || page[0].State != Ejected || page[0].Left != duration || page[0].Failures != 1 {
		t.Errorf("got %+v, want t5 ejected for %s", page, duration)
	}
	if got, want := h.States(), [4]int{Ejected: 3000}; got != want {
		t.Errorf("got the states %v, want %v", got, want)
	}
	advance(duration)
	if got, want := h.States(), [4]int{NeedsProbe: 3000}; got != want {
		t.Errorf("got the states %v, want %v", got, want)
	}
}

// TestRecord checks what is shown of one address, and of a family.
func TestRecord(t *testing.T) {
	h, advance := testHealth()
	h.Observe(new(observed))
	h.Use(1, duration)
	records := func() []Record {
		list, _ := h.Records(0, 10, func(*Record) bool { return true })
		return list
	}
	h.Failed("", addrA, false, errRefused)
	advance(time.Second)
	h.Exceeded("a", "a.example", addrA, errRefused)
	h.StillDialing("a.example", addrA, time.Second)
	advance(500 * time.Millisecond)
	want := []Record{
		{
			Addr: addrA, State: Ejected, Failures: 1, Last: 1500 * time.Millisecond, Reason: Reason{Phase: "connect", Text: "refused"},
			Left: 8500 * time.Millisecond, Since: 1500 * time.Millisecond,
		},
		{
			Addr: addrA, Target: "a.example", Limit: "a", State: Ejected, Failures: 1, Last: 500 * time.Millisecond,
			Reason: Reason{Phase: "connect", Text: "refused"}, Left: 9500 * time.Millisecond, Since: 500 * time.Millisecond,
		},
		{Addr: addrA, Target: "a.example", State: Ejected, Dialling: 500 * time.Millisecond},
	}
	if got := records(); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	advance(duration)
	for i, want := range []State{NeedsProbe, NeedsTrial, Healthy} {
		if got := records()[i]; got.State != want || got.Claimed {
			t.Errorf("got %+v, want %s, and that it is not claimed", got, want)
		}
	}
	h.Claim(&Policy{MaxFails: 1, EjectFor: duration, Retryable: true}, "b.example", addrA)
	if got := records()[0]; got.State != Ejected || !got.Claimed || got.Left != 0 {
		t.Errorf("got %+v, want a claimed address", got)
	}
	for i := range 3 {
		h.Reached(netip.MustParseAddr(fmt.Sprintf("192.%d.2.1", i)), false)
		h.Reached(addr6.Addr(), false)
	}
	advance(time.Second)
	if got, want := h.Families(), [2]Family{
		{State: Ejected, Networks: 3, Last: time.Second, Left: duration - time.Second}, {Networks: 1, Last: time.Second},
	}; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestParseState checks that each state is read as it is written.
func TestParseState(t *testing.T) {
	for s := Healthy; s <= Ejected; s++ {
		if got, err := ParseState(s.String()); err != nil || got != s {
			t.Errorf("got %v, %v for %s", got, err, s)
		}
	}
	if _, err := ParseState("rotten"); err == nil {
		t.Error("got no error, want one")
	}
}

// TestHealthyAllocates checks that a healthy address costs no allocation.
func TestHealthyAllocates(t *testing.T) {
	h := New()
	h.Observe(new(observed))
	h.Use(1, duration)
	p := Policy{MaxFails: 1, EjectFor: duration, Retryable: true}
	if n := testing.AllocsPerRun(100, func() {
		if h.State(&p, "a.example", addrA) != Healthy {
			t.Error("not healthy")
		}
		h.Worked("a.example", addrA, p.Limits[0])
		h.Reached(addrA.Addr(), true)
	}); n != 0 {
		t.Errorf("got %g allocations, want none", n)
	}
}

// TestRecordsRace lists, lifts and fails at the same time.
func TestRecordsRace(t *testing.T) {
	h := New()
	h.Observe(new(observed))
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range 500 {
				defer h.Use(1+i, duration)()
				addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 80)
				h.Failed("a.example", addr, false, errRefused)
				h.Causes(&Policy{MaxFails: 1, EjectFor: duration}, "a.example", addr)
				h.Families()
				h.Records(uint64(n), 10, func(*Record) bool { return true })
				h.Reached(addr.Addr(), n%3 == 0)
				switch n % 50 {
				case 0:
					h.Lift(func(string, netip.AddrPort) bool { return true })
				case 1:
					h.States()
				default:
					h.Worked("a.example", addr)
				}
			}
		})
	}
	all.Wait()
}
