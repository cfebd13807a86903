package dnsclient

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"caddytarget/internal/testlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a nameserver that a client asks, and what replies there.
type script struct {
	Nameserver
	*testlab.Script
}

// newScript starts a script that ends with the test.
func newScript(t testing.TB, udp, tcp func(*testlab.Query)) *script {
	t.Helper()
	s := testlab.NewScript(t, udp, tcp)
	return &script{Nameserver{Network: "udp", AddrPort: netip.MustParseAddrPort(s.Addr)}, s}
}

// newTLSScript starts a script that is reached only over TLS and ends with the
// test.
func newTLSScript(t testing.TB, config *tls.Config, reply func(*testlab.Query)) *script {
	t.Helper()
	s := testlab.NewStreamScript(t, tls.NewListener(testlab.Listen(t, "", "127.0.0.1")[0], config), reply)
	return &script{Nameserver{Network: "tls", AddrPort: netip.MustParseAddrPort(s.Addr)}, s}
}

// serverConfig returns the configuration of a TLS server whose certificate is for
// names and addresses.
func serverConfig(t testing.TB, ca *testlab.Authority, subjects ...string) *tls.Config {
	t.Helper()
	cert, err := ca.Issue(subjects...)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{*cert}}
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
