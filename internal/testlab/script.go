package testlab

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/miekg/dns"
)

// Script is a nameserver whose replies a test sends, message by message.
type Script struct {
	Addr string // address and port

	mu       sync.Mutex
	udp, tcp func(*Query)
	seen     []*Query
}

// Query is a message that a [Script] received.
type Query struct {
	*dns.Msg
	TCP    bool
	From   string       // address and port of the client
	N      int          // the number of the query among those over its transport, from 1
	Send   func([]byte) // sends a message over UDP, and octets of the stream over TCP
	HangUp func()       // closes the connection; TCP only
}

// NewScript starts a nameserver that leaves each query to the function for its
// transport. If that is nil there is no reply.
func NewScript(t T, udp, tcp func(*Query)) *Script {
	t.Helper()
	packets, listener := listenBoth(t)
	s := &Script{Addr: packets.LocalAddr().String(), udp: udp, tcp: tcp}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, dns.MaxMsgSize)
		for {
			n, from, err := packets.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			s.handle(buf[:n], &Query{From: from.String(), Send: func(b []byte) { _, _ = packets.WriteToUDPAddrPort(b, from) }})
		}
	})
	t.Cleanup(func() {
		_ = packets.Close()
		running.Wait()
	})
	s.accept(t, listener)
	return s
}

// NewStreamScript starts a nameserver that gets its queries over the connections of a
// listener only, such as one of TLS.
func NewStreamScript(t T, listener net.Listener, reply func(*Query)) *Script {
	t.Helper()
	s := &Script{Addr: listener.Addr().String(), tcp: reply}
	s.accept(t, listener)
	return s
}

// accept serves connections until the end of the test.
func (s *Script) accept(t T, listener net.Listener) {
	serveConns(t, listener, func(conn net.Conn) {
		for {
			var length [2]byte
			if _, err := io.ReadFull(conn, length[:]); err != nil {
				return
			}
			msg := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(conn, msg); err != nil {
				return
			}
			s.handle(msg, &Query{
				TCP: true, From: conn.RemoteAddr().String(),
				Send: func(b []byte) { _, _ = conn.Write(b) }, HangUp: func() { _ = conn.Close() },
			})
		}
	})
}

func (s *Script) handle(msg []byte, q *Query) {
	q.Msg = new(dns.Msg)
	if err := q.Unpack(msg); err != nil {
		panic(fmt.Sprintf("a query that cannot be read: %v", err))
	}
	s.mu.Lock()
	s.seen = append(s.seen, q)
	q.N = s.count(q.TCP)
	reply := s.udp
	if q.TCP {
		reply = s.tcp
	}
	s.mu.Unlock()
	if reply != nil {
		reply(q)
	}
}

func (s *Script) count(tcp bool) (n int) {
	for _, q := range s.seen {
		if q.TCP == tcp {
			n++
		}
	}
	return n
}

// Play changes the function for queries over UDP.
func (s *Script) Play(udp func(*Query)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.udp = udp
}

// Count returns how many queries came over TCP or over UDP.
func (s *Script) Count(tcp bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count(tcp)
}

// Queries returns the queries that came, over UDP and TCP, in their order.
func (s *Script) Queries() []*Query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// Answer returns the reply of a recursive server with these records.
func (q *Query) Answer(records ...string) *dns.Msg {
	m := new(dns.Msg).SetReply(q.Msg)
	m.RecursionAvailable = true
	m.Answer = Records(records...)
	return m
}

// Fail returns a reply with an rcode, and with records in its authority section.
func (q *Query) Fail(rcode int, authority ...string) *dns.Msg {
	m := q.Answer()
	m.Rcode = rcode
	m.Ns = Records(authority...)
	return m
}

// Reply sends messages.
func (q *Query) Reply(msgs ...*dns.Msg) {
	for _, m := range msgs {
		q.Raw(Pack(m))
	}
}

// Raw sends octets as one message.
func (q *Query) Raw(b []byte) {
	if q.TCP {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	q.Send(b)
}
