package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
)

func eventOf(hosts ...string) *Event { return &Event{Target: hosts[0], hosts: hosts} }

func TestFilter(t *testing.T) {
	for _, tc := range []struct {
		filter Filter
		hosts  string
		want   bool
	}{
		{Filter{}, "a.example", true},
		{Filter{}, "", true},
		{Filter{Host: "a.example"}, "a.example", true},
		{Filter{Host: "a.example"}, "b.a.example", false},
		{Filter{Host: "a.example"}, "", false},
		{Filter{Host: "a.example"}, "b.example a.example", true}, // a redirect
		{Filter{Host: "a.example", Below: true}, "b.a.example", true},
		{Filter{Host: "a.example", Below: true}, "c.b.a.example", true},
		{Filter{Host: "a.example", Below: true}, "a.example", false},
		{Filter{Host: "a.example", Below: true}, "ba.example", false},
		{Filter{Host: "a.example", Below: true}, ".a.example", false},
	} {
		if got := tc.filter.matches(eventOf(strings.Split(tc.hosts, " ")...)); got != tc.want {
			t.Errorf("%+v of %q: got %t, want %t", tc.filter, tc.hosts, got, tc.want)
		}
	}
}

func TestHub(t *testing.T) {
	var h Hub
	if h.Listening() {
		t.Error("a new hub has a listener, want none")
	}
	var all []*Listener
	for range MaxListeners {
		l, err := h.Listen(Filter{})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	if _, err := h.Listen(Filter{}); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more listener: got %v, want %v", err, ErrTooMany)
	}
	h.Publish(eventOf("a.example"))
	for _, l := range all {
		if e := <-l.Events(); e.Target != "a.example" {
			t.Errorf("got %s, want a.example", e.Target)
		}
		l.Close()
		l.Close()
	}
	if h.Listening() {
		t.Error("there is a listener when all are closed, want none")
	}
	l, err := h.Listen(Filter{})
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	<-l.Ended()
	if _, err := h.Listen(Filter{}); !errors.Is(err, ErrClosed) || h.Listening() {
		t.Errorf("after Close: got %v, want %v", err, ErrClosed)
	}
}

// TestSlowListener: a listener that reads nothing holds nothing up, and what it has no
// room for is counted.
func TestSlowListener(t *testing.T) {
	var h Hub
	slow, _ := h.Listen(Filter{})
	defer slow.Close()
	other, _ := h.Listen(Filter{Host: "none.example"})
	defer other.Close()
	for range buffered + 70 {
		h.Publish(eventOf("a.example"))
	}
	if n := slow.Dropped(); n != 70 || other.Dropped() != 0 {
		t.Errorf("got %d events dropped and %d of a listener to others, want 70 and 0", n, other.Dropped())
	}
}

// TestHubAtOnce lets listeners come and go while events are published.
func TestHubAtOnce(t *testing.T) {
	var h Hub
	done := make(chan struct{})
	var publishers, listeners sync.WaitGroup
	for range 4 {
		publishers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					h.Publish(eventOf("a.example"))
				}
			}
		})
	}
	for range MaxListeners {
		listeners.Go(func() {
			for range 100 {
				l, err := h.Listen(Filter{})
				if err != nil {
					t.Error(err)
					return
				}
				<-l.Events()
				l.Close()
			}
		})
	}
	listeners.Wait()
	close(done)
	publishers.Wait()
	if h.Listening() {
		t.Error("there is a listener in the end, want none")
	}
}

// BenchmarkNoListener is what a request costs where no client listens.
func BenchmarkNoListener(b *testing.B) {
	var h Hub
	b.ReportAllocs()
	for b.Loop() {
		if h.Listening() {
			b.Fatal("there is a listener")
		}
	}
}

func TestNoListenerIsFree(t *testing.T) {
	var h Hub
	if n := testing.AllocsPerRun(100, func() {
		if h.Listening() {
			t.Error("there is a listener")
		}
	}); n != 0 {
		t.Errorf("got %g allocations, want none", n)
	}
}

// TestEvent checks an event of a request with two attempts, as JSON and as a line.
func TestEvent(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	after := func(ms int) time.Time { return at.Add(time.Duration(ms) * time.Millisecond) }
	target := Target{"https", "api.example", 443, "/hook"}
	refused := &failure.Error{Target: "api.example", Address: "192.0.2.7:443", Phase: failure.Connect, Err: fmt.Errorf("dial: \x1b[2J")}
	r := Request{Begun: at, Method: "GET", Site: "site.example", Target: target}
	r.LookedUp("miss", after(5), 4*time.Millisecond)
	first := &Entry{Target: target, Address: netip.MustParseAddrPort("192.0.2.7:443"), Begun: after(6), Ended: after(8), Err: refused, Failure: failure.Of(refused)}
	first.Timing.Steps[pool.Connect] = pool.Step{Begin: after(6), End: after(8)}
	r.Begin(first)
	second := &Entry{Target: target, Address: netip.MustParseAddrPort("192.0.2.8:443"), Begun: after(8), Ended: after(20), Reused: true, Status: 200}
	second.Timing.Steps[pool.Send] = pool.Step{Begin: after(8), End: after(8)}
	second.Timing.Steps[pool.Response] = pool.Step{Begin: after(8), End: after(20)}
	r.Begin(second)
	e := r.End(after(21), 200, failure.Failure{}, "not shown")
	got, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2026-01-02T03:04:05Z","site":"site.example","method":"GET","target":"https://api.example/hook","attempts":[` +
		`{"address":"192.0.2.7:443","reused":false,"lookup":"miss","dns":0.004,"connect":0.002,"phase":"connect","failure":"connection_terminated","error":"api.example at 192.0.2.7:443: connect: dial: ?[2J","seconds":0.007},` +
		`{"address":"192.0.2.8:443","reused":true,"send":0.000001,"response":0.012,"status":200,"seconds":0.012}],"status":200,"seconds":0.021}`
	if string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
	line := "200 GET https://api.example/hook 21.00ms | 192.0.2.7:443 dns 4.00ms connect 2.00ms connection_terminated in connect | 192.0.2.8:443 reused send 0.00ms response 12.00ms 200"
	if got := e.Line(); !strings.HasSuffix(got, line) {
		t.Errorf("got %s, want %s", got, line)
	}
}

// TestNotSent: a lookup that no attempt follows is an entry if it took time or failed.
func TestNotSent(t *testing.T) {
	for _, tc := range []struct {
		waited time.Duration
		phase  failure.Phase
		want   int
	}{
		{time.Millisecond, failure.DNS, 1},
		{0, failure.DNS, 1}, // it was known that there is none
		{time.Millisecond, failure.Policy, 1},
		{0, failure.Policy, 0},
	} {
		var r Request
		r.LookedUp("hit", time.Now(), tc.waited)
		r.NotSent(&Entry{Failure: failure.Failure{Phase: tc.phase, Token: failure.DNSError}})
		if len(r.Entries) != tc.want {
			t.Errorf("%+v: got %d entries", tc, len(r.Entries))
		}
	}
}

// TestEventIsBounded: a client or a backend that sends long texts does not make an event
// large.
func TestEventIsBounded(t *testing.T) {
	long := strings.Repeat("\u00e9", 1<<20)
	err := &failure.Error{Target: "a.example", Phase: failure.Response, Err: errors.New(long)}
	r := &Request{Site: long, Method: long, Target: Target{Scheme: "https", Host: "a.example", Port: 443, Path: "/" + long}}
	r.Begin(&Entry{Target: Target{Scheme: "https", Host: "b.example", Port: 443, Path: "/" + long}, Err: err, Failure: failure.Of(err)})
	text, marshalErr := json.Marshal(r.End(time.Now(), 502, failure.Of(err), long))
	if marshalErr != nil || len(text) > 16<<10 || strings.Contains(string(text), "\ufffd") {
		t.Errorf("got an event of %d octets, %v, want at most 16 KiB of valid text", len(text), marshalErr)
	}
	for i := range 1000 {
		r.Begin(&Entry{Status: i})
	}
	if e := r.End(time.Now(), 200, failure.Failure{}, ""); len(e.Attempts) != maxEntries || e.Attempts[maxEntries-1].Status != 999 || e.LeftOut != 1001-maxEntries {
		t.Errorf("got %d attempts, %d left out, want %d and the rest", len(e.Attempts), e.LeftOut, maxEntries)
	}
}
