package dnsclient

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

const never = time.Hour

func answering(q *testlab.Query) {
	q.Reply(q.Answer(q.Question[0].Name + " 60 IN A 192.0.2.1"))
}

// answeringLive answers all questions but those for names that begin with "dead".
func answeringLive(q *testlab.Query) {
	if !strings.HasPrefix(q.Question[0].Name, "dead") {
		answering(q)
	}
}

// lookUp asks for the addresses of name. For a name that begins with "dead" its
// deadline is short, while probes have all the time of a try.
func lookUp(t *testing.T, c *Client, name string) error {
	ctx, cancel := t.Context(), context.CancelFunc(func() {})
	if strings.HasPrefix(name, "dead") {
		ctx, cancel = context.WithTimeout(ctx, shortTimeout)
	}
	defer cancel()
	_, _, err := c.Lookup(ctx, name, dns.TypeA)
	return err
}

// closedPort returns an address on loopback where no process listens.
func closedPort(t *testing.T) netip.AddrPort {
	return netip.MustParseAddrPort("127.0.0.1:" + testlab.FreePort(t))
}

func TestDeadFirstServer(t *testing.T) {
	t.Run("silent", func(t *testing.T) {
		dead, live := newScript(t, nil, nil), newScript(t, answering, nil)
		c := newClient(t, Config{Tries: 3, Timeout: time.Second}, dead, live)
		for i := range 5 {
			if err := lookUp(t, c, "a.example"); err != nil {
				t.Fatal(err)
			}
			if d, l := dead.Count(false), live.Count(false); d != 1 || l != i+1 {
				t.Fatalf("after %d lookups the dead server got %d queries, want 1, and the other %d, want %d", i+1, d, l, i+1)
			}
		}
	})
	t.Run("refusing", func(t *testing.T) {
		dead := &script{Nameserver: Nameserver{Network: "udp", AddrPort: closedPort(t)}}
		live := newScript(t, answering, nil)
		c := newClient(t, Config{Tries: 3}, dead, live)
		for range 5 {
			if err := lookUp(t, c, "a.example"); err != nil {
				t.Fatal(err)
			}
		}
		if failures := c.servers[0].health.failures; failures != 1 {
			t.Errorf("the dead server was asked %d times, want once", failures)
		}
	})
}

// A server that is late does not hold a lookup up, but may still answer it.
func TestLateServer(t *testing.T) {
	t.Run("the next one answers", func(t *testing.T) {
		arrived := make(chan *testlab.Query, 1)
		first := newScript(t, func(q *testlab.Query) { arrived <- q }, nil)
		second := newScript(t, answering, nil)
		c := newClient(t, Config{Tries: 3}, first, second)
		c.intervals.maxHedgeDelay = shortTimeout
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		if n := c.servers[0].health.rank().failures; n != 1 {
			t.Errorf("%d failures, want 1", n)
		}
		answering(<-arrived)
		c.running.Wait()
		if n := c.servers[0].health.failures; n != 1 {
			t.Errorf("%d failures after the late answer, want 1: others are faster", n)
		}
	})
	t.Run("it answers first", func(t *testing.T) {
		arrived := make(chan *testlab.Query, 1)
		first := newScript(t, func(q *testlab.Query) { arrived <- q }, nil)
		second := newScript(t, func(*testlab.Query) { answering(<-arrived) }, nil)
		c := newClient(t, Config{Tries: 2}, first, second)
		c.intervals.maxHedgeDelay = shortTimeout
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		if a, b := first.Count(false), second.Count(false); a != 1 || b != 1 {
			t.Errorf("%d and %d queries, want 1 and 1", a, b)
		}
	})
	t.Run("it never answers", func(t *testing.T) {
		first, second := newScript(t, nil, nil), newScript(t, answering, nil)
		c := newClient(t, Config{Tries: 3, Timeout: time.Second}, first, second)
		c.intervals.maxHedgeDelay = shortTimeout
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		c.running.Wait()
		if s := c.servers[0]; s.health.failures != 1 || s.health.silent != 1 {
			t.Errorf("%d failures, %d of them silent, want 1", s.health.failures, s.health.silent)
		}
	})
	t.Run("it is the only one", func(t *testing.T) {
		first := make(chan *testlab.Query, 1)
		s := newScript(t, func(q *testlab.Query) {
			if q.N == 1 {
				first <- q
			} else {
				answering(<-first)
			}
		}, nil)
		c := newClient(t, Config{Tries: 3, Timeout: time.Second}, s)
		start := time.Now()
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		if n := s.Count(false); n != 2 || time.Since(start) < 750*time.Millisecond {
			t.Errorf("%d queries after %s, want 2", n, time.Since(start))
		}
	})
}

func TestHedgeDelay(t *testing.T) {
	c := newClient(t, Config{Timeout: 2 * time.Second})
	s := c.newServer(Nameserver{})
	want := func(what string, want time.Duration) {
		t.Helper()
		if got := s.hedgeDelay(false); got.Round(time.Millisecond) != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
		if got, want := s.hedgeDelay(true), 1500*time.Millisecond; got != want {
			t.Errorf("%s: %s before the same server is asked again, want %s", what, got, want)
		}
	}
	want("unknown", time.Second)
	s.replied(100 * time.Millisecond)
	want("one reply", 300*time.Millisecond)
	for range 50 {
		s.replied(100 * time.Millisecond)
	}
	want("many replies", 250*time.Millisecond)
	s.replied(500 * time.Millisecond)
	want("one slow reply", 550*time.Millisecond)
	for range 50 {
		s.replied(3 * time.Second)
	}
	want("all slow", time.Second)
}

// A server that replies and does not answer is asked after the others.
func TestFailingServerIsAskedLater(t *testing.T) {
	refuse := func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeRefused)) }
	first, second := newScript(t, refuse, nil), newScript(t, answering, nil)
	c := newClient(t, Config{Tries: 3}, first, second)
	c.intervals.recheck, c.intervals.probe = 0, 0
	for i := range 5 {
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		c.running.Wait() // for the probe
		if n := second.Count(false); n != i+1 {
			t.Fatalf("after %d lookups the second server got %d queries, want as many", i+1, n)
		}
	}
	if n := c.servers[0].health.rank().failures; n != 1 {
		t.Errorf("%d lookups failed there, want 1", n)
	}
	for i, q := range first.Queries() {
		if i > 0 && q.Question[0].Name != "." {
			t.Errorf("query %d is %v, want a probe for .", i, q.Question[0])
		}
	}

	first.Play(answering)
	before := second.Count(false)
	if err := lookUp(t, c, "a.example"); err != nil {
		t.Fatal(err)
	}
	c.running.Wait()
	if err := lookUp(t, c, "a.example"); err != nil || second.Count(false) != before+1 {
		t.Errorf("got %v from the second server, want an answer from the first one", err)
	}
}

// A server that is a suspect again and again gets a probe once an interval.
func TestProbesOfSuspects(t *testing.T) {
	s := newScript(t, answeringLive, nil)
	c := newClient(t, Config{}, s)
	c.intervals.minSilence = 0
	for range 5 * suspectAfter {
		lookUp(t, c, "dead.example")
		c.running.Wait()
	}
	probes := 0
	for _, q := range s.Queries() {
		if q.Question[0].Name == "." {
			probes++
		}
	}
	if limit := 1 + int(time.Since(c.servers[0].health.watchedAt)/c.intervals.probe); probes < 1 || probes > limit {
		t.Errorf("%d probes, want 1 to %d", probes, limit)
	}
}

// A server that was not asked first because of a failure is asked first again
// once it answers.
func TestFirstServerReturns(t *testing.T) {
	first, second := newScript(t, nil, nil), newScript(t, answering, nil)
	c := newClient(t, Config{Tries: 3, Timeout: time.Second}, first, second)
	c.intervals.recheck, c.intervals.probe = time.Millisecond, time.Millisecond
	if err := lookUp(t, c, "a.example"); err != nil {
		t.Fatal(err)
	}
	first.Play(answering)
	for used := false; !used; {
		before := second.Count(false)
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		used = second.Count(false) == before
	}
}

func TestDownServerIsLastResort(t *testing.T) {
	fail := func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeServerFailure)) }
	down, a, b := newScript(t, answering, nil), newScript(t, fail, nil), newScript(t, fail, nil)
	for tries, want := range map[int][]Nameserver{
		1: {a.Nameserver},
		2: {a.Nameserver, b.Nameserver},
		3: {a.Nameserver, b.Nameserver, down.Nameserver},
		4: {a.Nameserver, b.Nameserver, a.Nameserver, down.Nameserver},
		9: {a.Nameserver, b.Nameserver, a.Nameserver, b.Nameserver, a.Nameserver, b.Nameserver, down.Nameserver},
	} {
		c := newClient(t, Config{Tries: tries}, down, a, b)
		c.intervals.recheck = never
		h := &c.servers[0].health
		h.down, h.failures, h.failedAt = true, 3, time.Now()
		var asked []Nameserver
		c.trace = func(trace *Trace) {
			for _, try := range trace.Tries {
				asked = append(asked, try.Server)
			}
		}
		err := lookUp(t, c, "a.example")
		if !slices.Equal(asked, want) {
			t.Errorf("%d tries went to %v, want %v", tries, asked, want)
		}
		if up := !c.servers[0].health.isDown(); up != (err == nil) {
			t.Errorf("%d tries: the server is up: %v, want %v", tries, up, err == nil)
		}
	}
}

// waitForOutage looks a name up until all servers are down.
func waitForOutage(t *testing.T, c *Client) <-chan struct{} {
	t.Helper()
	for {
		if outage := c.Outage(); outage != nil {
			return outage
		}
		if lookUp(t, c, "a.example") == nil {
			t.Fatal("a lookup succeeded, want failures until all servers are down")
		}
	}
}

func TestOutage(t *testing.T) {
	t.Run("lookups send nothing", testOutageSendsNothing)
	t.Run("probes go out until one is answered", testProbesEndOutage)
	t.Run("no more probes than one an interval", testProbeInterval)
	t.Run("port closed, then open", testClosedPort)
	t.Run("a lookup under way ends", testOutageDuringLookup)
}

func testOutageSendsNothing(t *testing.T) {
	a, b := newScript(t, nil, nil), newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: shortTimeout}, a, b)
	c.intervals.probe = never
	outage := waitForOutage(t, c)
	time.Sleep(shortTimeout) // for what was sent to arrive
	before := a.Count(false) + b.Count(false)
	for range 100 {
		_, _, err := c.Lookup(t.Context(), "b.example", dns.TypeA)
		e := wantError(t, err, Outage)
		if !e.Outage() || e.Timeout() || len(e.Tries) != 0 || e.Rcode != -1 || !strings.Contains(err.Error(), a.String()+": no reply, "+b.String()+": no reply") {
			t.Fatalf("got %v, %+v; want an outage, with a reason for each server, and no tries", err, e)
		}
	}
	if sent := a.Count(false) + b.Count(false) - before; sent != 0 {
		t.Errorf("%d queries were sent, want 0", sent)
	}

	// The servers may change in an outage.
	c.setNameservers([]Nameserver{a.Nameserver})
	select {
	case <-outage:
		t.Error("the outage ended with the removal of a server that is down, want it to last")
	default:
	}
	working := newScript(t, answering, nil)
	c.setNameservers([]Nameserver{a.Nameserver, working.Nameserver})
	<-outage
}

func testProbesEndOutage(t *testing.T) {
	s := newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: shortTimeout}, s)
	c.intervals.probe = 10 * time.Millisecond
	outage := waitForOutage(t, c)
	s.Play(answering)
	<-outage
	for lookUp(t, c, "a.example") != nil { // may take longer than shortTimeout
	}
	if c.Outage() != nil {
		t.Error("there is an outage after an answer, want none")
	}
}

func testProbeInterval(t *testing.T) {
	s := newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: shortTimeout}, s)
	c.intervals.probe = 20 * time.Millisecond
	waitForOutage(t, c)
	time.Sleep(shortTimeout)
	before, start := s.Count(false), time.Now()
	for range 100 {
		c.Lookup(t.Context(), "b.example", dns.TypeA)
		time.Sleep(time.Millisecond)
	}
	sent := s.Count(false) - before
	if limit := int(time.Since(start)/c.intervals.probe) + 2; sent == 0 || sent > limit {
		t.Errorf("%d probes, want 1 to %d", sent, limit)
	}
}

func testClosedPort(t *testing.T) {
	addr := closedPort(t)
	c := newClient(t, Config{Tries: 3}, &script{Nameserver: Nameserver{Network: "udp", AddrPort: addr}})
	c.intervals.probe = 10 * time.Millisecond
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	if e := err.(*Error); e.Kind != Network && e.Kind != Outage {
		t.Errorf("got %v, want a failure of the network or an outage", err)
	}
	outage := waitForOutage(t, c)

	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatalf("want to listen on the port that was closed: %v", err)
	}
	defer conn.Close()
	buf := make([]byte, maxMessage)
	n, from, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	buf[2] |= 0x80
	buf[3] |= dns.RcodeRefused // any reply will do
	conn.WriteToUDPAddrPort(buf[:n], from)
	<-outage
}

func testOutageDuringLookup(t *testing.T) {
	s := newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: shortTimeout, Tries: 3}, s)
	s.Play(func(*testlab.Query) { c.setNameservers(nil) })
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	if e := wantError(t, err, Outage); len(e.Tries) != 1 {
		t.Errorf("got an outage after %d tries, want 1", len(e.Tries))
	}
}

// After an outage a server may not be able to answer what it answered before,
// or the root, but only what is asked for now.
func TestProbesRotate(t *testing.T) {
	for _, answered := range []string{"a.example.", ".", "new.example."} {
		t.Run(answered, func(t *testing.T) {
			s := newScript(t, answering, nil)
			c := newClient(t, Config{Timeout: shortTimeout}, s)
			c.intervals.probe = 10 * time.Millisecond
			for lookUp(t, c, "a.example") != nil {
			}
			s.Play(nil)
			outage := waitForOutage(t, c)
			s.Play(func(q *testlab.Query) {
				if q.Question[0].Name == answered {
					q.Reply(q.Fail(dns.RcodeServerFailure))
				}
			})
			c.Lookup(t.Context(), "new.example", dns.TypeA)
			<-outage
		})
	}
}

func TestDeadNameIsNoOutage(t *testing.T) {
	tests := []struct {
		name   string
		before func(*testing.T, *Client, *script)
		probe  string
	}{
		{"nothing was answered before", func(*testing.T, *Client, *script) {}, "."},
		{"another name was answered before", func(t *testing.T, c *Client, _ *script) {
			if err := lookUp(t, c, "a.example"); err != nil {
				t.Fatal(err)
			}
		}, "a.example."},
		{"the name itself was answered before", func(t *testing.T, c *Client, s *script) {
			s.Play(answering)
			if _, _, err := c.Lookup(t.Context(), "dead.example", dns.TypeA); err != nil {
				t.Fatal(err)
			}
			s.Play(answeringLive)
		}, "."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newScript(t, answeringLive, nil)
			c := newClient(t, Config{}, s) // probes have all the time
			c.intervals.minSilence = 0
			test.before(t, c, s)
			for range 4 * suspectAfter {
				wantError(t, lookUp(t, c, "dead.example"), Timeout)
				if c.Outage() != nil {
					t.Fatal("a name without a reply caused an outage, want none")
				}
			}
			if !slices.ContainsFunc(s.Queries(), func(q *testlab.Query) bool { return q.Question[0].Name == test.probe }) {
				t.Errorf("no probe for %s was sent, want one", test.probe)
			}
			if err := lookUp(t, c, "b.example"); err != nil {
				t.Errorf("got %v, want an answer", err)
			}
		})
	}
}

func TestDeadlineCutsShort(t *testing.T) {
	s := newScript(t, nil, nil)
	c := newClient(t, Config{}, s)
	c.intervals.minSilence = never
	lookUp(t, c, "dead.example")
	c.running.Wait()
	if c.servers[0].health.failures != 0 {
		t.Error("a query that was cut short counts as unanswered, want it not to")
	}
	c.intervals.minSilence = 0
	lookUp(t, c, "dead.example")
	c.running.Wait()
	if c.servers[0].health.failures != 1 {
		t.Error("a query that was not cut short does not count as unanswered, want it to")
	}
}

func TestSetNameserversKeepsHealth(t *testing.T) {
	a, b := newScript(t, nil, nil), newScript(t, answering, nil)
	c := newClient(t, Config{}, a, b)
	c.servers[0].health.failures = 2
	kept, removed := c.servers[0], c.servers[1]
	if err := lookUp(t, c, "a.example"); err != nil {
		t.Fatal(err)
	}
	c.setNameservers([]Nameserver{{Network: "tcp", AddrPort: b.AddrPort}, a.Nameserver})
	if c.servers[1] != kept || c.servers[0] == removed {
		t.Error("want the server with the same address kept, and the one with another network replaced")
	}
	if removed.ctx.Err() == nil || len(removed.first.(*udp).idle) != 0 {
		t.Error("the removed server is open, want it closed")
	}
}

// A probe of a server that was removed has no effect.
func TestRemovedWhileSuspect(t *testing.T) {
	probed := make(chan struct{}, 1)
	s := newScript(t, func(q *testlab.Query) {
		if q.Question[0].Qtype == dns.TypeNS {
			probed <- struct{}{}
		}
	}, nil)
	other := newScript(t, answering, nil)
	c := newClient(t, Config{}, s)
	c.intervals.minSilence = 0
	for range suspectAfter {
		lookUp(t, c, "dead.example")
	}
	<-probed
	removed := c.servers[0]
	c.setNameservers([]Nameserver{other.Nameserver})
	c.running.Wait()
	if removed.health.isDown() || c.Outage() != nil {
		t.Error("a removed server went down, or caused an outage; want neither")
	}
	if err := lookUp(t, c, "a.example"); err != nil {
		t.Errorf("got %v, want an answer", err)
	}
}

// Config.Health is called when a server goes down, with the reason, and when it is
// up again.
func TestHealthCallback(t *testing.T) {
	s := newScript(t, nil, nil)
	calls := make(chan string, 10)
	c := newClient(t, Config{Timeout: shortTimeout, Health: func(server Nameserver, reason string) {
		calls <- fmt.Sprintf("%s: %q", server, reason)
	}}, s)
	c.intervals.probe = 10 * time.Millisecond
	outage := waitForOutage(t, c)
	s.Play(answering)
	<-outage
	for _, want := range []string{"no reply", ""} {
		if got := <-calls; got != fmt.Sprintf("%s: %q", s, want) {
			t.Errorf("got a call with %s, want %q", got, want)
		}
	}
}

// A server that is down is asked last, even if no failure has followed its last
// answer.
func TestDownWithoutFailures(t *testing.T) {
	down, up := newScript(t, answering, nil), newScript(t, answering, nil)
	c := newClient(t, Config{Tries: 3}, down, up)
	c.servers[0].health.down = true
	if err := lookUp(t, c, "a.example"); err != nil || up.Count(false) != 1 {
		t.Errorf("%d queries to the server that is up, want 1; %v", up.Count(false), err)
	}
}

// A server that answers probes too, but slowly, is not asked first again.
func TestSlowProbe(t *testing.T) {
	s := newScript(t, answering, nil)
	c := newClient(t, Config{}, s)
	server := c.servers[0]
	for _, test := range []struct {
		delay    time.Duration
		failures int
	}{{0, 1}, {longTimeout, 0}} {
		server.health.failures = 1
		c.intervals.maxHedgeDelay = test.delay
		if !server.probe(t.Context(), server.first, rootQuestion) || server.health.failures != test.failures {
			t.Errorf("%d failures, want %d", server.health.failures, test.failures)
		}
	}
}

// broken is a transport whose connection the server closes at each query.
type broken struct{ transport }

func (broken) exchange(context.Context, time.Time, *question, bool) ([]byte, int, error) {
	return nil, 0, errHungUp
}

// The probe that confirms that a server is down has a connection of its own.
func TestConfirmation(t *testing.T) {
	s := newScript(t, nil, answering)
	s.Network = "tcp"
	c := newClient(t, Config{}, s)
	c.servers[0].first = broken{c.servers[0].first}
	if c.servers[0].confirmDown() || c.Outage() != nil {
		t.Error("the server is down, want it up: it replies over another connection")
	}
}
