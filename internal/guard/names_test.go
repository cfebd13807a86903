package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// checkName returns the rule of a refusal or "".
func checkName(t testing.TB, r *Rules, host string) string {
	t.Helper()
	err := r.CheckName(host)
	if err == nil {
		return ""
	}
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Kind != KindName || refusal.Value != host {
		t.Fatalf("CheckName(%q): got %#v, want a refusal of the name", host, err)
	}
	return refusal.Rule
}

// TestCheckName has names and the rule that refuses each. It is long because its
// table is.
func TestCheckName(t *testing.T) {
	const ok = ""
	type want map[string]string
	for _, test := range []struct {
		name        string
		allow, deny []string
		want        want
	}{
		{
			name: "no rules",
			want: want{
				"example.com":                    ok,
				"localhost":                      ok,
				"a_b.example.com":                ok,
				"r3---sn.example":                ok,
				"xn--bcher-kva.de":               ok,
				"8.8.8.8":                        ok,
				"127.0.0.1":                      ok, // its address is refused, not its name
				"::1":                            ok,
				"1.2.3.4.example":                ok,
				"0x7f.example":                   ok,
				"12ab":                           ok,
				"0x7fg":                          ok,
				strings.Repeat("a", 63) + ".com": ok,
				strings.Repeat("a.", 126) + "a":  ok,
			},
		},
		{
			name:  "not a host",
			allow: []string{"*"},
			want: want{
				"":                               RuleMalformed,
				".":                              RuleMalformed,
				"example.com.":                   RuleMalformed,
				".example.com":                   RuleMalformed,
				"a..example.com":                 RuleMalformed,
				"Example.com":                    RuleMalformed,
				"bücher.de":                      RuleMalformed,
				"exam ple.com":                   RuleMalformed,
				"example.com\t":                  RuleMalformed,
				"example.com\r\nx: y":            RuleMalformed,
				"example.com\x00":                RuleMalformed,
				"example.com%2e":                 RuleMalformed,
				"user@example.com":               RuleMalformed,
				`example.com\x`:                  RuleMalformed,
				"example.com/":                   RuleMalformed,
				"example.com#a":                  RuleMalformed,
				"*.example.com":                  RuleMalformed,
				"example.com:80":                 RuleMalformed,
				"127.0.0.1:80":                   RuleMalformed,
				"[::1]":                          RuleMalformed,
				"::1%lo":                         RuleMalformed,
				"fe80::1%25eth0":                 RuleMalformed,
				"::ffff:127.0.0.1%eth0":          RuleMalformed,
				":::1":                           RuleMalformed,
				"127.0.0.1.":                     RuleMalformed,
				"127.1":                          RuleMalformed,
				"127.0.1":                        RuleMalformed,
				"127.0.0.0.1":                    RuleMalformed,
				"0177.0.0.1":                     RuleMalformed,
				"127.0.0.01":                     RuleMalformed,
				"0x7f.1":                         RuleMalformed,
				"127.0.0.0x1":                    RuleMalformed,
				"0x7f000001":                     RuleMalformed,
				"0x":                             RuleMalformed,
				"017700000001":                   RuleMalformed,
				"2130706433":                     RuleMalformed,
				"256.256.256.256":                RuleMalformed,
				"0":                              RuleMalformed,
				"example.1":                      RuleMalformed,
				strings.Repeat("a", 64):          RuleMalformed,
				strings.Repeat("a", 64) + ".com": RuleMalformed,
				strings.Repeat("a.", 127):        RuleMalformed,
				strings.Repeat("a.", 126) + "ab": RuleMalformed,
			},
		},
		{
			name:  "exact and below",
			allow: []string{"example.com", "*.example.org", "*.b.example.net", "example.net"},
			want: want{
				"example.com":              ok,
				"www.example.com":          RuleAllow,
				"xexample.com":             RuleAllow,
				"example.com.evil":         RuleAllow,
				"com":                      RuleAllow,
				"example.org":              RuleAllow,
				"www.example.org":          ok,
				"a.b.c.example.org":        ok,
				"xexample.org":             RuleAllow,
				"a-example.org":            RuleAllow,
				"www.example.org.evil.com": RuleAllow,
				"example.net":              ok,
				"b.example.net":            RuleAllow,
				"c.example.net":            RuleAllow,
				"a.b.example.net":          ok,
				"a.xb.example.net":         RuleAllow,
				"8.8.8.8":                  RuleAllow,
				"::1":                      RuleAllow,
				"localhost":                RuleAllow,
				"1.2.3.4":                  RuleAllow,
			},
		},
		{
			name:  "deny wins",
			allow: []string{"*.example.com", "example.org", "8.8.8.8"},
			deny:  []string{"bad.example.com", "*.worse.example.com", "example.org", "8.8.8.8"},
			want: want{
				"good.example.com":      ok,
				"bad.example.com":       RuleDeny,
				"x.bad.example.com":     ok,
				"worse.example.com":     ok,
				"x.worse.example.com":   RuleDeny,
				"y.x.worse.example.com": RuleDeny,
				"xworse.example.com":    ok,
				"example.org":           RuleDeny,
				"8.8.8.8":               RuleDeny,
				"::ffff:8.8.8.8":        RuleDeny,
			},
		},
		{
			name: "deny alone",
			deny: []string{"evil.example", "*.evil.example", "metadata.google.internal", "8.8.8.8", "2001:DB8:0::1"},
			want: want{
				"example.com":              ok,
				"evil.example":             RuleDeny,
				"a.evil.example":           RuleDeny,
				"notevil.example":          ok,
				"metadata.google.internal": RuleDeny,
				"8.8.8.8":                  RuleDeny,
				"8.8.4.4":                  ok,
				"::ffff:808:808":           RuleDeny,
				"2001:db8::1":              RuleDeny,
				"2001:0db8::0001":          RuleDeny,
				"2001:DB8::1":              RuleDeny,
				"2001:db8::2":              ok,
			},
		},
		{
			name: "deny everything",
			deny: []string{"*"},
			want: want{"example.com": RuleDeny, "8.8.8.8": RuleDeny, "::1": RuleDeny},
		},
		{
			name:  "deny everything in spite of allow",
			allow: []string{"*", "example.com"},
			deny:  []string{"*"},
			want:  want{"example.com": RuleDeny, "8.8.8.8": RuleDeny},
		},
		{
			name:  "a star among others",
			allow: []string{"example.com", "*"},
			want:  want{"example.org": ok, "8.8.8.8": ok, "::1": ok},
		},
		{
			name:  "literals",
			allow: []string{"8.8.8.8", "2606:4700:0::1111", "::ffff:1.1.1.1", "9.9.9.9."},
			want: want{
				"8.8.8.8":          ok,
				"::ffff:8.8.8.8":   ok,
				"1.1.1.1":          ok,
				"9.9.9.9":          ok,
				"8.8.8.9":          RuleAllow,
				"2606:4700::1111":  ok,
				"2606:4700::1112":  RuleAllow,
				"x.8.8.8.8":        RuleMalformed,
				"example.com":      RuleAllow,
				"64:ff9b::808:808": RuleAllow,
			},
		},
		{
			name:  "spellings of entries",
			allow: []string{"EXAMPLE.com.", "*.Bücher.DE", "straße.example", "xn--mgba3a4f16a.ir", "*.ｆｕｌｌ。example", "*.COM.", "under_score.example"},
			want: want{
				"example.com":           ok,
				"xn--bcher-kva.de":      RuleAllow,
				"www.xn--bcher-kva.de":  ok,
				"xn--strae-oqa.example": ok,
				"strasse.example":       RuleAllow,
				"xn--mgba3a4f16a.ir":    ok,
				"a.full.example":        ok,
				"anything.com":          ok,
				"com":                   RuleAllow,
				"under_score.example":   ok,
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := compile(t, Config{Allow: test.allow, Deny: test.deny})
			for host, want := range test.want {
				if got := checkName(t, r, host); got != want {
					t.Errorf("%q: got rule %q, want %q", host, got, want)
				}
			}
		})
	}
}

func TestNormalizeHost(t *testing.T) {
	for _, test := range []struct{ host, want, err string }{
		{host: "example.com", want: "example.com"},
		{host: "EXAMPLE.com.", want: "example.com"},
		{host: "Bücher.de", want: "xn--bcher-kva.de"},
		{host: "XN--BCHER-KVA.de", want: "xn--bcher-kva.de"},
		{host: "faß.de", want: "xn--fa-hia.de"},
		{host: "exa\u00admple.com", want: "example.com"}, // a soft hyphen is ignored
		{host: "example。com", want: "example.com"},
		{host: "ⓔxample.com", want: "example.com"},
		{host: "127.0.0.1", want: "127.0.0.1"},
		{host: "127.0.0.1.", want: "127.0.0.1"},
		{host: "１２７.０.０.１", want: "127.0.0.1"},
		{host: "①②⑦.⓪.⓪.①", want: "127.0.0.1"},
		{host: "::1", want: "::1"},
		{host: "2001:DB8:0:0::1", want: "2001:db8::1"},
		{host: "::ffff:7f00:1", want: "127.0.0.1"},
		{host: "_dmarc.example.com", want: "_dmarc.example.com"},

		{host: "", err: "the name is empty"},
		{host: ".", err: "the name is empty"},
		{host: "..", err: "the name has an empty label"},
		{host: "a..b", err: "the name has an empty label"},
		{host: "example.com..", err: "the name has an empty label"},
		{host: "example.com。.", err: "the name has an empty label"},
		{host: strings.Repeat("a", 64) + ".com", err: "a label is longer than 63 octets"},
		{host: strings.Repeat("a.", 127) + "a", err: "the name is longer than 253 octets"},
		{host: "exa mple.com", err: "the name has a character that host names do not have"},
		{host: "a%2eb", err: "the name has a character that host names do not have"},
		{host: "a／b", err: "the name has a character that host names do not have"},
		{host: "a＠b", err: "the name has a character that host names do not have"},
		{host: "a：80", err: "the name has a character that host names do not have"},
		{host: "0x7f.1", err: "the name ends in a number but is not an IPv4 address in dotted decimal form"},
		{host: "0X7F.1", err: "the name ends in a number but is not an IPv4 address in dotted decimal form"},
		{host: "017700000001", err: "the name ends in a number but is not an IPv4 address in dotted decimal form"},
		{host: "2130706433", err: "the name ends in a number but is not an IPv4 address in dotted decimal form"},
		{host: "127.0.0.1..", err: "the name has an empty label"},
		{host: "fe80::1%eth0", err: "addresses with a zone cannot be called"},
		{host: "example.com:80", err: "a colon stands only in an IPv6 address"},
		{host: "[::1]", err: "a colon stands only in an IPv6 address"},
		{host: "xn--a", err: `converting the name to ASCII: idna: invalid label "\u0080"`},
		{host: "aℵb", err: `converting the name to ASCII: idna: invalid label "xn--ab-vld"`},
		{host: "xn--ab-vld", err: `converting the name to ASCII: idna: invalid label "xn--ab-vld"`},
		{host: "ℵ", want: "xn--4db"},
		{host: "a\xffb", err: "the name is not valid UTF-8"},
		{host: "a\ufffdb", err: "converting the name to ASCII: idna: disallowed rune U+FFFD"},
		{host: strings.Repeat("ü.", 400), err: "the name is longer than 253 octets"},
		{host: strings.Repeat("漢", 85) + ".example", err: "a label is longer than 63 octets"},
		{host: "example．" + strings.Repeat("漢", 85), err: "a label is longer than 63 octets"},
		{host: strings.Repeat("u\u0308", 57), want: "xn--tda" + strings.Repeat("a", 56)}, // the longest label, decomposed
		{host: "a.xn--.com", err: "the name has an empty label"},
	} {
		got, err := NormalizeHost(test.host)
		if test.err != "" {
			if err == nil || err.Error() != test.err {
				t.Errorf("NormalizeHost(%q) = %q, %v, want error %s", test.host, got, err, test.err)
			}
		} else if got != test.want || err != nil {
			t.Errorf("NormalizeHost(%q) = %q, %v, want %q", test.host, got, err, test.want)
		}
	}
}

// TestNormalizeHostTime has the hosts on which UTS 46 takes longest. Without a
// limit they take minutes.
func TestNormalizeHostTime(t *testing.T) {
	var han strings.Builder
	for c := rune(0x4e00); han.Len() < 1<<20; c = 0x4e00 + (c-0x4e00+1)%20000 {
		han.WriteRune(c)
	}
	start := time.Now()
	for _, host := range []string{han.String(), han.String()[:3*84], "XN--" + strings.Repeat("a", 1<<20), strings.Repeat("ü.", 1<<19)} {
		if got, err := NormalizeHost(host); err == nil {
			t.Errorf("got %q, want an error", got)
		}
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %s, want at most 1s", d)
	}
}

func TestCompileNameErrors(t *testing.T) {
	const wildcard = `a wildcard stands only alone or as the whole first label, as in "*.example.com"`
	for entry, want := range map[string]string{
		"":                                "the name is empty",
		".":                               "the name is empty",
		"*.":                              "the name is empty",
		"https://example.com":             "a name has no scheme; schemes are a rule of their own",
		"example.com/path":                "a name has no slash; CIDRs belong in the lists of addresses",
		"10.0.0.0/8":                      "a name has no slash; CIDRs belong in the lists of addresses",
		"[::1]":                           "an IP literal is written without brackets",
		"example.com:443":                 "a name has no port; ports are a rule of their own",
		"a..example.com":                  "the name has an empty label",
		".example.com":                    "the name has an empty label",
		"*..example.com":                  "the name has an empty label",
		"*example.com":                    wildcard,
		"*.*.example.com":                 wildcard,
		"www.*.example.com":               wildcard,
		"example.*":                       wildcard,
		"**":                              wildcard,
		"＊.example.com":                   "the name has a character that host names do not have",
		"*.8.8.8.8":                       "an IP address has nothing below it",
		"*.::1":                           "an IP address has nothing below it",
		"127.1":                           "the name ends in a number but is not an IPv4 address in dotted decimal form",
		"*.168.192":                       "the name ends in a number but is not an IPv4 address in dotted decimal form",
		"::1%lo":                          "addresses with a zone cannot be called",
		"user@example.com":                "the name has a character that host names do not have",
		"exa mple.com":                    "the name has a character that host names do not have",
		"a,b":                             "the name has a character that host names do not have",
		"xn--a.com":                       `converting the name to ASCII: idna: invalid label "\u0080"`,
		strings.Repeat("a", 64) + ".com":  "a label is longer than 63 octets",
		strings.Repeat("a.", 127) + "com": "the name is longer than 253 octets",
	} {
		checkCompileError(t, Config{Allow: []string{"example.com", entry}}, fmt.Sprintf("allow: entry %q: %s", entry, want))
		checkCompileError(t, Config{Deny: []string{entry}}, fmt.Sprintf("deny: entry %q: %s", entry, want))
	}
}

// naiveName applies rules that are names to a normalised name, slowly.
func naiveName(host string, allow, deny []string) string {
	match := func(list []string) bool {
		labels := strings.Split(host, ".")
		for _, rule := range list {
			if rule == host {
				return true
			}
			if below, ok := strings.CutPrefix(rule, "*."); ok {
				for i := 1; i < len(labels); i++ {
					if strings.Join(labels[i:], ".") == below {
						return true
					}
				}
			}
		}
		return false
	}
	switch {
	case match(deny):
		return RuleDeny
	case !match(allow):
		return RuleAllow
	}
	return ""
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{
		"", ".", "example.com", "www.example.com", "bad.example.com", "x.worse.example.com", "EXAMPLE.COM.", "bücher.de", "xn--bcher-kva.de", "a..b",
		"127.0.0.1", "::1", "::ffff:8.8.8.8", "fe80::1%eth0", "0x7f.1", "017700000001", "2130706433", "1２7.0.0.1", "example.com\r\n", "a@b", `a\b`, "a/b", "com", "xn--a", "8.8.8.8", "aℵb",
	} {
		f.Add(s)
	}
	allow := []string{"example.com", "*.example.com", "*.xn--bcher-kva.de", "*.a", "b.b", "8.8.8.8"}
	deny := []string{"bad.example.com", "*.worse.example.com", "*.b.a"}
	r := compile(f, Config{Allow: allow, Deny: deny})
	all := compile(f, Config{})
	f.Fuzz(func(t *testing.T, host string) {
		n, err := NormalizeHost(host)
		if err != nil {
			// What is no host is refused as it is, but CheckName does not decode
			// Punycode.
			if all.CheckName(host) == nil && !strings.Contains(host, "xn--") {
				t.Errorf("%q is no host (%v), but allowed", host, err)
			}
			return
		}
		if again, err := NormalizeHost(n); again != n || err != nil {
			t.Errorf("%q is normalised to %q, and that to %q, %v", host, n, again, err)
		}
		if err := all.CheckName(n); err != nil {
			t.Errorf("%q is normalised to %q, but that is refused: %v", host, n, err)
		}
		got := checkName(t, r, n)
		if want := naiveName(n, allow, deny); got != want {
			t.Errorf("%q: got rule %q, want %q", n, got, want)
		}
		// A name that was not normalised is refused. If it is a literal, it is
		// treated like its normal form.
		if a, err := netip.ParseAddr(host); host != n && all.CheckName(host) == nil {
			if err != nil || a.Unmap().String() != n || checkName(t, r, host) != got {
				t.Errorf("%q is allowed, but is not the host %q", host, n)
			}
		}
		// A rule that is made of a host matches that host.
		if only, err := (Config{Allow: []string{host}}).Compile(); err != nil || only.CheckName(n) != nil {
			t.Errorf("%q does not match itself as a rule: %v", host, err)
		}
	})
}

func thousandNames() Config {
	var c Config
	for i := range 500 {
		c.Allow = append(c.Allow, fmt.Sprintf("host%d.example.com", i), fmt.Sprintf("*.customer%d.example.net", i))
		c.Deny = append(c.Deny, fmt.Sprintf("bad%d.example.com", i), fmt.Sprintf("*.evil%d.example.org", i))
	}
	return c
}

func BenchmarkCheckName(b *testing.B) {
	for _, config := range []struct {
		name string
		c    Config
	}{{"default", Config{}}, {"1000 allowed and 1000 denied names", thousandNames()}} {
		r := compile(b, config.c)
		for _, host := range []string{
			"host77.example.com",
			"api.eu-west-1.customer400.example.net",
			strings.Repeat("a.", 100) + "customer400.example.net",
		} {
			b.Run(fmt.Sprintf("%s/%.40s", config.name, host), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if r.CheckName(host) != nil {
						b.Fatal("refused, want it allowed")
					}
				}
			})
		}
	}
	r := compile(b, Config{Allow: []string{"8.8.8.8", "2606:4700::1111"}})
	for _, host := range []string{"8.8.8.8", "2606:4700::1111"} {
		b.Run("literal/"+host, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if r.CheckName(host) != nil {
					b.Fatal("refused, want it allowed")
				}
			}
		})
	}
}

func BenchmarkNormalizeHost(b *testing.B) {
	for _, host := range []string{"api.customer400.example.net", "API.customer400.example.net", "bücher.example", "8.8.8.8"} {
		b.Run(host, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := NormalizeHost(host); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestChecksAllocate(t *testing.T) {
	c := thousandNames()
	c.Allow = append(c.Allow, "8.8.8.8", "2606:4700::1111")
	c.Ports = []string{"443", "8000-8999"}
	r := compile(t, c)
	for _, host := range []string{"host77.example.com", "a.b.customer9.example.net", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"} {
		if n := testing.AllocsPerRun(100, func() {
			if r.CheckName(host) != nil || r.CheckScheme("https") != nil || r.CheckPort(443) != nil {
				t.Fatalf("%s is refused, want it allowed", host)
			}
		}); n != 0 {
			t.Errorf("the checks of %s allocate %v times", host, n)
		}
	}
	long := strings.Repeat("ü.", 1<<16)
	if n := testing.AllocsPerRun(100, func() { _, _ = NormalizeHost(long) }); n != 0 {
		t.Errorf("NormalizeHost of a host that is far too long allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = NormalizeHost("host77.example.com.") }); n != 0 {
		t.Errorf("NormalizeHost allocates %v times", n)
	}
}
