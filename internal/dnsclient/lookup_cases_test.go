package dnsclient

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// The cases of TestLookup.

// lookupCase is a lookup of a.example, and what is expected of it.
type lookupCase struct {
	name     string
	udp, tcp func(*testlab.Query)
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
func always(records ...string) func(*testlab.Query) {
	return func(q *testlab.Query) { q.Reply(q.Answer(records...)) }
}

// truncated is a reply that is cut, with a record that must not be used.
func truncated(q *testlab.Query) {
	m := q.Answer(evilRecord)
	m.Truncated = true
	q.Reply(m)
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
			udp: func(q *testlab.Query) {
				m := q.Answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeAAAA, "00000000000000000000ffffc0000201")}
				q.Reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "question in another case",
			udp: func(q *testlab.Query) {
				m := q.Answer(goodRecord)
				m.Question[0].Name = "A.eXample."
				q.Reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "larger than offered",
			udp: func(q *testlab.Query) {
				var all []string
				for i := range 1500 {
					all = append(all, fmt.Sprintf("a.example. 60 IN A 10.0.%d.%d", i>>8, i&0xff))
				}
				q.Reply(q.Answer(all...))
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
// It is long because its table is.
func casesOfIgnoredMessages() []lookupCase {
	return []lookupCase{
		{
			name: "forged ID, then the reply",
			udp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Id++
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "forged question, then the reply",
			udp: func(q *testlab.Query) {
				forged := q.Answer("b.example. 60 IN A 203.0.113.66", evilRecord)
				forged.Question[0].Name = "b.example."
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "wrong type, then the reply",
			udp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Question[0].Qtype = dns.TypeAAAA
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "wrong class, then the reply",
			udp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Question[0].Qclass = dns.ClassCHAOS
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "two questions, then the reply",
			udp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Question = append(forged.Question, forged.Question[0])
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "QR=0, then the reply",
			udp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Response = false
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "another opcode, then the reply",
			udp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Opcode = dns.OpcodeNotify
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "empty and short datagrams, then the reply",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				q.Raw(nil)
				q.Raw(b[:1])
				q.Raw(b[:11])
				q.Raw(b)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 3,
		},
		{
			name: "header only, with QDCOUNT 1, then the reply",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				q.Raw(b[:headerLen])
				q.Raw(b)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, ignored: 1,
		},
		{
			name: "forged replies only",
			udp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Id++
				q.Reply(forged)
			},
			timeout: shortTimeout,
			kind:    Timeout, rcode: -1, text: "no nameserver replied in time (127.0.0.1:", ignored: 1,
		},
	}
}

// casesOfMalformedReplies are failures of the server, without a wait.
// It is long because its table is.
func casesOfMalformedReplies() []lookupCase {
	return []lookupCase{
		{
			name: "header without a question",
			udp: func(q *testlab.Query) {
				m := q.Answer()
				m.Question = nil
				q.Reply(m)
			},
			kind: Malformed, text: "no question",
		},
		{
			name: "NXDOMAIN without a question",
			udp: func(q *testlab.Query) {
				m := q.Fail(dns.RcodeNameError)
				m.Question = nil
				q.Reply(m)
			},
			kind: Malformed, rcode: dns.RcodeNameError, text: "no question",
		},
		{
			name: "answer without a question",
			udp: func(q *testlab.Query) {
				m := q.Answer(evilRecord)
				m.Question, m.Truncated = nil, true
				q.Reply(m)
			},
			kind: Malformed, text: "no question",
		},
		{
			name: "SERVFAIL without a question",
			udp: func(q *testlab.Query) {
				m := q.Fail(dns.RcodeServerFailure)
				m.Question = nil
				q.Reply(m)
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, text: "replied SERVFAIL",
		},
		{
			name: "RDLENGTH 0",
			udp: func(q *testlab.Query) {
				m := q.Answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeA, "")}
				q.Reply(m)
			},
			kind: Malformed, text: "bad record",
		},
		{
			name: "RDLENGTH 5",
			udp: func(q *testlab.Query) {
				m := q.Answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeA, "c000020101")}
				q.Reply(m)
			},
			kind: Malformed, text: "bad record",
		},
		{
			name: "A record of 16 octets",
			udp: func(q *testlab.Query) {
				m := q.Answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeA, "20010db8000000000000000000000001")}
				q.Reply(m)
			},
			kind: Malformed, text: "bad record",
		},
		{
			name: "one bad record in a set",
			udp: func(q *testlab.Query) {
				m := q.Answer(goodRecord)
				m.Answer = append(m.Answer, rr("a.example.", dns.TypeA, ""))
				q.Reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "malformed records of other types and names",
			udp: func(q *testlab.Query) {
				m := q.Answer(goodRecord)
				m.Extra = []dns.RR{rr("a.example.", dns.TypeSRV, "00"), rr("example.", dns.TypeAAAA, "20")}
				q.Reply(m)
			},
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "CNAME of RDLENGTH 0",
			udp: func(q *testlab.Query) {
				m := q.Answer()
				m.Answer = []dns.RR{rr("a.example.", dns.TypeCNAME, "")}
				q.Reply(m)
			},
			kind: Malformed, text: "bad CNAME record",
		},
		{
			name: "CNAME with an octet too many",
			udp: func(q *testlab.Query) {
				m := q.Answer("b. 60 IN A 203.0.113.66")
				m.Answer = append(m.Answer, rr("a.example.", dns.TypeCNAME, "01620000"))
				q.Reply(m)
			},
			kind: Malformed, text: "bad CNAME record",
		},
		{
			name: "SOA of RDLENGTH 0",
			udp: func(q *testlab.Query) {
				m := q.Answer()
				m.Ns = []dns.RR{rr("example.", dns.TypeSOA, "")}
				q.Reply(m)
			},
			kind: Malformed, text: "bad SOA record",
		},
		{
			name: "RDLENGTH beyond the message",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				b[len(b)-5] = 5
				q.Raw(b)
			},
			kind: Malformed, text: "record longer than the message",
		},
		{
			name: "pointer loop",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer())
				b[7] = 1
				q.Raw(append(b, 0xc0, byte(len(b)), 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1))
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "name of 256 octets",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer())
				b[7] = 1
				for range 4 {
					b = append(b, 63)
					b = append(b, strings.Repeat("x", 63)...)
				}
				q.Raw(append(b, 0, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1))
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "counts of 65535",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				copy(b[6:], "\xff\xff\xff\xff\xff\xff")
				q.Raw(b)
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "additional count that is too large",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				b[11]++
				q.Raw(b)
			},
			kind: Malformed, text: "bad owner name",
		},
		{
			name: "record cut after its name",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer())
				b[7] = 1
				q.Raw(append(b, 0xc0, headerLen, 0, 1))
			},
			kind: Malformed, text: "record cut short",
		},
		{
			name: "malformed, then the reply",
			udp: func(q *testlab.Query) {
				if q.N == 1 {
					q.Raw(testlab.Pack(q.Answer(goodRecord))[:40])
				} else {
					q.Reply(q.Answer(goodRecord))
				}
			},
			tries: 3,
			want:  addrs("192.0.2.1"), ttl: time.Minute, udpQueries: 2,
		},
	}
}

// casesOfTruncation ask again over TCP.
// It is long because its table is.
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
			udp: func(q *testlab.Query) {
				m := q.Answer(evilRecord)
				m.Truncated = true
				b := testlab.Pack(m)
				q.Raw(b[:len(b)-3])
			},
			tcp:  always(goodRecord),
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1,
		},
		{
			name: "TCP octet by octet",
			udp:  truncated,
			tcp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
				for i := range b {
					q.Send(b[i : i+1])
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
			tcp:  func(q *testlab.Query) { q.HangUp() },
			kind: Network, rcode: -1, text: "connection closed without a reply", tcpQueries: 1,
		},
		{
			name: "TCP closed within the length",
			udp:  truncated,
			tcp:  func(q *testlab.Query) { q.Send([]byte{0}); q.HangUp() },
			kind: Malformed, rcode: -1, text: "shorter than its length says", tcpQueries: 1,
		},
		{
			name: "TCP length too large",
			udp:  truncated,
			tcp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				q.Send(append(binary.BigEndian.AppendUint16(nil, uint16(len(b)+1)), b...))
				q.HangUp()
			},
			kind: Malformed, rcode: -1, text: "shorter than its length says", tcpQueries: 1,
		},
		{
			name: "TCP length too small",
			udp:  truncated,
			tcp: func(q *testlab.Query) {
				b := testlab.Pack(q.Answer(goodRecord))
				q.Send(append(binary.BigEndian.AppendUint16(nil, uint16(len(b)-1)), b...))
			},
			kind: Malformed, text: "record longer than the message", tcpQueries: 1,
		},
		{
			name: "TCP length 0",
			udp:  truncated,
			tcp:  func(q *testlab.Query) { q.Raw(nil) },
			kind: Malformed, rcode: -1, text: "shorter than a header", tcpQueries: 1,
		},
		{
			name: "TCP with a forged ID",
			udp:  truncated,
			tcp: func(q *testlab.Query) {
				m := q.Answer(evilRecord)
				m.Id++
				q.Reply(m)
			},
			timeout: 500 * time.Millisecond,
			kind:    Timeout, rcode: -1, tcpQueries: 1, ignored: 1,
		},
		{
			name: "TCP with a forged ID, then the reply",
			udp:  truncated,
			tcp: func(q *testlab.Query) {
				forged := q.Answer(evilRecord)
				forged.Id++
				q.Reply(forged, q.Answer(goodRecord))
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, tcpQueries: 1, ignored: 1,
		},
		{
			name: "TCP with a forged question",
			udp:  truncated,
			tcp: func(q *testlab.Query) {
				m := q.Answer(evilRecord)
				m.Question[0].Qtype = dns.TypeAAAA
				q.Reply(m)
			},
			kind: Malformed, rcode: -1, text: "not a reply to the query", tcpQueries: 1,
		},
		{
			name:    "TCP that stalls",
			udp:     truncated,
			tcp:     func(q *testlab.Query) { q.Send([]byte{0, 50, 1}) },
			timeout: 500 * time.Millisecond,
			kind:    Timeout, rcode: -1, tcpQueries: 1,
		},
	}
}

// casesOfAliases have CNAME records, or records of other names.
// It is long because its table is.
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
			udp:  func(q *testlab.Query) { q.Reply(q.Answer(append(links(11), "l11.example. 60 IN A 192.0.2.1")...)) },
			want: addrs("192.0.2.1"), ttl: time.Minute,
		},
		{
			name: "twelve links",
			udp:  func(q *testlab.Query) { q.Reply(q.Answer(append(links(12), "l12.example. 60 IN A 192.0.2.1")...)) },
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
			udp: func(q *testlab.Query) {
				if q.Question[0].Name == "a.example." {
					q.Reply(q.Answer("a.example. 30 IN CNAME b.example."))
				} else {
					q.Reply(q.Answer("b.example. 40 IN CNAME c.example.", "c.example. 50 IN A 192.0.2.1"))
				}
			},
			want: addrs("192.0.2.1"), ttl: 30 * time.Second, udpQueries: 2,
		},
		{
			name: "an incomplete chain that ends without data",
			udp: func(q *testlab.Query) {
				if q.Question[0].Name == "a.example." {
					q.Reply(q.Answer("a.example. 10 IN CNAME b.example."))
				} else {
					q.Reply(q.Fail(dns.RcodeNameError, soa))
				}
			},
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 10 * time.Second, udpQueries: 2,
		},
		{
			name: "an endless chain",
			udp: func(q *testlab.Query) {
				q.Reply(q.Answer(fmt.Sprintf("%s 60 IN CNAME l%d.example.", q.Question[0].Name, q.N)))
			},
			kind: Malformed, text: "lead nowhere", udpQueries: 2,
		},
		{
			name: "twelve links over two replies",
			udp: func(q *testlab.Query) {
				if q.N == 1 {
					q.Reply(q.Answer(links(6)...))
				} else {
					q.Reply(q.Answer(append(links(12), "l12.example. 60 IN A 192.0.2.1")...))
				}
			},
			kind: Malformed, text: "in a circle or too far", udpQueries: 2,
		},
		{
			name: "an alias of nothing, with SOA",
			udp: func(q *testlab.Query) {
				m := q.Fail(dns.RcodeSuccess, soa)
				m.Answer = testlab.Records("a.example. 60 IN CNAME b.example.")
				q.Reply(m)
			},
			kind: NoData, ttl: 30 * time.Second,
		},
		{
			name: "an alias of a name that does not exist, with SOA",
			udp: func(q *testlab.Query) {
				m := q.Fail(dns.RcodeNameError, soa)
				m.Answer = testlab.Records("a.example. 60 IN CNAME b.example.")
				q.Reply(m)
			},
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 30 * time.Second,
		},
		{
			name: "an alias with the SOA record of another zone",
			udp: func(q *testlab.Query) {
				if q.N == 1 {
					m := q.Fail(dns.RcodeSuccess, soa)
					m.Answer = testlab.Records("a.example. 60 IN CNAME b.example.net.")
					q.Reply(m)
				} else {
					q.Reply(q.Answer("b.example.net. 60 IN A 192.0.2.1"))
				}
			},
			want: addrs("192.0.2.1"), ttl: time.Minute, udpQueries: 2,
		},
		{
			name: "a record for another name",
			udp: func(q *testlab.Query) {
				m := q.Answer("b.example. 60 IN A 203.0.113.66")
				m.Extra = testlab.Records(evilRecord)
				m.Ns = testlab.Records(evilRecord)
				q.Reply(m)
			},
			kind: NoData, ttl: -1,
		},
		{
			name: "a record of another class",
			udp: func(q *testlab.Query) {
				m := q.Answer(goodRecord)
				m.Answer[0].Header().Class = dns.ClassCHAOS
				q.Reply(m)
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
// It is long because its table is.
func casesOfFailures() []lookupCase {
	return []lookupCase{
		{
			name: "NXDOMAIN, SOA minimum",
			udp:  func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeNameError, soa)) },
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 30 * time.Second, text: "replied NXDOMAIN",
			tries: 3,
		},
		{
			name: "NXDOMAIN, SOA TTL",
			udp:  func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeNameError, parent)) },
			kind: NotFound, rcode: dns.RcodeNameError, ttl: 20 * time.Second,
		},
		{
			name: "NXDOMAIN without SOA",
			udp:  func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeNameError)) },
			kind: NotFound, rcode: dns.RcodeNameError, ttl: -1,
		},
		{
			name: "no data",
			udp:  func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeSuccess, soa)) },
			kind: NoData, ttl: 30 * time.Second, text: "there is none",
			tries: 3,
		},
		{
			name: "no data without SOA",
			udp:  func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeSuccess)) },
			kind: NoData, ttl: -1,
		},
		{
			name:  "lame referral",
			tries: 2,
			udp: func(q *testlab.Query) {
				m := q.Fail(dns.RcodeSuccess, "example. 60 IN NS ns.example.")
				m.RecursionAvailable = false
				q.Reply(m)
			},
			kind: ServerFailure, text: "replied without an answer, as a server that is neither authoritative nor recursive", udpQueries: 2,
		},
		{
			name: "authoritative no data without SOA",
			udp: func(q *testlab.Query) {
				m := q.Fail(dns.RcodeSuccess)
				m.RecursionAvailable, m.Authoritative = false, true
				q.Reply(m)
			},
			kind: NoData, ttl: -1,
		},
		{
			name:  "SERVFAIL each time",
			tries: 3,
			udp:   func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeServerFailure)) },
			kind:  ServerFailure, rcode: dns.RcodeServerFailure, text: "looking up a.example (A): 127.0.0.1:", udpQueries: 3,
		},
		{
			name: "SERVFAIL with a body that makes no sense",
			udp: func(q *testlab.Query) {
				b := testlab.Pack(q.Fail(dns.RcodeServerFailure))
				b[7] = 9
				q.Raw(b)
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure,
		},
		{
			name: "unknown rcode",
			udp:  func(q *testlab.Query) { q.Reply(q.Fail(14)) },
			kind: ServerFailure, rcode: 14, text: "replied RCODE14",
		},
		{
			name: "extended rcode",
			udp: func(q *testlab.Query) {
				m := q.Answer(goodRecord).SetEdns0(udpSize, false)
				m.Rcode = dns.RcodeBadCookie
				q.Reply(m)
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
			udp: func(q *testlab.Query) {
				if q.N == 2 {
					q.Reply(q.Fail(dns.RcodeServerFailure))
				}
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, udpQueries: 2,
		},
		{
			name:    "SERVFAIL, then silence: the reply explains more",
			timeout: 500 * time.Millisecond, tries: 2,
			udp: func(q *testlab.Query) {
				if q.N == 1 {
					q.Reply(q.Fail(dns.RcodeServerFailure))
				}
			},
			kind: ServerFailure, rcode: dns.RcodeServerFailure, udpQueries: 2,
		},
	}
}
