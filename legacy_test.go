package caddytarget

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// dnsName is what the DNS server says of a name.
type dnsName struct {
	addrs  []string
	ttl    uint32
	hold   <-chan struct{} // no reply until it is closed
	silent bool            // no reply
	rcode  int
	srv    []string // priority, weight, port, target
	alias  string   // the reply has this alias, and nothing about where it leads
	broken bool     // the reply ends too early

	records []string // more records of the reply, as in a zone file
	then    *dnsName // what is said of the name after this reply
}

// dnsServer is a nameserver. Names that it does not know do not exist.
type dnsServer struct {
	addr string

	mu      sync.Mutex
	names   map[string]dnsName
	silent  bool           // no reply to anything
	queries map[string]int // for A records, by name; AAAA as "AAAA name", SRV as "SRV name"
	total   int

	stop chan struct{}
}

func newDNSServer(t testing.TB) *dnsServer {
	t.Helper()
	s := &dnsServer{
		names:   make(map[string]dnsName),
		queries: make(map[string]int),
		stop:    make(chan struct{}),
	}
	// one port for both protocols
	var udp net.PacketConn
	var tcp net.Listener
	for try := 0; ; try++ {
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		_ = udp.Close()
		if try == 20 {
			t.Fatal(err)
		}
	}
	s.addr = udp.LocalAddr().String()
	var wg sync.WaitGroup
	for _, server := range []*dns.Server{{PacketConn: udp}, {Listener: tcp}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		server.Handler = s
		wg.Go(func() { _ = server.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	t.Cleanup(func() { close(s.stop) })
	return s
}

// set says what is to be replied.
func (s *dnsServer) set(name string, n dnsName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = n
}

// has makes a name have addresses, for a minute.
func (s *dnsServer) has(name string, addrs ...string) {
	s.set(name, dnsName{addrs: addrs, ttl: 60})
}

func (s *dnsServer) setSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

// asked returns how many queries there were for the A records of a name.
func (s *dnsServer) asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries[name]
}

func (s *dnsServer) askedInAll() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// ServeDNS implements dns.Handler.
func (s *dnsServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	s.mu.Lock()
	n, known := s.names[name]
	silent := s.silent || n.silent
	if n.then != nil {
		s.names[name] = *n.then
	}
	s.total++
	if q.Qtype == dns.TypeA {
		s.queries[name]++
	} else {
		s.queries[dns.TypeToString[q.Qtype]+" "+name]++
	}
	s.mu.Unlock()
	if silent {
		return
	}
	if n.hold != nil {
		select {
		case <-n.hold:
		case <-s.stop:
			return
		}
	}
	reply := new(dns.Msg)
	reply.SetReply(query)
	reply.RecursionAvailable = true
	reply.Rcode = n.rcode
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	for _, text := range n.addrs {
		header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: n.ttl}
		addr := netip.MustParseAddr(text)
		switch {
		case q.Qtype == dns.TypeA && addr.Is4():
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
		case q.Qtype == dns.TypeAAAA && addr.Is6():
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	if n.alias != "" {
		header := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: n.ttl}
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: header, Target: dns.Fqdn(n.alias)})
	}
	if q.Qtype == dns.TypeSRV {
		for _, text := range n.srv {
			rr, err := dns.NewRR(fmt.Sprintf("%s %d IN SRV %s", q.Name, n.ttl, text))
			if err != nil {
				panic(err)
			}
			reply.Answer = append(reply.Answer, rr)
		}
	}
	for _, text := range n.records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		reply.Answer = append(reply.Answer, rr)
	}
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	if n.broken {
		if wire, err := reply.Pack(); err == nil {
			_, _ = w.Write(wire[:len(wire)-2])
		}
		return
	}
	if len(reply.Answer) == 0 && n.rcode == 0 {
		reply.Ns = append(reply.Ns, &dns.SOA{
			Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
			Ns:  "ns.", Mbox: "m.", Serial: 1, Refresh: 1, Retry: 1, Expire: 1, Minttl: 60,
		})
	}
	_ = w.WriteMsg(reply)
}
