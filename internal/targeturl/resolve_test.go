package targeturl

import (
	"net/url"
	"strings"
	"testing"
)

// TestResolve compares how a Location is resolved with net/url.
func TestResolve(t *testing.T) {
	bases := []string{
		"http://a.test/b/c/d;p?q", "http://a.test/", "https://a.test:8443/x?y=/z", "http://a.test/a//b/", "http://[2001:db8::1]:81/a/b",
		"http://a.test?only=query",
	}
	refs := []string{ // those of RFC 3986, section 5.4, and more
		"g", "./g", "g/", "/g", "//g.test", "//g.test/x/../y", "?y", "g?y", "g?y/./x", "#s", "g#s", "g?y#s", ";x", "g;x", "g;x?y#s", "", ".", "./",
		"..", "../", "../g", "../..", "../../", "../../g", "../../../g", "../../../../g", "/./g", "/../g", "g.", ".g", "g..", "..g",
		"./../g", "./g/.", "g/./h", "g/../h", "g;x=1/./y", "g;x=1/../y", "g/..", "g/.", "https://g.test/x/./y/../z?q#f", "https://g.test",
		"https://g.test?q", "https://g.test#f", "a%2fb", "a%20b", "//g.test:8080/", "https://[::1]:9/../x", "/a//b/../c",
	}
	for _, base := range bases {
		u, err := Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range refs {
			to, err := parsed.Parse(ref)
			if err != nil {
				t.Fatal(err)
			}
			to.Fragment = ""
			if to.Path == "" {
				to.Path = "/"
			}
			if ref == "" {
				to = parsed
			}
			want, err := Parse(to.String())
			if err != nil {
				t.Fatalf("%s: %v", to, err)
			}
			if base == "http://a.test?only=query" && !want.HasPath {
				continue
			}
			got, err := u.Resolve(ref)
			if err == ErrDowngrade {
				err = nil
			}
			if err != nil || got != want {
				t.Errorf("%q from %s: %+v %v, want %+v", ref, base, got, err, want)
			}
		}
	}
}

// TestResolveRefuses checks what is not read of a Location.
func TestResolveRefuses(t *testing.T) {
	base := URL{Scheme: "https", Host: "a.test", Port: 443, HasPath: true, Path: "/a/b"}
	for location, want := range map[string]string{
		"https://a.test:x/":                           "port",
		"https://a.test:0/":                           "port",
		"https://a.test/" + strings.Repeat("x", 9000): "too long",
		"https://a..test/":                            "empty label",
		"https://a test/":                             "space",
		"https://%61.test/":                           "character",
		"https://2130706433/":                         "IPv4",
		"https://[fe80::1%25lo]/":                     "zone",
		"https://joe@a.test/":                         "userinfo",
		"https:/a.test/":                              "neither",
		"https:a.test":                                "neither",
		"a.test:443/":                                 "neither",
		"://a.test/":                                  "neither",
		"///a.test/":                                  "no host",
		`/\a.test/`:                                   "backslash",
		"/a\x00b":                                     "control",
		"/a\tb":                                       "control",
		"http://a.test/":                              "from https to http",
		"h2c://a.test/":                               "from https to http",
		"gopher://a.test/":                            "scheme",
		"javascript:alert(1)":                         "neither",
		"//":                                          "no host",
		"//?x":                                        "no host",
	} {
		if u, err := base.Resolve(location); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %+v %v, want %s", location, u, err, want)
		}
	}
}

// FuzzResolve checks that a Location is read as net/url reads it, or refused.
func FuzzResolve(f *testing.F) {
	for _, seed := range []string{
		"/x", "x", "../x", "//b.test/x", "http://b.test", "?q", "#f", "http://b.test@c.test/", `/\b.test`, "http:b.test", "///b.test", "h2c://b.test/",
		"/ x", "/%", "//[::1]/", "http://127.1/", "//b.test:80:80/", "a:b", "/a/../../b", "\t/x", "//\xff/", "/%2e%2e/x", "http://b.test/%zz?%", "..;/x",
	} {
		f.Add(seed, "/a/b?c")
		f.Add(seed, "/")
	}
	f.Fuzz(func(t *testing.T, location, uri string) {
		base, err := Parse("https://a.test/" + uri)
		if err != nil {
			return
		}
		uri = base.merge("")
		got, err := base.Resolve(location)
		if err != nil {
			return
		}
		if got.Scheme != "https" || !strings.HasPrefix(got.Path, "/") || !got.HasPath {
			t.Fatalf("%q from %s: got %+v, want https and a path", location, uri, got)
		}
		if strings.ContainsAny(got.Path+got.Query, " \\\r\n\t\x00#") {
			t.Fatalf("%q from %s: odd octets in %+v", location, uri, got)
		}
		for s := range strings.SplitSeq(got.Path, "/") {
			if s == "." || s == ".." {
				t.Fatalf("%q from %s: dots in %s", location, uri, got.Path)
			}
		}
		// net/url reads the same host
		from, err := url.Parse("https://a.test" + uri)
		if err != nil {
			return
		}
		other, err := from.Parse(location)
		if err != nil {
			return
		}
		host, _, err := NormalizeHost(strings.TrimSuffix(other.Host, ":"+other.Port()))
		if err != nil || host != got.Host {
			t.Fatalf("%q from %s: %s, and net/url reads %q (%v)", location, uri, got.Host, other.Host, err)
		}
	})
}
