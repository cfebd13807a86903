package dnsclient

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a nameserver on loopback whose replies a test writes packet by
// packet. Without a function for a transport it is silent there.
type script struct {
	Nameserver

	mu       sync.Mutex
	udp, tcp func(*query)
	seen     []*query
}

// query is one message that a script received.
type query struct {
	*dns.Msg
	transport string
	from      string
	n         int // 1 is the first on this transport
	send      func([]byte)
	hangUp    func() // TCP only
}

// newScript starts a script that ends with the test.
func newScript(t testing.TB, udp, tcp func(*query)) *script {
	t.Helper()
	for range 10 { // until the port is free for both
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		listener, err := net.Listen("tcp", addr.String())
		if err != nil {
			conn.Close()
			continue
		}
		s := &script{Nameserver: Nameserver{Network: "udp", AddrPort: addr}, udp: udp, tcp: tcp}
		s.serve(t, conn, listener)
		return s
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil
}

func (s *script) serve(t testing.TB, conn *net.UDPConn, listener net.Listener) {
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, maxMessage)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			s.handle("udp", from.String(), buf[:n], func(b []byte) { conn.WriteToUDPAddrPort(b, from) }, nil)
		}
	})

	running.Go(func() { s.accept(listener) })
	t.Cleanup(func() {
		conn.Close()
		listener.Close()
		running.Wait()
	})
}

// accept serves connections until listener is closed.
func (s *script) accept(listener net.Listener) {
	var conns []net.Conn
	var running sync.WaitGroup
	for {
		conn, err := listener.Accept()
		if err != nil {
			break
		}
		conns = append(conns, conn)
		running.Go(func() {
			for {
				msg, err := readMessage(conn)
				if err != nil {
					return
				}
				s.handle("tcp", conn.RemoteAddr().String(), msg, func(b []byte) { conn.Write(b) }, func() { conn.Close() })
			}
		})
	}
	for _, conn := range conns {
		conn.Close()
	}
	running.Wait()
}

func (s *script) handle(transport, from string, msg []byte, send func([]byte), hangUp func()) {
	q := &query{Msg: new(dns.Msg), transport: transport, from: from, send: send, hangUp: hangUp}
	if err := q.Unpack(msg); err != nil {
		panic("a query that does not unpack: " + err.Error())
	}
	s.mu.Lock()
	s.seen = append(s.seen, q)
	for _, other := range s.seen {
		if other.transport == transport {
			q.n++
		}
	}
	reply := s.udp
	if transport == "tcp" {
		reply = s.tcp
	}
	s.mu.Unlock()
	if reply != nil {
		reply(q)
	}
}

// play changes what the script does over UDP.
func (s *script) play(udp func(*query)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.udp = udp
}

// queries returns how many queries came over a transport.
func (s *script) queries(transport string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.seen {
		if q.transport == transport {
			n++
		}
	}
	return n
}

// query returns the n-th query, from 0.
func (s *script) query(n int) *query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[n]
}

// answer is a reply of a recursive server with these records in its answer
// section.
func (q *query) answer(records ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(q.Msg)
	m.RecursionAvailable = true
	m.Answer = rrs(records...)
	return m
}

// fail is a reply with an rcode and, in the authority section, records.
func (q *query) fail(rcode int, authority ...string) *dns.Msg {
	m := q.answer()
	m.Rcode = rcode
	m.Ns = rrs(authority...)
	return m
}

// reply sends messages.
func (q *query) reply(msgs ...*dns.Msg) {
	for _, m := range msgs {
		q.raw(pack(m))
	}
}

// raw sends bytes as one message.
func (q *query) raw(b []byte) {
	if q.transport == "tcp" {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	q.send(b)
}

func pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func rrs(records ...string) (all []dns.RR) {
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		all = append(all, rr)
	}
	return all
}

// rr is a record with any data.
func rr(name string, rtype uint16, hexData string) dns.RR {
	return &dns.RFC3597{Hdr: dns.RR_Header{Name: name, Rrtype: rtype, Class: dns.ClassINET, Ttl: 60}, Rdata: hexData}
}

func addrs(all ...string) (parsed []netip.Addr) {
	for _, s := range all {
		parsed = append(parsed, netip.MustParseAddr(s))
	}
	return parsed
}

// newClient returns a client of the scripts that ends with the test. Unless cfg has
// other values, it asks each question once and has a long timeout.
func newClient(t testing.TB, cfg Config, scripts ...*script) *Client {
	if cfg.Tries == 0 {
		cfg.Tries = 1
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = longTimeout
	}
	var servers []Nameserver
	for _, s := range scripts {
		servers = append(servers, s.Nameserver)
	}
	c := New(servers, cfg)
	t.Cleanup(c.Close)
	return c
}

// Lookup is Ask, and waits for the answer.
func (c *Client) Lookup(ctx context.Context, name string, qtype uint16) (addrs []netip.Addr, ttl time.Duration, err error) {
	done := make(chan struct{})
	c.Ask(ctx, name, qtype, func(a []netip.Addr, t time.Duration, e error) {
		addrs, ttl, err = a, t, e
		close(done)
	})
	<-done
	return addrs, ttl, err
}

// LookupSRV is AskSRV, and waits for the answer.
func (c *Client) LookupSRV(ctx context.Context, name string) (services []net.SRV, ttl time.Duration, err error) {
	done := make(chan struct{})
	c.AskSRV(ctx, name, func(s []net.SRV, t time.Duration, e error) {
		services, ttl, err = s, t, e
		close(done)
	})
	<-done
	return services, ttl, err
}
