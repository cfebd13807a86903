package testlab

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// ServeDNS lets a handler answer on one port of loopback, over UDP and TCP, until the
// end of the test. It returns the address.
func ServeDNS(t T, handler dns.Handler) (addr string) {
	t.Helper()
	udp, tcp := listenBoth(t)
	if err := udp.SetReadBuffer(4 << 20); err != nil { // a query that is dropped looks like a silent server
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	for _, server := range []*dns.Server{{PacketConn: udp}, {Listener: tcp}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		server.Handler = handler
		serving.Go(func() { _ = server.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return udp.LocalAddr().String()
}

// Reply is what a [Nameserver] replies about a name.
type Reply struct {
	Addrs   []string // A and AAAA records
	TTL     uint32   // of all but Records
	SRV     []string // priority, weight, port, target
	Alias   string   // a CNAME record, without the records of its target
	Records []string // others, as in a zone file, whatever the question
	Rcode   int

	Hold   <-chan struct{} // the reply waits until it is closed
	Silent bool            // there is no reply
	Broken bool            // the reply ends too early
	Then   *Reply          // replaces this reply after it was used once
}

// Nameserver replies from a table. Names that are not in it do not exist.
type Nameserver struct {
	Addr string // address and port

	mu      sync.Mutex
	names   map[string]Reply
	silent  bool
	tcpOnly bool
	queries map[string]int
	total   int
	stop    chan struct{}
}

// NewNameserver starts a nameserver without names.
func NewNameserver(t T) *Nameserver {
	t.Helper()
	s := &Nameserver{names: make(map[string]Reply), queries: make(map[string]int), stop: make(chan struct{})}
	s.Addr = ServeDNS(t, s)
	t.Cleanup(func() { close(s.stop) })
	return s
}

// Set sets the reply about a name.
func (s *Nameserver) Set(name string, r Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = r
}

// Has gives a name addresses with a TTL of a minute.
func (s *Nameserver) Has(name string, addrs ...string) {
	s.Set(name, Reply{Addrs: addrs, TTL: 60})
}

// SetSilent makes the server reply to nothing, or reply again.
func (s *Nameserver) SetSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

// SetTCPOnly makes the server ignore what comes over UDP.
func (s *Nameserver) SetTCPOnly() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tcpOnly = true
}

// Asked returns how many queries there were for the A records of a name. Those for
// other types are counted under the type and the name: "AAAA a.example".
func (s *Nameserver) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries[name]
}

// Queries returns how many queries there were, by what Asked takes.
func (s *Nameserver) Queries() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.queries)
}

// Total returns how many queries there were.
func (s *Nameserver) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// ServeDNS implements dns.Handler.
func (s *Nameserver) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	s.mu.Lock()
	if udp && s.tcpOnly {
		s.mu.Unlock()
		return
	}
	r, known := s.names[name]
	silent := s.silent || r.Silent
	if r.Then != nil {
		s.names[name] = *r.Then
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
	if r.Hold != nil {
		select {
		case <-r.Hold:
		case <-s.stop:
			return
		}
	}
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	reply.Rcode = r.Rcode
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	reply.Answer = r.answer(q)
	if udp {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	if r.Broken {
		wire := Pack(reply)
		_, _ = w.Write(wire[:len(wire)-2])
		return
	}
	if len(reply.Answer) == 0 && r.Rcode == 0 {
		reply.Ns = Records(". 60 IN SOA ns. m. 1 1 1 1 60")
	}
	_ = w.WriteMsg(reply)
}

// answer returns the records for a question.
func (r *Reply) answer(q dns.Question) (records []dns.RR) {
	add := func(rtype, data string) {
		records = append(records, Records(fmt.Sprintf("%s %d IN %s %s", q.Name, r.TTL, rtype, data))...)
	}
	for _, addr := range r.Addrs {
		if is4 := netip.MustParseAddr(addr).Is4(); is4 && q.Qtype == dns.TypeA || !is4 && q.Qtype == dns.TypeAAAA {
			add(dns.TypeToString[q.Qtype], addr)
		}
	}
	if r.Alias != "" {
		add("CNAME", dns.Fqdn(r.Alias))
	}
	if q.Qtype == dns.TypeSRV {
		for _, data := range r.SRV {
			add("SRV", data)
		}
	}
	return append(records, Records(r.Records...)...)
}

// Records parses records, as they are written in a zone file.
func Records(texts ...string) (records []dns.RR) {
	for _, text := range texts {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		records = append(records, rr)
	}
	return records
}

// Pack returns the wire format of a message.
func Pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}
