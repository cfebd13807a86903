package dnsclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

const (
	// longTimeout is a timeout that a reply meets however busy the machine is.
	longTimeout = 20 * time.Second

	// shortTimeout is a timeout for replies that never come.
	shortTimeout = 50 * time.Millisecond
)

const (
	goodRecord = "a.example. 60 IN A 192.0.2.1"
	evilRecord = "a.example. 60 IN A 203.0.113.66"
	soa        = "example. 300 IN SOA ns.example. root.example. 1 3600 600 86400 30"
	parent     = "example. 20 IN SOA ns.example. root.example. 1 3600 600 86400 30"
)

func TestLookup(t *testing.T) {
	for _, test := range slices.Concat(casesOfAddresses(), casesOfIgnoredMessages(), casesOfMalformedReplies(),
		casesOfTruncation(), casesOfAliases(), casesOfTTLs(), casesOfFailures()) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newScript(t, test.udp, test.tcp)
			c := newClient(t, Config{Timeout: test.timeout, Tries: test.tries}, s)
			if test.qtype == 0 {
				test.qtype = dns.TypeA
			}
			if test.udpQueries == 0 {
				test.udpQueries = 1
			}

			got, ttl, err := c.Lookup(t.Context(), "a.example", test.qtype)
			if test.kind == 0 {
				if err != nil || !slices.Equal(got, test.want) || ttl != test.ttl {
					t.Errorf("got %v for %v, %v; want %v for %v", got, ttl, err, test.want, test.ttl)
				}
			} else {
				e := wantError(t, err, test.kind)
				if got != nil || e.Rcode != test.rcode || !strings.Contains(err.Error(), test.text) {
					t.Errorf("got %v, rcode %d, %v; want rcode %d, text %q", got, e.Rcode, err, test.rcode, test.text)
				}
				if ttl, ok := e.Negative(); ok != (test.kind == NotFound || test.kind == NoData) || ttl != test.ttl {
					t.Errorf("negative %v for %v, want %v", ok, ttl, test.ttl)
				}
				if want := test.udpQueries + test.tcpQueries; len(e.Tries) != want {
					t.Errorf("%d tries, want %d: %+v", len(e.Tries), want, e.Tries)
				}
			}
			if udp, tcp := s.Count(false), s.Count(true); udp != test.udpQueries || tcp != test.tcpQueries {
				t.Errorf("%d queries over UDP and %d over TCP, want %d and %d", udp, tcp, test.udpQueries, test.tcpQueries)
			}
			if ignored := c.Mismatches(); ignored != test.ignored {
				t.Errorf("%d datagrams ignored, want %d", ignored, test.ignored)
			}
		})
	}
}

func TestLookupSRV(t *testing.T) {
	const name = "_http._tcp.example"
	for _, test := range srvCases(name) {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t, func(q *testlab.Query) { q.Reply(test.reply(q)) }, nil)
			c := newClient(t, Config{}, s)
			got, ttl, err := c.LookupSRV(t.Context(), name)
			if test.kind != 0 {
				if e := wantError(t, err, test.kind); e.TTL != test.ttl || e.HasSOA != (test.ttl > 0) {
					t.Errorf("got %v for %s, want it for %s", err, e.TTL, test.ttl)
				}
				return
			}
			if err != nil || !slices.Equal(got, test.want) || ttl != test.ttl {
				t.Errorf("got %v for %s, %v; want %v for %s", got, ttl, err, test.want, test.ttl)
			}
		})
	}
}

type srvCase struct {
	name  string
	reply func(*testlab.Query) *dns.Msg

	want []net.SRV
	ttl  time.Duration
	kind Kind
}

func srvCases(name string) []srvCase {
	srv := func(owner string, ttl int, data string) string {
		return fmt.Sprintf("%s. %d IN SRV %s", owner, ttl, data)
	}
	return []srvCase{
		{
			name: "several, with the smallest TTL, in lower case",
			reply: func(q *testlab.Query) *dns.Msg {
				return q.Answer(srv(name, 60, "10 5 8080 A.example."), srv(name, 30, "20 0 81 b.example."), srv("_x._tcp.example", 1, "0 0 1 evil.example."))
			},
			want: []net.SRV{{Target: "a.example", Port: 8080, Priority: 10, Weight: 5}, {Target: "b.example", Port: 81, Priority: 20}},
			ttl:  30 * time.Second,
		},
		{
			name: "behind an alias",
			reply: func(q *testlab.Query) *dns.Msg {
				return q.Answer("_http._tcp.example. 9 IN CNAME s.example.", srv("s.example", 60, "1 1 80 a.example."))
			},
			want: []net.SRV{{Target: "a.example", Port: 80, Priority: 1, Weight: 1}},
			ttl:  9 * time.Second,
		},
		{
			name:  "not offered",
			reply: func(q *testlab.Query) *dns.Msg { return q.Answer(srv(name, 40, "0 0 0 .")) },
			kind:  NoData, ttl: 40 * time.Second,
		},
		{
			name: "one of two is no target",
			reply: func(q *testlab.Query) *dns.Msg {
				return q.Answer(srv(name, 40, "0 0 0 ."), srv(name, 40, "0 0 80 a.example."))
			},
			want: []net.SRV{{Target: "a.example", Port: 80}}, ttl: 40 * time.Second,
		},
		{
			name: "a target that is no host",
			reply: func(q *testlab.Query) *dns.Msg {
				return q.Answer(srv(name, 40, `0 0 80 \000.example.`))
			},
			kind: Malformed,
		},
		{
			name: "a malformed record beside a valid one",
			reply: func(q *testlab.Query) *dns.Msg {
				m := q.Answer(srv(name, 40, "0 0 80 a.example."))
				m.Answer = append(m.Answer, rr(name+".", dns.TypeSRV, "000000000050"))
				return m
			},
			want: []net.SRV{{Target: "a.example", Port: 80}}, ttl: 40 * time.Second,
		},
		{
			name: "an octet too many",
			reply: func(q *testlab.Query) *dns.Msg {
				m := q.Answer()
				m.Answer = []dns.RR{rr(name+".", dns.TypeSRV, "000000000050"+"016100"+"00")}
				return m
			},
			kind: Malformed,
		},
		{
			name: "RDLENGTH 0",
			reply: func(q *testlab.Query) *dns.Msg {
				m := q.Answer()
				m.Answer = []dns.RR{rr(name+".", dns.TypeSRV, "")}
				return m
			},
			kind: Malformed,
		},
		{
			name:  "NXDOMAIN",
			reply: func(q *testlab.Query) *dns.Msg { return q.Fail(dns.RcodeNameError, soa) },
			kind:  NotFound, ttl: 30 * time.Second,
		},
	}
}

func TestTrace(t *testing.T) {
	var traces []*Trace
	cut := newScript(t, truncated, func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeServerFailure)) })
	late := newScript(t, nil, nil)
	working := newScript(t, func(q *testlab.Query) { q.Reply(q.Answer(goodRecord)) }, nil)
	c := newClient(t, Config{Tries: 3, Trace: func(trace *Trace) { traces = append(traces, trace) }}, cut, late, working)
	c.intervals.maxHedgeDelay = shortTimeout
	if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
		t.Fatal(err)
	}
	_, _, err := c.Lookup(t.Context(), "", dns.TypeA)
	wantError(t, err, Invalid)
	if len(traces) != 2 || traces[1].Err != err {
		t.Fatalf("got %d traces, want 2, the second one with %v", len(traces), err)
	}

	var got []string
	for _, try := range traces[0].Tries {
		if try.Duration <= 0 || try.Name != "a.example." {
			t.Errorf("got try %+v, want one for a.example. with its duration", try)
		}
		got = append(got, fmt.Sprintf("%s %s %s", try.Server, try.Transport, try.Outcome))
	}
	want := []string{
		cut.String() + " udp truncated",
		cut.String() + " tcp SERVFAIL",
		late.String() + " udp no reply yet",
		working.String() + " udp answer",
	}
	if !slices.Equal(got, want) {
		t.Errorf("tries are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if x := traces[0]; x.Name != "a.example" || x.Type != dns.TypeA || x.Err != nil || x.TTL != time.Minute ||
		!slices.Equal(x.Addrs, addrs("192.0.2.1")) || x.Duration < shortTimeout {
		t.Errorf("got trace %+v, want one of 192.0.2.1 for a.example after %s at least", x, shortTimeout)
	}
}

// The name to which an alias leads is asked for at the client of its route.
func TestRoute(t *testing.T) {
	inside := newScript(t, func(q *testlab.Query) { q.Reply(q.Answer("a.inside. 50 IN CNAME B.outside.")) }, nil)
	outside := newScript(t, func(q *testlab.Query) { q.Reply(q.Answer("b.outside. 60 IN A 192.0.2.1")) }, nil)
	other := newClient(t, Config{}, outside)
	var asked string
	c := newClient(t, Config{Route: func(name string) *Client {
		asked = name
		return other
	}}, inside)
	got, ttl, err := c.Lookup(t.Context(), "a.inside", dns.TypeA)
	if err != nil || !slices.Equal(got, addrs("192.0.2.1")) || ttl != 50*time.Second || asked != "b.outside" {
		t.Errorf("got %v for %s, %v, with a route for %q; want 192.0.2.1 for 50s, with one for b.outside", got, ttl, err, asked)
	}
	if a, b := inside.Count(false), outside.Count(false); a != 1 || b != 1 {
		t.Errorf("%d and %d queries, want 1 and 1", a, b)
	}

	// even if the first server has an answer for the name
	for _, reply := range []func(*testlab.Query) *dns.Msg{
		func(q *testlab.Query) *dns.Msg {
			m := q.Fail(dns.RcodeNameError, "outside. 300 IN SOA ns. root. 1 2 3 4 5")
			m.Answer = testlab.Records("a.inside. 50 IN CNAME b.outside.")
			return m
		},
		func(q *testlab.Query) *dns.Msg {
			return q.Answer("a.inside. 50 IN CNAME b.outside.", "b.outside. 60 IN A 203.0.113.66")
		},
	} {
		inside.Play(func(q *testlab.Query) { q.Reply(reply(q)) })
		if got, _, err := c.Lookup(t.Context(), "a.inside", dns.TypeA); err != nil || !slices.Equal(got, addrs("192.0.2.1")) {
			t.Errorf("got %v, %v; want 192.0.2.1", got, err)
		}
	}

	// an outage of the other client is not one of this client
	outside.Play(nil)
	other.Change(other.Nameservers(), Settings{Timeout: shortTimeout, Tries: 1})
	waitForOutage(t, other)
	_, _, err = c.Lookup(t.Context(), "a.inside", dns.TypeA)
	if e := wantError(t, err, Outage); e.Outage() || c.Outage() != nil || !strings.Contains(err.Error(), outside.String()) {
		t.Errorf("got %v, want an outage of %s", err, outside)
	}
	other.Close()
	_, _, err = c.Lookup(t.Context(), "a.inside", dns.TypeA)
	wantError(t, err, Closed)

	c = newClient(t, Config{Route: func(string) *Client { return nil }}, inside)
	_, _, err = c.Lookup(t.Context(), "a.inside", dns.TypeA)
	if wantError(t, err, Invalid); !strings.Contains(err.Error(), "b.outside., which is never asked for") {
		t.Errorf("got %v, want that b.outside. is never asked for", err)
	}
}

func wantError(t *testing.T, err error, kind Kind) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want an *Error", err)
	}
	if e.Kind != kind {
		t.Fatalf("got error %v of kind %d, want %d", err, e.Kind, kind)
	}
	return e
}

func TestQueryOnTheWire(t *testing.T) {
	s := newScript(t, truncated, func(q *testlab.Query) { q.Reply(q.Answer(goodRecord)) })
	c := newClient(t, Config{}, s)
	if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
		t.Fatal(err)
	}
	for i, tcp := range []bool{false, true} {
		q := s.Queries()[i]
		if q.TCP != tcp || !q.RecursionDesired || q.Response || q.Opcode != dns.OpcodeQuery ||
			len(q.Question) != 1 || q.Question[0] != (dns.Question{Name: "a.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}) ||
			len(q.Extra) != 1 || q.IsEdns0() == nil || q.IsEdns0().UDPSize() != 1232 || q.IsEdns0().Version() != 0 || q.IsEdns0().Do() {
			t.Errorf("query %d is over TCP: %v, %v; want %v, and one for a.example. A, with EDNS", i, q.TCP, q, tcp)
		}
	}
}

func TestIDsDiffer(t *testing.T) {
	s := newScript(t, func(q *testlab.Query) { q.Reply(q.Answer(goodRecord)) }, nil)
	c := newClient(t, Config{}, s)
	ids := make(map[uint16]bool)
	for i := range 64 {
		if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
			t.Fatal(err)
		}
		ids[s.Queries()[i].Id] = true
	}
	if len(ids) < 60 { // fewer: once in 10^9 runs
		t.Errorf("64 queries had %d different IDs, want 60 at least", len(ids))
	}
}

func TestTCPOnly(t *testing.T) {
	s := newScript(t, nil, func(q *testlab.Query) { q.Reply(q.Answer(goodRecord)) })
	s.Network = "tcp"
	c := newClient(t, Config{}, s)
	if got, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v; want one address", got, err)
	}
	if udp, tcp := s.Count(false), s.Count(true); udp != 0 || tcp != 1 {
		t.Errorf("%d queries over UDP and %d over TCP, want 0 and 1", udp, tcp)
	}
}

func TestSecondServer(t *testing.T) {
	for name, first := range map[string]func(*testlab.Query){
		"SERVFAIL":  func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeServerFailure)) },
		"REFUSED":   func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeRefused)) },
		"NOTAUTH":   func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeNotAuth)) },
		"malformed": func(q *testlab.Query) { q.Raw(testlab.Pack(q.Answer(goodRecord))[:40]) },
		"loop":      func(q *testlab.Query) { q.Reply(q.Answer("a.example. 1 IN CNAME a.example.")) },
		"truncated": truncated,
		"lame": func(q *testlab.Query) {
			m := q.Answer()
			m.RecursionAvailable = false
			q.Reply(m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newScript(t, first, func(q *testlab.Query) { q.HangUp() })
			b := newScript(t, func(q *testlab.Query) { q.Reply(q.Answer(goodRecord)) }, nil)
			c := newClient(t, Config{Tries: 3}, a, b)
			got, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
			if err != nil || !slices.Equal(got, addrs("192.0.2.1")) {
				t.Errorf("got %v, %v; want 192.0.2.1", got, err)
			}
			if a, b := a.Count(false), b.Count(false); a != 1 || b != 1 {
				t.Errorf("the servers got %d and %d queries, want 1 and 1", a, b)
			}
		})
	}
}

func TestTriesRotate(t *testing.T) {
	fail := func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeServerFailure)) }
	a, b := newScript(t, fail, nil), newScript(t, fail, nil)
	c := newClient(t, Config{Tries: 3}, a, b)
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	e := wantError(t, err, ServerFailure)
	var asked []Nameserver
	for _, try := range e.Tries {
		asked = append(asked, try.Server)
		if try.Name != "a.example." || try.Transport != "udp" || try.Outcome != "SERVFAIL" || try.Duration <= 0 {
			t.Errorf("got try %+v, want one for a.example. over udp that ended with SERVFAIL", try)
		}
	}
	if want := []Nameserver{a.Nameserver, b.Nameserver, a.Nameserver}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
}

func TestEDNSFallback(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers} {
		for _, bare := range []bool{false, true} {
			if bare && rcode > 15 {
				continue // needs an OPT record
			}
			t.Run(fmt.Sprintf("%s bare=%v", dns.RcodeToString[rcode], bare), func(t *testing.T) {
				s := newScript(t, func(q *testlab.Query) {
					if q.IsEdns0() == nil {
						q.Reply(q.Answer(goodRecord))
						return
					}
					m := q.Fail(rcode)
					if rcode > 15 {
						m.SetEdns0(udpSize, false)
					}
					if bare {
						m.Question = nil
					}
					q.Reply(m)
				}, nil)
				c := newClient(t, Config{}, s)
				for want := 2; want < 5; want++ { // remembered after the first lookup
					if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
						t.Fatal(err)
					}
					if got := s.Count(false); got != want {
						t.Errorf("%d queries, want %d", got, want)
					}
				}
			})
		}
	}
}

// A server that gives the same error without EDNS has not refused EDNS.
func TestEDNSNotAtFault(t *testing.T) {
	s := newScript(t, func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeNotImplemented)) }, nil)
	c := newClient(t, Config{}, s)
	for want := 2; want < 6; want += 2 {
		_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
		e := wantError(t, err, ServerFailure)
		if got := s.Count(false); got != want || e.Rcode != dns.RcodeNotImplemented {
			t.Errorf("%d queries, want %d; %v", got, want, err)
		}
	}
}

// A server gets three queries at most, those without EDNS included.
func TestQueriesToOneServer(t *testing.T) {
	s := newScript(t, func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeFormatError)) }, nil)
	c := newClient(t, Config{Tries: 3}, s)
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	wantError(t, err, ServerFailure)
	if n := s.Count(false); n != maxPerServer {
		t.Errorf("%d queries, want %d", n, maxPerServer)
	}
}

func TestInvalidQuestions(t *testing.T) {
	s := newScript(t, nil, nil)
	c := newClient(t, Config{}, s)
	for _, name := range []string{"", "a..example", ".example", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "aa"} {
		_, _, err := c.Lookup(t.Context(), name, dns.TypeA)
		wantError(t, err, Invalid)
	}
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeTXT)
	wantError(t, err, Invalid)
	if n := s.Count(false); n != 0 {
		t.Errorf("%d queries were sent, want 0", n)
	}
}

func TestCancel(t *testing.T) {
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			silence := func(*testlab.Query) { cancel() }
			s := newScript(t, silence, silence)
			s.Network = transport
			c := newClient(t, Config{Timeout: time.Hour, Tries: 3}, s)
			_, _, err := c.Lookup(ctx, "a.example", dns.TypeA)
			e := wantError(t, err, Canceled)
			if !errors.Is(err, context.Canceled) || e.Timeout() || s.Count(transport == "tcp") != 1 {
				t.Errorf("got %v after %d queries, want context.Canceled after 1", err, s.Count(transport == "tcp"))
			}
			if _, _, err := c.Lookup(ctx, "a.example", dns.TypeA); !errors.Is(err, context.Canceled) || s.Count(transport == "tcp") != 1 {
				t.Errorf("with a canceled context: got %v after %d queries, want context.Canceled after 1", err, s.Count(transport == "tcp"))
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	s := newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: time.Hour, Tries: 3}, s)
	ctx, cancel := context.WithTimeout(t.Context(), shortTimeout)
	defer cancel()
	_, _, err := c.Lookup(ctx, "a.example", dns.TypeA)
	e := wantError(t, err, Timeout)
	if !errors.Is(err, context.DeadlineExceeded) || !e.Timeout() || s.Count(false) != 1 {
		t.Errorf("got %v after %d queries, want a timeout after 1", err, s.Count(false))
	}
}

// A reply explains more than the deadline.
func TestDeadlineAfterReply(t *testing.T) {
	a := newScript(t, func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeServerFailure)) }, nil)
	b := newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: time.Hour, Tries: 3}, a, b)
	ctx, cancel := context.WithTimeout(t.Context(), shortTimeout)
	defer cancel()
	_, _, err := c.Lookup(ctx, "a.example", dns.TypeA)
	wantError(t, err, ServerFailure)
}

func TestClose(t *testing.T) {
	arrived := make(chan struct{})
	s := newScript(t, func(*testlab.Query) { arrived <- struct{}{} }, nil)
	c := newClient(t, Config{Timeout: time.Hour}, s)
	errs := make(chan error)
	for range 10 {
		go func() {
			_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
			errs <- err
		}()
		<-arrived
	}
	go c.Close()
	for range 10 {
		if err := <-errs; !errors.Is(err, errClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
	c.Close()
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	if wantError(t, err, Closed); !errors.Is(err, errClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if c.setNameservers([]Nameserver{s.Nameserver, {Network: "tcp", AddrPort: s.AddrPort}}); len(c.Nameservers()) != 2 {
		t.Errorf("nameservers are %v, want 2", c.Nameservers())
	}
}

func TestNoNameservers(t *testing.T) {
	s := newScript(t, func(q *testlab.Query) { q.Reply(q.Answer(goodRecord)) }, nil)
	c := newClient(t, Config{})
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	if e := wantError(t, err, Outage); !e.Outage() || e.Timeout() {
		t.Errorf("got %v, want an outage", err)
	}
	outage := c.Outage()
	c.setNameservers([]Nameserver{s.Nameserver, s.Nameserver})
	<-outage
	if got := c.Nameservers(); len(got) != 1 || got[0] != s.Nameserver {
		t.Errorf("nameservers are %v, want %v", got, s.Nameserver)
	}
	if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
		t.Errorf("got %v, want an answer", err)
	}
}

// Many lookups at once, while the servers change and some contexts end.
func TestConcurrent(t *testing.T) {
	a, b := newScript(t, answering, nil), newScript(t, answering, nil)
	c := newClient(t, Config{Tries: 3}, a, b)
	lookUpMany(t, c, func() {
		for i := range 100 {
			servers := []Nameserver{a.Nameserver, b.Nameserver}
			c.setNameservers(servers[i%2 : 1+i%2])
			c.Outage()
		}
	})
}

// lookUpMany asks nameservers that are answering for many names at once, while meanwhile runs.
// Some contexts end.
func lookUpMany(t *testing.T, c *Client, meanwhile func()) {
	t.Helper()
	var running sync.WaitGroup
	for i := range 16 {
		running.Go(func() {
			for j := range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				if j%10 == 9 {
					go cancel()
				}
				got, _, err := c.Lookup(ctx, fmt.Sprintf("n%d-%d.example", i, j), dns.TypeA)
				if cancel(); err != nil && !errors.Is(err, context.Canceled) || err == nil && !slices.Equal(got, addrs("192.0.2.1")) {
					t.Errorf("got %v, %v; want 192.0.2.1 or context.Canceled", got, err)
				}
			}
		})
	}
	meanwhile()
	running.Wait()
}

func BenchmarkLookup(b *testing.B) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var (
			tail = testlab.Pack(&dns.Msg{Answer: testlab.Records(goodRecord)})[headerLen:]
			buf  = make([]byte, maxMessage)
		)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			buf[2], buf[3], buf[7], buf[11] = 0x81, 0x80, 1, 0
			n -= 11 // the OPT record
			conn.WriteToUDPAddrPort(append(buf[:n], tail...), from)
		}
	}()
	c := New([]Nameserver{{Network: "udp", AddrPort: conn.LocalAddr().(*net.UDPAddr).AddrPort()}}, Config{})
	for b.Loop() {
		if _, _, err := c.Lookup(context.Background(), "a.example", dns.TypeA); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	conn.Close()
	<-done
}

// Lookups need a goroutine for each query in flight, and no other.
func TestGoroutines(t *testing.T) {
	const n = 100
	s := newScript(t, nil, nil)
	c := newClient(t, Config{}, s)
	before := runtime.NumGoroutine()
	var over sync.WaitGroup
	for i := range n {
		over.Add(1)
		c.Ask(t.Context(), fmt.Sprintf("n%d.example", i), dns.TypeA, func([]netip.Addr, time.Duration, error) { over.Done() })
	}
	for s.Count(false) < n {
		time.Sleep(time.Millisecond)
	}
	if more := runtime.NumGoroutine() - before; more > n {
		t.Errorf("%d goroutines for %d queries, want one each at most", more, n)
	}
	c.Close()
	over.Wait()
}
