package purge

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/resolver"
	"caddytarget/internal/testlab"
)

// TestScope checks which targets at which addresses are in the scope of a purge.
func TestScope(t *testing.T) {
	dns := testlab.NewNameserver(t)
	dns.Has("a.example", "192.0.2.1", "192.0.2.2")
	dns.Has("b.a.example", "192.0.2.3")
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.9 h.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := resolver.Config{Nameservers: []string{dns.Addr}, Hosts: hosts, Family: "ipv4"}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	r := resolver.New(config)
	defer r.Close()
	r.Start()
	for _, test := range []struct {
		name  string
		p     dnscache.Purge
		count int
		in    []string // target and address
		not   []string
		all   int // families
	}{
		{
			"a name", dnscache.Purge{Name: "a.example"}, 1,
			[]string{"a.example 192.0.2.1", "a.example 192.0.2.7", " 192.0.2.1", " 192.0.2.2"},
			[]string{"b.a.example 192.0.2.1", "a 192.0.2.1", " 192.0.2.3"}, 0,
		},
		{"a name of the hosts file", dnscache.Purge{Name: "h.example"}, 0, []string{"h.example 192.0.2.9", " 192.0.2.9"}, []string{" 192.0.2.1"}, 0},
		{"an address as a name", dnscache.Purge{Name: "192.0.2.5"}, 0, []string{"192.0.2.5 192.0.2.5", " 192.0.2.5"}, []string{"a.example 192.0.2.5"}, 0},
		{
			"a suffix", dnscache.Purge{Suffix: "a.example"}, 2,
			[]string{"a.example 192.0.2.1", "b.a.example 192.0.2.7", " 192.0.2.3", " 192.0.2.2"},
			[]string{"ba.example 192.0.2.1", " 192.0.2.4"}, 0,
		},
		{
			"an address", dnscache.Purge{Addr: netip.MustParseAddr("192.0.2.1")}, 1,
			[]string{"a.example 192.0.2.1", "other.example 192.0.2.1", " 192.0.2.1"},
			[]string{"a.example 192.0.2.2", " 192.0.2.2"}, 1,
		},
		{"all", dnscache.Purge{Suffix: "."}, 2, []string{"x.example 198.51.100.1", " 2001:db8::1"}, nil, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, name := range []string{"a.example", "b.a.example"} {
				if _, err := r.Lookup(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
			s := New(test.p)
			if n := s.Names(r); n != test.count {
				t.Errorf("got %d names, want %d", n, test.count)
			}
			for _, of := range slices.Concat(test.in, test.not) {
				host, addr, _ := strings.Cut(of, " ")
				if got, want := s.includes(host, netip.MustParseAddr(addr)), slices.Contains(test.in, of); got != want {
					t.Errorf("%s: got %t, want %t", of, got, want)
				}
			}
			if n := len(s.families()); n != test.all {
				t.Errorf("got %d families, want %d", n, test.all)
			}
		})
	}
}
