package dnsclient

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// authority is a certificate authority.
type authority struct {
	*x509.Certificate
	key   *ecdsa.PrivateKey
	roots *x509.CertPool // has only this authority
}

func newAuthority(t testing.TB) *authority {
	a := &authority{roots: x509.NewCertPool()}
	cert := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.Certificate, a.key = cert.Leaf, cert.PrivateKey.(*ecdsa.PrivateKey)
	a.roots.AddCert(a.Certificate)
	return a
}

// certify returns a certificate for names and addresses.
func (a *authority) certify(t testing.TB, subjects ...string) tls.Certificate {
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, subject := range subjects {
		if ip := net.ParseIP(subject); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, subject)
		}
	}
	return a.issue(t, template)
}

// issue signs template; if there is no authority yet, with its own key.
func (a *authority) issue(t testing.TB, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.Certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// newTLSScript starts a script that is reached only over TLS and ends with the
// test.
func newTLSScript(t *testing.T, cfg *tls.Config, reply func(*query)) *script {
	listener, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{tcp: reply}
	s.Network, s.AddrPort = "tls", listener.Addr().(*net.TCPAddr).AddrPort()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.accept(listener)
	}()
	t.Cleanup(func() {
		listener.Close()
		<-ended
	})
	return s
}

// portOf returns the address of a server that is looked up by its name.
func portOf(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.Addr{}, addr.Port())
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	for _, test := range []struct {
		name     string
		cert     tls.Certificate
		verified string // Nameserver.Name
		byName   bool
		roots    *x509.CertPool
		version  uint16 // the highest of the server
		text     []string
	}{
		{name: "name", cert: ca.certify(t, "ns.example"), verified: "ns.example", roots: ca.roots},
		{name: "TLS 1.2", cert: ca.certify(t, "ns.example"), verified: "ns.example", roots: ca.roots, version: tls.VersionTLS12},
		{name: "address", cert: ca.certify(t, "127.0.0.1"), roots: ca.roots},
		{name: "host name", cert: ca.certify(t, "localhost"), verified: "localhost", byName: true, roots: ca.roots},
		{
			name: "another name", cert: ca.certify(t, "other.example", "127.0.0.1"), verified: "ns.example", roots: ca.roots,
			text: []string{"cannot be trusted to be ns.example", "valid for other.example, not ns.example"},
		},
		{
			name: "no address", cert: ca.certify(t, "ns.example"), roots: ca.roots,
			text: []string{"cannot be trusted to be 127.0.0.1", "doesn't contain any IP SANs"},
		},
		{
			name: "another address", cert: ca.certify(t, "127.0.0.2"), roots: ca.roots,
			text: []string{"cannot be trusted to be 127.0.0.1", "valid for 127.0.0.2, not 127.0.0.1"},
		},
		{
			name: "another host name", cert: ca.certify(t, "127.0.0.1", "ns.example"), verified: "localhost", byName: true, roots: ca.roots,
			text: []string{"cannot be trusted to be localhost"},
		},
		{
			name: "another authority", cert: other.certify(t, "ns.example"), verified: "ns.example", roots: ca.roots,
			text: []string{"cannot be trusted to be ns.example", "unknown authority"},
		},
		{
			name: "the system's authorities", cert: ca.certify(t, "ns.example"), verified: "ns.example",
			text: []string{"cannot be trusted to be ns.example", "unknown authority"},
		},
		{
			name: "TLS 1.1", cert: ca.certify(t, "ns.example"), verified: "ns.example", roots: ca.roots, version: tls.VersionTLS11,
			text: []string{"protocol version not supported"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newTLSScript(t, &tls.Config{
				Certificates: []tls.Certificate{test.cert},
				MinVersion:   tls.VersionTLS10, MaxVersion: test.version,
			}, answering)
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
			if n := s.queries("tcp"); n != 0 {
				t.Errorf("%d queries were sent, want 0", n)
			}
		})
	}
}

// The server of TLS 1.1 in TestTLS can be reached with TLS 1.1.
func TestOldTLSServer(t *testing.T) {
	ca := newAuthority(t)
	s := newTLSScript(t, &tls.Config{
		Certificates: []tls.Certificate{ca.certify(t, "ns.example")},
		MinVersion:   tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
	}, nil)
	conn, err := tls.Dial("tcp", s.AddrPort.String(), &tls.Config{ServerName: "ns.example", RootCAs: ca.roots, MinVersion: tls.VersionTLS11})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestTLSSessionIsResumed(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			ca := newAuthority(t)
			resumed := make(chan bool, 10)
			s := newTLSScript(t, &tls.Config{
				Certificates: []tls.Certificate{ca.certify(t, "ns.example")},
				MaxVersion:   version,
				VerifyConnection: func(state tls.ConnectionState) error {
					resumed <- state.DidResume
					return nil
				},
			}, func(q *query) {
				answering(q)
				q.hangUp()
			})
			s.Name = "ns.example"
			c := newClient(t, Config{Roots: ca.roots}, s)
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
	if udp, tcp := s.queries("udp"), s.queries("tcp"); udp+tcp != 0 {
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
