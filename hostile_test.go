package caddytarget

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// TestHostileNameserver: what a client of the gateway gets when the nameserver
// misbehaves, and what the nameserver gets to see. The backend at 127.0.0.2 is
// where requests are to go; the one at 127.0.0.66 is where they may not go.
// It is long because its table is.
func TestHostileNameserver(t *testing.T) {
	const (
		good = "a.example. 60 IN A 127.0.0.2"
		evil = "a.example. 60 IN A 127.0.0.66"
	)
	alter := func(change func(m *dns.Msg)) func(*testlab.Query) {
		return func(q *testlab.Query) {
			m := q.Answer(evil)
			change(m)
			q.Reply(m)
		}
	}
	always := func(records ...string) func(*testlab.Query) {
		return func(q *testlab.Query) { q.Reply(q.Answer(records...)) }
	}
	fails := func(rcode int) func(*testlab.Query) {
		return alter(func(m *dns.Msg) { m.Answer, m.Rcode = nil, rcode })
	}
	after := func(first func(*testlab.Query)) func(*testlab.Query) {
		return func(q *testlab.Query) {
			first(q)
			q.Reply(q.Answer(good))
		}
	}
	overTCP := func(tcp func(*testlab.Query)) func(*testlab.Query) {
		bait := alter(func(m *dns.Msg) { m.Truncated = true })
		return func(q *testlab.Query) {
			if q.TCP {
				tcp(q)
				return
			}
			bait(q)
		}
	}
	silence := func(*testlab.Query) {}

	for _, test := range []struct {
		name          string
		first, second func(*testlab.Query) // nil: there is no second server
		status        int
		reason        string // in {http.target.error}
		udp, tcp      int    // queries to the first server
		others        int    // to the second
	}{
		// ignored, and the reply is still waited for
		{name: "forged ID first", first: after(alter(func(m *dns.Msg) { m.Id++ })), status: 200, udp: 1},
		{name: "forged question first", first: after(alter(func(m *dns.Msg) { m.Question[0].Name = "b.example." })), status: 200, udp: 1},
		{name: "a query back first", first: after(alter(func(m *dns.Msg) { m.Response = false })), status: 200, udp: 1},
		{name: "garbage first", first: after(func(q *testlab.Query) { q.Raw([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }), status: 200, udp: 1},
		{name: "forgeries only", first: alter(func(m *dns.Msg) { m.Id++ }), status: 504, reason: "no nameserver replied in time", udp: 2},

		// truncation
		{name: "truncated bait, then TCP", first: overTCP(always(good)), status: 200, udp: 1, tcp: 1},
		{name: "TCP that stalls", first: overTCP(silence), status: 504, reason: "no nameserver replied in time", udp: 2, tcp: 2},
		{name: "TCP that stalls, a second server", first: overTCP(silence), second: always(good), status: 200, udp: 1, tcp: 1, others: 1},
		{name: "TCP that stops within a message", first: overTCP(func(q *testlab.Query) { q.Send([]byte{0, 99, 1}) }), second: always(good), status: 200, udp: 1, tcp: 1, others: 1},
		{name: "truncated over TCP as well", first: overTCP(alter(func(m *dns.Msg) { m.Truncated = true })), status: 502, reason: "truncated", udp: 2, tcp: 2},

		// malformed
		{name: "pointer loop", first: func(q *testlab.Query) {
			b := testlab.Pack(q.Answer())
			b[7] = 1
			q.Raw(append(b, 0xc0, byte(len(b)), 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 66))
		}, status: 502, reason: "malformed reply: bad owner name", udp: 2},
		{name: "counts of 65535", first: func(q *testlab.Query) {
			b := testlab.Pack(q.Answer(evil))
			copy(b[6:12], "\xff\xff\xff\xff\xff\xff")
			q.Raw(b)
		}, status: 502, reason: "malformed reply", udp: 2},
		{name: "an address of no octets", first: alter(func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.RFC3597{Hdr: dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}}}
		}), status: 502, reason: "malformed reply: bad record", udp: 2},
		{name: "malformed, a second server", first: alter(func(m *dns.Msg) { m.Question = nil }), second: always(good), status: 200, udp: 1, others: 1},

		// aliases
		{name: "CNAME loop", first: always("a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME a.example.", evil), status: 502, reason: "circle", udp: 2},
		{name: "two aliases", first: always("a.example. 60 IN CNAME b.example.", "a.example. 60 IN CNAME c.example.", "d.example. 60 IN A 127.0.0.66", "b.example. 60 IN A 127.0.0.2", "c.example. 60 IN A 127.0.0.66"), status: 200, udp: 1},
		{name: "two aliases of nothing", first: always("a.example. 60 IN CNAME a.example.", "a.example. 60 IN CNAME b.example.", "d.example. 60 IN A 127.0.0.66"), status: 502, reason: "circle", udp: 2},
		{name: "an alias that leads nowhere, again and again", first: func(q *testlab.Query) {
			q.Reply(q.Answer(q.Question[0].Name + " 60 IN CNAME x." + q.Question[0].Name))
		}, status: 502, reason: "nowhere", udp: 3},
		{name: "records that were not asked for", first: always("b.example. 60 IN A 127.0.0.66", good), status: 200, udp: 1},
		{name: "records of another name alone", first: always("b.example. 60 IN A 127.0.0.66"), status: 502, reason: "replied that there is none", udp: 1},

		// a TTL with the top bit set is 0; that it is not for ever is seen below
		{name: "TTL 2^31", first: always("a.example. 2147483648 IN A 127.0.0.2"), status: 200, udp: 1},

		// errors
		{name: "SERVFAIL", first: fails(dns.RcodeServerFailure), status: 502, reason: "SERVFAIL", udp: 2},
		{name: "SERVFAIL, a second server", first: fails(dns.RcodeServerFailure), second: always(good), status: 200, udp: 1, others: 1},
		{name: "REFUSED, a second server", first: fails(dns.RcodeRefused), second: always(good), status: 200, udp: 1, others: 1},
		{name: "SERVFAIL with an answer", first: alter(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }), status: 502, reason: "SERVFAIL", udp: 2},
		{name: "NXDOMAIN, a second server", first: fails(dns.RcodeNameError), second: always(evil), status: 502, reason: "NXDOMAIN", udp: 1},
		{name: "a lame referral, a second server", first: alter(func(m *dns.Msg) { m.Answer, m.RecursionAvailable = nil, false }), second: always(good), status: 200, udp: 1, others: 1},
		{name: "FORMERR to EDNS", first: func(q *testlab.Query) {
			if q.IsEdns0() != nil {
				fails(dns.RcodeFormatError)(q)
				return
			}
			q.Reply(q.Answer(good))
		}, status: 200, udp: 2},

		// addresses that may not be called
		{name: "the cloud's metadata", first: always("a.example. 60 IN A 169.254.169.254"), status: 403, reason: "169.254.169.254", udp: 1},
		{name: "the cloud's metadata beside an honest address", first: always("a.example. 60 IN A 169.254.169.254", good), status: 200, udp: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.66"}})
			first := testlab.NewScript(t, test.first, test.first)
			w.dns.Addr = first.Addr
			second := new(testlab.Script)
			if test.second != nil {
				second = testlab.NewScript(t, test.second, test.second)
				w.dns.Addr += " " + second.Addr
			}
			w.resolver = "timeout 400ms\ntries 2\nstale off\nmin_ttl 1h"
			w.run(w.proxy())

			res := w.get("/", "http://a.example:"+b.Port)
			if res.StatusCode != test.status {
				t.Errorf("status %d, want %d: %s", res.StatusCode, test.status, res.body)
			}
			if test.status == 200 && res.seen.Address != "127.0.0.2" {
				t.Errorf("sent to %s, want 127.0.0.2", res.seen.Address)
			}
			if test.status != 200 && (!strings.HasPrefix(res.body, fmt.Sprint(test.status, " ")) || !strings.Contains(res.body, test.reason)) {
				t.Errorf("body %q, want the status and %q", res.body, test.reason)
			}
			if n := b.RequestsTo("127.0.0.66"); n != 0 {
				t.Errorf("%d requests were led astray", n)
			}
			if udp, tcp, others := first.Count(false), first.Count(true), second.Count(false); udp != test.udp || tcp != test.tcp || others != test.others {
				t.Errorf("%d queries over UDP, %d over TCP, %d to the second server; want %d, %d, %d", udp, tcp, others, test.udp, test.tcp, test.others)
			}

			// again: what was learned holds, and a failure is not asked about at once
			res = w.get("/", "http://a.example:"+b.Port)
			if res.StatusCode != test.status {
				t.Errorf("the second request: status %d, want %d: %s", res.StatusCode, test.status, res.body)
			}
			if n := first.Count(false) + second.Count(false); n != test.udp+test.others {
				t.Errorf("%d queries more for the second request", n-test.udp-test.others)
			}
		})
	}
}

// TestHostileTTL: a TTL over 2^31 is 0 and not 68 years (RFC 2181, section 8).
func TestHostileTTL(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	var moved atomic.Bool
	play := func(q *testlab.Query) {
		if moved.Load() {
			q.Reply(q.Answer("a.example. 60 IN A 127.0.0.3"))
			return
		}
		q.Reply(q.Answer("a.example. 4294967295 IN A 127.0.0.2"))
	}
	s := testlab.NewScript(t, play, play)
	w.dns.Addr = s.Addr
	w.resolver = "min_ttl " + (20 * time.Millisecond).String()
	w.run(w.proxy())
	if res := w.mustGet("/", "http://a.example:"+b.Port); res.seen.Address != "127.0.0.2" {
		t.Errorf("sent to %s, want 127.0.0.2", res.seen.Address)
	}
	moved.Store(true)
	testlab.Eventually(t, "the new address", func() bool {
		return w.mustGet("/", "http://a.example:"+b.Port).seen.Address == "127.0.0.3"
	})
}
