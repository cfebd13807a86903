package dnsclient

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// The cases of TestLookup.

// lookupCase is a lookup of a.example, and what is expected of it.
type lookupCase struct {
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
}

// always replies with these records.
func always(records ...string) func(*query) {
	return func(q *query) { q.reply(q.answer(records...)) }
}

// truncated is a reply that is cut, with a record that must not be used.
func truncated(q *query) {
	m := q.answer(evilRecord)
	m.Truncated = true
	q.reply(m)
}

// links returns the aliases that lead from a.example to ln.example.
func links(n int) (records []string) {
	name := "a"
	for i := range n {
		next := fmt.Sprintf("l%d", i+1)
		records = append(records, fmt.Sprintf("%s.example. 60 IN CNAME %s.example.", name, next))
		name = next
	}
	return records
}

// casesOfAddresses are replies with addresses of the name itself.
func casesOfAddresses() []lookupCase {
	return []lookupCase{
		{
			name: "one address",
			udp:  always(goodRecord),
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
				m := q.answer(goodRecord)
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
	}
}

// casesOfIgnoredMessages have messages that are no reply to the query.
func casesOfIgnoredMessages() []lookupCase {
	return []lookupCase{
		{
			name: "forged ID, then the reply",
			udp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Id++
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "forged question, then the reply",
			udp: func(q *query) {
				forged := q.answer("b.example. 60 IN A 203.0.113.66", evilRecord)
				forged.Question[0].Name = "b.example."
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "wrong type, then the reply",
			udp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Question[0].Qtype = dns.TypeAAAA
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "wrong class, then the reply",
			udp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Question[0].Qclass = dns.ClassCHAOS
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "two questions, then the reply",
			udp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Question = append(forged.Question, forged.Question[0])
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "QR=0, then the reply",
			udp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Response = false
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "another opcode, then the reply",
			udp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Opcode = dns.OpcodeNotify
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "empty and short datagrams, then the reply",
			udp: func(q *query) {
				b := pack(q.answer(goodRecord))
				q.raw(nil)
				q.raw(b[:1])
				q.raw(b[:11])
				q.raw(b)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 3,
		},
		{
			name: "header only, with QDCOUNT 1, then the reply",
			udp: func(q *query) {
				b := pack(q.answer(goodRecord))
				q.raw(b[:headerLen])
				q.raw(b)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "forged replies only",
			udp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Id++
				q.reply(forged)
			},
			timeout: shortTimeout,
			kind:    Timeout, rcode: -1, text: "no nameserver replied in time (127.0.0.1:", ignored: 1,
		},
	}
}

// casesOfMalformedReplies are failures of the server, without a wait.
func casesOfMalformedReplies() []lookupCase {
	return []lookupCase{
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
				m := q.answer(evilRecord)
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
				m := q.answer(goodRecord)
				m.Answer = append(m.Answer, rr("a.example.", dns.TypeA, ""))
				q.reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "malformed records of other types and names",
			udp: func(q *query) {
				m := q.answer(goodRecord)
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
				b := pack(q.answer(goodRecord))
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
				b := pack(q.answer(goodRecord))
				copy(b[6:], "\xff\xff\xff\xff\xff\xff")
				q.raw(b)
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "additional count that is too large",
			udp: func(q *query) {
				b := pack(q.answer(goodRecord))
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
			name: "malformed, then the reply",
			udp: func(q *query) {
				if q.n == 1 {
					q.raw(pack(q.answer(goodRecord))[:40])
				} else {
					q.reply(q.answer(goodRecord))
				}
			},
			tries: 3,
			want:  addrs("192.0.2.1"), ttl: time.Minute, udpQueries: 2,
		},
	}
}

// casesOfTruncation ask again over TCP.
func casesOfTruncation() []lookupCase {
	return []lookupCase{
		{
			name: "truncated with bait, then TCP",
			udp:  truncated,
			tcp:  always(goodRecord),
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1,
		},
		{
			name: "truncated in the middle of a record, then TCP",
			udp: func(q *query) {
				m := q.answer(evilRecord)
				m.Truncated = true
				b := pack(m)
				q.raw(b[:len(b)-3])
			},
			tcp:  always(goodRecord),
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1,
		},
		{
			name: "TCP octet by octet",
			udp:  truncated,
			tcp: func(q *query) {
				b := pack(q.answer(goodRecord))
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
				b := pack(q.answer(goodRecord))
				q.send(append(binary.BigEndian.AppendUint16(nil, uint16(len(b)+1)), b...))
				q.hangUp()
			},
			kind: Malformed, rcode: -1, text: "shorter than its length says", tcpQueries: 1,
		},
		{
			name: "TCP length too small",
			udp:  truncated,
			tcp: func(q *query) {
				b := pack(q.answer(goodRecord))
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
				m := q.answer(evilRecord)
				m.Id++
				q.reply(m)
			},
			timeout: 500 * time.Millisecond,
			kind:    Timeout, rcode: -1, tcpQueries: 1, ignored: 1,
		},
		{
			name: "TCP with a forged ID, then the reply",
			udp:  truncated,
			tcp: func(q *query) {
				forged := q.answer(evilRecord)
				forged.Id++
				q.reply(forged, q.answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1, ignored: 1,
		},
		{
			name: "TCP with a forged question",
			udp:  truncated,
			tcp: func(q *query) {
				m := q.answer(evilRecord)
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
	}
}

// casesOfAliases have CNAME records, or records of other names.
func casesOfAliases() []lookupCase {
	return []lookupCase{
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
			udp:  always("a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME A.example.", goodRecord),
			kind: Malformed, text: "in a circle or too far",
		},
		{
			name: "CNAME to itself",
			udp:  always("a.example. 60 IN CNAME a.example.", goodRecord),
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
			udp:  always(evilRecord, "a.example. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"),
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
				m.Extra = rrs(evilRecord)
				m.Ns = rrs(evilRecord)
				q.reply(m)
			},
			kind: NoData, ttl: -1,
		},
		{
			name: "a record of another class",
			udp: func(q *query) {
				m := q.answer(goodRecord)
				m.Answer[0].Header().Class = dns.ClassCHAOS
				q.reply(m)
			},
			kind: NoData, ttl: -1,
		},
	}
}

// casesOfTTLs have unusual TTLs.
func casesOfTTLs() []lookupCase {
	return []lookupCase{
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
	}
}

// casesOfFailures have no addresses in the end.
func casesOfFailures() []lookupCase {
	return []lookupCase{
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
			name: "unknown rcode",
			udp:  func(q *query) { q.reply(q.fail(14)) },
			kind: ServerFailure, rcode: 14, text: "replied RCODE14",
		},
		{
			name: "extended rcode",
			udp: func(q *query) {
				m := q.answer(goodRecord).SetEdns0(udpSize, false)
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
			name:    "silence, then SERVFAIL: the reply explains more",
			timeout: 500 * time.Millisecond, tries: 2,
			udp: func(q *query) {
				if q.n == 2 {
					q.reply(q.fail(dns.RcodeServerFailure))
				}
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, udpQueries: 2,
		},
		{
			name:    "SERVFAIL, then silence: the reply explains more",
			timeout: 500 * time.Millisecond, tries: 2,
			udp: func(q *query) {
				if q.n == 1 {
					q.reply(q.fail(dns.RcodeServerFailure))
				}
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, udpQueries: 2,
		},
	}
}
