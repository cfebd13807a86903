package caddytarget

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"caddytarget/internal/admin"
	"caddytarget/internal/resolver"
	"caddytarget/internal/testlab"
)

// withAdmin lets the admin API of the configurations to come listen, at an address as
// of Caddy's option admin.
func (w *world) withAdmin(address string) {
	w.admin = address
	w.Cleanup(func() { // caddy.Stop leaves the admin API as it is
		w.admin = ""
		w.run("")
	})
}

// newAdminWorld returns a world whose admin API listens on loopback.
func newAdminWorld(t testing.TB) *world {
	w := newWorld(t)
	w.withAdmin("127.0.0.1:" + testlab.FreePort(t))
	return w
}

// askAdmin sends a request to the admin API and returns the status and the text of the
// response, which has to be JSON in printable ASCII.
func (w *world) askAdmin(method, path, body string, change ...func(*http.Request)) (int, string) {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, "http://"+w.admin+path, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	res, err := w.client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.Fatal(err)
	}
	if method != http.MethodHead && !json.Valid(text) {
		w.Errorf("%s %s: got %q, want JSON", method, path, text)
	}
	if rest := strings.TrimSuffix(string(text), "\n"); !isPrintable(rest) {
		w.Errorf("%s %s: got %q, want printable ASCII only", method, path, text)
	}
	return res.StatusCode, string(text)
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// mustAdmin is askAdmin for a request that has to succeed. It reads the response.
func (w *world) mustAdmin(method, path, body string, response any) {
	w.Helper()
	status, text := w.askAdmin(method, path, body)
	if status != http.StatusOK {
		w.Fatalf("%s %s: got status %d: %s, want 200", method, path, status, text)
	}
	if err := json.Unmarshal([]byte(text), response); err != nil {
		w.Fatal(err)
	}
}

// lookup looks names up in a resolver in use, many at a time.
func (w *world) lookup(r *resolver.Resolver, names []string) {
	w.Helper()
	var all sync.WaitGroup
	for part := range slices.Chunk(names, (len(names)+15)/16) {
		all.Go(func() {
			for _, name := range part {
				_, _ = r.Lookup(w.Context(), name)
			}
		})
	}
	all.Wait()
}

// TestAdminBadInput checks what the admin API says of requests that it refuses.
// It is long because its table is.
func TestAdminBadInput(t *testing.T) {
	w := newAdminWorld(t)
	w.run(w.proxy())
	long := strings.Repeat("a", 300)
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               string // in the error
	}{
		{"GET", "/target/nothing", "", 404, "unknown endpoint /target/nothing"},
		{"GET", "/target/purge/", "", 404, "unknown endpoint /target/purge/"},
		{"GET", "/target/names/", "", 400, "name \"\": "},
		{"GET", "/target/names/a..b", "", 400, "name \"a..b\": "},
		{"GET", "/target/names/a%2Fb", "", 400, "name \"a/b\": "},
		{"GET", "/target/names/" + long, "", 400, "name \"aaa"},
		{"GET", "/target/names/never.example", "", 404, "unknown name never.example"},
		{"GET", "/target/names/10.0.0.1", "", 404, "unknown name 10.0.0.1"},
		{"GET", "/target/names/a.example?x=1", "", 400, "unknown parameter \"x\": this endpoint has none"},
		{"GET", "/target/?x", "", 400, "unknown parameter \"x\""},
		{"GET", "/target/nameservers?zone=.", "", 400, "unknown parameter \"zone\""},
		{"GET", "/target/names?sate=fresh", "", 400, "unknown parameter \"sate\": expecting prefix, state, after, limit"},
		{"GET", "/target/names?state=rotten", "", 400, "unknown state \"rotten\": expecting pending, fresh, stale, negative, failing"},
		{"GET", "/target/names?state=fresh,", "", 400, "unknown state \"\""},
		{"GET", "/target/names?state=", "", 400, "unknown state \"\""},
		{"GET", "/target/names?limit=", "", 400, "limit \"\" is not a number from 1 to 1000"},
		{"GET", "/target/names?limit=0", "", 400, "limit \"0\" is not a number from 1 to 1000"},
		{"GET", "/target/names?limit=-1", "", 400, "limit \"-1\""},
		{"GET", "/target/names?limit=1001", "", 400, "limit \"1001\""},
		{"GET", "/target/names?limit=1e2", "", 400, "limit \"1e2\""},
		{"GET", "/target/names?limit=99999999999999999999", "", 400, "limit \"9999"},
		{"GET", "/target/names?limit=1&limit=2", "", 400, "parameter limit already specified"},
		{"GET", "/target/names?after=x", "", 400, "after: the cursor is not one of this run"},
		{"GET", "/target/names?after=AAAAAAAAAAAAAAAAAAAAAA", "", 400, "after: the cursor is not one of this run"},
		{"GET", "/target/names?prefix=%zz", "", 400, "reading the query: "},
		{"GET", "/target/names?a;b", "", 400, "reading the query: "},
		{"GET", "/target/explain", "", 400, "missing url"},
		{"GET", "/target/explain?site=x", "", 400, "missing url"},
		{"GET", "/target/explain?url=x&site=x", "", 404, "unknown site \"x\": expecting srv0/"},
		{"GET", "/target/explain?url=x&url=y", "", 400, "parameter url already specified"},
		{"GET", "/target/explain?url=x&nameserver=x", "", 400, "unknown parameter \"nameserver\": expecting url, site, method, uri, header, connect"},
		{"GET", "/target/explain?url=x&connect=yes", "", 400, "connect \"yes\" is neither 0 nor 1"},
		{"GET", "/target/explain?url=x&header=x", "", 400, "header \"x\" has no colon"},
		{"POST", "/target/explain?url=x", "{}", 405, "method POST is not allowed: expecting GET"},
		{"POST", "/target/names", "{}", 405, "method POST is not allowed: expecting GET"},
		{"DELETE", "/target/names/a.example", "", 405, "expecting GET"},
		{"POST", "/target/", "", 405, "expecting GET"},
		{"PUT", "/target/nameservers", "", 405, "expecting GET"},
		{"GET", "/target/purge", "", 405, "method GET is not allowed: expecting POST"},
		{"POST", "/target/purge?name=a.example", "{}", 400, "unknown parameter \"name\""},
		{"POST", "/target/purge", "", 400, "reading the request: EOF"},
		{"POST", "/target/purge", "{", 400, "reading the request: unexpected EOF"},
		{"POST", "/target/purge", "[]", 400, "reading the request: "},
		{"POST", "/target/purge", "null", 400, "expecting one of name, suffix and address, got 0"},
		{"POST", "/target/purge", "{}", 400, "expecting one of name, suffix and address, got 0"},
		{"POST", "/target/purge", `{"ask_again": true}`, 400, "got 0"},
		{"POST", "/target/purge", `{"name": "a.example", "suffix": "example"}`, 400, "got 2"},
		{"POST", "/target/purge", `{"name": "a.example"} {}`, 400, "nothing after it"},
		{"POST", "/target/purge", `{"names": "a.example"}`, 400, "unknown field"},
		{"POST", "/target/purge", `{"name": 7}`, 400, "reading the request: "},
		{"POST", "/target/purge", `{"name": "a b"}`, 400, "name \"a b\": "},
		{"POST", "/target/purge", `{"suffix": "*.example"}`, 400, "suffix \"*.example\": "},
		{"POST", "/target/purge", `{"address": "10.0.0.0/8"}`, 400, "address \"10.0.0.0/8\" is not an IP address"},
		{"POST", "/target/purge", `{"address": "fe80::1%eth0"}`, 400, "is not an IP address"},
		{"POST", "/target/purge", `{"name": "` + strings.Repeat("a", 5000) + `"}`, 400, "too large"},
	} {
		status, text := w.askAdmin(tc.method, tc.path, tc.body)
		var got struct{ Error string }
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s %s: got %q, want an error in JSON", tc.method, tc.path, text)
		}
		if status != tc.status || !strings.Contains(got.Error, tc.want) {
			t.Errorf("%s %s %s: got %d: %s, want %d: %s", tc.method, tc.path, tc.body, status, got.Error, tc.status, tc.want)
		}
		if len(got.Error) > admin.MaxErrorLength+len("...") {
			t.Errorf("%s %.100s: got an error of %d octets, want at most %d", tc.method, tc.path, len(got.Error), admin.MaxErrorLength)
		}
	}
	if status, text := w.askAdmin("GET", "/target/", "", header("Host", "elsewhere.example")); status != http.StatusForbidden {
		t.Errorf("got status %d: %s for another host, want 403", status, text)
	}
	if status, text := w.askAdmin("HEAD", "/target/", ""); status != http.StatusOK || text != "" {
		t.Errorf("HEAD: got status %d and %q, want 200 without a body", status, text)
	}
}

// TestAdminHostileText checks that no text of a request or of a nameserver gets into a
// response in a form that could control a terminal; askAdmin looks at all of them.
func TestAdminHostileText(t *testing.T) {
	w := newAdminWorld(t)
	w.run(w.proxy())
	const escapes = "\x1b[2J\x1b]0;x\x07\x00\x7f\u009b31m\u202e\u2028\U000e0001\xff\xc2\"'\\<script>\n"
	w.dns.Set("_http._tcp.example", testlab.Reply{Records: []string{
		`_http._tcp.example. 60 IN SRV 0 0 80 a\027[2J\007\127\155\000\255b.example.`,
	}})
	used := usedResolvers()
	if len(used) != 1 {
		t.Fatalf("got %d resolvers, want 1", len(used))
	}
	_, _ = used[0].LookupService(t.Context(), "_http._tcp.example")
	// names in normal form have none of these; the resolver takes them as they are
	longest := strings.Repeat(strings.Repeat("a", 62)+".", 4) + "a"
	w.lookup(used[0], []string{"x" + escapes + ".example", longest, strings.Repeat("\x9b", 60) + ".example"})

	var page admin.Names
	w.mustAdmin("GET", "/target/names?limit=1000", "", &page)
	if len(page.Names) < 2 {
		t.Errorf("got %d names, want those that were looked up", len(page.Names))
	}
	for _, path := range []string{
		"/target/names/" + url.PathEscape(escapes), "/target/names/" + longest,
		"/target/" + url.PathEscape(escapes), "/target/names?" + url.QueryEscape(escapes), "/target/names?prefix=" + url.QueryEscape(escapes),
		"/target/names?state=" + url.QueryEscape(escapes), "/target/names?limit=" + url.QueryEscape(escapes), "/target/names?after=" + url.QueryEscape(escapes),
	} {
		w.askAdmin("GET", path, "")
	}
	for _, key := range []string{"name", "suffix", "address", escapes} {
		body, err := json.Marshal(map[string]string{key: escapes})
		if err != nil {
			t.Fatal(err)
		}
		if status, text := w.askAdmin("POST", "/target/purge", string(body)); status != http.StatusBadRequest {
			t.Errorf("purge of %s: got status %d: %s, want 400", body, status, text)
		}
		w.askAdmin("POST", "/target/purge", `{"`+key+`": "`+escapes+`"}`)
	}
}

// TestAdminPages pages through the names of two resolvers, one of them with a zone of
// its own, while others come and go.
func TestAdminPages(t *testing.T) {
	w := newAdminWorld(t)
	w.resolver = "zone corp.example " + w.dns.Addr
	w.run(w.proxy("resolver " + w.dns.Addr + " {\nhosts off\nfamily ipv4\nmax_ttl 2h\n}"))
	used := usedResolvers()
	if len(used) != 2 {
		t.Fatalf("got %d resolvers, want 2", len(used))
	}
	const each = 1250
	var want []string // of 5000 names
	for i, r := range used {
		var names []string
		for n := range 2 * each {
			domain := "example"
			if n%2 == 1 {
				domain = "corp.example"
			}
			names = append(names, fmt.Sprintf("p%d-%d.%s", i, n, domain))
		}
		want = append(want, names...)
		w.lookup(r, names)
	}
	slices.Sort(want)
	for _, tc := range []struct {
		query string
		want  []string
	}{
		{"limit=1000&prefix=p", want},
		{"limit=333&prefix=P", want},
		{"limit=1000&prefix=p&state=negative,fresh", want},
		{"limit=700&prefix=p1-", slices.DeleteFunc(slices.Clone(want), func(name string) bool { return name[1] != '1' })},
		{"state=fresh", nil},
		{"prefix=q", nil},
	} {
		var got []string
		for after := ""; ; {
			var page admin.Names
			w.mustAdmin("GET", "/target/names?"+tc.query+after, "", &page)
			for _, n := range page.Names {
				got = append(got, n.Name)
				zone := "."
				if n.Resolver == "" || n.State != "negative" || n.Error == "" || len(n.Tries) == 0 {
					t.Fatalf("%s: got %+v, want a negative name with resolver, error and tries", tc.query, n)
				}
				if zones := zonesOf(w, n.Resolver); len(zones) > 1 && strings.HasSuffix(n.Name, ".corp.example") {
					zone = "corp.example"
				}
				if n.Zone != zone {
					t.Fatalf("%s: got zone %s of %s, want %s", tc.query, n.Zone, n.Name, zone)
				}
			}
			if page.Next == "" {
				break
			}
			after = "&after=" + page.Next
			w.lookup(used[0], []string{fmt.Sprintf("other%d.example", len(got))})
		}
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %d names, want %d, each once", tc.query, len(got), len(tc.want))
		}
	}
	// a cursor of a resolver that is gone
	var page admin.Names
	w.mustAdmin("GET", "/target/names?limit=10&prefix=p", "", &page)
	w.resolver = "max_ttl 3h"
	w.run(w.proxy())
	if status, text := w.askAdmin("GET", "/target/names?after="+page.Next, ""); status != http.StatusBadRequest || !strings.Contains(text, "cursor") {
		t.Errorf("a cursor of a resolver that is gone: got status %d: %s, want 400", status, text)
	}
}

// zonesOf returns the zones of a resolver in use.
func zonesOf(w *world, id string) (zones []string) {
	for _, r := range usedResolvers() {
		if r.ID() == id {
			for _, z := range r.Nameservers() {
				zones = append(zones, z.Zone)
			}
		}
	}
	if zones == nil {
		w.Fatalf("got resolver %s, want one that is in use", id)
	}
	return zones
}

// TestAdminPurge checks that the next request after a purge goes to where the name is
// then.
func TestAdminPurge(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	w.run(w.proxy())
	const name = "a.moved.example"
	target := "http://" + name + ":" + b.Port
	for _, tc := range []struct {
		body  string
		names int
	}{
		{`{"name": "A.Moved.example."}`, 1},
		{`{"suffix": "moved.example"}`, 1},
		{`{"suffix": "."}`, 1},
		{`{"address": "127.0.0.2"}`, 1},
		{`{"address": "::ffff:127.0.0.2"}`, 1},
		{`{"name": "moved.example"}`, 0},
		{`{"suffix": "oved.example"}`, 0},
		{`{"address": "127.0.0.3"}`, 0},
	} {
		var purged admin.Purged
		w.mustAdmin("POST", "/target/purge", `{"suffix": "."}`, &purged)
		w.dns.Set(name, testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 600})
		if res := w.mustGet("/", target); res.seen.Address != "127.0.0.2" {
			t.Fatalf("got the backend %s, want 127.0.0.2", res.seen.Address)
		}
		w.dns.Set(name, testlab.Reply{Addrs: []string{"127.0.0.3"}, TTL: 600})
		w.mustAdmin("POST", "/target/purge", tc.body, &purged)
		if purged.Names != tc.names || len(purged.Resolvers) != 1 || purged.Resolvers[0].Names != tc.names {
			t.Errorf("%s: got %+v, want %d names of one resolver", tc.body, purged, tc.names)
		}
		want := map[int]string{0: "127.0.0.2", 1: "127.0.0.3"}[tc.names]
		if res := w.mustGet("/", target); res.seen.Address != want {
			t.Errorf("%s: got the backend %s after it, want %s", tc.body, res.seen.Address, want)
		}
	}
	// ask again, and serve meanwhile what is known
	hold := make(chan struct{})
	w.dns.Set(name, testlab.Reply{Addrs: []string{"127.0.0.3"}, TTL: 600, Hold: hold})
	var purged admin.Purged
	w.mustAdmin("POST", "/target/purge", `{"name": "`+name+`", "ask_again": true}`, &purged)
	if res := w.mustGet("/", target); res.seen.Address != "127.0.0.2" || purged.Names != 1 {
		t.Errorf("got the backend %s while %d names are asked for again, want 127.0.0.2 and 1", res.seen.Address, purged.Names)
	}
	close(hold)
	testlab.Eventually(t, "the new address", func() bool { return w.mustGet("/", target).seen.Address == "127.0.0.3" })
}

// TestAdminOnlyThere checks that a site does not serve the admin API, and that the admin
// API of a remote or other origin is Caddy's to refuse.
func TestAdminOnlyThere(t *testing.T) {
	w := newAdminWorld(t)
	w.run("respond /target/* 418")
	if res := w.get("/target/", ""); res.StatusCode != http.StatusTeapot {
		t.Errorf("a site: got %v, want its own status 418", res)
	}
	if status, text := w.askAdmin("POST", "/target/purge", `{"suffix": "."}`, header("Origin", "https://elsewhere.example")); status != http.StatusForbidden {
		t.Errorf("another origin: got status %d: %s, want 403", status, text)
	}
	// another address of this machine
	_, port, _ := net.SplitHostPort(w.admin)
	if conn, err := net.Dial("tcp", "127.0.0.2:"+port); err == nil {
		_ = conn.Close()
		t.Errorf("got a connection to another address, want none")
	}
}
