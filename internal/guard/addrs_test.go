package guard

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"go4.org/netipx"
)

func compile(t testing.TB, c Config) *Rules {
	t.Helper()
	r, err := c.Compile()
	if err != nil {
		t.Fatalf("Compile(%+v): %v", c, err)
	}
	return r
}

// checkAddr asks both ways, and returns the rule of a refusal or "".
func checkAddr(t testing.TB, r *Rules, a netip.Addr) string {
	t.Helper()
	err := r.CheckAddr(a)
	if allowed := r.AllowsAddr(a); allowed != (err == nil) {
		t.Fatalf("AllowsAddr(%s) = %t, but CheckAddr: %v", a, allowed, err)
	}
	if err == nil {
		return ""
	}
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("CheckAddr(%s): %T is not a refusal", a, err)
	}
	if refusal.Kind != KindAddress || refusal.Value != a.String() || !slices.Contains(RefusalRules(), refusal.Rule) {
		t.Fatalf("CheckAddr(%s) = %+v, want a refusal of the address with a known rule", a, refusal)
	}
	return refusal.Rule
}

// TestRegistries has the rows of the registries a second time, with what is
// before and after each block, so that a slip in the table of blocks is seen.
// It is long because its table is.
func TestRegistries(t *testing.T) {
	const global = ""
	for _, test := range []struct {
		cidr          string
		before        string // rule for the address before the block; "-" if there is none
		first, inside string
		last, after   string
	}{
		{"0.0.0.0/8", "-", RuleUnspecified, RuleThisNetwork, RuleThisNetwork, global},
		{"0.0.0.0/32", "-", RuleUnspecified, RuleUnspecified, RuleUnspecified, RuleThisNetwork},
		{"10.0.0.0/8", global, RulePrivate, RulePrivate, RulePrivate, global},
		{"100.64.0.0/10", global, RuleShared, RuleShared, RuleShared, global},
		{"127.0.0.0/8", global, RuleLoopback, RuleLoopback, RuleLoopback, global},
		{"169.254.0.0/16", global, RuleLinkLocal, RuleLinkLocal, RuleLinkLocal, global},
		{"172.16.0.0/12", global, RulePrivate, RulePrivate, RulePrivate, global},
		{"192.0.0.0/24", global, RuleProtocol, RuleProtocol, RuleProtocol, global},
		{"192.0.0.0/29", global, RuleProtocol, RuleProtocol, RuleProtocol, RuleProtocol},
		{"192.0.0.8/32", RuleProtocol, RuleProtocol, RuleProtocol, RuleProtocol, global},
		{"192.0.0.9/32", RuleProtocol, global, global, global, global},
		{"192.0.0.10/32", global, global, global, global, RuleProtocol},
		{"192.0.0.170/31", RuleProtocol, RuleProtocol, RuleProtocol, RuleProtocol, RuleProtocol},
		{"192.0.2.0/24", global, RuleDocumentation, RuleDocumentation, RuleDocumentation, global},
		{"192.31.196.0/24", global, global, global, global, global},
		{"192.52.193.0/24", global, global, global, global, global},
		{"192.88.99.0/24", global, RuleTransition, RuleTransition, RuleTransition, global},
		{"192.168.0.0/16", global, RulePrivate, RulePrivate, RulePrivate, global},
		{"192.175.48.0/24", global, global, global, global, global},
		{"198.18.0.0/15", global, RuleBenchmarking, RuleBenchmarking, RuleBenchmarking, global},
		{"198.51.100.0/24", global, RuleDocumentation, RuleDocumentation, RuleDocumentation, global},
		{"203.0.113.0/24", global, RuleDocumentation, RuleDocumentation, RuleDocumentation, global},
		{"224.0.0.0/4", global, RuleMulticast, RuleMulticast, RuleMulticast, RuleReserved},
		{"240.0.0.0/4", RuleMulticast, RuleReserved, RuleReserved, RuleBroadcast, "-"},
		{"255.255.255.255/32", RuleReserved, RuleBroadcast, RuleBroadcast, RuleBroadcast, "-"},

		{"::/128", "-", RuleUnspecified, RuleUnspecified, RuleUnspecified, RuleLoopback},
		{"::1/128", RuleUnspecified, RuleLoopback, RuleLoopback, RuleLoopback, RuleTransition},
		{"::/96", "-", RuleUnspecified, RuleTransition, RuleTransition, RuleReserved},
		// The addresses before and after the v4-mapped block; its own are IPv4.
		{"::ffff:0.0.0.0/96", RuleReserved, RuleUnspecified, global, RuleBroadcast, RuleReserved},
		{"::ffff:0:0:0/96", RuleReserved, RuleTransition, RuleTransition, RuleTransition, RuleReserved},
		{"64:ff9b::/96", RuleReserved, RuleUnspecified, global, RuleBroadcast, RuleReserved},
		{"64:ff9b:1::/48", RuleReserved, RuleTransition, RuleTransition, RuleTransition, RuleReserved},
		{"100::/64", RuleReserved, RuleReserved, RuleReserved, RuleReserved, RuleReserved},
		{"100:0:0:1::/64", RuleReserved, RuleReserved, RuleReserved, RuleReserved, RuleReserved},
		{"2000::/3", RuleReserved, global, global, global, RuleReserved},
		{"2001::/23", global, RuleTransition, RuleProtocol, RuleProtocol, global},
		{"2001::/32", global, RuleTransition, RuleTransition, RuleTransition, RuleProtocol},
		{"2001:1::1/128", RuleProtocol, global, global, global, global},
		{"2001:1::2/128", global, global, global, global, global},
		{"2001:1::3/128", global, global, global, global, RuleProtocol},
		{"2001:2::/48", RuleProtocol, RuleBenchmarking, RuleBenchmarking, RuleBenchmarking, RuleProtocol},
		{"2001:3::/32", RuleProtocol, global, global, global, RuleProtocol},
		{"2001:4:112::/48", RuleProtocol, global, global, global, RuleProtocol},
		{"2001:10::/28", RuleProtocol, RuleProtocol, RuleProtocol, RuleProtocol, global},
		{"2001:20::/28", RuleProtocol, global, global, global, global},
		{"2001:30::/28", global, global, global, global, RuleProtocol},
		{"2001:db8::/32", global, RuleDocumentation, RuleDocumentation, RuleDocumentation, global},
		{"2002::/16", global, RuleUnspecified, global, RuleBroadcast, global},
		{"2620:4f:8000::/48", global, global, global, global, global},
		{"3fff::/20", global, RuleDocumentation, RuleDocumentation, RuleDocumentation, global},
		{"5f00::/16", RuleReserved, RuleReserved, RuleReserved, RuleReserved, RuleReserved},
		{"fc00::/7", RuleReserved, RulePrivate, RulePrivate, RulePrivate, RuleReserved},
		{"fe80::/10", RuleReserved, RuleLinkLocal, RuleLinkLocal, RuleLinkLocal, RulePrivate},
		{"fec0::/10", RuleLinkLocal, RulePrivate, RulePrivate, RulePrivate, RuleMulticast},
		{"ff00::/8", RulePrivate, RuleMulticast, RuleMulticast, RuleMulticast, "-"},
	} {
		t.Run(test.cidr, func(t *testing.T) {
			r := compile(t, Config{})
			p := netipx.RangeOfPrefix(netip.MustParsePrefix(test.cidr))
			for _, c := range []struct {
				what string
				addr netip.Addr
				want string
			}{
				{"before", p.From().Prev(), test.before},
				{"first", p.From(), test.first},
				{"inside", middle(p), test.inside},
				{"last", p.To(), test.last},
				{"after", p.To().Next(), test.after},
			} {
				if c.want == "-" {
					if c.addr.IsValid() {
						t.Errorf("%s: there is %s, want none", c.what, c.addr)
					}
					continue
				}
				if got := checkAddr(t, r, c.addr); got != c.want {
					t.Errorf("%s: %s: got rule %q, want %q", c.what, c.addr, got, c.want)
				}
			}
		})
	}
}

// middle returns an address from the middle of a range.
func middle(p netipx.IPRange) netip.Addr {
	from, to := p.From().AsSlice(), p.To().AsSlice()
	for i := range from {
		if from[i] != to[i] {
			from[i] = byte((int(from[i]) + int(to[i]) + 1) / 2)
			break
		}
	}
	a, _ := netip.AddrFromSlice(from)
	return a
}

// TestBlocksByLongestPrefix compares the compiled set with the table, read as
// a routing table, around the ends of every row.
func TestBlocksByLongestPrefix(t *testing.T) {
	set := globallyRoutable()
	for _, b := range blocks {
		p := netipx.RangeOfPrefix(b.prefix)
		for _, a := range []netip.Addr{p.From().Prev(), p.From(), p.From().Next(), p.To().Prev(), p.To(), p.To().Next()} {
			if !a.IsValid() || a.Is4In6() {
				continue
			}
			if got, want := set.Contains(a), blockOf(a).rule == ""; got != want {
				t.Errorf("%s, at the edge of %s: in the set %t, by longest prefix %t", a, b.prefix, got, want)
			}
		}
		if b.prefix != b.prefix.Masked() {
			t.Errorf("%s has bits beyond its length", b.prefix)
		}
	}
}

// TestCheckAddr has addresses and the rule that refuses each. It is long because its
// table is.
func TestCheckAddr(t *testing.T) {
	const global = ""
	type want map[string]string
	for _, test := range []struct {
		name   string
		config Config
		want   want
	}{
		{
			name: "default",
			want: want{
				"8.8.8.8":              global,
				"1.1.1.1":              global,
				"2606:4700:4700::1111": global,
				"2a00:1450:4001::200e": global,

				"169.254.169.254":            RuleMetadata,
				"169.254.169.253":            RuleLinkLocal,
				"169.254.170.2":              RuleMetadata,
				"169.254.170.23":             RuleMetadata,
				"168.63.129.16":              RuleMetadata,
				"168.63.129.17":              global,
				"100.100.100.200":            RuleMetadata,
				"192.0.0.192":                RuleMetadata,
				"fd00:ec2::254":              RuleMetadata,
				"fd00:ec2::23":               RuleMetadata,
				"fd20:ce::254":               RuleMetadata,
				"fe80::a9fe:a9fe":            RuleMetadata,
				"::ffff:169.254.169.254":     RuleMetadata,
				"64:ff9b::169.254.169.254":   RuleMetadata,
				"2002:a9fe:a9fe::1":          RuleMetadata,
				"64:ff9b:1::169.254.169.254": RuleTransition,

				"::ffff:8.8.8.8":           global,
				"::ffff:127.0.0.1":         RuleLoopback,
				"::ffff:10.1.2.3":          RulePrivate,
				"::ffff:0.0.0.0":           RuleUnspecified,
				"::127.0.0.1":              RuleTransition,
				"::8.8.8.8":                RuleTransition,
				"::ffff:0:127.0.0.1":       RuleTransition,
				"::ffff:0:8.8.8.8":         RuleTransition,
				"64:ff9b::8.8.8.8":         global,
				"64:ff9b::127.0.0.1":       RuleLoopback,
				"64:ff9b::10.0.0.1":        RulePrivate,
				"64:ff9b::1:8.8.8.8":       RuleReserved,
				"2002:808:808::1":          global,
				"2002:7f00:1::1":           RuleLoopback,
				"2002:c0a8:101::":          RulePrivate,
				"2002:e000:1::":            RuleMulticast,
				"2001:0:808:808::f7f7":     RuleTransition,
				"2a00::5efe:8.8.8.8":       global,
				"2a00::5efe:10.0.0.1":      RulePrivate,
				"2a00::200:5efe:7f00:1":    RuleLoopback,
				"2a00::300:5efe:7f00:1":    RuleLoopback,
				"2a00::400:5efe:7f00:1":    global, // not ISATAP
				"2a00::5eff:10.0.0.1":      global,
				"2002:808:808::5efe:a00:1": RulePrivate,

				"fe80::1%eth0":        RuleZone,
				"2606:4700::1%eth0":   RuleZone,
				"::ffff:8.8.8.8%eth0": RuleZone,
				"::1%lo":              RuleZone,
			},
		},
		{
			name:   "private ranges allowed",
			config: Config{AllowIPs: []string{"private_ranges"}},
			want: want{
				"8.8.8.8":         global,
				"10.0.0.0":        global,
				"10.255.255.255":  global,
				"172.16.0.0":      global,
				"172.31.255.255":  global,
				"172.32.0.0":      global,
				"192.168.0.0":     global,
				"192.168.255.255": global,
				"127.0.0.1":       global,
				"127.255.255.255": global,
				"fc00::":          global,
				"fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": global,
				"::1":                global,
				"::ffff:10.0.0.1":    global,
				"64:ff9b::10.0.0.1":  global,
				"2002:a00:1::1":      global,
				"2a00::5efe:a00:1":   global,
				"::":                 RuleUnspecified,
				"0.0.0.0":            RuleUnspecified,
				"0.0.0.1":            RuleThisNetwork,
				"169.254.169.254":    RuleMetadata,
				"169.254.0.1":        RuleLinkLocal,
				"100.64.0.1":         RuleShared,
				"fe80::1":            RuleLinkLocal,
				"fec0::1":            RulePrivate,
				"fd00:ec2::254":      RuleMetadata,
				"fd00:ec2::253":      global,
				"fd20:ce::254":       RuleMetadata,
				"::127.0.0.1":        RuleTransition,
				"::ffff:0:127.0.0.1": RuleTransition,
			},
		},
		{
			name:   "a metadata service opened by its address, after private ranges",
			config: Config{AllowIPs: []string{"fd00:ec2::254", "private_ranges"}},
			want:   want{"fd00:ec2::254": global, "fd20:ce::254": RuleMetadata},
		},
		{
			name:   "a metadata service opened by a CIDR",
			config: Config{AllowIPs: []string{"fd00::/8", "169.254.0.0/16"}},
			want:   want{"fd00:ec2::254": global, "169.254.169.254": global},
		},
		{
			name:   "any",
			config: Config{AllowIPs: []string{"any"}},
			want: want{
				"8.8.8.8":              global,
				"127.0.0.1":            global,
				"0.0.0.1":              global,
				"169.254.169.254":      global,
				"240.0.0.1":            global,
				"255.255.255.254":      global,
				"::1":                  global,
				"::2":                  global,
				"fe80::1":              global,
				"fd00:ec2::254":        global,
				"2001:db8::1":          global,
				"64:ff9b::10.0.0.1":    global,
				"64:ff9b:1::10.0.0.1":  global,
				"2002:a00:1::":         global,
				"::127.0.0.1":          global,
				"0.0.0.0":              RuleUnspecified,
				"::":                   RuleUnspecified,
				"::ffff:0.0.0.0":       RuleUnspecified,
				"64:ff9b::0.0.0.0":     RuleUnspecified,
				"2002::1":              RuleUnspecified,
				"255.255.255.255":      RuleBroadcast,
				"::255.255.255.255":    RuleBroadcast,
				"224.0.0.0":            RuleMulticast,
				"239.255.255.255":      RuleMulticast,
				"ff00::":               RuleMulticast,
				"ff02::1":              RuleMulticast,
				"::ffff:0:224.0.0.1":   RuleMulticast,
				"2a00::5efe:224.0.0.1": RuleMulticast,
				"fe80::1%eth0":         RuleZone,
			},
		},
		{
			name:   "any, with denied addresses in every disguise",
			config: Config{AllowIPs: []string{"any"}, DenyIPs: []string{"private_ranges", "8.8.8.8"}},
			want: want{
				"8.8.4.4":             global,
				"169.254.169.254":     global,
				"8.8.8.8":             RuleDenyIPs,
				"10.0.0.1":            RuleDenyIPs,
				"127.0.0.1":           RuleDenyIPs,
				"::1":                 RuleDenyIPs,
				"fc00::1":             RuleDenyIPs,
				"fd00:ec2::254":       RuleDenyIPs,
				"::ffff:8.8.8.8":      RuleDenyIPs,
				"::8.8.8.8":           RuleDenyIPs,
				"::ffff:0:8.8.8.8":    RuleDenyIPs,
				"64:ff9b::8.8.8.8":    RuleDenyIPs,
				"2002:808:808::1":     RuleDenyIPs,
				"2001::f7f7:f7f7":     RuleDenyIPs,
				"2001::f7f7:fbfb":     global,
				"2a00::5efe:10.0.0.1": RuleDenyIPs,
				"::":                  RuleUnspecified,
			},
		},
		{
			name:   "denied addresses",
			config: Config{DenyIPs: []string{"8.8.8.0/24", "2606:4700::/32", "10.0.0.0/8", "224.0.0.0/4"}},
			want: want{
				"8.8.7.255":        global,
				"8.8.8.0":          RuleDenyIPs,
				"8.8.8.255":        RuleDenyIPs,
				"8.8.9.0":          global,
				"2606:46ff::":      global,
				"2606:4700::":      RuleDenyIPs,
				"2606:4701::":      global,
				"10.0.0.1":         RuleDenyIPs,
				"192.168.0.1":      RulePrivate,
				"224.0.0.1":        RuleMulticast,
				"64:ff9b::8.8.8.8": RuleDenyIPs,
				"2002:808:808::":   RuleDenyIPs,
			},
		},
		{
			name:   "denied wins over allowed, whichever is longer",
			config: Config{AllowIPs: []string{"10.1.2.3", "192.168.0.0/16"}, DenyIPs: []string{"10.0.0.0/8", "192.168.1.0/24"}},
			want: want{
				"10.1.2.3":    RuleDenyIPs,
				"192.168.0.1": global,
				"192.168.1.1": RuleDenyIPs,
			},
		},
		{
			name:   "wide IPv6 entries do not open IPv4",
			config: Config{AllowIPs: []string{"::/0"}},
			want: want{
				"::1":               global,
				"fd00:ec2::254":     global,
				"10.0.0.1":          RulePrivate,
				"::ffff:10.0.0.1":   RulePrivate,
				"::10.0.0.1":        RulePrivate,
				"::8.8.8.8":         global,
				"::ffff:0:10.0.0.1": RulePrivate,
				"64:ff9b::10.0.0.1": RulePrivate,
				"2002:a00:1::":      RulePrivate,
				"2001::f5ff:fffe":   RulePrivate,
				"2a00::5efe:a00:1":  RulePrivate,
				"::":                RuleUnspecified,
				"ff02::1":           RuleMulticast,
			},
		},
		{
			name:   "entries that begin like 6to4 and Teredo but are wider",
			config: Config{AllowIPs: []string{"2002::/15", "2001::/23"}},
			want: want{
				"2002:a00:1::":    RulePrivate,
				"2001::f5ff:fffe": RulePrivate,
				"2001::f7f7:f7f7": global,
				"2001:2::1":       global,
			},
		},
		{
			name: "IPv6 addresses named in particular",
			config: Config{
				AllowIPs: []string{"64:ff9b::/96", "2002:a00::/24", "2001::/32", "2a00::5efe:a00:1"},
				DenyIPs:  []string{"10.9.0.0/16"},
			},
			want: want{
				"64:ff9b::10.0.0.1":  global,
				"64:ff9b::127.0.0.1": global,
				"64:ff9b::10.9.0.1":  RuleDenyIPs,
				"64:ff9b::224.0.0.1": RuleMulticast,
				"64:ff9b::0.0.0.0":   RuleUnspecified,
				"2002:a00:1::":       global,
				"2002:a09:1::":       RuleDenyIPs,
				"2002:c0a8:1::":      RulePrivate,
				"2001::f5ff:fffe":    global,
				"2001::f5f6:fffe":    RuleDenyIPs,
				"2a00::5efe:a00:1":   global,
				"2a00::5efe:a00:2":   RulePrivate,
				"10.0.0.1":           RulePrivate,
			},
		},
		{
			name:   "other spellings of entries",
			config: Config{AllowIPs: []string{"::ffff:10.0.0.0/104", "::ffff:192.168.1.1", "172.16.5.5/12"}, DenyIPs: []string{"::ffff:8.8.8.8/128"}},
			want: want{
				"10.255.255.255": global,
				"192.168.1.1":    global,
				"192.168.1.2":    RulePrivate,
				"172.31.0.1":     global,
				"8.8.8.8":        RuleDenyIPs,
				"8.8.8.9":        global,
			},
		},
		{
			name:   "everything denied",
			config: Config{AllowIPs: []string{"any"}, DenyIPs: []string{"0.0.0.0/0", "::/0"}},
			want:   want{"8.8.8.8": RuleDenyIPs, "2606:4700::1": RuleDenyIPs, "127.0.0.1": RuleDenyIPs, "::": RuleUnspecified},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := compile(t, test.config)
			for s, want := range test.want {
				if got := checkAddr(t, r, netip.MustParseAddr(s)); got != want {
					t.Errorf("%s: got rule %q, want %q", s, got, want)
				}
			}
			if got := checkAddr(t, r, netip.Addr{}); got != RuleInvalid {
				t.Errorf("zero address: got rule %q", got)
			}
		})
	}
}

func TestCompileAddrErrors(t *testing.T) {
	for _, test := range []struct {
		config Config
		want   string
	}{
		{Config{AllowIPs: []string{"10.0.0.0/8", ""}}, `allow_ips: entry "": neither an IP address nor a CIDR`},
		{Config{AllowIPs: []string{"example.com"}}, `allow_ips: entry "example.com": neither an IP address nor a CIDR`},
		{Config{AllowIPs: []string{"10.0.0.0/33"}}, `allow_ips: entry "10.0.0.0/33": neither an IP address nor a CIDR`},
		{Config{AllowIPs: []string{"10.0.0/8"}}, `allow_ips: entry "10.0.0/8": neither an IP address nor a CIDR`},
		{Config{AllowIPs: []string{"010.0.0.1"}}, `allow_ips: entry "010.0.0.1": neither an IP address nor a CIDR`},
		{Config{AllowIPs: []string{"10.0.0.1-10.0.0.9"}}, `allow_ips: entry "10.0.0.1-10.0.0.9": neither an IP address nor a CIDR`},
		{Config{AllowIPs: []string{"Any"}}, `allow_ips: entry "Any": neither an IP address nor a CIDR`},
		{Config{AllowIPs: []string{"fe80::1%eth0"}}, `allow_ips: entry "fe80::1%eth0": addresses with a zone cannot be called`},
		{Config{AllowIPs: []string{"fe80::%eth0/64"}}, `allow_ips: entry "fe80::%eth0/64": addresses with a zone cannot be called`},
		{Config{AllowIPs: []string{"::ffff:0:0/90"}}, `allow_ips: entry "::ffff:0:0/90": an IPv4-mapped CIDR has at least 96 bits`},
		{Config{AllowIPs: []string{"0.0.0.0"}}, `allow_ips: entry "0.0.0.0": unspecified, broadcast and multicast addresses cannot be allowed`},
		{Config{AllowIPs: []string{"::"}}, `allow_ips: entry "::": unspecified, broadcast and multicast addresses cannot be allowed`},
		{Config{AllowIPs: []string{"::ffff:0.0.0.0"}}, `allow_ips: entry "::ffff:0.0.0.0": unspecified, broadcast and multicast addresses cannot be allowed`},
		{Config{AllowIPs: []string{"239.1.0.0/16"}}, `allow_ips: entry "239.1.0.0/16": unspecified, broadcast and multicast addresses cannot be allowed`},
		{Config{AllowIPs: []string{"ff02::1"}}, `allow_ips: entry "ff02::1": unspecified, broadcast and multicast addresses cannot be allowed`},
		{Config{AllowIPs: []string{"255.255.255.255"}}, `allow_ips: entry "255.255.255.255": unspecified, broadcast and multicast addresses cannot be allowed`},
		{Config{DenyIPs: []string{"any"}}, `deny_ips: entry "any": only addresses to allow can be any; to deny all, write 0.0.0.0/0 and ::/0`},
		{Config{DenyIPs: []string{"localhost"}}, `deny_ips: entry "localhost": neither an IP address nor a CIDR`},
		{Config{DenyIPs: []string{"::1%lo"}}, `deny_ips: entry "::1%lo": addresses with a zone cannot be called`},
		{Config{DenyIPs: []string{"::ffff:0:0/95"}}, `deny_ips: entry "::ffff:0:0/95": an IPv4-mapped CIDR has at least 96 bits`},
	} {
		checkCompileError(t, test.config, test.want)
	}
	// Blocks that have such addresses among others may be allowed.
	compile(t, Config{AllowIPs: []string{"0.0.0.0/8", "::/127", "224.0.0.0/3", "255.255.255.254/31"}})
}

func checkCompileError(t *testing.T, c Config, want string) {
	t.Helper()
	r, err := c.Compile()
	if err == nil || err.Error() != want || r != nil {
		t.Errorf("Compile(%+v):\n got %v, %v\nwant %s", c, r, err, want)
	}
}

func TestRefusalText(t *testing.T) {
	r := compile(t, Config{Allow: []string{"example.com"}, DenyIPs: []string{"8.8.8.8"}, Ports: []string{"443"}})
	for _, test := range []struct {
		err  error
		want string
	}{
		{r.CheckName("a\nb"), `name "a\nb" is refused: it is neither a host name nor an IP address`},
		{r.CheckName("example.org"), `name "example.org" is refused: it is not in the allow list`},
		{r.CheckScheme("gopher\r\n"), `scheme "gopher\r\n" is refused: it is not an allowed scheme`},
		{r.CheckPort(22), `port 22 is refused: it is not an allowed port`},
		{r.CheckAddr(netip.MustParseAddr("127.0.0.1")), `address 127.0.0.1 is refused: it is a loopback address`},
		{r.CheckAddr(netip.MustParseAddr("8.8.8.8")), `address 8.8.8.8 is refused: it is in the list of denied addresses`},
		{r.CheckAddr(netip.MustParseAddr("64:ff9b::a00:1")), `address 64:ff9b::a00:1 is refused: it embeds 10.0.0.1, which is a private address`},
	} {
		if test.err == nil || test.err.Error() != test.want {
			t.Errorf("got %v, want %s", test.err, test.want)
		}
	}
	seen := map[string]bool{}
	for _, rule := range RefusalRules() {
		if seen[rule] {
			t.Errorf("rule %q stands twice", rule)
		}
		seen[rule] = true
	}
}

// embeddedOf is a second way to find IPv4 addresses inside IPv6 ones, for the
// fuzz target.
func embeddedOf(a netip.Addr) (v4s []netip.Addr) {
	b := a.As16()
	if netip.MustParsePrefix("2002::/16").Contains(a) {
		v4s = append(v4s, netip.AddrFrom4([4]byte(b[2:6])))
	}
	if netip.MustParsePrefix("64:ff9b::/96").Contains(a) {
		v4s = append(v4s, netip.AddrFrom4([4]byte(b[12:])))
	}
	return v4s
}

func FuzzCheckAddr(f *testing.F) {
	for _, s := range []string{
		"0.0.0.0", "8.8.8.8", "10.0.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.0.1", "224.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "2002:7f00:1::", "2002:808:808::1",
		"2001::f5ff:fffe", "2001:db8::1", "2606:4700::1111", "fd00:ec2::254", "fe80::1", "ff02::1", "2a00::5efe:a00:1",
	} {
		f.Add(netip.MustParseAddr(s).AsSlice())
	}
	def := compile(f, Config{})
	private := compile(f, Config{AllowIPs: []string{"private_ranges"}})
	denied := compile(f, Config{AllowIPs: []string{"any"}, DenyIPs: []string{"private_ranges"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		u := a.Unmap()
		checkAddr(t, private, a)
		if checkAddr(t, def, a) == "" {
			for _, x := range append(embeddedOf(u), u) {
				if x.IsPrivate() || x.IsLoopback() || x.IsLinkLocalUnicast() || x.IsMulticast() || x.IsUnspecified() || !x.IsGlobalUnicast() {
					t.Errorf("%s is allowed by default", a)
				}
			}
			if !private.AllowsAddr(a) {
				t.Errorf("%s is allowed by default, but not with more allowed", a)
			}
		}
		if checkAddr(t, denied, a) == "" {
			for _, x := range append(embeddedOf(u), u) {
				if x.IsPrivate() || x.IsLoopback() || x.IsMulticast() || x.IsUnspecified() {
					t.Errorf("%s is allowed though denied", a)
				}
			}
		}
		if a.Is6() && checkAddr(t, denied, a.WithZone("eth0")) != RuleZone {
			t.Errorf("%s is allowed with a zone", a)
		}
		if a.Is4() && checkAddr(t, def, netip.AddrFrom16(a.As16())) != checkAddr(t, def, a) {
			t.Errorf("%s is treated differently in IPv6", a)
		}
	})
}

// thousandCIDRs has 1000 CIDRs to allow and as many to deny, all apart.
func thousandCIDRs() Config {
	var c Config
	for i := range 500 {
		c.AllowIPs = append(c.AllowIPs, fmt.Sprintf("10.%d.%d.0/24", i/128, i%128*2), fmt.Sprintf("fd00:%x::/32", i*2))
		c.DenyIPs = append(c.DenyIPs, fmt.Sprintf("50.%d.%d.0/24", i/128, i%128*2), fmt.Sprintf("2a00:%x::/32", i*2))
	}
	return c
}

func BenchmarkAllowsAddr(b *testing.B) {
	for _, config := range []struct {
		name string
		c    Config
	}{{"default", Config{}}, {"1000 allowed and 1000 denied CIDRs", thousandCIDRs()}} {
		r := compile(b, config.c)
		for _, test := range []struct {
			addr string
			want bool
		}{
			{"8.8.8.8", true}, {"127.0.0.1", false}, {"::ffff:8.8.8.8", true}, {"2606:4700::1111", true}, {"64:ff9b::8.8.8.8", true}, {"fe80::1", false},
		} {
			b.Run(config.name+"/"+test.addr, func(b *testing.B) {
				a := netip.MustParseAddr(test.addr)
				b.ReportAllocs()
				for b.Loop() {
					if got := r.AllowsAddr(a); got != test.want {
						b.Fatalf("allowed: got %t, want %t", got, test.want)
					}
				}
			})
		}
		b.Run(config.name+"/random", func(b *testing.B) {
			addrs := make([]netip.Addr, 1<<12)
			for i := range addrs {
				var in [16]byte
				for j := range in {
					in[j] = byte(rand.Uint32())
				}
				if addrs[i] = netip.AddrFrom4([4]byte(in[:4])); i%2 == 0 {
					in[0] = 0x20 | in[0]&0x1f
					addrs[i] = netip.AddrFrom16(in)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r.AllowsAddr(addrs[i%len(addrs)])
				i++
			}
		})
	}
}

func TestAllowsAddrAllocates(t *testing.T) {
	r := compile(t, thousandCIDRs())
	for _, s := range []string{"8.8.8.8", "10.0.0.1", "127.0.0.1", "64:ff9b::8.8.8.8", "2606:4700::1111", "fe80::1%eth0"} {
		a := netip.MustParseAddr(s)
		if n := testing.AllocsPerRun(100, func() { r.AllowsAddr(a) }); n != 0 {
			t.Errorf("AllowsAddr(%s) allocates %v times", s, n)
		}
	}
}
