package targeturl

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// TestParse checks what is read of a target. It is long because its table is.
func TestParse(t *testing.T) {
	for _, test := range []struct {
		name  string
		in    string
		want  string // scheme, host, port, Host header
		path  string // empty: the target has none
		query string
		args  bool // there is a question mark
	}{
		{name: "http", in: "http://example.com", want: "http example.com 80 example.com"},
		{name: "https", in: "https://example.com", want: "https example.com 443 example.com"},
		{name: "h2c", in: "h2c://example.com", want: "h2c example.com 80 example.com"},
		{name: "scheme that is refused later", in: "ftp://example.com/x", want: "ftp example.com 0 example.com", path: "/x"},
		{name: "host alone", in: "example.com", want: "http example.com 80 example.com"},
		{name: "host and port", in: "example.com:8080", want: "http example.com 8080 example.com:8080"},
		{name: "host and port 443", in: "example.com:443", want: "https example.com 443 example.com"},
		{name: "host and port 80", in: "example.com:80", want: "http example.com 80 example.com"},
		{name: "default port", in: "https://example.com:443", want: "https example.com 443 example.com"},
		{name: "the other scheme's port", in: "http://example.com:443", want: "http example.com 443 example.com:443"},
		{name: "port with leading zeros", in: "http://example.com:0080", want: "http example.com 80 example.com"},
		{name: "highest port", in: "http://example.com:65535", want: "http example.com 65535 example.com:65535"},

		{name: "root", in: "http://example.com/", want: "http example.com 80 example.com", path: "/"},
		{name: "path", in: "http://example.com/a/b", want: "http example.com 80 example.com", path: "/a/b"},
		{name: "path that is not clean", in: "http://example.com//a/../b/./", want: "http example.com 80 example.com", path: "//a/../b/./"},
		{name: "escapes stay", in: "http://example.com/a%2Fb%7ec%7E%2f", want: "http example.com 80 example.com", path: "/a%2Fb%7ec%7E%2f"},
		{name: "bare percent", in: "http://example.com/100%", want: "http example.com 80 example.com", path: "/100%25"},
		{name: "percent and one digit", in: "http://example.com/%4", want: "http example.com 80 example.com", path: "/%254"},
		{name: "percent and no digits", in: "http://example.com/%zz%4g", want: "http example.com 80 example.com", path: "/%25zz%254g"},
		{name: "illegal in a path", in: "http://example.com/\"<>^`{|}", want: "http example.com 80 example.com", path: "/%22%3C%3E%5E%60%7B%7C%7D"},
		{name: "allowed in a path", in: "http://example.com/-._~!$&'()*+,;=:@[]", want: "http example.com 80 example.com", path: "/-._~!$&'()*+,;=:@[]"},
		{name: "international path", in: "http://example.com/bücher", want: "http example.com 80 example.com", path: "/b%C3%BCcher"},
		{name: "encoded NUL and line end stay encoded", in: "http://example.com/%00%0d%0a", want: "http example.com 80 example.com", path: "/%00%0d%0a"},

		{name: "query", in: "http://example.com/a?b=c&d", want: "http example.com 80 example.com", path: "/a", query: "b=c&d", args: true},
		{name: "query without path", in: "http://example.com?b=c", want: "http example.com 80 example.com", path: "/", query: "b=c", args: true},
		{name: "empty query", in: "http://example.com/a?", want: "http example.com 80 example.com", path: "/a", args: true},
		{name: "empty query without path", in: "http://example.com?", want: "http example.com 80 example.com", path: "/", args: true},
		{name: "second question mark", in: "http://example.com/a?b?c", want: "http example.com 80 example.com", path: "/a", query: "b?c", args: true},
		{name: "slash in a query", in: "http://example.com?u=http://x/y", want: "http example.com 80 example.com", path: "/", query: "u=http://x/y", args: true},
		{name: "escapes in a query", in: "http://example.com/?%2f%7E%&\"<ü", want: "http example.com 80 example.com", path: "/", query: "%2f%7E%&%22%3C%C3%BC", args: true},
		{name: "no escapes in a query", in: "http://example.com/?a=%%B%%&c=100%&d=%4&e=%zz", want: "http example.com 80 example.com", path: "/", query: "a=%%B%%&c=100%&d=%4&e=%zz", args: true},
		{name: "colon and at sign after the host", in: "http://example.com/a:b@c?d@e:f", want: "http example.com 80 example.com", path: "/a:b@c", query: "d@e:f", args: true},

		{name: "fragment", in: "http://example.com/a?b#c?d/e", want: "http example.com 80 example.com", path: "/a", query: "b", args: true},
		{name: "fragment alone", in: "http://example.com#c/d@e:f", want: "http example.com 80 example.com"},

		{name: "upper case", in: "HTTPS://EXAMPLE.Com:443/A", want: "https example.com 443 example.com", path: "/A"},
		{name: "trailing dot", in: "http://example.com./a", want: "http example.com 80 example.com", path: "/a"},
		{name: "trailing dot and port", in: "example.com.:8080", want: "http example.com 8080 example.com:8080"},
		{name: "IDN", in: "https://bücher.example/", want: "https xn--bcher-kva.example 443 xn--bcher-kva.example", path: "/"},
		{name: "IDN, upper case", in: "https://BÜCHER.example/", want: "https xn--bcher-kva.example 443 xn--bcher-kva.example", path: "/"},
		{name: "IDN, ideographic dots", in: "https://例え。テスト:8443", want: "https xn--r8jz45g.xn--zckzah 8443 xn--r8jz45g.xn--zckzah:8443"},
		{name: "IDN in its ASCII form", in: "https://xn--bcher-kva.example", want: "https xn--bcher-kva.example 443 xn--bcher-kva.example"},
		{name: "full width", in: "http://ｅｘａｍｐｌｅ．ｃｏｍ", want: "http example.com 80 example.com"},
		{name: "underscore", in: "http://_srv.my_host.example", want: "http _srv.my_host.example 80 _srv.my_host.example"},
		{name: "one label", in: "http://backend", want: "http backend 80 backend"},

		{name: "IPv4", in: "http://192.0.2.1:81/", want: "http 192.0.2.1 81 192.0.2.1:81", path: "/"},
		{name: "IPv6", in: "https://[2001:DB8::0:1]/a", want: "https 2001:db8::1 443 [2001:db8::1]", path: "/a"},
		{name: "IPv6 and port", in: "https://[2001:db8::1]:8443", want: "https 2001:db8::1 8443 [2001:db8::1]:8443"},
		{name: "IPv6 without scheme", in: "[2001:db8::1]:443", want: "https 2001:db8::1 443 [2001:db8::1]"},
		{name: "mapped IPv4", in: "http://[::ffff:192.0.2.1]:81", want: "http 192.0.2.1 81 192.0.2.1:81"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, err := Parse(test.in)
			if err != nil {
				t.Fatal(err)
			}
			got := u.Scheme + " " + u.Host + " " + strconv.Itoa(int(u.Port)) + " " + strings.TrimSuffix(u.HostPort, ":0")
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if u.HasPath != (test.path != "") || u.Path != test.path {
				t.Errorf("path %q (%t), want %q", u.Path, u.HasPath, test.path)
			}
			if u.Query != test.query || u.HasQuery != test.args {
				t.Errorf("query %q (%t), want %q (%t)", u.Query, u.HasQuery, test.query, test.args)
			}
			if want, err := netip.ParseAddr(u.Host); (err == nil) != u.Addr.IsValid() || want != u.Addr {
				t.Errorf("got address %s of host %s, want %s", u.Addr, u.Host, want)
			}
		})
	}
}

// TestParseRefuses checks what is not a target. It is long because its table is.
func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"nothing", "", "no target"},
		{"too long", "http://example.com/" + strings.Repeat("a", MaxLen), "too long"},
		{"space before", " http://example.com", "space"},
		{"space after", "http://example.com ", "space"},
		{"space in the path", "http://example.com/a b", "space"},
		{"tab", "http://exa\tmple.com", "control character"},
		{"line end", "http://example.com/\r\nHost: other", "control character"},
		{"NUL", "http://example.com\x00.other", "control character"},
		{"DEL", "http://example.com/\x7f", "control character"},
		{"backslash", `http://example.com\@other`, "may hold a password"},
		{"backslashes for slashes", `http:\\example.com`, "backslash"},
		{"not UTF-8", "http://example.com/\xff", "not UTF-8"},

		{"path without scheme", "example.com/a", "the scheme is missing"},
		{"path and port without scheme", "example.com:8080/a", "the scheme is missing"},
		{"query without scheme", "example.com?u=http://a", "the scheme is missing"},
		{"a scheme that is none", "1x://example.com/a", "neither"},
		{"path alone", "/a", "neither"},
		{"query alone", "?a", "neither"},
		{"fragment alone", "#a", "neither"},
		{"no scheme but slashes", "//example.com", "neither"},
		{"one slash", "http:/example.com", "neither"},
		{"no slash", "http:example.com", "port"},
		{"scheme of other characters", "ht_tp://example.com", "neither"},
		{"scheme with digit first", "1http://example.com", "neither"},
		{"no scheme before ://", "://example.com", "neither"},
		{"a word", "not a url", "space"},
		{"mail address", "mailto:joe@example.com", "userinfo"},

		{"no host", "http://", "no host"},
		{"no host but a path", "http:///a", "no host"},
		{"no host but a port", "http://:80", "no host"},
		{"no host but a port, no scheme", ":80", "no host"},
		{"no host but a query", "http://?a", "no host"},
		{"user", "http://joe@example.com", "userinfo"},
		{"user and password", "http://joe:secret@example.com/", "userinfo"},
		{"empty user", "http://@example.com", "userinfo"},
		{"user without scheme", "joe@example.com", "userinfo"},
		{"two at signs", "http://a@b@example.com", "userinfo"},

		{"empty port", "http://example.com:", "port"},
		{"empty port and a path", "http://example.com:/a", "port"},
		{"port 0", "http://example.com:0", "port"},
		{"port 65536", "http://example.com:65536", "port"},
		{"port of many digits", "http://example.com:99999999999999999999", "port"},
		{"negative port", "http://example.com:-1", "port"},
		{"port with sign", "http://example.com:+80", "port"},
		{"hexadecimal port", "http://example.com:0x50", "port"},
		{"port by name", "http://example.com:http", "port"},
		{"two ports", "http://example.com:80:81", "IPv6 address without brackets"},

		{"hexadecimal IPv4", "http://0x7f.1", "IPv4"},
		{"IPv4 as a number", "http://2130706433", "IPv4"},
		{"octal IPv4", "http://0177.0.0.1", "IPv4"},
		{"short IPv4", "http://127.1", "IPv4"},
		{"IPv4 of five parts", "http://127.0.0.1.1", "IPv4"},
		{"IPv4 out of range", "http://127.0.0.256", "IPv4"},
		{"full width IPv4 as a number", "http://２１３０７０６４３３", "IPv4"},
		{"IPv6 without brackets", "http://2001:db8::1", "IPv6 address without brackets"},
		{"IPv6 with zone", "http://[fe80::1%25eth0]/", "zone"},
		{"IPv6 with zone, bare", "http://[fe80::1%eth0]/", "zone"},
		{"half a bracket", "http://[2001:db8::1", "bracket"},
		{"other half", "http://2001:db8::1]", "bracket"},
		{"more after the bracket", "http://[2001:db8::1]x:80", ""},
		{"empty brackets", "http://[]", ""},
		{"name in brackets", "http://[example.com]", "in brackets but not an IPv6 address"},
		{"IPv4 in brackets", "http://[127.0.0.1]", "in brackets but not an IPv6 address"},
		{"nonsense in brackets", "http://[:::]", ""},

		{"escaped host", "http://ex%61mple.com", "character"},
		{"escaped slash in the host", "http://example.com%2fother", "character"},
		{"empty label", "http://a..example.com", "empty label"},
		{"dot first", "http://.example.com", "empty label"},
		{"two dots last", "http://example.com..", "empty label"},
		{"dot alone", "http://.", "empty"},
		{"long label", "http://" + strings.Repeat("a", 64) + ".example", "label"},
		{"long name", "http://" + strings.Repeat("a.", 126) + "example", "longer"},
		{"comma", "http://a.example,b.example", "character"},
		{"placeholder that was not replaced", "{header.X-Target}", "character"},
		{"bad Punycode", "http://xn--a-.example", ""},
		{"Kelvin sign's friends: soft hyphen alone", "http://\u00ad", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, err := Parse(test.in)
			if err == nil {
				t.Fatalf("accepted as %+v, want an error", u)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not have %q", err, test.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error %q has the password", err)
			}
		})
	}
	if _, err := Parse(""); !errors.Is(err, ErrNoTarget) {
		t.Errorf("error of an empty target: got %v, want %v", err, ErrNoTarget)
	}
}

// TestApply checks the URL of a request to which a target was applied.
func TestApply(t *testing.T) {
	const original = "/orig%2Final/x?q=1"
	for _, test := range []struct{ name, target, want string }{
		{"no path", "http://example.com", original},
		{"root", "http://example.com/", "/"},
		{"path", "http://example.com/a/b", "/a/b"},
		{"escaped slash", "http://example.com/a%2Fb", "/a%2Fb"},
		{"escaped tilde", "http://example.com/%7ea~", "/%7ea~"},
		{"lower and upper", "http://example.com/%c3%BC", "/%c3%BC"},
		{"what net/url encodes otherwise", "http://example.com/!'()*[];:@$&+,=", "/!'()*[];:@$&+,="},
		{"query", "http://example.com/a?b=%2F{}", "/a?b=%2F{}"},
		{"query alone", "http://example.com?b", "/?b"},
		{"empty query", "http://example.com/a?", "/a?"},
		{"percent", "http://example.com/100%", "/100%25"},
		{"two slashes", "http://example.com//other.example/a", "//other.example/a"},
		{"path with a colon first", "http://example.com/a:b", "/a:b"},
		{"asterisk", "http://example.com/*", "/*"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, err := Parse(test.target)
			if err != nil {
				t.Fatal(err)
			}
			to, err := url.ParseRequestURI(original)
			if err != nil {
				t.Fatal(err)
			}
			if u.HasPath {
				u.Apply(to)
			}
			if got := to.RequestURI(); got != test.want {
				t.Errorf("request URI %q, want %q", got, test.want)
			}
			if path, err := url.PathUnescape(to.EscapedPath()); err != nil || path != to.Path {
				t.Errorf("path %q, but %q escaped", to.Path, to.EscapedPath())
			}
		})
	}
}
