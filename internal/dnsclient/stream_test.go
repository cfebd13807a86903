package dnsclient

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// peers is the other side of a stream over pipes, for use in a synctest bubble,
// which also checks that no goroutine is left.
type peers struct {
	*stream
	t        *testing.T
	dials    int
	accepted chan *peer // unless it is full, dialing does not wait for it
}

// peer is the other side of one connection.
type peer struct {
	net.Conn
	t *testing.T
}

func newPeers(t *testing.T) *peers {
	p := &peers{t: t, accepted: make(chan *peer, 100)}
	p.stream = newStream(Nameserver{Network: "tcp"}, nil, new(atomic.Uint64))
	p.stream.dial = func(context.Context) (net.Conn, error) {
		time.Sleep(time.Millisecond) // until all queries of the same time wait
		p.mu.Lock()
		p.dials++
		p.mu.Unlock()
		near, far := net.Pipe()
		p.accepted <- &peer{Conn: far, t: t}
		return near, nil
	}
	t.Cleanup(p.stream.close)
	return p
}

// query reads the next query.
func (p *peer) query() *testlab.Query {
	p.t.Helper()
	var length [2]byte
	if _, err := io.ReadFull(p, length[:]); err != nil {
		p.t.Fatal(err)
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(p, msg); err != nil {
		p.t.Fatal(err)
	}
	q := &testlab.Query{Msg: new(dns.Msg), TCP: true, Send: func(b []byte) { p.Write(b) }}
	if err := q.Unpack(msg); err != nil {
		p.t.Fatal(err)
	}
	return q
}

// wantClosed waits for the end of the connection, and fails if a query comes
// before it.
func (p *peer) wantClosed() {
	p.t.Helper()
	if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		p.t.Errorf("read %d octets, %v; want the end of the connection", n, err)
	}
}

// result is what an exchange returned.
type result struct {
	reply   []byte
	ignored int
	err     error
}

// ask begins an exchange.
func (p *peers) ask(ctx context.Context, timeout time.Duration, name string) <-chan result {
	q, err := newQuestion(name, dns.TypeA)
	if err != nil {
		p.t.Fatal(err)
	}
	results := make(chan result, 1)
	deadline := time.Now().Add(timeout)
	go func() {
		var r result
		r.reply, r.ignored, r.err = p.exchange(ctx, deadline, q, true)
		if r.err == nil && (!q.answeredBy(r.reply, binary.BigEndian.Uint16(r.reply)) || len(r.reply) == 0) {
			p.t.Error("got a reply to another question, want one to this")
		}
		results <- r
	}()
	return results
}

// prime has one query answered, and returns the connection that carried it.
func (p *peers) prime() *peer {
	p.t.Helper()
	asked := p.ask(p.t.Context(), longTimeout, "first.example.")
	peer := <-p.accepted
	answering(peer.query())
	p.want(asked, nil)
	return peer
}

// want waits for the end of an exchange and checks its error.
func (p *peers) want(results <-chan result, want error) result {
	p.t.Helper()
	r := <-results
	if !errors.Is(r.err, want) {
		p.t.Errorf("got error %v, want %v", r.err, want)
	}
	return r
}

func (p *peers) wantDials(want int) {
	p.t.Helper()
	if n := p.dialCount(); n != want {
		p.t.Errorf("%d connections, want %d", n, want)
	}
}

func (p *peers) dialCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dials
}

func TestPipelining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		var asked []<-chan result
		for i := range 100 {
			asked = append(asked, p.ask(t.Context(), longTimeout, fmt.Sprintf("n%d.example.", i)))
		}
		peer := <-p.accepted
		var queries []*testlab.Query
		ids := make(map[uint16]bool)
		for range asked {
			q := peer.query()
			queries = append(queries, q)
			ids[q.Id] = true
		}
		for _, q := range slices.Backward(queries) {
			answering(q)
		}
		for _, results := range asked {
			if r := p.want(results, nil); r.ignored != 0 {
				t.Errorf("%d messages ignored, want 0", r.ignored)
			}
		}
		if p.wantDials(1); len(ids) != len(asked) {
			t.Errorf("%d IDs for %d queries, want one for each", len(ids), len(asked))
		}
	})
}

func TestIDsAreUnique(t *testing.T) {
	c := &streamConn{pending: make(map[uint16]*pending), idle: time.NewTimer(time.Hour), wake: make(chan struct{}, 1)}
	for range maxIDs {
		c.add(rootQuestion, false, false)
	}
	if len(c.pending) != maxIDs {
		t.Errorf("%d IDs for %d queries, want one for each", len(c.pending), maxIDs)
	}
}

func TestIDsRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		first := p.prime()
		for id := range uint16(maxIDs) {
			p.conn.pending[id] = nil
		}
		p.prime()
		first.wantClosed()
		p.wantDials(2)
	})
}

func TestDialIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		dial, connect := p.dial, make(chan struct{})
		p.dial = func(ctx context.Context) (net.Conn, error) {
			<-connect
			return dial(ctx)
		}
		ctx, cancel := context.WithCancel(t.Context())
		began := p.ask(ctx, longTimeout, "a.example.")
		synctest.Wait()
		short := p.ask(t.Context(), time.Second, "b.example.")
		var others []<-chan result
		for range 10 {
			others = append(others, p.ask(t.Context(), longTimeout, "c.example."))
		}
		cancel()
		p.want(began, context.Canceled)
		p.want(short, os.ErrDeadlineExceeded)
		close(connect)
		peer := <-p.accepted
		for range others {
			answering(peer.query())
		}
		for _, results := range others {
			p.want(results, nil)
		}
		p.wantDials(1)
	})
}

// A dial that takes longer than its query may wait serves the next query.
func TestDialOutlivesItsQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		dial, dials := p.dial, 0
		p.dial = func(ctx context.Context) (net.Conn, error) {
			dials++
			select {
			case <-time.After(minDial - time.Second):
				return dial(ctx)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		p.want(p.ask(t.Context(), time.Second, "a.example."), os.ErrDeadlineExceeded)
		if p.prime(); dials != 1 {
			t.Errorf("%d dials, want 1", dials)
		}
	})
}

// A dial that began long before a query does not shorten the query's timeout.
func TestDialTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		dial, dials := p.dial, 0
		p.dial = func(ctx context.Context) (net.Conn, error) {
			if dials++; dials > 1 {
				return dial(ctx)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		first := p.ask(t.Context(), minDial, "a.example.")
		time.Sleep(minDial - time.Second)
		p.prime()
		p.want(first, os.ErrDeadlineExceeded)
	})
}

func TestDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		refused, dials := errors.New("refused"), 0
		p.dial = func(context.Context) (net.Conn, error) {
			dials++
			time.Sleep(time.Second)
			return nil, refused
		}
		a, b := p.ask(t.Context(), longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
		p.want(a, refused)
		p.want(b, refused)
		if dials != 1 {
			t.Errorf("%d dials, want 1", dials)
		}
	})
}

func TestIdleConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		peer := p.prime()
		time.Sleep(maxIdle - time.Second)
		asked := p.ask(t.Context(), longTimeout, "a.example.")
		q := peer.query()
		time.Sleep(maxIdle + time.Second) // is not idle
		answering(q)
		p.want(asked, nil)

		start := time.Now()
		if peer.wantClosed(); time.Since(start) != maxIdle {
			t.Errorf("closed after %v, want %v", time.Since(start), maxIdle)
		}
		p.prime()
		p.wantDials(2)
	})
}

// A connection that no query waits for any more is closed when it was idle.
func TestUnusedConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		dial := p.dial
		p.dial = func(ctx context.Context) (net.Conn, error) {
			time.Sleep(2 * time.Second)
			return dial(ctx)
		}
		p.want(p.ask(t.Context(), time.Second, "a.example."), os.ErrDeadlineExceeded)
		(<-p.accepted).wantClosed()
	})
}

func TestServerCloses(t *testing.T) {
	for name, test := range closingServers() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newPeers(t)) })
		})
	}
}

// closingServers has the cases of TestServerCloses. It is long because its table is.
func closingServers() map[string]func(*testing.T, *peers) {
	reused := func(t *testing.T, p *peers) (*peer, <-chan result, <-chan result) {
		peer := p.prime()
		a, b := p.ask(t.Context(), longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
		peer.query()
		peer.query()
		peer.Close()
		return <-p.accepted, a, b
	}
	return map[string]func(*testing.T, *peers){
		"an idle connection": func(t *testing.T, p *peers) {
			p.prime().Close()
			synctest.Wait()
			p.prime()
			p.wantDials(2)
		},
		"one that was used before": func(t *testing.T, p *peers) {
			again, a, b := reused(t, p)
			answering(again.query())
			again.wantClosed()
			other := <-p.accepted
			answering(other.query())
			other.wantClosed()
			p.want(a, nil)
			p.want(b, nil)
			p.wantDials(3)
		},
		"and the next as well": func(t *testing.T, p *peers) {
			again, a, b := reused(t, p)
			again.query()
			again.Close()
			other := <-p.accepted
			other.query()
			other.Close()
			p.want(a, errHungUp)
			p.want(b, errHungUp)
			p.wantDials(3)
		},
		"a fresh one": func(t *testing.T, p *peers) {
			asked := p.ask(t.Context(), longTimeout, "a.example.")
			peer := <-p.accepted
			peer.query()
			peer.Close()
			p.want(asked, errHungUp)
			p.wantDials(1)
		},
		"a fresh one of many": func(t *testing.T, p *peers) {
			bad := p.ask(t.Context(), longTimeout, "bad.example.")
			var others []<-chan result
			for range 10 {
				others = append(others, p.ask(t.Context(), longTimeout, "other.example."))
			}
			peer := <-p.accepted
			for range 11 {
				peer.query()
			}
			peer.Close()
			for range 11 {
				peer := <-p.accepted
				if q := peer.query(); q.Question[0].Name == "bad.example." {
					peer.Close()
				} else {
					answering(q)
				}
			}
			p.want(bad, errHungUp)
			for _, results := range others {
				p.want(results, nil)
			}
			p.wantDials(12)
		},
		"before any query": func(t *testing.T, p *peers) {
			dial := p.dial
			p.dial = func(ctx context.Context) (net.Conn, error) {
				if conn, err := dial(ctx); p.dialCount() > 1 {
					return conn, err
				}
				return hangsUp{}, nil
			}
			a, b := p.ask(t.Context(), longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
			<-p.accepted
			for range 2 {
				answering((<-p.accepted).query())
			}
			p.want(a, nil)
			p.want(b, nil)
			p.wantDials(3)
		},
		"each with another error": func(t *testing.T, p *peers) {
			for _, c := range []struct{ err, want error }{
				{syscall.ECONNRESET, errHungUp},
				{&net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}, errHungUp},
				{io.ErrUnexpectedEOF, errHungUp},
				{io.EOF, errHungUp},
				{syscall.ETIMEDOUT, syscall.ETIMEDOUT},
			} {
				p.dial = func(context.Context) (net.Conn, error) { return hangsUp{c.err}, nil }
				p.want(p.ask(t.Context(), longTimeout, "a.example."), c.want)
				q, _ := newQuestion("a.example.", dns.TypeA)
				if _, _, err := p.exchangeDedicated(t.Context(), time.Now().Add(longTimeout), q, true); !errors.Is(err, c.want) {
					t.Errorf("dedicated, got %v, want %v", err, c.want)
				}
			}
			p.dial = func(context.Context) (net.Conn, error) { return nil, syscall.ECONNRESET }
			if r := p.want(p.ask(t.Context(), longTimeout, "a.example."), syscall.ECONNRESET); errors.Is(r.err, errHungUp) {
				t.Error("got errHungUp for a connection that was not established, want another error")
			}
		},
		"a fresh one that carried a reply": func(t *testing.T, p *peers) {
			a, b := p.ask(t.Context(), longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
			peer := <-p.accepted
			answering(peer.query())
			peer.query()
			peer.Close()
			answering((<-p.accepted).query())
			p.want(a, nil)
			p.want(b, nil)
			p.wantDials(2)
		},
		"one that never carried a reply": func(t *testing.T, p *peers) {
			ctx, cancel := context.WithCancel(t.Context())
			left := p.ask(ctx, longTimeout, "left.example.")
			peer := <-p.accepted
			peer.query()
			cancel()
			p.want(left, context.Canceled)
			asked := p.ask(t.Context(), longTimeout, "a.example.")
			peer.query()
			peer.Close()
			answering((<-p.accepted).query())
			p.want(asked, nil)
		},
		"within a message": func(t *testing.T, p *peers) {
			peer := p.prime()
			a, b := p.ask(t.Context(), longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
			peer.query()
			peer.query()
			peer.Write([]byte{0, 50, 1})
			peer.Close()
			p.want(a, malformed("shorter than its length says"))
			p.want(b, malformed("shorter than its length says"))
			p.wantDials(1)
			p.prime()
		},
	}
}

// hangsUp is a connection that ends at once with err.
type hangsUp struct{ err error }

func (c hangsUp) Read([]byte) (int, error)         { return 0, cmp.Or(c.err, io.EOF) }
func (c hangsUp) Write(b []byte) (int, error)      { return 0, cmp.Or(c.err, io.EOF) }
func (c hangsUp) Close() error                     { return nil }
func (c hangsUp) LocalAddr() net.Addr              { return nil }
func (c hangsUp) RemoteAddr() net.Addr             { return nil }
func (c hangsUp) SetDeadline(time.Time) error      { return nil }
func (c hangsUp) SetReadDeadline(time.Time) error  { return nil }
func (c hangsUp) SetWriteDeadline(time.Time) error { return nil }

// Only its deadline limits a query that is sent again over a dedicated connection.
func TestDedicatedConnection(t *testing.T) {
	for name, test := range dedicatedConnectionCases() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeers(t)
				test(t, p)
				p.close()
				if p.goroutines != 0 || len(p.dedicated) != 0 {
					t.Errorf("%d goroutines and %d connections are left, want none", p.goroutines, len(p.dedicated))
				}
			})
		})
	}
}

// dedicatedConnectionCases has the cases of TestDedicatedConnection.
// It is long because its table is.
func dedicatedConnectionCases() map[string]func(*testing.T, *peers) {
	// again makes n queries be sent again, each over a dedicated connection.
	again := func(p *peers, ctx context.Context, timeout time.Duration, n int) (results []<-chan result) {
		for range n {
			results = append(results, p.ask(ctx, timeout, "a.example."))
		}
		peer := <-p.accepted
		for range n {
			peer.query()
		}
		peer.Close()
		return results
	}
	return map[string]func(*testing.T, *peers){
		"silence": func(t *testing.T, p *peers) {
			start := time.Now()
			for _, results := range again(p, t.Context(), time.Second, 2) {
				p.want(results, os.ErrDeadlineExceeded)
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("took %v, want 1s", took)
			}
		},
		"callers leave": func(t *testing.T, p *peers) {
			ctx, cancel := context.WithCancel(t.Context())
			asked := again(p, ctx, longTimeout, 2*maxDedicated)
			synctest.Wait()
			for range maxDedicated / 2 {
				(<-p.accepted).query() // others wait to write
			}
			cancel()
			start := time.Now()
			for _, results := range asked {
				p.want(results, context.Canceled)
			}
			if took := time.Since(start); took > time.Millisecond { // which dial takes
				t.Errorf("took %v, want 1ms at most", took)
			}
		},
		"dialing": func(t *testing.T, p *peers) {
			dial := p.dial
			p.dial = func(ctx context.Context) (net.Conn, error) {
				if p.dialCount() == 0 {
					return dial(ctx)
				}
				<-ctx.Done()
				return nil, ctx.Err()
			}
			for _, results := range again(p, t.Context(), time.Second, 2) {
				p.want(results, os.ErrDeadlineExceeded)
			}
		},
		"a bounded number at a time": func(t *testing.T, p *peers) {
			asked := again(p, t.Context(), longTimeout, 3*maxDedicated)
			for done := 0; done < len(asked); done += maxDedicated {
				time.Sleep(time.Second)
				p.wantDials(1 + done + maxDedicated)
				for range maxDedicated {
					answering((<-p.accepted).query())
				}
			}
			for _, results := range asked {
				p.want(results, nil)
			}
		},
		"other IDs": func(t *testing.T, p *peers) {
			asked := again(p, t.Context(), longTimeout, 2)
			for range asked {
				q := (<-p.accepted).query()
				m := q.Answer(evilRecord)
				m.Id++
				q.Reply(m, m)
				answering(q)
			}
			for _, results := range asked {
				if r := p.want(results, nil); r.ignored != 2 {
					t.Errorf("%d messages ignored, want 2", r.ignored)
				}
			}
			if n := p.mismatches.Load(); n != 4 {
				t.Errorf("%d mismatches, want 4", n)
			}
		},
		"another question": func(t *testing.T, p *peers) {
			asked := again(p, t.Context(), longTimeout, 2)
			for range asked {
				q := (<-p.accepted).query()
				m := q.Answer(evilRecord)
				m.Question[0].Name = "b.example."
				q.Reply(m)
			}
			for _, results := range asked {
				p.want(results, malformed("not a reply to the query"))
			}
		},
		"closed": func(t *testing.T, p *peers) {
			asked := again(p, t.Context(), longTimeout, 2)
			p.close()
			for range asked {
				answering((<-p.accepted).query())
			}
			for _, results := range asked {
				p.want(results, nil)
			}
		},
	}
}

// A server that closes after each reply is slow, but all queries are answered.
func TestOneReplyPerConnection(t *testing.T) {
	s := newScript(t, nil, func(q *testlab.Query) {
		answering(q)
		q.HangUp()
	})
	s.Network = "tcp"
	c := newClient(t, Config{}, s)
	var running sync.WaitGroup
	for i := range 20 {
		running.Go(func() {
			for j := range 10 {
				if err := lookUp(t, c, fmt.Sprintf("n%d-%d.example", i, j)); err != nil {
					t.Errorf("got %v, want an answer", err)
				}
			}
		})
	}
	running.Wait()
}

// A connection that brings messages that are no replies is closed after some.
func TestStrays(t *testing.T) {
	for name, test := range strayCases() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newPeers(t)) })
		})
	}
}

// strayCases has the cases of TestStrays. It is long because its table is.
func strayCases() map[string]func(*testing.T, *peers) {
	stray := func(p *peers, peer *peer) error {
		id := uint16(0)
		p.mu.Lock()
		for c := p.conn; c != nil; id++ {
			if _, taken := c.pending[id]; !taken {
				break
			}
		}
		p.mu.Unlock()
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: id, Response: true}}
		b := testlab.Pack(m)
		_, err := peer.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		return err
	}
	return map[string]func(*testing.T, *peers){
		"in flight": func(t *testing.T, p *peers) {
			peer := p.prime()
			asked := p.ask(t.Context(), longTimeout, "a.example.")
			peer.query()
			n := 0
			for stray(p, peer) == nil {
				if n++; n > 10*maxStrays {
					t.Fatalf("the connection is open, want it closed after %d messages", maxStrays)
				}
			}
			if p.want(asked, errStrays); n < maxStrays || n > maxStrays+1 { // one may be read already
				t.Errorf("closed after %d messages, want %d", n, maxStrays)
			}
			p.wantDials(1)
		},
		"idle": func(t *testing.T, p *peers) {
			peer := p.prime()
			for range maxStrays {
				stray(p, peer)
			}
			start := time.Now()
			if peer.wantClosed(); time.Since(start) != 0 {
				t.Errorf("closed after %v, want at once", time.Since(start))
			}
		},
		"with replies in between": func(t *testing.T, p *peers) {
			peer := p.prime()
			for range 3 {
				for range maxStrays - 1 {
					stray(p, peer)
				}
				ctx, cancel := context.WithCancel(t.Context())
				left := p.ask(ctx, longTimeout, "a.example.")
				q := peer.query()
				cancel()
				p.want(left, context.Canceled)
				answering(q) // late, but a reply to a query
			}
			p.wantDials(1)
		},
		"dedicated": func(t *testing.T, p *peers) {
			a, b := p.ask(t.Context(), longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
			peer := <-p.accepted
			peer.query()
			peer.query()
			peer.Close()
			for range 2 {
				again := <-p.accepted
				q, n := again.query(), 0
				m := q.Answer(evilRecord)
				m.Id++
				b := testlab.Pack(m)
				b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
				for _, err := again.Write(b); err == nil; _, err = again.Write(b) {
					if n++; n > 10*maxStrays {
						t.Fatalf("the connection is open, want it closed after %d messages", maxStrays)
					}
				}
			}
			p.want(a, errStrays)
			p.want(b, errStrays)
			p.wantDials(3)
		},
	}
}

func TestSilentConnectionIsRetired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		old := p.prime()
		slowest := p.ask(t.Context(), time.Hour, "slow.example.")
		slow := old.query()
		asked := p.ask(t.Context(), time.Second, "a.example.")
		old.query()
		p.want(asked, os.ErrDeadlineExceeded)

		p.prime()
		p.wantDials(2)
		time.Sleep(time.Minute) // queries in flight keep their time
		answering(slow)
		p.want(slowest, nil)
		old.wantClosed()
	})
}

// A connection that brings no replies is retired even if it brings other messages.
func TestGarbageIsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		asked := p.ask(t.Context(), time.Second, "a.example.")
		old := <-p.accepted
		q := old.query()
		m := q.Answer(evilRecord)
		m.Id++
		q.Reply(m, m)
		if r := p.want(asked, os.ErrDeadlineExceeded); r.ignored != 2 {
			t.Errorf("%d messages ignored, want 2", r.ignored)
		}
		p.prime()
		old.wantClosed()
	})
}

// A connection is kept after a query without a reply if other queries got one, or
// if the query waited for less than minWait.
func TestLiveConnectionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		peer := p.prime()
		dead := p.ask(t.Context(), 2*time.Second, "dead.example.")
		peer.query()
		live := p.ask(t.Context(), 2*time.Second, "a.example.")
		answering(peer.query())
		p.want(live, nil)
		p.want(dead, os.ErrDeadlineExceeded)

		short := p.ask(t.Context(), minWait-time.Millisecond, "b.example.")
		peer.query()
		p.want(short, os.ErrDeadlineExceeded)
		live = p.ask(t.Context(), time.Second, "c.example.")
		answering(peer.query())
		p.want(live, nil)
		p.wantDials(1)
	})
}

// If all contexts end before the timeouts, a silent connection is retired too.
func TestSilenceWithoutATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		old := p.prime()
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), maxSilence/4)
			left := p.ask(ctx, longTimeout, "a.example.")
			old.query()
			p.want(left, context.DeadlineExceeded)
			cancel()
		}
		p.prime()
		old.wantClosed()
		p.wantDials(2)
	})
}

func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		ctx, cancel := context.WithCancel(t.Context())
		left, stayed := p.ask(ctx, longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
		peer := <-p.accepted
		queries := []*testlab.Query{peer.query(), peer.query()}
		cancel()
		p.want(left, context.Canceled)
		if n := len(p.conn.pending); n != 2 {
			t.Errorf("%d IDs are in use, want 2 while 2 replies are due", n)
		}
		for _, q := range queries {
			answering(q)
		}
		p.want(stayed, nil)
		synctest.Wait()
		if p.wantDials(1); p.mismatches.Load() != 1 || len(p.conn.pending) != 0 {
			t.Errorf("%d mismatches, %d IDs in use; want 1 and 0", p.mismatches.Load(), len(p.conn.pending))
		}
	})
}

func TestForgedOverStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		a, b := p.ask(t.Context(), longTimeout, "a.example."), p.ask(t.Context(), longTimeout, "b.example.")
		peer := <-p.accepted
		for range 2 {
			q := peer.query()
			m := q.Answer(evilRecord)
			if q.Question[0].Name == "a.example." {
				m.Question[0].Name = "b.example."
			}
			for other := m.Copy(); ; {
				other.Id++
				p.mu.Lock()
				_, taken := p.conn.pending[other.Id]
				if p.mu.Unlock(); !taken {
					q.Reply(other)
					break
				}
			}
			q.Reply(m)
		}
		p.want(a, malformed("not a reply to the query"))
		p.want(b, nil)
		if p.wantDials(1); p.mismatches.Load() != 2 {
			t.Errorf("%d mismatches, want 2", p.mismatches.Load())
		}
	})
}

// A server that reads nothing delays no query past its deadline, and the next
// query gets a new connection.
func TestBlockedWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		a, b, c := p.ask(ctx, time.Hour, "a.example."), p.ask(t.Context(), time.Second, "b.example."), p.ask(t.Context(), 2*time.Second, "c.example.")
		stuck := <-p.accepted
		if p.want(b, os.ErrDeadlineExceeded); time.Since(start) != time.Second {
			t.Errorf("waited for %v, want 1s", time.Since(start))
		}
		p.prime()
		if p.want(c, os.ErrDeadlineExceeded); time.Since(start) != 2*time.Second {
			t.Errorf("waited for %v, want 2s", time.Since(start))
		}
		cancel()
		p.want(a, context.Canceled)
		stuck.wantClosed()
		p.wantDials(2)
	})
}

func TestNoTimeAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		peer := p.prime()
		p.want(p.ask(t.Context(), 0, "a.example."), os.ErrDeadlineExceeded)
		asked := p.ask(t.Context(), longTimeout, "b.example.")
		q := peer.query()
		if answering(q); q.Question[0].Name != "b.example." {
			t.Errorf("got a query for %s, want b.example.", q.Question[0].Name)
		}
		p.want(asked, nil)
	})
}

// The writer may have written a query with one before it, and is then woken for
// nothing.
func TestNothingToWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t)
		peer := p.prime()
		p.conn.wake <- struct{}{}
		peer.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want that nothing is written", err)
		}
	})
}

func TestCloseStream(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *peers){
		"unused": func(*testing.T, *peers) {},
		"idle": func(t *testing.T, p *peers) {
			peer := p.prime()
			p.close()
			peer.wantClosed()
		},
		"blocked": func(t *testing.T, p *peers) {
			p.want(p.ask(t.Context(), minWait/2, "a.example."), os.ErrDeadlineExceeded)
			p.close()
		},
		"dialing": func(t *testing.T, p *peers) {
			p.dial = func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			p.want(p.ask(t.Context(), time.Second, "a.example."), os.ErrDeadlineExceeded)
			start := time.Now()
			if p.close(); time.Since(start) != 0 {
				t.Error("close waited for the dial, want it interrupted")
			}
		},
		"dialing that ignores its context": func(t *testing.T, p *peers) {
			dial := p.dial
			p.dial = func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return dial(ctx)
			}
			p.want(p.ask(t.Context(), time.Second, "a.example."), os.ErrDeadlineExceeded)
			p.close()
			(<-p.accepted).wantClosed()
		},
		"in use": func(t *testing.T, p *peers) {
			asked := p.ask(t.Context(), longTimeout, "a.example.")
			peer := <-p.accepted
			q := peer.query()
			p.close()
			answering(q)
			p.want(asked, nil)
			peer.wantClosed()
		},
		"then used": func(t *testing.T, p *peers) {
			p.close()
			p.prime().wantClosed()
			p.prime().wantClosed()
			p.wantDials(2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeers(t)
				start := time.Now()
				test(t, p)
				p.close()
				if took := time.Since(start); took >= minDial || p.goroutines != 0 {
					t.Errorf("%d goroutines are left after %v, want 0 before %v", p.goroutines, took, minDial)
				}
			})
		})
	}
}

// After a truncated reply the connection is kept, too.
func TestFallbackIsKept(t *testing.T) {
	s := newScript(t, truncated, answering)
	c := newClient(t, Config{}, s)
	for range 3 {
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
	}
	from := make(map[string]bool)
	for _, q := range s.Queries() {
		if q.TCP {
			from[q.From] = true
		}
	}
	if len(from) != 1 || s.Count(true) != 3 {
		t.Errorf("%d queries over %d connections, want 3 over 1", s.Count(true), len(from))
	}
}

// Many queries at once, while some leave and the server closes connections.
func TestConcurrentStream(t *testing.T) {
	s := newScript(t, nil, func(q *testlab.Query) {
		if answering(q); q.N%97 == 0 {
			q.HangUp()
		}
	})
	s.Network = "tcp"
	c := newClient(t, Config{Tries: 3}, s)
	lookUpMany(t, c, func() {})
}

func TestTCPRefused(t *testing.T) {
	s := &script{Nameserver: Nameserver{Network: "tcp", AddrPort: closedPort(t)}}
	c := newClient(t, Config{}, s)
	err := lookUp(t, c, "a.example")
	if wantError(t, err, Network); !strings.HasSuffix(err.Error(), s.String()+": connection refused") {
		t.Errorf("got %v, want that the connection was refused", err)
	}
}

// FuzzStream makes a server write any bytes while two queries are in flight. In
// them, a byte of 0xff where an ID may be stands for the ID of a query.
func FuzzStream(f *testing.F) {
	reply := func(id byte, name string) []byte {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Response, m.Answer = true, testlab.Records(name+" 60 IN A 192.0.2.1")
		b := testlab.Pack(m)
		b[0], b[1] = 0xff, id
		return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	a, b := reply(0, "a.example."), reply(1, "b.example.")
	f.Add(append(b, a...))
	f.Add(append(a, a...))
	f.Add(reply(1, "a.example."))
	f.Add(append(reply(7, "a.example."), a[:len(a)-3]...))
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 12, 0xff, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) {
			p := newPeers(t)
			start := time.Now()
			asked := []<-chan result{p.ask(t.Context(), time.Second, "a.example."), p.ask(t.Context(), 2*time.Second, "b.example.")}
			peer := <-p.accepted
			ids := make(map[string]uint16)
			for range asked {
				q := peer.query()
				ids[q.Question[0].Name] = q.Id
			}

			// The IDs are not known before: write them where the framing has IDs.
			for rest := script; len(rest) >= 4; {
				n := 2 + int(binary.BigEndian.Uint16(rest))
				if n >= 4 && rest[2] == 0xff && rest[3] < 2 {
					binary.BigEndian.PutUint16(rest[2:], ids[[]string{"a.example.", "b.example."}[rest[3]]])
				}
				rest = rest[min(n, len(rest)):]
			}
			peer.SetWriteDeadline(start.Add(time.Minute))
			peer.Write(script)
			if len(script)%2 == 0 {
				peer.Close()
			}
			go func() { // after a hang-up the server may be asked again
				for again := range p.accepted {
					again.Close()
				}
			}()
			for _, results := range asked {
				if r := <-results; (r.reply == nil) == (r.err == nil) {
					t.Errorf("got reply %x and error %v, want one of them", r.reply, r.err)
				}
			}
			if time.Since(start) > 2*time.Second {
				t.Errorf("took %v, want 2s at most", time.Since(start))
			}
			close(p.accepted)
		})
	})
}

// BenchmarkStream is a lookup over a kept TCP connection, one at a time and many.
func BenchmarkStream(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	tail := testlab.Pack(&dns.Msg{Answer: testlab.Records(goodRecord)})[headerLen:]
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var (
			r   = bufio.NewReader(conn)
			w   = bufio.NewWriter(conn)
			msg []byte
		)
		for {
			if msg, err = readMessage(r); err != nil {
				return
			}
			msg[2], msg[3], msg[7], msg[11] = 0x81, 0x80, 1, 0
			msg = append(msg[:len(msg)-11], tail...) // without the OPT record
			w.Write(binary.BigEndian.AppendUint16(nil, uint16(len(msg))))
			w.Write(msg)
			if r.Buffered() == 0 {
				w.Flush()
			}
		}
	}()
	c := New([]Nameserver{{Network: "tcp", AddrPort: listener.Addr().(*net.TCPAddr).AddrPort()}}, Config{})
	lookUp := func() error {
		_, _, err := c.Lookup(context.Background(), "a.example", dns.TypeA)
		return err
	}
	b.Run("one at a time", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := lookUp(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("pipelined", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := lookUp(); err != nil {
					b.Error(err)
				}
			}
		})
	})
	c.Close()
	listener.Close()
	<-done
}
