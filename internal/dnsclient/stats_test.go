package dnsclient

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// TestQueryCounts checks how each query of a lookup is counted.
func TestQueryCounts(t *testing.T) {
	rcode := func(rcode int) func(*testlab.Query) { return func(q *testlab.Query) { q.Reply(q.Fail(rcode)) } }
	good := func(q *testlab.Query) { q.Reply(q.Answer(goodRecord)) }
	for _, tc := range []struct {
		name     string
		udp, tcp func(*testlab.Query)
		want     string // the counts that are not 0
	}{
		{"answer", good, nil, "NOERROR 1"},
		{"no data", rcode(dns.RcodeSuccess), nil, "NOERROR 1"},
		{"no such name", rcode(dns.RcodeNameError), nil, "NXDOMAIN 1"},
		{"server failure", rcode(dns.RcodeServerFailure), nil, "SERVFAIL 1"},
		{"refused", rcode(dns.RcodeRefused), nil, "REFUSED 1"},
		{"unusual", rcode(dns.RcodeNotZone), nil, "other 1"},
		{"without EDNS", func(q *testlab.Query) {
			if q.IsEdns0() != nil {
				q.Reply(q.Fail(dns.RcodeFormatError))
			} else {
				good(q)
			}
		}, nil, "FORMERR 1, NOERROR 1"},
		{"truncated", truncated, good, "NOERROR 2, truncated 1"},
		{"truncated, and a hang-up", truncated, func(q *testlab.Query) { q.HangUp() }, "NOERROR 1, network 1, truncated 1"},
		{"silent", nil, nil, "timeouts 1"},
		{"malformed", func(q *testlab.Query) {
			b := testlab.Pack(q.Answer(goodRecord))
			q.Raw(b[:len(b)-1])
		}, nil, "malformed 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			timeout := longTimeout
			if tc.udp == nil {
				timeout = shortTimeout
			}
			c := newClient(t, Config{Timeout: timeout, Tries: 1}, newScript(t, tc.udp, tc.tcp))
			c.Lookup(t.Context(), "a.example", dns.TypeA)
			checkCounts(t, c.Stats()[0], tc.want)
		})
	}
	t.Run("connection refused", func(t *testing.T) {
		c := newClient(t, Config{}, &script{Nameserver: Nameserver{Network: "udp", AddrPort: closedPort(t)}})
		c.Lookup(t.Context(), "a.example", dns.TypeA)
		checkCounts(t, c.Stats()[0], "refused 1")
	})
}

// checkCounts compares the counts that are not 0 with a text such as
// "NOERROR 2, truncated 1", and checks that the durations are those of all replies.
func checkCounts(t *testing.T, s NameserverStats, want string) {
	t.Helper()
	q := s.Queries
	all := maps.Clone(q.Rcodes)
	replies := q.Malformed
	for _, n := range q.Rcodes {
		replies += n
	}
	for name, n := range map[string]uint64{
		"truncated": q.Truncated, "timeouts": q.Timeouts, "refused": q.Refused, "network": q.Network, "malformed": q.Malformed,
	} {
		if n > 0 {
			all[name] = n
		}
	}
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		texts = append(texts, fmt.Sprint(name, " ", all[name]))
	}
	if got := strings.Join(texts, ", "); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s.InFlight != 0 || q.Seconds.Count != replies || (q.Seconds.Sum > 0) != (replies > 0) || (s.RTT > 0) != (replies > 0) {
		t.Errorf("got %+v, want none in flight and the seconds of %d replies", s, replies)
	}
}

func TestDurationBuckets(t *testing.T) {
	c := newQueryCounters()
	for _, took := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, 90 * time.Millisecond, 2500 * time.Millisecond, time.Hour} {
		c.replied(&reply{}, nil, took)
	}
	counts, _ := c.read()
	h := counts.Seconds
	for bound, want := range map[float64]uint64{0.001: 2, 0.0025: 3, 0.05: 3, 0.1: 4, 1: 4, 2.5: 5} {
		if got, ok := h.Buckets[bound]; !ok || got != want {
			t.Errorf("got %d up to %gs, want %d", got, bound, want)
		}
	}
	if h.Count != 6 || h.Sum < 3602 || h.Sum > 3603 {
		t.Errorf("got %d in %gs, want 6 in about 3602.6s", h.Count, h.Sum)
	}
}

// TestCountsOutliveNameservers checks that a nameserver that is removed and added again
// goes on with its counts, and that nothing is told of one that is removed.
func TestCountsOutliveNameservers(t *testing.T) {
	a, b := newScript(t, answering, nil), newScript(t, answering, nil)
	c := newClient(t, Config{}, a)
	for _, servers := range [][]Nameserver{{a.Nameserver}, {b.Nameserver}, {a.Nameserver, b.Nameserver}} {
		c.setNameservers(servers)
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		if got := c.Stats(); len(got) != len(servers) || got[0].Nameserver != servers[0] {
			t.Fatalf("got %+v, want %v", got, servers)
		}
	}
	checkCounts(t, c.Stats()[0], "NOERROR 2")
	if got := c.Stats()[1].Queries.Rcodes["NOERROR"]; got != 1 {
		t.Errorf("got %d replies of the other one, want 1", got)
	}
}

// TestStatsOfHealth follows a nameserver down and up again.
func TestStatsOfHealth(t *testing.T) {
	s := newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: shortTimeout}, s)
	c.intervals.probe = 10 * time.Millisecond
	if got := c.Stats()[0]; got.Down || !got.Since.IsZero() || got.RTT != 0 {
		t.Errorf("at the start got %+v, want it up", got)
	}
	began := time.Now()
	outage := waitForOutage(t, c)
	down := c.Stats()[0]
	if !down.Down || down.Reason != "no reply" || down.Since.Before(began) || down.Failures < 1 || down.Queries.Timeouts < suspectAfter {
		t.Errorf("without replies got %+v, want it down for that reason", down)
	}
	s.Play(answering)
	<-outage
	up := c.Stats()[0]
	if up.Down || up.Reason != "" || !up.Since.After(down.Since) || up.RTT == 0 || up.Queries.Rcodes["NOERROR"] == 0 {
		t.Errorf("after a reply got %+v, want it up since then", up)
	}
}

func TestQueriesInFlight(t *testing.T) {
	const n = 3
	asked, hold := make(chan struct{}), make(chan struct{})
	s := newScript(t, func(q *testlab.Query) { go func() { asked <- struct{}{}; <-hold; answering(q) }() }, nil)
	c := newClient(t, Config{}, s)
	ended := make(chan error)
	for range n {
		go func() { ended <- lookUp(t, c, "a.example") }()
	}
	for range n {
		<-asked
	}
	if got := c.Stats()[0].InFlight; got != n {
		t.Errorf("got %d queries in flight, want %d", got, n)
	}
	close(hold)
	for range n {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	checkCounts(t, c.Stats()[0], fmt.Sprint("NOERROR ", n))
}

// TestCloseIsNotCounted checks that queries which the end of the client cuts short count
// as nothing.
func TestCloseIsNotCounted(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := newScript(t, func(*testlab.Query) { asked <- struct{}{} }, nil)
	c := newClient(t, Config{}, s)
	ended := make(chan error)
	go func() {
		_, _, err := c.Lookup(context.Background(), "a.example", dns.TypeA)
		ended <- err
	}()
	<-asked
	c.Close()
	wantError(t, <-ended, Closed)
	checkCounts(t, c.Stats()[0], "")
}
