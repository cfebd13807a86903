package localnet

import (
	"net/netip"
	"testing"
)

func TestHears(t *testing.T) {
	for _, test := range []struct {
		listener string
		only6    bool
		hears    []string
		not      []string
	}{
		{"0.0.0.0:80", false, []string{"127.0.0.1:80", "8.8.8.8:80"}, []string{"[::1]:80", "127.0.0.1:81"}},
		{"[::]:80", false, []string{"127.0.0.1:80", "[::1]:80", "[2600::1]:80"}, []string{"[::1]:81"}},
		{"[::]:80", true, []string{"[::1]:80", "[2600::1]:80"}, []string{"127.0.0.1:80"}},
		{"127.0.0.1:80", false, []string{"127.0.0.1:80"}, []string{"127.0.0.2:80", "[::1]:80", "127.0.0.1:81"}},
		{"[::1]:80", false, []string{"[::1]:80"}, []string{"127.0.0.1:80", "[::2]:80"}},
	} {
		l := listener{Addr: netip.MustParseAddrPort(test.listener), OnlyIPv6: test.only6}
		for _, a := range test.hears {
			if !l.hears(netip.MustParseAddrPort(a)) {
				t.Errorf("%+v does not hear %s", l, a)
			}
		}
		for _, a := range test.not {
			if l.hears(netip.MustParseAddrPort(a)) {
				t.Errorf("%+v hears %s, want it not to", l, a)
			}
		}
	}
}

// TestIsLocal is about addresses that every machine has.
func TestIsLocal(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"} {
		if !isLocal(netip.MustParseAddr(a)) {
			t.Errorf("%s is not local", a)
		}
	}
	for _, a := range []string{"192.0.2.1", "2001:db8::1", "255.255.255.255", "224.0.0.1"} {
		if isLocal(netip.MustParseAddr(a)) {
			t.Errorf("%s is local, want it not to be", a)
		}
	}
	all, err := Addresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() && !isLocal(p.Addr()) {
			t.Errorf("%s of this machine is not local", p)
		}
	}
}

func BenchmarkIsLocal(b *testing.B) {
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		addr := netip.MustParseAddr(a)
		b.Run(a, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				isLocal(addr)
			}
		})
	}
}
