package dnsclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// portOf returns the address of a server that is looked up by its name.
func portOf(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.Addr{}, addr.Port())
}

func TestTLS(t *testing.T) {
	ca, other := testlab.NewAuthority(t), testlab.NewAuthority(t)
	for _, test := range []struct {
		name     string
		config   *tls.Config
		verified string // Nameserver.Name
		byName   bool
		roots    *x509.CertPool
		version  uint16 // the highest of the server
		text     []string
	}{
		{name: "name", config: serverConfig(t, ca, "ns.example"), verified: "ns.example", roots: ca.Pool()},
		{name: "TLS 1.2", config: serverConfig(t, ca, "ns.example"), verified: "ns.example", roots: ca.Pool(), version: tls.VersionTLS12},
		{name: "address", config: serverConfig(t, ca, "127.0.0.1"), roots: ca.Pool()},
		{name: "host name", config: serverConfig(t, ca, "localhost"), verified: "localhost", byName: true, roots: ca.Pool()},
		{
			name: "another name", config: serverConfig(t, ca, "other.example", "127.0.0.1"), verified: "ns.example", roots: ca.Pool(),
			text: []string{"cannot be trusted to be ns.example", "valid for other.example, not ns.example"},
		},
		{
			name: "no address", config: serverConfig(t, ca, "ns.example"), roots: ca.Pool(),
			text: []string{"cannot be trusted to be 127.0.0.1", "doesn't contain any IP SANs"},
		},
		{
			name: "another address", config: serverConfig(t, ca, "127.0.0.2"), roots: ca.Pool(),
			text: []string{"cannot be trusted to be 127.0.0.1", "valid for 127.0.0.2, not 127.0.0.1"},
		},
		{
			name: "another host name", config: serverConfig(t, ca, "127.0.0.1", "ns.example"), verified: "localhost", byName: true, roots: ca.Pool(),
			text: []string{"cannot be trusted to be localhost"},
		},
		{
			name: "another authority", config: serverConfig(t, other, "ns.example"), verified: "ns.example", roots: ca.Pool(),
			text: []string{"cannot be trusted to be ns.example", "unknown authority"},
		},
		{
			name: "the system's authorities", config: serverConfig(t, ca, "ns.example"), verified: "ns.example",
			text: []string{"cannot be trusted to be ns.example", "unknown authority"},
		},
		{
			name: "TLS 1.1", config: serverConfig(t, ca, "ns.example"), verified: "ns.example", roots: ca.Pool(), version: tls.VersionTLS11,
			text: []string{"protocol version not supported"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.config.MinVersion, test.config.MaxVersion = tls.VersionTLS10, test.version
			s := newTLSScript(t, test.config, answering)
			if s.Name = test.verified; test.byName {
				s.AddrPort = portOf(s.AddrPort)
			}
			c := newClient(t, Config{Roots: test.roots}, s)
			err := lookUp(t, c, "a.example")
			if test.text == nil {
				if err != nil {
					t.Errorf("got %v, want an answer", err)
				}
				return
			}
			wantError(t, err, Network)
			for _, text := range append(test.text, s.Nameserver.String()) {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("got %v, want %q in it", err, text)
				}
			}
			if n := s.Count(true); n != 0 {
				t.Errorf("%d queries were sent, want 0", n)
			}
		})
	}
}

// The server of TLS 1.1 in TestTLS can be reached with TLS 1.1.
func TestOldTLSServer(t *testing.T) {
	ca := testlab.NewAuthority(t)
	config := serverConfig(t, ca, "ns.example")
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	s := newTLSScript(t, config, nil)
	conn, err := tls.Dial("tcp", s.AddrPort.String(), &tls.Config{ServerName: "ns.example", RootCAs: ca.Pool(), MinVersion: tls.VersionTLS11})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestTLSSessionIsResumed(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			ca := testlab.NewAuthority(t)
			resumed := make(chan bool, 10)
			config := serverConfig(t, ca, "ns.example")
			config.MaxVersion = version
			config.VerifyConnection = func(state tls.ConnectionState) error {
				resumed <- state.DidResume
				return nil
			}
			s := newTLSScript(t, config, func(q *testlab.Query) {
				answering(q)
				q.HangUp()
			})
			s.Name = "ns.example"
			c := newClient(t, Config{Roots: ca.Pool()}, s)
			for i := range 3 {
				if err := lookUp(t, c, "a.example"); err != nil {
					t.Fatal(err)
				}
				if got := <-resumed; got != (i > 0) {
					t.Errorf("connection %d resumes a session: %v, want %v", i, got, i > 0)
				}
			}
		})
	}
}

// A server that does not speak TLS on the port of TLS gets no query in the clear.
func TestNoDowngrade(t *testing.T) {
	s := newScript(t, answering, answering)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan []byte)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			t.Errorf("got %v, want a connection", err)
		}
		defer conn.Close()
		b := make([]byte, 1<<10)
		n, _ := conn.Read(b)
		conn.Write([]byte("\x00\x0cno TLS here"))
		received <- b[:n]
	}()
	s.Network, s.AddrPort, s.Name = "tls", listener.Addr().(*net.TCPAddr).AddrPort(), "ns.example"
	c := newClient(t, Config{}, s)
	wantError(t, lookUp(t, c, "a.example"), Network)
	if b := <-received; len(b) == 0 || b[0] != 22 { // a handshake
		t.Errorf("the server received %x, want a TLS handshake", b)
	}
	listener.Close()
	if udp, tcp := s.Count(false), s.Count(true); udp+tcp != 0 {
		t.Errorf("%d queries over UDP and %d over TCP, want none", udp, tcp)
	}
}

// A server that accepts the connection and never does the handshake.
func TestTLSHandshakeStalls(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := &script{Nameserver: Nameserver{Network: "tls", AddrPort: listener.Addr().(*net.TCPAddr).AddrPort()}}
	c := newClient(t, Config{Timeout: shortTimeout}, s)
	start := time.Now()
	wantError(t, lookUp(t, c, "a.example"), Timeout)
	if c.Close(); time.Since(start) >= minDial {
		t.Error("Close waited for the handshake")
	}
}

func TestDialDeadline(t *testing.T) {
	near, far := time.Now(), time.Now().Add(time.Hour)
	if got := dialDeadline(near).Sub(near); got < minDial || dialDeadline(far) != far {
		t.Errorf("got %v after the deadline, want %s at least; got %v, want %v", got, minDial, dialDeadline(far), far)
	}
	d := newDialer(Nameserver{Network: "tcp", AddrPort: netip.MustParseAddrPort("192.0.2.1:53")}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if conn, err := d.dial(ctx); conn != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v; want context.Canceled", conn, err)
	}
}
