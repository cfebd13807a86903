package localnet

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
)

// TestAccount: a listener of a site is its site's, another one is not; and a name of which
// it is not known what it stands for may be any address of this machine.
func TestAccount(t *testing.T) {
	open := map[string]bool{
		"tcp :80": true, "tcp gateway.example:81": true, "tcp6 [2600::1]:82": true, "tcp 127.0.0.1:83": true, "tcp localhost:83": true, "tcp localhost:84": true,
	}
	c := &Account{Usage: func(network, hostport string) int {
		if open[network+" "+hostport] {
			return 1
		}
		return 0
	}}
	c.AddSite("tcp", ":80")
	c.AddSite("tcp", "gateway.example:81")
	c.AddSite("tcp6", "[2600::1]:82")
	c.AddSite("tcp", "127.0.0.1:83")
	for _, host := range []string{"gateway.example", "", "192.0.2.1", "2600::1", "2600:0::1", "gateway.example"} {
		c.AddHost(host)
	}
	if want := []string{"", "2600:0::1", "gateway.example"}; !slices.Equal(c.hosts, want) {
		t.Errorf("got the hosts %q, want %q: no addresses in their usual spelling", c.hosts, want)
	}
	for _, tc := range []struct {
		addr string
		want Owner
	}{
		{"192.0.2.1:80", OwnSite},
		{"[2600::1]:80", OwnSite},
		{"192.0.2.1:81", OwnSite},
		{"[2600::1]:82", OwnSite},
		{"[2600::2]:82", NotOwn},
		{"127.0.0.1:83", OwnOther},
		{"127.0.0.1:84", OwnOther},
		{"192.0.2.1:84", NotOwn},
		{"192.0.2.1:85", NotOwn},
	} {
		if got := c.Owner(netip.MustParseAddrPort(tc.addr)); got != tc.want {
			t.Errorf("%s: got owner %d, want %d", tc.addr, got, tc.want)
		}
	}
}

// wrapper embeds what it wraps, and hiding does not.
type (
	wrapper struct{ net.Listener }
	hiding  struct{ inner net.Listener }
)

func (h hiding) Accept() (net.Conn, error) { return h.inner.Accept() }
func (h hiding) Close() error              { return h.inner.Close() }
func (h hiding) Addr() net.Addr            { return h.inner.Addr() }

// TestIDsOf: the socket of a listener is found below wrappers that embed it.
func TestIDsOf(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	id, err := connID(l.(*net.TCPListener))
	switch {
	case errors.Is(err, errUnsupported):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	loop := &wrapper{}
	loop.Listener = loop
	got := IDsOf([]net.Listener{l, wrapper{l}, &wrapper{wrapper{l}}, hiding{l}, wrapper{hiding{l}}, wrapper{}, loop})
	if want := []uint64{id, id, id}; !slices.Equal(got, want) {
		t.Errorf("got the sockets %v, want %v", got, want)
	}
}
