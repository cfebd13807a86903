package dnsclient

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// newTestUDP returns the transport to a script, and a function that asks over
// it and returns the socket that is idle then, if there is one.
func newTestUDP(t *testing.T, s *script) (*udp, func() *udpSocket) {
	u := newUDP(s.AddrPort, new(atomic.Uint64))
	t.Cleanup(u.close)
	q, err := newQuestion("a.example.", dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	return u, func() *udpSocket {
		u.exchange(t.Context(), time.Now().Add(longTimeout), q, true)
		if len(u.idle) == 0 {
			return nil
		}
		return u.idle[len(u.idle)-1]
	}
}

func TestSocketsAreReused(t *testing.T) {
	_, ask := newTestUDP(t, newScript(t, answering, nil))
	first := ask()
	for range maxSocketQueries - 2 {
		if ask() != first {
			t.Fatalf("got a new socket, want the first one for %d queries", maxSocketQueries)
		}
	}
	if ask() != nil {
		t.Errorf("a socket is kept after %d queries, want it closed", maxSocketQueries)
	}
	if second := ask(); second == nil || second == first {
		t.Error("got no new socket, want one")
	}
}

func TestOldSocketsAreClosed(t *testing.T) {
	u, ask := newTestUDP(t, newScript(t, answering, nil))
	first := ask()
	first.born = first.born.Add(-maxSocketAge)
	second := ask()
	if second == first {
		t.Error("an old socket was used again, want a new one")
	}
	second.born = second.born.Add(-maxSocketAge)
	if u.closeOld(); len(u.idle) != 0 || u.sweep != nil {
		t.Errorf("%d old sockets are idle, want 0", len(u.idle))
	}
	for _, socket := range []*udpSocket{first, second} {
		if _, err := socket.Write(nil); !errors.Is(err, net.ErrClosed) {
			t.Error("an old socket is open, want it closed")
		}
	}
	u.close()
	if ask() != nil {
		t.Error("a socket is kept after close, want it closed")
	}
}

func TestDoubtfulSocketsAreClosed(t *testing.T) {
	t.Run("after a mismatch", func(t *testing.T) {
		_, ask := newTestUDP(t, newScript(t, func(q *testlab.Query) {
			q.Raw([]byte("hello"))
			answering(q)
		}, nil))
		if ask() != nil {
			t.Error("the socket is kept, want it closed")
		}
	})
	t.Run("after a timeout", func(t *testing.T) {
		u, _ := newTestUDP(t, newScript(t, nil, nil))
		_, _, err := u.exchange(t.Context(), time.Now().Add(shortTimeout), rootQuestion, true)
		if err == nil || len(u.idle) != 0 {
			t.Errorf("got %v, want an error; %d sockets are kept, want 0", err, len(u.idle))
		}
	})
	t.Run("after a cancellation", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		u, _ := newTestUDP(t, newScript(t, func(q *testlab.Query) { cancel(); answering(q) }, nil))
		u.exchange(ctx, time.Now().Add(longTimeout), rootQuestion, true)
		if len(u.idle) != 0 {
			t.Error("the socket is kept, want it closed")
		}
	})
}

// Sockets carry one query at a time, and the kernel drops what comes from
// another address.
func TestSocketsAreExclusive(t *testing.T) {
	var held []*testlab.Query
	full := make(chan struct{})
	s := newScript(t, func(q *testlab.Query) {
		if held = append(held, q); len(held) == 2*maxIdleSockets {
			close(full)
		}
	}, nil)
	c := newClient(t, Config{}, s)
	errs := make(chan error)
	for range 2 * maxIdleSockets {
		go func() { errs <- lookUp(t, c, "a.example") }()
	}
	<-full
	for _, q := range held {
		answering(q)
	}
	for range held {
		if err := <-errs; err != nil {
			t.Errorf("got %v, want an answer", err)
		}
	}
	if n := len(c.servers[0].first.(*udp).idle); n != maxIdleSockets {
		t.Errorf("%d sockets are kept, want %d", n, maxIdleSockets)
	}
	if c.Mismatches() != 0 {
		t.Error("a socket got the reply of another, want each to get its own")
	}
}

func TestReplyFromOtherPort(t *testing.T) {
	other, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := newScript(t, func(q *testlab.Query) {
		// a reply from another port, to the port of the query
		from := netip.MustParseAddrPort(q.From)
		other.WriteToUDPAddrPort(testlab.Pack(q.Answer(evilRecord)), from)
		q.Reply(q.Answer(goodRecord))
	}, nil)
	c := newClient(t, Config{}, s)
	got, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA)
	if err != nil || len(got) != 1 || got[0].String() != "192.0.2.1" {
		t.Errorf("got %v, %v; want 192.0.2.1", got, err)
	}
}
