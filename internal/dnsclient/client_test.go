package dnsclient

import (
	"context"
	"encoding/binary"
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
)

const (
	// longTimeout is a timeout that a reply meets however busy the machine is.
	longTimeout = 20 * time.Second

	// shortTimeout is a timeout for replies that never come.
	shortTimeout = 50 * time.Millisecond
)

const (
	good   = "a.example. 60 IN A 192.0.2.1"
	evil   = "a.example. 60 IN A 203.0.113.66"
	soa    = "example. 300 IN SOA ns.example. root.example. 1 3600 600 86400 30"
	parent = "example. 20 IN SOA ns.example. root.example. 1 3600 600 86400 30"
)

// truncated is a reply that is cut, with bait.
func truncated(q *query) {
	m := q.answer(evil)
	m.Truncated = true
	q.reply(m)
}

func TestLookup(t *testing.T) {
	always := func(records ...string) func(*query) {
		return func(q *query) { q.reply(q.answer(records...)) }
	}
	tests := []struct {
		name     string
		udp, tcp func(*query)
		timeout  time.Duration
		tries    int
		qtype    uint16 // default A

		want       []netip.Addr
		ttl        time.Duration // of the addresses, or of their absence; -1 if there is no SOA record
		kind       Kind
		rcode      int
		text       string // in the error
		udpQueries int    // default 1
		tcpQueries int
		ignored    uint64
	}{
		{
			name: "one address",
			udp:  always(good),
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name:  "several, with the smallest TTL, in order",
			qtype: dns.TypeAAAA,
			udp:   always("a.example. 60 IN AAAA 2001:db8::2", "A.EXAMPLE. 50 IN AAAA 2001:db8::1"),
			want:  addrs("2001:db8::2", "2001:db8::1"), ttl: 50 * time.Second,
		},
		{
			name:  "v4-mapped addresses are IPv4",
			qtype: dns.TypeAAAA,
			udp: func(q *query) {
				m := q.answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeAAAA, "00000000000000000000ffffc0000201")}
				q.reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "question in another case",
			udp: func(q *query) {
				m := q.answer(good)
				m.Question[0].Name = "A.eXample."
				q.reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "larger than offered",
			udp: func(q *query) {
				var all []string
				for i := range 1500 {
					all = append(all, fmt.Sprintf("a.example. 60 IN A 10.0.%d.%d", i>>8, i&0xff))
				}
				q.reply(q.answer(all...))
			},
			want: func() (all []netip.Addr) {
				for i := range 1500 {
					all = append(all, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
				}
				return all
			}(),
			ttl: time.Minute,
		},

		// Not a reply to the query: ignored.
		{
			name: "forged ID, then good",
			udp: func(q *query) {
				forged := q.answer(evil)
				forged.Id++
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "forged question, then good",
			udp: func(q *query) {
				forged := q.answer("b.example. 60 IN A 203.0.113.66", evil)
				forged.Question[0].Name = "b.example."
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "wrong type, then good",
			udp: func(q *query) {
				forged := q.answer(evil)
				forged.Question[0].Qtype = dns.TypeAAAA
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "wrong class, then good",
			udp: func(q *query) {
				forged := q.answer(evil)
				forged.Question[0].Qclass = dns.ClassCHAOS
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "two questions, then good",
			udp: func(q *query) {
				forged := q.answer(evil)
				forged.Question = append(forged.Question, forged.Question[0])
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "QR=0, then good",
			udp: func(q *query) {
				forged := q.answer(evil)
				forged.Response = false
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "another opcode, then good",
			udp: func(q *query) {
				forged := q.answer(evil)
				forged.Opcode = dns.OpcodeNotify
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "empty and short datagrams, then good",
			udp: func(q *query) {
				b := pack(q.answer(good))
				q.raw(nil)
				q.raw(b[:1])
				q.raw(b[:11])
				q.raw(b)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 3,
		},
		{
			name: "header only that promises a question, then good",
			udp: func(q *query) {
				b := pack(q.answer(good))
				q.raw(b[:headerLen])
				q.raw(b)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "garbage only",
			udp: func(q *query) {
				forged := q.answer(evil)
				forged.Id++
				q.reply(forged)
			},
			timeout: shortTimeout,
			kind:    Timeout, rcode: -1, text: "no nameserver replied in time (127.0.0.1:", ignored: 1,
		},

		// A reply that makes no sense: this server has failed, at once.
		{
			name: "header without a question",
			udp: func(q *query) {
				m := q.answer()
				m.Question = nil
				q.reply(m)
			},
			kind: Malformed, text: "no question",
		},
		{
			name: "NXDOMAIN without a question",
			udp: func(q *query) {
				m := q.fail(dns.RcodeNameError)
				m.Question = nil
				q.reply(m)
			},
			kind: Malformed, rcode: dns.RcodeNameError, text: "no question",
		},
		{
			name: "answer without a question",
			udp: func(q *query) {
				m := q.answer(evil)
				m.Question, m.Truncated = nil, true
				q.reply(m)
			},
			kind: Malformed, text: "no question",
		},
		{
			name: "SERVFAIL without a question",
			udp: func(q *query) {
				m := q.fail(dns.RcodeServerFailure)
				m.Question = nil
				q.reply(m)
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, text: "replied SERVFAIL",
		},
		{
			name: "RDLENGTH 0",
			udp: func(q *query) {
				m := q.answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeA, "")}
				q.reply(m)
			},
			kind: Malformed, text: "bad record",
		},
		{
			name: "RDLENGTH 5",
			udp: func(q *query) {
				m := q.answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeA, "c000020101")}
				q.reply(m)
			},
			kind: Malformed, text: "bad record",
		},
		{
			name: "A record of 16 octets",
			udp: func(q *query) {
				m := q.answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeA, "20010db8000000000000000000000001")}
				q.reply(m)
			},
			kind: Malformed, text: "bad record",
		},
		{
			name: "one bad record in a set",
			udp: func(q *query) {
				m := q.answer(good)
				m.Answer = append(m.Answer, rr("a.example.", dns.TypeA, ""))
				q.reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "a strange record that nobody asked for",
			udp: func(q *query) {
				m := q.answer(good)
				m.Extra = []dns.RR{rr("a.example.", dns.TypeSRV, "00"), rr("example.", dns.TypeAAAA, "20")}
				q.reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "CNAME of RDLENGTH 0",
			udp: func(q *query) {
				m := q.answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeCNAME, "")}
				q.reply(m)
			},
			kind: Malformed, text: "bad CNAME record",
		},
		{
			name: "CNAME with an octet too many",
			udp: func(q *query) {
				m := q.answer("b. 60 IN A 203.0.113.66")
				m.Answer = append(m.Answer, rr("a.example.", dns.TypeCNAME, "01620000"))
				q.reply(m)
			},
			kind: Malformed, text: "bad CNAME record",
		},
		{
			name: "SOA of RDLENGTH 0",
			udp: func(q *query) {
				m := q.answer()
				m.Ns = []dns.RR{rr("example.", dns.TypeSOA, "")}
				q.reply(m)
			},
			kind: Malformed, text: "bad SOA record",
		},
		{
			name: "RDLENGTH beyond the message",
			udp: func(q *query) {
				b := pack(q.answer(good))
				b[len(b)-5] = 5
				q.raw(b)
			},
			kind: Malformed, text: "record longer than the message",
		},
		{
			name: "pointer loop",
			udp: func(q *query) {
				b := pack(q.answer())
				b[7] = 1
				q.raw(append(b, 0xc0, byte(len(b)), 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1))
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "name of 256 octets",
			udp: func(q *query) {
				b := pack(q.answer())
				b[7] = 1
				for range 4 {
					b = append(b, 63)
					b = append(b, strings.Repeat("x", 63)...)
				}
				q.raw(append(b, 0, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1))
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "counts of 65535",
			udp: func(q *query) {
				b := pack(q.answer(good))
				copy(b[6:], "\xff\xff\xff\xff\xff\xff")
				q.raw(b)
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "additional count that lies",
			udp: func(q *query) {
				b := pack(q.answer(good))
				b[11]++
				q.raw(b)
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "record cut after its name",
			udp: func(q *query) {
				b := pack(q.answer())
				b[7] = 1
				q.raw(append(b, 0xc0, headerLen, 0, 1))
			},
			kind: Malformed, text: "record cut short",
		},
		{
			name: "malformed, tried again, good",
			udp: func(q *query) {
				if q.n == 1 {
					q.raw(pack(q.answer(good))[:40])
				} else {
					q.reply(q.answer(good))
				}
			},
			tries: 3,
			want:  addrs("192.0.2.1"), ttl: time.Minute, udpQueries: 2,
		},

		// Truncation.
		{
			name: "truncated with bait, then TCP",
			udp:  truncated,
			tcp:  always(good),
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1,
		},
		{
			name: "truncated in the middle of a record, then TCP",
			udp: func(q *query) {
				m := q.answer(evil)
				m.Truncated = true
				b := pack(m)
				q.raw(b[:len(b)-3])
			},
			tcp:  always(good),
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1,
		},
		{
			name: "TCP octet by octet",
			udp:  truncated,
			tcp: func(q *query) {
				b := pack(q.answer(good))
				b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
				for i := range b {
					q.send(b[i : i+1])
					time.Sleep(100 * time.Microsecond)
				}
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1,
		},
		{
			name: "TCP truncated as well",
			udp:  truncated,
			tcp:  truncated,
			kind: Malformed, text: "truncated", tcpQueries: 1,
		},
		{
			name: "TCP closed at once",
			udp:  truncated,
			tcp:  func(q *query) { q.hangUp() },
			kind: Network, rcode: -1, text: "connection closed without a reply", tcpQueries: 1,
		},
		{
			name: "TCP closed within the length",
			udp:  truncated,
			tcp:  func(q *query) { q.send([]byte{0}); q.hangUp() },
			kind: Malformed, rcode: -1, text: "shorter than its length says", tcpQueries: 1,
		},
		{
			name: "TCP length too large",
			udp:  truncated,
			tcp: func(q *query) {
				b := pack(q.answer(good))
				q.send(append(binary.BigEndian.AppendUint16(nil, uint16(len(b)+1)), b...))
				q.hangUp()
			},
			kind: Malformed, rcode: -1, text: "shorter than its length says", tcpQueries: 1,
		},
		{
			name: "TCP length too small",
			udp:  truncated,
			tcp: func(q *query) {
				b := pack(q.answer(good))
				q.send(append(binary.BigEndian.AppendUint16(nil, uint16(len(b)-1)), b...))
			},
			kind: Malformed, text: "record longer than the message", tcpQueries: 1,
		},
		{
			name: "TCP length 0",
			udp:  truncated,
			tcp:  func(q *query) { q.raw(nil) },
			kind: Malformed, rcode: -1, text: "shorter than a header", tcpQueries: 1,
		},
		{
			name: "TCP with a forged ID",
			udp:  truncated,
			tcp: func(q *query) {
				m := q.answer(evil)
				m.Id++
				q.reply(m)
			},
			timeout: 500 * time.Millisecond,
			kind:    Timeout, rcode: -1, tcpQueries: 1, ignored: 1,
		},
		{
			name: "TCP with a forged ID, then good",
			udp:  truncated,
			tcp: func(q *query) {
				forged := q.answer(evil)
				forged.Id++
				q.reply(forged, q.answer(good))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1, ignored: 1,
		},
		{
			name: "TCP with a forged question",
			udp:  truncated,
			tcp: func(q *query) {
				m := q.answer(evil)
				m.Question[0].Qtype = dns.TypeAAAA
				q.reply(m)
			},
			kind: Malformed, rcode: -1, text: "not a reply to the query", tcpQueries: 1,
		},
		{
			name:    "TCP that stalls",
			udp:     truncated,
			tcp:     func(q *query) { q.send([]byte{0, 50, 1}) },
			timeout: 500 * time.Millisecond,
			kind:    Timeout, rcode: -1, tcpQueries: 1,
		},

		// Aliases.
		{
			name: "CNAME records in order",
			udp:  always("a.example. 60 IN CNAME b.example.", "b.example. 40 IN CNAME c.example.net.", "c.example.net. 50 IN A 192.0.2.1"),
			want: addrs("192.0.2.1"), ttl: 40 * time.Second,
		},
		{
			name: "CNAME records in any order and case",
			udp:  always("C.example.net. 50 IN A 192.0.2.1", "B.example. 40 IN CNAME c.Example.net.", "a.Example. 30 IN CNAME b.example."),
			want: addrs("192.0.2.1"), ttl: 30 * time.Second,
		},
		{
			name: "eleven links",
			udp:  func(q *query) { q.reply(q.answer(append(links(11), "l11.example. 60 IN A 192.0.2.1")...)) },
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "twelve links",
			udp:  func(q *query) { q.reply(q.answer(append(links(12), "l12.example. 60 IN A 192.0.2.1")...)) },
			kind: Malformed, text: "in a circle or too far",
		},
		{
			name: "CNAME loop",
			udp:  always("a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME A.example.", good),
			kind: Malformed, text: "in a circle or too far",
		},
		{
			name: "CNAME to itself",
			udp:  always("a.example. 60 IN CNAME a.example.", good),
			kind: Malformed, text: "in a circle or too far",
		},
		{
			name: "two CNAME records for one name",
			udp:  always("a.example. 60 IN CNAME b.example.", "a.example. 60 IN CNAME c.example.", "b.example. 60 IN A 192.0.2.1"),
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "the same CNAME record twice",
			udp:  always("a.example. 60 IN CNAME b.example.", "A.example. 50 IN CNAME B.example.", "b.example. 60 IN A 192.0.2.1"),
			want: addrs("192.0.2.1"), ttl: 50 * time.Second,
		},
		{
			name: "an address beside the CNAME record",
			udp:  always(evil, "a.example. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"),
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "an incomplete chain is asked for once more",
			udp: func(q *query) {
				if q.Question[0].Name == "a.example." {
					q.reply(q.answer("a.example. 30 IN CNAME b.example."))
				} else {
					q.reply(q.answer("b.example. 40 IN CNAME c.example.", "c.example. 50 IN A 192.0.2.1"))
				}
			},
			want: addrs("192.0.2.1"), ttl: 30 * time.Second, udpQueries: 2,
		},
		{
			name: "an incomplete chain that ends without data",
			udp: func(q *query) {
				if q.Question[0].Name == "a.example." {
					q.reply(q.answer("a.example. 10 IN CNAME b.example."))
				} else {
					q.reply(q.fail(dns.RcodeNameError, soa))
				}
			},
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 10 * time.Second, udpQueries: 2,
		},
		{
			name: "an endless chain",
			udp: func(q *query) {
				q.reply(q.answer(fmt.Sprintf("%s 60 IN CNAME l%d.example.", q.Question[0].Name, q.n)))
			},
			kind: Malformed, text: "lead nowhere", udpQueries: 2,
		},
		{
			name: "twelve links over two replies",
			udp: func(q *query) {
				if q.n == 1 {
					q.reply(q.answer(links(6)...))
				} else {
					q.reply(q.answer(append(links(12), "l12.example. 60 IN A 192.0.2.1")...))
				}
			},
			kind: Malformed, text: "in a circle or too far", udpQueries: 2,
		},
		{
			name: "an alias of nothing, with SOA",
			udp: func(q *query) {
				m := q.fail(dns.RcodeSuccess, soa)
				m.Answer = rrs("a.example. 60 IN CNAME b.example.")
				q.reply(m)
			},
			kind: NoData, ttl: 30 * time.Second,
		},
		{
			name: "an alias of a name that does not exist, with SOA",
			udp: func(q *query) {
				m := q.fail(dns.RcodeNameError, soa)
				m.Answer = rrs("a.example. 60 IN CNAME b.example.")
				q.reply(m)
			},
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 30 * time.Second,
		},
		{
			name: "an alias with the SOA record of another zone",
			udp: func(q *query) {
				if q.n == 1 {
					m := q.fail(dns.RcodeSuccess, soa)
					m.Answer = rrs("a.example. 60 IN CNAME b.example.net.")
					q.reply(m)
				} else {
					q.reply(q.answer("b.example.net. 60 IN A 192.0.2.1"))
				}
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, udpQueries: 2,
		},
		{
			name: "a record for another name",
			udp: func(q *query) {
				m := q.answer("b.example. 60 IN A 203.0.113.66")
				m.Extra = rrs(evil)
				m.Ns = rrs(evil)
				q.reply(m)
			},
			kind: NoData, ttl: -1,
		},
		{
			name: "a record of another class",
			udp: func(q *query) {
				m := q.answer(good)
				m.Answer[0].Header().Class = dns.ClassCHAOS
				q.reply(m)
			},
			kind: NoData, ttl: -1,
		},

		// TTL.
		{
			name: "TTL 0",
			udp:  always("a.example. 0 IN A 192.0.2.1"),
			want: addrs("192.0.2.1"), ttl: 0,
		},
		{
			name: "TTL of 2^31-1",
			udp:  always("a.example. 2147483647 IN A 192.0.2.1"),
			want: addrs("192.0.2.1"), ttl: (1<<31 - 1) * time.Second,
		},
		{
			name: "TTL of 2^31 is 0",
			udp:  always("a.example. 2147483648 IN A 192.0.2.1"),
			want: addrs("192.0.2.1"), ttl: 0,
		},

		// Answers without addresses.
		{
			name: "NXDOMAIN, SOA minimum",
			udp:  func(q *query) { q.reply(q.fail(dns.RcodeNameError, soa)) },
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 30 * time.Second, text: "replied NXDOMAIN",
			tries: 3,
		},
		{
			name: "NXDOMAIN, SOA TTL",
			udp:  func(q *query) { q.reply(q.fail(dns.RcodeNameError, parent)) },
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 20 * time.Second,
		},
		{
			name: "NXDOMAIN without SOA",
			udp:  func(q *query) { q.reply(q.fail(dns.RcodeNameError)) },
			kind: NotFound, rcode: dns.RcodeNameError, ttl: -1,
		},
		{
			name: "no data",
			udp:  func(q *query) { q.reply(q.fail(dns.RcodeSuccess, soa)) },
			kind: NoData, ttl: 30 * time.Second, text: "there is none",
			tries: 3,
		},
		{
			name: "no data without SOA",
			udp:  func(q *query) { q.reply(q.fail(dns.RcodeSuccess)) },
			kind: NoData, ttl: -1,
		},
		{
			name:  "lame referral",
			tries: 2,
			udp: func(q *query) {
				m := q.fail(dns.RcodeSuccess, "example. 60 IN NS ns.example.")
				m.RecursionAvailable = false
				q.reply(m)
			},
			kind: ServerFailure, text: "replied without an answer, as a server that is neither authoritative nor recursive", udpQueries: 2,
		},
		{
			name: "authoritative no data without SOA",
			udp: func(q *query) {
				m := q.fail(dns.RcodeSuccess)
				m.RecursionAvailable, m.Authoritative = false, true
				q.reply(m)
			},
			kind: NoData, ttl: -1,
		},
		{
			name:  "SERVFAIL each time",
			tries: 3,
			udp:   func(q *query) { q.reply(q.fail(dns.RcodeServerFailure)) },
			kind:  ServerFailure, rcode: dns.RcodeServerFailure, text: "looking up a.example (A): 127.0.0.1:", udpQueries: 3,
		},
		{
			name: "SERVFAIL with a body that makes no sense",
			udp: func(q *query) {
				b := pack(q.fail(dns.RcodeServerFailure))
				b[7] = 9
				q.raw(b)
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure,
		},
		{
			name: "rcode that nobody knows",
			udp:  func(q *query) { q.reply(q.fail(14)) },
			kind: ServerFailure, rcode: 14, text: "replied RCODE14",
		},
		{
			name: "extended rcode",
			udp: func(q *query) {
				m := q.answer(good).SetEdns0(udpSize, false)
				m.Rcode = dns.RcodeBadCookie
				q.reply(m)
			},
			kind: ServerFailure, rcode: dns.RcodeBadCookie, text: "replied BADCOOKIE",
		},
		{
			name:    "silence",
			timeout: shortTimeout, tries: 2,
			kind: Timeout, rcode: -1, text: "looking up a.example (A): no nameserver replied in time (127.0.0.1:", udpQueries: 2,
		},
		{
			name:    "silence, then SERVFAIL: the reply says more",
			timeout: 500 * time.Millisecond, tries: 2,
			udp: func(q *query) {
				if q.n == 2 {
					q.reply(q.fail(dns.RcodeServerFailure))
				}
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, udpQueries: 2,
		},
		{
			name:    "SERVFAIL, then silence: the reply says more",
			timeout: 500 * time.Millisecond, tries: 2,
			udp: func(q *query) {
				if q.n == 1 {
					q.reply(q.fail(dns.RcodeServerFailure))
				}
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, udpQueries: 2,
		},
	}

	for _, test := range tests {
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
			if udp, tcp := s.queries("udp"), s.queries("tcp"); udp != test.udpQueries || tcp != test.tcpQueries {
				t.Errorf("%d queries over UDP and %d over TCP, want %d and %d", udp, tcp, test.udpQueries, test.tcpQueries)
			}
			if ignored := c.Mismatches(); ignored != test.ignored {
				t.Errorf("%d datagrams ignored, want %d", ignored, test.ignored)
			}
		})
	}
}

// links returns the aliases that lead from a.example to ln.example.
func TestLookupSRV(t *testing.T) {
	const name = "_http._tcp.example"
	srv := func(owner string, ttl int, data string) string {
		return fmt.Sprintf("%s. %d IN SRV %s", owner, ttl, data)
	}
	tests := []struct {
		name  string
		reply func(*query) *dns.Msg

		want []net.SRV
		ttl  time.Duration
		kind Kind
	}{
		{
			name: "several, with the smallest TTL, in lower case",
			reply: func(q *query) *dns.Msg {
				return q.answer(srv(name, 60, "10 5 8080 A.example."), srv(name, 30, "20 0 81 b.example."), srv("_x._tcp.example", 1, "0 0 1 evil.example."))
			},
			want: []net.SRV{{Target: "a.example", Port: 8080, Priority: 10, Weight: 5}, {Target: "b.example", Port: 81, Priority: 20}},
			ttl:  30 * time.Second,
		},
		{
			name: "behind an alias",
			reply: func(q *query) *dns.Msg {
				return q.answer("_http._tcp.example. 9 IN CNAME s.example.", srv("s.example", 60, "1 1 80 a.example."))
			},
			want: []net.SRV{{Target: "a.example", Port: 80, Priority: 1, Weight: 1}},
			ttl:  9 * time.Second,
		},
		{
			name:  "not offered",
			reply: func(q *query) *dns.Msg { return q.answer(srv(name, 40, "0 0 0 .")) },
			kind:  NoData, ttl: 40 * time.Second,
		},
		{
			name:  "one of two is no target",
			reply: func(q *query) *dns.Msg { return q.answer(srv(name, 40, "0 0 0 ."), srv(name, 40, "0 0 80 a.example.")) },
			want:  []net.SRV{{Target: "a.example", Port: 80}}, ttl: 40 * time.Second,
		},
		{
			name: "a target that is no host",
			reply: func(q *query) *dns.Msg {
				return q.answer(srv(name, 40, `0 0 80 \000.example.`))
			},
			kind: Malformed,
		},
		{
			name: "a bad record beside a good one",
			reply: func(q *query) *dns.Msg {
				m := q.answer(srv(name, 40, "0 0 80 a.example."))
				m.Answer = append(m.Answer, rr(name+".", dns.TypeSRV, "000000000050"))
				return m
			},
			want: []net.SRV{{Target: "a.example", Port: 80}}, ttl: 40 * time.Second,
		},
		{
			name: "an octet too many",
			reply: func(q *query) *dns.Msg {
				m := q.answer()
				m.Answer = []dns.RR{rr(name+".", dns.TypeSRV, "000000000050"+"016100"+"00")}
				return m
			},
			kind: Malformed,
		},
		{
			name: "RDLENGTH 0",
			reply: func(q *query) *dns.Msg {
				m := q.answer()
				m.Answer = []dns.RR{rr(name+".", dns.TypeSRV, "")}
				return m
			},
			kind: Malformed,
		},
		{
			name:  "NXDOMAIN",
			reply: func(q *query) *dns.Msg { return q.fail(dns.RcodeNameError, soa) },
			kind:  NotFound, ttl: 30 * time.Second,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t, func(q *query) { q.reply(test.reply(q)) }, nil)
			c := newClient(t, Config{}, s)
			got, ttl, err := c.LookupSRV(t.Context(), name)
			if test.kind != 0 {
				if e := wantError(t, err, test.kind); e.TTL != test.ttl || e.HasSOA != (test.ttl > 0) {
					t.Errorf("got %v, for %s", err, e.TTL)
				}
				return
			}
			if err != nil || !slices.Equal(got, test.want) || ttl != test.ttl {
				t.Errorf("got %v for %s, %v; want %v for %s", got, ttl, err, test.want, test.ttl)
			}
		})
	}
}

func TestTrace(t *testing.T) {
	var traces []*Trace
	cut := newScript(t, truncated, func(q *query) { q.reply(q.fail(dns.RcodeServerFailure)) })
	late := newScript(t, nil, nil)
	good := newScript(t, func(q *query) { q.reply(q.answer(good)) }, nil)
	c := newClient(t, Config{Tries: 3, Trace: func(trace *Trace) { traces = append(traces, trace) }}, cut, late, good)
	c.intervals.maxHedgeDelay = shortTimeout
	if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
		t.Fatal(err)
	}
	_, _, err := c.Lookup(t.Context(), "", dns.TypeA)
	wantError(t, err, Invalid)
	if len(traces) != 2 || traces[1].Err != err {
		t.Fatalf("got %d traces", len(traces))
	}

	var got []string
	for _, try := range traces[0].Tries {
		if try.Duration <= 0 || try.Name != "a.example." {
			t.Errorf("unexpected try %+v", try)
		}
		got = append(got, fmt.Sprintf("%s %s %s", try.Server, try.Transport, try.Outcome))
	}
	want := []string{
		cut.String() + " udp truncated",
		cut.String() + " tcp SERVFAIL",
		late.String() + " udp no reply yet",
		good.String() + " udp answer",
	}
	if !slices.Equal(got, want) {
		t.Errorf("tries are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if x := traces[0]; x.Name != "a.example" || x.Type != dns.TypeA || x.Err != nil || x.TTL != time.Minute ||
		!slices.Equal(x.Addrs, addrs("192.0.2.1")) || x.Duration < shortTimeout {
		t.Errorf("the trace is %+v", x)
	}
}

// What an alias leads to is asked of the client that is responsible for it.
func TestRoute(t *testing.T) {
	inside := newScript(t, func(q *query) { q.reply(q.answer("a.inside. 50 IN CNAME B.outside.")) }, nil)
	outside := newScript(t, func(q *query) { q.reply(q.answer("b.outside. 60 IN A 192.0.2.1")) }, nil)
	other := newClient(t, Config{}, outside)
	var asked string
	c := newClient(t, Config{Route: func(name string) *Client {
		asked = name
		return other
	}}, inside)
	got, ttl, err := c.Lookup(t.Context(), "a.inside", dns.TypeA)
	if err != nil || !slices.Equal(got, addrs("192.0.2.1")) || ttl != 50*time.Second || asked != "b.outside" {
		t.Errorf("got %v for %s, %v, after asking for %q", got, ttl, err, asked)
	}
	if a, b := inside.queries("udp"), outside.queries("udp"); a != 1 || b != 1 {
		t.Errorf("%d and %d queries, want 1 and 1", a, b)
	}

	// whatever the first server says about the name
	for _, reply := range []func(*query) *dns.Msg{
		func(q *query) *dns.Msg {
			m := q.fail(dns.RcodeNameError, "outside. 300 IN SOA ns. root. 1 2 3 4 5")
			m.Answer = rrs("a.inside. 50 IN CNAME b.outside.")
			return m
		},
		func(q *query) *dns.Msg {
			return q.answer("a.inside. 50 IN CNAME b.outside.", "b.outside. 60 IN A 203.0.113.66")
		},
	} {
		inside.play(func(q *query) { q.reply(reply(q)) })
		if got, _, err := c.Lookup(t.Context(), "a.inside", dns.TypeA); err != nil || !slices.Equal(got, addrs("192.0.2.1")) {
			t.Errorf("got %v, %v", got, err)
		}
	}

	// an outage there is none of the first server
	outside.play(nil)
	other.Change(other.Nameservers(), Settings{Timeout: shortTimeout, Tries: 1})
	waitForOutage(t, other)
	_, _, err = c.Lookup(t.Context(), "a.inside", dns.TypeA)
	if e := wantError(t, err, Outage); e.Outage() || c.Outage() != nil || !strings.Contains(err.Error(), outside.String()) {
		t.Errorf("got %v", err)
	}
	other.Close()
	_, _, err = c.Lookup(t.Context(), "a.inside", dns.TypeA)
	wantError(t, err, Closed)

	c = newClient(t, Config{Route: func(string) *Client { return nil }}, inside)
	_, _, err = c.Lookup(t.Context(), "a.inside", dns.TypeA)
	if wantError(t, err, Invalid); !strings.Contains(err.Error(), "b.outside., which is never asked for") {
		t.Errorf("got %v", err)
	}
}

func links(n int) (records []string) {
	name := "a"
	for i := range n {
		next := fmt.Sprintf("l%d", i+1)
		records = append(records, fmt.Sprintf("%s.example. 60 IN CNAME %s.example.", name, next))
		name = next
	}
	return records
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
	s := newScript(t, truncated, func(q *query) { q.reply(q.answer(good)) })
	c := newClient(t, Config{}, s)
	if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
		t.Fatal(err)
	}
	for i, transport := range []string{"udp", "tcp"} {
		q := s.query(i)
		if q.transport != transport || !q.RecursionDesired || q.Response || q.Opcode != dns.OpcodeQuery ||
			len(q.Question) != 1 || q.Question[0] != (dns.Question{Name: "a.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}) ||
			len(q.Extra) != 1 || q.IsEdns0() == nil || q.IsEdns0().UDPSize() != 1232 || q.IsEdns0().Version() != 0 || q.IsEdns0().Do() {
			t.Errorf("over %s the query was %v", q.transport, q)
		}
	}
}

func TestIDsDiffer(t *testing.T) {
	s := newScript(t, func(q *query) { q.reply(q.answer(good)) }, nil)
	c := newClient(t, Config{}, s)
	ids := make(map[uint16]bool)
	for i := range 64 {
		if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
			t.Fatal(err)
		}
		ids[s.query(i).Id] = true
	}
	if len(ids) < 60 { // fewer: once in 10^9 runs
		t.Errorf("64 queries had %d different IDs", len(ids))
	}
}

func TestTCPOnly(t *testing.T) {
	s := newScript(t, nil, func(q *query) { q.reply(q.answer(good)) })
	s.Network = "tcp"
	c := newClient(t, Config{}, s)
	if got, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
	if udp, tcp := s.queries("udp"), s.queries("tcp"); udp != 0 || tcp != 1 {
		t.Errorf("%d queries over UDP and %d over TCP, want 0 and 1", udp, tcp)
	}
}

func TestSecondServer(t *testing.T) {
	for name, first := range map[string]func(*query){
		"SERVFAIL":  func(q *query) { q.reply(q.fail(dns.RcodeServerFailure)) },
		"REFUSED":   func(q *query) { q.reply(q.fail(dns.RcodeRefused)) },
		"NOTAUTH":   func(q *query) { q.reply(q.fail(dns.RcodeNotAuth)) },
		"malformed": func(q *query) { q.raw(pack(q.answer(good))[:40]) },
		"loop":      func(q *query) { q.reply(q.answer("a.example. 1 IN CNAME a.example.")) },
		"truncated": truncated,
		"lame": func(q *query) {
			m := q.answer()
			m.RecursionAvailable = false
			q.reply(m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newScript(t, first, func(q *query) { q.hangUp() })
			b := newScript(t, func(q *query) { q.reply(q.answer(good)) }, nil)
			c := newClient(t, Config{Tries: 3}, a, b)
			got, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
			if err != nil || !slices.Equal(got, addrs("192.0.2.1")) {
				t.Errorf("got %v, %v", got, err)
			}
			if a, b := a.queries("udp"), b.queries("udp"); a != 1 || b != 1 {
				t.Errorf("the servers got %d and %d queries, want 1 and 1", a, b)
			}
		})
	}
}

func TestTriesTakeTurns(t *testing.T) {
	fail := func(q *query) { q.reply(q.fail(dns.RcodeServerFailure)) }
	a, b := newScript(t, fail, nil), newScript(t, fail, nil)
	c := newClient(t, Config{Tries: 3}, a, b)
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	e := wantError(t, err, ServerFailure)
	var asked []Nameserver
	for _, try := range e.Tries {
		asked = append(asked, try.Server)
		if try.Name != "a.example." || try.Transport != "udp" || try.Outcome != "SERVFAIL" || try.Duration <= 0 {
			t.Errorf("unexpected try %+v", try)
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
				s := newScript(t, func(q *query) {
					if q.IsEdns0() == nil {
						q.reply(q.answer(good))
						return
					}
					m := q.fail(rcode)
					if rcode > 15 {
						m.SetEdns0(udpSize, false)
					}
					if bare {
						m.Question = nil
					}
					q.reply(m)
				}, nil)
				c := newClient(t, Config{}, s)
				for want := 2; want < 5; want++ { // remembered after the first lookup
					if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
						t.Fatal(err)
					}
					if got := s.queries("udp"); got != want {
						t.Errorf("%d queries, want %d", got, want)
					}
				}
			})
		}
	}
}

// A server that fails in the same way without EDNS has not refused EDNS.
func TestEDNSNotAtFault(t *testing.T) {
	s := newScript(t, func(q *query) { q.reply(q.fail(dns.RcodeNotImplemented)) }, nil)
	c := newClient(t, Config{}, s)
	for want := 2; want < 6; want += 2 {
		_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
		e := wantError(t, err, ServerFailure)
		if got := s.queries("udp"); got != want || e.Rcode != dns.RcodeNotImplemented {
			t.Errorf("%d queries, want %d; %v", got, want, err)
		}
	}
}

// However often it is asked, with EDNS and without, a server gets three queries.
func TestQueriesToOneServer(t *testing.T) {
	s := newScript(t, func(q *query) { q.reply(q.fail(dns.RcodeFormatError)) }, nil)
	c := newClient(t, Config{Tries: 3}, s)
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	wantError(t, err, ServerFailure)
	if n := s.queries("udp"); n != maxPerServer {
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
	if n := s.queries("udp"); n != 0 {
		t.Errorf("%d queries were sent", n)
	}
}

func TestCancel(t *testing.T) {
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			silence := func(*query) { cancel() }
			s := newScript(t, silence, silence)
			s.Network = transport
			c := newClient(t, Config{Timeout: time.Hour, Tries: 3}, s)
			_, _, err := c.Lookup(ctx, "a.example", dns.TypeA)
			e := wantError(t, err, Canceled)
			if !errors.Is(err, context.Canceled) || e.Timeout() || s.queries(transport) != 1 {
				t.Errorf("got %v after %d queries", err, s.queries(transport))
			}
			if _, _, err := c.Lookup(ctx, "a.example", dns.TypeA); !errors.Is(err, context.Canceled) || s.queries(transport) != 1 {
				t.Errorf("with a canceled context: got %v after %d queries", err, s.queries(transport))
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
	if !errors.Is(err, context.DeadlineExceeded) || !e.Timeout() || s.queries("udp") != 1 {
		t.Errorf("got %v after %d queries", err, s.queries("udp"))
	}
}

// A reply says more than the end of time.
func TestDeadlineAfterReply(t *testing.T) {
	a := newScript(t, func(q *query) { q.reply(q.fail(dns.RcodeServerFailure)) }, nil)
	b := newScript(t, nil, nil)
	c := newClient(t, Config{Timeout: time.Hour, Tries: 3}, a, b)
	ctx, cancel := context.WithTimeout(t.Context(), shortTimeout)
	defer cancel()
	_, _, err := c.Lookup(ctx, "a.example", dns.TypeA)
	wantError(t, err, ServerFailure)
}

func TestClose(t *testing.T) {
	arrived := make(chan struct{})
	s := newScript(t, func(*query) { arrived <- struct{}{} }, nil)
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
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
	c.Close()
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	if wantError(t, err, Closed); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if c.SetNameservers([]Nameserver{s.Nameserver, {Network: "tcp", AddrPort: s.AddrPort}}); len(c.Nameservers()) != 2 {
		t.Errorf("nameservers are %v", c.Nameservers())
	}
}

func TestNoNameservers(t *testing.T) {
	s := newScript(t, func(q *query) { q.reply(q.answer(good)) }, nil)
	c := newClient(t, Config{})
	_, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	if e := wantError(t, err, Outage); !e.Outage() || e.Timeout() {
		t.Errorf("got %v", err)
	}
	outage := c.Outage()
	c.SetNameservers([]Nameserver{s.Nameserver, s.Nameserver})
	<-outage
	if got := c.Nameservers(); len(got) != 1 || got[0] != s.Nameserver {
		t.Errorf("nameservers are %v", got)
	}
	if _, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil {
		t.Error(err)
	}
}

// Many lookups at once, while the servers change and some callers leave.
func TestConcurrent(t *testing.T) {
	answer := func(q *query) {
		q.reply(q.answer(q.Question[0].Name + " 60 IN A 192.0.2.1"))
	}
	a, b := newScript(t, answer, nil), newScript(t, answer, nil)
	c := newClient(t, Config{Tries: 3}, a, b)
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
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	for i := range 100 {
		servers := []Nameserver{a.Nameserver, b.Nameserver}
		c.SetNameservers(servers[i%2 : 1+i%2])
		c.Outage()
	}
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
			tail = pack(&dns.Msg{Answer: rrs(good)})[headerLen:]
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

// Lookups that wait take a goroutine for each query in flight, and no other.
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
	for s.queries("udp") < n {
		time.Sleep(time.Millisecond)
	}
	if more := runtime.NumGoroutine() - before; more > n {
		t.Errorf("%d goroutines for %d queries", more, n)
	}
	c.Close()
	over.Wait()
}
