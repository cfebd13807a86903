package pool

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

// owner permits and confirms addresses as its fields say.
type checkOwner struct {
	permit, confirm error
	asked           atomic.Int32
}

func (o *checkOwner) Permit(netip.AddrPort) error             { o.asked.Add(1); return o.permit }
func (o *checkOwner) Confirm(_, _ netip.AddrPort) error       { o.asked.Add(1); return o.confirm }
func (*checkOwner) Guard() any                                { return nil }
func (*checkOwner) Source() any                               { return nil }
func (*checkOwner) Watch() func(addr netip.Addr) (moved bool) { return nil }

// TestCheck: a check asks for permission, opens one connection, sends no request, and
// leaves no connection, no count and no record behind.
func TestCheck(t *testing.T) {
	var opened, octets atomic.Int64
	ended := make(chan struct{}, 8)
	b := newBackend(t, func(_ net.Conn, r *bufio.Reader) {
		opened.Add(1)
		n, _ := io.Copy(io.Discard, r)
		octets.Add(n)
		ended <- struct{}{}
	})
	tracker, limits := health.New(), NewLimits(8, nil)
	p := New(Config{DialTimeout: testlab.Timeout}, tracker, limits)
	defer p.Close()
	o := b.order("a.example")
	owner := new(checkOwner)
	o.Owner = owner
	c, err := p.Check(t.Context(), o)
	if err != nil || c.Connect <= 0 || !c.Local.IsValid() || c.TLS != nil || owner.asked.Load() != 2 {
		t.Errorf("got %+v, %v, owner asked %d times; want a connection and 2", c, err, owner.asked.Load())
	}
	<-ended
	if opened.Load() != 1 || octets.Load() != 0 {
		t.Errorf("%d connections with %d octets, want 1 without", opened.Load(), octets.Load())
	}

	owner.permit = errors.New("not permitted")
	if _, err := p.Check(t.Context(), o); err == nil || err.Err != owner.permit || err.Phase != Connect {
		t.Errorf("got the error %v, want that of Permit", err)
	}
	if opened.Load() != 1 {
		t.Errorf("%d connections, want none to an address that is not permitted", opened.Load()-1)
	}
	owner.permit, owner.confirm = nil, errors.New("not confirmed")
	if _, err := p.Check(t.Context(), o); err == nil || err.Err != owner.confirm {
		t.Errorf("got the error %v, want that of Confirm", err)
	}
	<-ended
	owner.confirm = nil

	o.Key.Addr = netip.MustParseAddrPort("127.0.0.1:" + testlab.FreePort(t))
	if _, err := p.Check(t.Context(), o); err == nil || err.Phase != Connect {
		t.Errorf("got the error %v of a port where nothing listens, want one", err)
	}
	limits.mu.Lock()
	open := limits.open
	limits.mu.Unlock()
	if open != 0 || p.Open() != 0 || tracker.Len() != 0 || p.Connections(o.Key) != (Connections{}) {
		t.Errorf("left behind: %d and %d connections, %d failures; want none", open, p.Open(), tracker.Len())
	}

	full := New(Config{}, tracker, NewLimits(1, nil))
	defer full.Close()
	if full.limits.acquire("other", true) == nil {
		t.Fatal("the first connection is not allowed")
	}
	if _, err := full.Check(t.Context(), b.order("a.example")); err == nil || err.Err != ErrLimit {
		t.Errorf("got the error %v beyond the limit, want ErrLimit", err)
	}
}

// TestCheckTLS: what is known of a handshake, also of one that fails.
func TestCheckTLS(t *testing.T) {
	ca, other := testlab.NewAuthority(t), testlab.NewAuthority(t)
	for _, test := range []struct {
		name   string
		server func(c *tls.Config)
		phase  Phase // of the error
		wanted bool
		failed bool
	}{
		{"it works", func(*tls.Config) {}, 0, false, false},
		{"another authority", func(c *tls.Config) { *c = *other.Config() }, Handshake, false, true},
		{"an old version", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11 }, Handshake, false, true},
		{"a certificate may be shown", func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }, 0, true, false},
		{"a certificate has to be shown", func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, Response, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := ca.Config("http/1.1")
			test.server(config)
			b := testlab.NewRawBackend(t, "", "127.0.0.1", nil, func(raw net.Conn) {
				c := tls.Server(raw, config)
				if c.Handshake() == nil {
					_, _ = io.Copy(io.Discard, c)
				}
			})
			p := newPool(t, Config{TLS: &tls.Config{RootCAs: ca.Pool(), NextProtos: []string{"http/1.1"}}, DialTimeout: testlab.Timeout, HandshakeTimeout: testlab.Timeout, SessionCache: 8})
			o := &Order{Key: Key{Addr: netip.MustParseAddrPort("127.0.0.1:" + b.Port), Host: "a.example", ServerName: "a.example", Protocol: TLS}, Target: "a.example"}
			// on a busy machine the alert may come too late
			var c Check
			var err *Error
			for deadline := time.Now().Add(testlab.Timeout); ; {
				c, err = p.Check(t.Context(), o)
				if test.phase != Response || err != nil || time.Now().After(deadline) {
					break
				}
			}
			if (err != nil) != test.failed || err != nil && err.Phase != test.phase || c.CertificateWanted != test.wanted || c.Handshake <= 0 || c.TLS == nil {
				t.Errorf("got %+v, %v; want an error: %t, a certificate wanted: %t", c, err, test.failed, test.wanted)
			}
			if sees := test.name != "an old version"; sees != (len(c.Certificates) > 0) {
				t.Errorf("got %d certificates, want some: %t", len(c.Certificates), sees)
			}
			if err == nil && (c.TLS.NegotiatedProtocol != "http/1.1" || c.TLS.Version != tls.VersionTLS13 || c.TLS.DidResume) {
				t.Errorf("got the state %+v, want a full handshake of TLS 1.3 with http/1.1", c.TLS)
			}
			if p.sessions.order.Len() != 0 {
				t.Error("a session is kept")
			}
		})
	}
}

// TestCheckEnds: a check ends with its context.
func TestCheckEnds(t *testing.T) {
	b := testlab.SilentBackend(t, "", "127.0.0.1")
	p := newPool(t, Config{TLS: new(tls.Config)})
	o := &Order{Key: Key{Addr: netip.MustParseAddrPort("127.0.0.1:" + b.Port), Host: "a.example", ServerName: "a.example", Protocol: TLS}, Target: "a.example"}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Check(ctx, o); err == nil || !errors.Is(err, context.DeadlineExceeded) || err.Phase != Handshake {
		t.Errorf("got the error %v, want that the handshake ended with the context", err)
	}
}

// TestConnections counts the connections of a key.
func TestConnections(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{})
	o := b.order("a.example")
	if _, err := get(t, p, o, "/"); err != nil {
		t.Fatal(err)
	}
	testlab.Eventually(t, "the connection is idle", func() bool { return p.Connections(o.Key) == Connections{Open: 1, Idle: 1} })
	if got := p.Connections(b.order("b.example").Key); got != (Connections{}) {
		t.Errorf("got %+v of another key, want none", got)
	}
}
