package dnsclient

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// typical is the reply of a recursive server: an alias and two addresses.
func typical() []byte {
	m := new(dns.Msg).SetQuestion("www.a.example.", dns.TypeA).SetEdns0(udpSize, false)
	m.Response, m.RecursionAvailable, m.Compress = true, true, true
	m.Answer = testlab.Records("www.a.example. 60 IN CNAME a.example.", "a.example. 50 IN A 192.0.2.1", "a.example. 50 IN A 192.0.2.2")
	return testlab.Pack(m)
}

func TestAnsweredByComparesExactly(t *testing.T) {
	// Type 65 (HTTPS) and type 97 differ by the bit that makes letters lower.
	q, err := newQuestion("a.example.", dns.TypeHTTPS)
	if err != nil {
		t.Fatal(err)
	}
	msg := q.appendQuery(nil, 1, true)
	msg[2] |= 0x80
	if !q.answeredBy(msg, 1) || q.answeredBy(msg, 2) {
		t.Error("want the reply with ID 1 accepted, and not with ID 2")
	}
	msg[headerLen+len(q.wire)-3] = 97
	if q.answeredBy(msg, 1) {
		t.Error("a reply for type 97 is accepted, want one for type 65 only")
	}

	// '@' and '`' differ by the same bit.
	q, _ = newQuestion("@.example.", dns.TypeA)
	msg = q.appendQuery(nil, 1, true)
	msg[2] |= 0x80
	msg[headerLen+1] = '`'
	if q.answeredBy(msg, 1) {
		t.Error("a reply for ` is accepted, want one for @ only")
	}
}

func TestLongestName(t *testing.T) {
	name := strings.Repeat("a.", 127)
	q, err := newQuestion(name, dns.TypeA)
	if err != nil || len(q.wire) != maxName+4 {
		t.Fatalf("got %v, %v; want a question with a name of %d octets", q, err, maxName)
	}
	var m dns.Msg
	if err := m.Unpack(q.appendQuery(nil, 1, true)); err != nil || m.Question[0].Name != name {
		t.Errorf("got %v, %v; want %s", m.Question, err, name)
	}
	if _, err := newQuestion("a."+name, dns.TypeA); err == nil {
		t.Error("a name of 257 octets is accepted, want an error")
	}
}

func TestRootQuestion(t *testing.T) {
	q, err := newQuestion(".", dns.TypeNS)
	if err != nil || q.name != rootQuestion.name || !bytes.Equal(q.wire, rootQuestion.wire) {
		t.Errorf("got %+v, %v; want %+v", q, err, rootQuestion)
	}
}

// FuzzReply reads any bytes as the reply to a question. All addresses and services
// are those of records whose owner the question leads to, as the library reads the
// same bytes.
func FuzzReply(f *testing.F) {
	var questions [2]*question
	for i, qtype := range []uint16{dns.TypeA, dns.TypeSRV} {
		var err error
		if questions[i], err = newQuestion("www.a.example.", qtype); err != nil {
			f.Fatal(err)
		}
	}
	addReplySeeds(f)
	f.Fuzz(func(t *testing.T, msg []byte, srv bool) {
		q := questions[0]
		if srv {
			q = questions[1]
		}
		if !q.answeredBy(msg, 1) {
			return
		}
		before := bytes.Clone(msg)
		r, err := parse(msg, q)
		if !bytes.Equal(msg, before) {
			t.Fatal("parse has changed the message, want it as before")
		}
		if f := r.classify(false); err != nil || f.kind != 0 && f.kind != NotFound {
			return
		}
		if r.truncated || r.links > maxLinks || r.ttl < 0 {
			t.Fatalf("got %+v, want no addresses of a reply that is truncated or has a chain that is too long", r)
		}

		checkOwners(t, msg, q, r)
	})
}

func addReplySeeds(f *testing.F) {
	seed := func(change func(*dns.Msg)) {
		var m dns.Msg
		if err := m.Unpack(typical()); err != nil {
			f.Fatal(err)
		}
		m.Id = 1
		change(&m)
		srv := len(m.Question) > 0 && m.Question[0].Qtype == dns.TypeSRV
		f.Add(testlab.Pack(&m), srv)
		m.Compress = true
		f.Add(testlab.Pack(&m), srv)
	}
	seed(func(*dns.Msg) {})
	seed(func(m *dns.Msg) { m.Answer[0], m.Answer[2] = m.Answer[2], m.Answer[0] })
	seed(func(m *dns.Msg) { m.Answer = append(m.Answer, testlab.Records("b.example. 1 IN A 203.0.113.66")...) })
	seed(func(m *dns.Msg) { m.Answer = m.Answer[:1]; m.Ns = testlab.Records(soa) })
	seed(func(m *dns.Msg) { m.Answer = nil; m.Ns = testlab.Records(soa); m.Rcode = dns.RcodeNameError })
	seed(func(m *dns.Msg) {
		m.Answer = testlab.Records("www.a.example. 1 IN CNAME b.example.", "b.example. 1 IN CNAME www.a.example.")
	})
	seed(func(m *dns.Msg) {
		m.Answer = testlab.Records("www.a.example. 1 IN CNAME b.example.", "www.a.example. 1 IN CNAME a.example.", "www.a.example. 1 IN A 192.0.2.3", "a.example. 1 IN A 192.0.2.1")
	})
	seed(func(m *dns.Msg) { m.Answer = append(m.Answer, rr("a.example.", dns.TypeA, "")) })
	seed(func(m *dns.Msg) { m.Answer = append(m.Answer, rr("a.example.", dns.TypeA, "c000020101")) })
	seed(func(m *dns.Msg) {
		m.Answer = testlab.Records(`www.a.example. 1 IN CNAME \000\.x\ .example.`, `\000\.x\ .example. 1 IN A 192.0.2.1`)
	})
	for _, answer := range []string{"0 0 80 b.example.", "1 65535 0 .", `0 0 80 \.\000.`} {
		seed(func(m *dns.Msg) {
			m.Question[0].Qtype = dns.TypeSRV
			m.Answer = testlab.Records("www.a.example. 1 IN CNAME s.example.", "s.example. 1 IN SRV "+answer, "evil.example. 1 IN SRV "+answer)
		})
	}
	seed(func(m *dns.Msg) { m.Truncated = true })
	seed(func(m *dns.Msg) { m.Question = nil })
	seed(func(m *dns.Msg) { m.Rcode = dns.RcodeBadVers })
}

// checkOwners fails if r has an address or a service that msg, as the library reads
// it, does not have at a name to which the question leads.
func checkOwners(t *testing.T, msg []byte, q *question, r reply) {
	srv := q.qtype == dns.TypeSRV
	var m dns.Msg
	if m.Unpack(msg) != nil {
		return // for a record that does not matter here
	}
	reached := map[string]bool{strings.ToLower(q.name): true}
	for range m.Answer {
		for _, rr := range m.Answer {
			if alias, ok := rr.(*dns.CNAME); ok && reached[strings.ToLower(alias.Hdr.Name)] {
				reached[strings.ToLower(alias.Target)] = true
			}
		}
	}
	var addrs []netip.Addr
	var services []net.SRV
	for _, rr := range m.Answer {
		if h := rr.Header(); h.Class != dns.ClassINET || !reached[strings.ToLower(h.Name)] {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ := netip.AddrFromSlice(rr.A.To4())
			addrs = append(addrs, addr)
		case *dns.SRV:
			target := strings.ToLower(strings.TrimSuffix(rr.Target, "."))
			services = append(services, net.SRV{Target: target, Port: rr.Port, Priority: rr.Priority, Weight: rr.Weight})
		}
	}
	for _, addr := range r.addrs {
		if srv || !slices.Contains(addrs, addr) {
			t.Fatalf("got %v, want addresses of %s in\n%v", addr, q.name, &m)
		}
	}
	for _, service := range r.services {
		if !srv || service.Target == "" || !slices.Contains(services, service) {
			t.Fatalf("got %v, want services of %s in\n%v", service, q.name, &m)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	q, err := newQuestion("www.a.example.", dns.TypeA)
	if err != nil {
		b.Fatal(err)
	}
	msg := typical()
	b.ReportAllocs()
	for b.Loop() {
		if r, err := parse(msg, q); err != nil || len(r.addrs) != 2 {
			b.Fatalf("got %+v, %v; want 2 addresses", r, err)
		}
	}
}

// BenchmarkParseLibrary is what the library takes to read the same reply.
func BenchmarkParseLibrary(b *testing.B) {
	msg := typical()
	b.ReportAllocs()
	for b.Loop() {
		var m dns.Msg
		if err := m.Unpack(msg); err != nil {
			b.Fatal(err)
		}
	}
}
