package dnsclient

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseNameserver(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.53":                "10.0.0.53:53",
		"10.0.1.53:5353":           "10.0.1.53:5353",
		"::1":                      "[::1]:53",
		"[::1]":                    "[::1]:53",
		"[::1]:5353":               "[::1]:5353",
		"fe80::1%eth0":             "[fe80::1%eth0]:53",
		"[fe80::1%eth0]:5353":      "[fe80::1%eth0]:5353",
		"udp://10.0.0.53":          "10.0.0.53:53",
		"udp://[2001:db8::1]:5353": "[2001:db8::1]:5353",
		"tcp://10.0.0.53":          "tcp://10.0.0.53:53",
		"tcp://::1":                "tcp://[::1]:53",
		"::ffff:10.0.0.53":         "10.0.0.53:53",
		"[::ffff:10.0.0.53]:54":    "10.0.0.53:54",

		"tls://9.9.9.9":                                 "tls://9.9.9.9:853",
		"tls://9.9.9.9#dns.quad9.net":                   "tls://9.9.9.9:853#dns.quad9.net",
		"tls://[2620:fe::fe]:8853#DNS.Quad9.net.":       "tls://[2620:fe::fe]:8853#dns.quad9.net",
		"tls://2620:fe::fe#dns.quad9.net":               "tls://[2620:fe::fe]:853#dns.quad9.net",
		"tls://fe80::1%eth0":                            "tls://[fe80::1%eth0]:853",
		"tls://::ffff:10.0.0.53":                        "tls://10.0.0.53:853",
		"tls://dns.quad9.net":                           "tls://dns.quad9.net:853",
		"tls://DNS.quad9.net.:8853":                     "tls://dns.quad9.net:8853",
		"tls://resolver":                                "tls://resolver:853",
		"https://9.9.9.9/dns-query":                     "https://9.9.9.9:443/dns-query",
		"https://9.9.9.9":                               "https://9.9.9.9:443/dns-query",
		"https://9.9.9.9/":                              "https://9.9.9.9:443/",
		"https://9.9.9.9:8443#dns.quad9.net":            "https://9.9.9.9:8443/dns-query#dns.quad9.net",
		"https://[2620:fe::fe]/dns-query#dns.quad9.net": "https://[2620:fe::fe]:443/dns-query#dns.quad9.net",
		"https://[fe80::1%eth0]:8443/q":                 "https://[fe80::1%eth0]:8443/q",
		"https://dns.quad9.net":                         "https://dns.quad9.net:443/dns-query",
		"https://dns.quad9.net:8443/a%2Fb/?tenant=1":    "https://dns.quad9.net:8443/a%2Fb/?tenant=1",
		"https://dns.quad9.net?tenant=@1":               "https://dns.quad9.net:443/dns-query?tenant=@1",
	} {
		got, err := ParseNameserver(in)
		if err != nil || got.String() != want {
			t.Errorf("%q is %v, %v; want %s", in, got, err, want)
		}
	}
}

func TestParseNameserverErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "not an IP address",
		"ns.example":                      "not an IP address",
		"ns.example:53":                   "not an IP address",
		"10.0.0.53:":                      `port "" is not a number from 1 to 65535`,
		"10.0.0.53:0":                     `port "0" is not a number from 1 to 65535`,
		"10.0.0.53:65536":                 `port "65536" is not a number from 1 to 65535`,
		"10.0.0.53/24":                    "not an IP address",
		"[10.0.0.53":                      "not an IP address",
		"[[::1]]":                         "not an IP address",
		"10.0.0.53 ":                      "not an IP address",
		"10.0.0.53%eth0":                  "not an IP address",
		"010.0.0.53":                      "not an IP address",
		"udp://":                          "not an IP address",
		"udp://10.0.0.53/":                "not an IP address",
		"tcp://udp://10.0.0.53":           "not an IP address",
		"://10.0.0.53":                    `unknown scheme ""`,
		"quic://10.0.0.53":                `unknown scheme "quic" (known are udp, tcp, tls and https)`,
		"TLS://10.0.0.53":                 `unknown scheme "TLS"`,
		"10.0.0.53#5353":                  "a name after # is for tls and https",
		"tcp://10.0.0.53#ns.example":      "a name after # is for tls and https",
		"tls://":                          `"" is not a host name`,
		"tls://#ns.example":               "needs an IP address before it",
		"tls://10.0.0.53#":                `"" is not a host name`,
		"tls://10.0.0.53#10.0.0.53":       `"10.0.0.53" is not a host name`,
		"tls://10.0.0.53#ns.example:53":   `"ns.example:53" is not a host name`,
		"tls://10.0.0.53#a#b":             `"a#b" is not a host name`,
		"tls://10.0.0.53#..":              `".." is not a host name`,
		"tls://10.0.0.53#\u212A.example":  "is not a host name", // a sign whose lower case is k
		"tls://10.0.0.256":                `"10.0.0.256" is not a host name`,
		"tls://10.0.0.53/":                `"10.0.0.53/" is not a host name`,
		"tls://10.0.0.53:0":               `port "0" is not a number from 1 to 65535`,
		"tls://ns.example:0":              `port "0" is not a number from 1 to 65535`,
		"tls://ns.example:":               "neither a host name nor an IP address",
		"tls://ns.example:65536":          "neither a host name nor an IP address",
		"tls://ns.example#ns.example":     "needs an IP address before it",
		"tls://-a.example":                `"-a.example" is not a host name`,
		"tls://[::1":                      "neither a host name nor an IP address",
		"tls://bücher.example":            "is not a host name",
		"https://":                        `"" is not a host name`,
		"https:///dns-query":              `"" is not a host name`,
		"https://user:secret@10.0.0.53":   "nameserver with a user name",
		"tls://user@ns.example":           "nameserver with a user name",
		"https://10.0.0.53/#":             `"" is not a host name`,
		"https://10.0.0.53/a b":           `path "/a b" cannot be sent`,
		"https://10.0.0.53/%zz":           `path "/%zz" cannot be sent`,
		"https://10.0.0.53/q{?dns}":       `path "/q{?dns}" cannot be sent`,
		"https://dns.example/q#a.example": "needs an IP address before it",
	} {
		got, err := ParseNameserver(in)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") || got != (Nameserver{}) {
			t.Errorf("%q is %v, %v; want an error with %q", in, got, err, want)
		}
	}
}

func FuzzParseNameserver(f *testing.F) {
	for _, seed := range []string{"10.0.0.53", "10.0.1.53:5353", "[::1]:5353", "fe80::1%eth0", "[fe80::1%eth0]:53",
		"tcp://::ffff:10.0.0.53", "tls://9.9.9.9#dns.quad9.net", "[[::1]]", "::ffff:1.2.3.4%a", "udp://fe80::%]:1",
		"tls://[2620:fe::fe]:8853#Dns.quad9.net.", "tls://dns.quad9.net:853", "https://9.9.9.9", "https://9.9.9.9/a%2fb?c=d#dns.quad9.net",
		"https://[fe80::1%a]:443//", "https://dns.example?", "https://a@b/", "tls://fe80::1%a/b#c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ns, err := ParseNameserver(s)
		if err != nil {
			if ns != (Nameserver{}) {
				t.Errorf("%q is refused with %#v, want the zero value", s, ns)
			}
			return
		}
		certified := ns.Network == "tls" || ns.Network == "https"
		if defaultPorts[ns.Network] == 0 || ns.AddrPort.Port() == 0 || ns.AddrPort.Addr().Is4In6() ||
			!ns.AddrPort.IsValid() && (!certified || ns.Name == "") || !certified && ns.Name != "" ||
			strings.HasPrefix(ns.Path, "/") != (ns.Network == "https") {
			t.Errorf("%q is %#v, want a nameserver that can be asked", s, ns)
		}
		if again, err := ParseNameserver(ns.String()); err != nil || again != ns {
			t.Errorf("%q is %v, and that is %v, %v; want the same", s, ns, again, err)
		}
	})
}

func TestZeroNameserver(t *testing.T) {
	ns := Nameserver{AddrPort: netip.MustParseAddrPort("10.0.0.53:53")}
	if ns.String() != "10.0.0.53:53" {
		t.Errorf("got %v, want 10.0.0.53:53", ns)
	}
}
