package caddytarget

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/explain"
	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

// TestExplainOpensNothing: without connect there is no connection to an address, whatever
// is found. With it there is one, without a request, and it leaves nothing behind.
func TestExplainOpensNothing(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}, CA: w.ca, HTTP2: true})
	w.dns.Has("name.example", "127.0.0.2", "127.0.0.3")
	w.dns.Set("broken.example", testlab.Reply{Rcode: 2})
	w.dns.Has("private.example", "10.0.0.1")
	w.run(w.proxy("fail_duration 1h") + "\nmetrics /metrics")
	shared := acquireShared()
	defer releaseShared()
	var dials atomic.Int32
	w.hookDials(func(next dialler) dialler {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return next(ctx, network, address)
		}
	})
	before := w.refusalSeries()
	asked := w.dns.Total()
	for _, target := range []string{
		"https://name.example:" + b.Port, "http://name.example:" + b.Port, "https://127.0.0.2:" + b.Port, "http://private.example", "http://broken.example", "http://none.example", "ftp://x", "",
	} {
		for _, connect := range []string{"", "0"} {
			for _, method := range []string{"GET", "POST", "CONNECT"} {
				if got := mustExplain(t, url.Values{"url": {target}, "connect": {connect}, "method": {method}}); got != nil && got.Connect != nil {
					t.Errorf("%s: explained with the connection %+v, want none", target, got.Connect)
				}
			}
		}
	}
	if n, opened := dials.Load(), b.Opened.Load(); n != 0 || opened != 0 {
		t.Errorf("%d dials, %d connections, want none", n, opened)
	}
	if w.dns.Total() == asked {
		t.Error("no nameserver was asked")
	}

	got := mustExplain(t, url.Values{"url": {"https://name.example:" + b.Port}, "connect": {"1"}})
	if got == nil || got.Connect == nil || !got.WouldSend {
		t.Fatalf("explained as %+v, want a connection", got)
	}
	c := got.Connect
	if c.TLS != "TLS 1.3" || c.ALPN != "h2" || len(c.Certificates) == 0 || !slices.Contains(c.Certificates[0].Names, "name.example") || !c.Certificates[0].Until.After(time.Now()) {
		t.Errorf("got the connection %+v, want TLS 1.3 with h2 and a certificate for name.example", c)
	}
	if c.Connect <= 0 || c.Handshake <= 0 {
		t.Errorf("the phases took %v and %v, want some time", c.Connect, c.Handshake)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials with connect, want 1", n)
	}
	got = mustExplain(t, url.Values{"url": {"http://name.example:" + testlab.FreePort(t)}, "connect": {"1"}})
	if got == nil || got.Failure != "connection_refused" {
		t.Errorf("explained as %+v, want connection_refused", got)
	}
	testlab.Eventually(t, "the connection is closed", func() bool { return b.Open.Load() == 0 })
	if b.Served.Load() != 0 || b.Opened.Load() != 1 {
		t.Errorf("%d requests over %d connections, want none over 1", b.Served.Load(), b.Opened.Load())
	}
	if n := shared.health.Len(); n != 0 {
		t.Errorf("%d failures of addresses are recorded, want none", n)
	}
	if after := w.refusalSeries(); after != before {
		t.Errorf("counted\n%s\nbefore and\n%s\nafter, want no change", before, after)
	}
}

// refusalSeries returns the series of requests that were refused or failed.
func (w *world) refusalSeries() string {
	w.Helper()
	var lines []string
	for line := range strings.Lines(w.mustGet("/metrics", "").body) {
		for _, name := range []string{"caddy_target_refused_", "caddy_target_left_out_", "caddy_target_failures_"} {
			if strings.HasPrefix(line, name) {
				lines = append(lines, line)
			}
		}
	}
	return strings.Join(lines, "")
}

// TestExplainCountsNothing: what is refused, left out or only reported in an explanation
// is neither counted nor logged; as that of real requests is.
func TestExplainCountsNothing(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("mixed.example", "127.0.0.2", "10.0.0.1")
	w.dns.Has("private.example", "10.0.0.1")
	for _, mode := range []string{"enforce", "report"} {
		lines := w.logTo("DEBUG", "http.handlers.target", "target refused", "target would be refused", "address left out", "address would be left out")
		w.run(w.proxy("deny denied.example", "guard "+mode) + "\nmetrics /metrics")
		before := w.refusalSeries()
		for _, target := range []string{"http://mixed.example:1", "http://private.example", "http://denied.example", "http://0x1"} {
			mustExplain(t, url.Values{"url": {target}})
		}
		if after := w.refusalSeries(); after != before || len(lines()) > 0 {
			t.Errorf("%s: counted\n%s\nbefore and\n%s\nafter, and logged %v, want no change", mode, before, after, lines())
		}
		w.get("/", "http://denied.example") // which does not exist
		if w.refusalSeries() == before || len(lines()) == 0 {
			t.Errorf("%s: a real request is neither counted nor logged", mode)
		}
	}
}

// TestExplainSteps checks what is shown of lookups, addresses and connections.
// It is long because all of it is about the same names.
func TestExplainSteps(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3", "10.0.0.9"}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs[:2]})
	w.dns.Set("name.example", testlab.Reply{Addrs: addrs, TTL: 600})
	w.dns.Set("broken.example", testlab.Reply{Rcode: 2})
	w.resolver = "zone example " + w.dns.Addr
	w.run(w.proxy("fail_duration 1h", "max_requests 2", "timeout 30s"))
	shared := acquireShared()
	defer releaseShared()
	target := "http://name.example:" + b.Port + "/x?y=1"
	ask := func(change ...string) *explain.Report {
		t.Helper()
		query := url.Values{"url": {target}}
		for _, c := range change {
			name, value, _ := strings.Cut(c, "=")
			query.Set(name, value)
		}
		got := mustExplain(t, query)
		if got == nil {
			t.FailNow()
		}
		return got
	}
	got := ask()
	l := got.Lookup
	if l == nil || l.From != "miss" || len(l.Queries) != 1 || l.Queries[0].Nameserver != w.dns.Addr || l.Queries[0].Type != "A" || l.Queries[0].Outcome != "answer" || l.Resolver != usedResolvers()[0].ID() {
		t.Errorf("got the lookup %+v, want a miss with one query to %s", l, w.dns.Addr)
	}
	if l != nil && (len(l.Names) != 1 || l.Names[0].Zone != "example" || l.Names[0].State != "fresh" || l.Names[0].TTL < 300) {
		t.Errorf("got the names %+v, want a fresh one of the zone example", l.Names)
	}
	if want := (explain.Target{Scheme: "http", Host: "name.example", Port: portOf(t, b), HostHeader: "name.example:" + b.Port, URI: "/x?y=1", Timeout: 30}); *got.Target != want {
		t.Errorf("got the target %+v, want %+v", *got.Target, want)
	}
	if want := (explain.InFlight{Requests: 0, Max: 2}); got.InFlight == nil || *got.InFlight != want {
		t.Errorf("got %+v in flight, want %+v", got.InFlight, want)
	}
	if l := ask().Lookup; l.From != "hit" || len(l.Queries) != 0 || l.Error != "" {
		t.Errorf("got the lookup %+v, want a hit without queries", l)
	}
	for range 2 { // the failure is remembered
		l := ask("url=http://broken.example").Lookup
		if l == nil || len(l.Queries) == 0 || l.Queries[0].Outcome != "SERVFAIL" || !strings.Contains(l.Error, "SERVFAIL") {
			t.Errorf("got the lookup %+v, want a query that ended with SERVFAIL", l)
		}
	}
	byAddr := func(r *explain.Report) map[string]*explain.Address {
		all := make(map[string]*explain.Address)
		for _, a := range r.Found {
			all[a.Address.Addr().String()] = a
		}
		return all
	}
	all := byAddr(got)
	if a := all["10.0.0.9"]; a == nil || a.Rule != "private" || a.Allowed() || a.State != "" || a.Offered != 0 {
		t.Errorf("got %+v for 10.0.0.9, want that it is refused as private", a)
	}
	for _, addr := range addrs[:2] {
		if a := all[addr]; a == nil || !a.Allowed() || a.State != "healthy" || a.Offered == 0 || *a.Connections != (explain.Connections{}) {
			t.Errorf("got %+v for %s, want that it is healthy and offered, without connections", a, addr)
		}
	}
	if got.Dial == nil || got.Dial.Of != 2 || got.Dial.Connection != "new" || got.Dial.Protocol != "HTTP/1.1" {
		t.Errorf("got the dial %+v, want a new connection to one of 2", got.Dial)
	}

	// an address that has failed, and an idle connection to the other one
	used := w.mustGet("/", target).seen.Address
	other := addrs[0]
	if other == used {
		other = addrs[1]
	}
	shared.health.Failed("", netip.MustParseAddrPort(other+":"+b.Port), false, nil)
	testlab.Eventually(t, "the connection is idle", func() bool { return byAddr(ask())[used].Connections.Idle == 1 })
	got = ask()
	all = byAddr(got)
	if a := all[other]; a.State != "ejected" || a.Offered != 0 || len(a.Causes) != 1 || a.Causes[0].Of != "address" || a.Causes[0].Failures != 1 || a.Causes[0].Left < 3000 {
		t.Errorf("got %+v, %+v for %s, want that it is ejected for about an hour", a, a.Causes, other)
	}
	if got.Dial.Address != used+":"+b.Port || got.Dial.Of != 1 || got.Dial.Connection != "open" {
		t.Errorf("got the dial %+v, want the open connection to %s", got.Dial, used)
	}
}

func portOf(t *testing.T, b *testlab.Backend) uint16 {
	t.Helper()
	return netip.MustParseAddrPort("127.0.0.1:" + b.Port).Port()
}

// TestExplainClaimsNothing: an address that has to be probed or tried is offered to the
// next real request as if there had been no explanation.
func TestExplainClaimsNothing(t *testing.T) {
	for _, sent := range []bool{false, true} {
		t.Run(fmt.Sprintf("sent %t", sent), func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
			w.dns.Has("name.example", "127.0.0.2", "127.0.0.3")
			w.run(w.proxy("fail_duration 100ms"))
			shared := acquireShared()
			defer releaseShared()
			at := netip.MustParseAddrPort("127.0.0.2:" + b.Port)
			policy := &health.Policy{MaxFails: 1, EjectFor: 100 * time.Millisecond, Retryable: true}
			shared.health.Failed("name.example", at, sent, nil)
			want, word := health.NeedsProbe, "needs_probe"
			if sent {
				want, word = health.NeedsTrial, "needs_trial"
			}
			testlab.Eventually(t, "its time is over", func() bool { return shared.health.State(policy, "name.example", at) == want })
			for range 3 {
				got := mustExplain(t, url.Values{"url": {"http://name.example:" + b.Port}})
				if got == nil {
					return
				}
				for _, a := range got.Found {
					if a.Address == at && (a.State != word || (a.Offered == 1) != sent) {
						t.Errorf("got %+v, want the state %s, offered: %t", a, word, sent)
					}
				}
				if state := shared.health.State(policy, "name.example", at); state != want {
					t.Errorf("got state %d after an explanation, want %d", state, want)
				}
			}
		})
	}
}

// TestExplainConnect checks what is shown of certificates that are not taken, and that a
// connection is refused by the guard.
func TestExplainConnect(t *testing.T) {
	w := newWorld(t)
	wrong, err := w.ca.Issue("another.example")
	if err != nil {
		t.Fatal(err)
	}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, TLS: func(c *tls.Config) {
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return wrong, nil }
	}})
	w.dns.Has("name.example", "127.0.0.2")
	w.run(w.proxy("proxy_protocol v2") + "\n---\n")
	got := mustExplain(t, url.Values{"url": {"http://name.example:" + b.Port}, "connect": {"1"}})
	if got == nil || !got.WouldSend {
		t.Errorf("explained as %+v, want that the PROXY protocol has a client", got)
	}
	w.run(w.proxy())
	got = mustExplain(t, url.Values{"url": {"https://name.example:" + b.Port}, "connect": {"1"}})
	if got == nil || got.Connect == nil || got.Failure != "tls_certificate_error" || got.Status != http.StatusBadGateway {
		t.Fatalf("explained as %+v, want tls_certificate_error", got)
	}
	if c := got.Connect; len(c.Certificates) == 0 || !slices.Equal(c.Certificates[0].Names, []string{"another.example"}) || !strings.Contains(c.Error, "another.example") {
		t.Errorf("got the connection %+v, want the certificate for another.example", got.Connect)
	}
}

// TestExplainSites: which site is meant.
func TestExplainSites(t *testing.T) {
	w := newWorld(t)
	site := func(address, options string) string {
		return fmt.Sprintf("http://%s:%s {\nbind 127.0.0.1\ntarget_proxy {header.X-Target} {\n%s\n}\n}\n", address, w.port, options)
	}
	ask := func(site string) (*explain.Report, error) {
		query := url.Values{"url": {"http://127.0.0.1"}}
		if site != "" {
			query.Set("site", site)
		}
		return explainAt(t, query)
	}
	w.run("")
	if _, err := ask(""); err == nil || !strings.Contains(err.Error(), "no site has a target handler") {
		t.Errorf("got the error %v without a site, want one", err)
	}
	w.run(w.proxy())
	if got, err := ask(""); err != nil || !got.WouldSend {
		t.Errorf("explained as %+v, %v at the only site, want that it is sent", got, err)
	}
	w.run("target {header.X-Target} {\nallow_ips 127.0.0.0/8\n}\nreverse_proxy {\ndynamic target\ntransport target\n}\n---\n" +
		site("a.site", "") + site("b.site", "allow_ips any") + site("b.site:80, http://*.c.site", "guard report"))
	sites := targetSites()
	var names []string
	for _, s := range sites {
		names = append(names, s.Name)
		if s.proxy == nil {
			t.Errorf("%s: no proxy was found", s.Name)
		}
	}
	for name, want := range map[string]bool{"a.site": false, "A.Site": false, "*.c.site": true, sites[len(sites)-1].Place: true} {
		got, err := ask(name)
		if err != nil || got.WouldSend != want {
			t.Errorf("site %s: explained as %+v, %v, want that it is sent: %t", name, got, err, want)
		}
	}
	for name, want := range map[string]string{"": "which site? expecting the parameter site, one of ", "z.site": `unknown site "z.site": expecting `, "127.0.0.1:" + w.port: "is several: expecting "} {
		_, err := ask(name)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "a.site, ") {
			t.Errorf("site %q of %s: got the error %v, want %s", name, names, err, want)
		}
	}
}

// TestSiteOfNamedServer: a server may have any name, also one with a slash.
func TestSiteOfNamedServer(t *testing.T) {
	w := newWorld(t)
	w.global = "servers 127.0.0.1:" + w.port + " {\nname team/gateway\n}"
	w.run(w.proxy())
	sites := targetSites()
	if len(sites) != 1 || !strings.HasPrefix(sites[0].Place, "team/gateway/routes/") || !slices.Equal(sites[0].Listen, []string{"127.0.0.1:" + w.port}) {
		t.Errorf("got the sites %+v, want that of team/gateway", sites)
	}
}

// explainAt asks /target/explain in this process.
func explainAt(t *testing.T, query url.Values) (*explain.Report, error) {
	t.Helper()
	text, err := adminGet("/target/explain?" + query.Encode())
	if err != nil {
		return nil, err
	}
	if text := strings.TrimSuffix(text, "\n"); !isPrintable(text) {
		t.Errorf("explain %s: got %q, want printable ASCII", query, text)
	}
	report := new(explain.Report)
	return report, json.Unmarshal([]byte(text), report)
}

// TestExplainRequest: where the target is taken from a request, as the site does it.
func TestExplainRequest(t *testing.T) {
	w := newWorld(t)
	w.run(strings.Replace(w.proxy("path /fixed/{query.p}", "host {header.X-Host}"), "{header.X-Target}", "http://{host}:{header.X-Port}", 1))
	got, err := explainAt(t, url.Values{"uri": {"/?p=x"}, "header": {"Host: 127.0.0.5", "X-Port: 81", "x-host:  virtual.example "}})
	if err != nil || got.Target == nil || got.Target.Host != "127.0.0.5" || got.Target.Port != 81 || got.Target.URI != "/fixed/x" || got.Target.HostHeader != "virtual.example" {
		t.Errorf("got %+v, %v, want the target of the request", got, err)
	}
	got, err = explainAt(t, url.Values{"url": {"http://127.0.0.6"}, "uri": {"/?p=../x"}, "header": {"X-Host: a"}})
	if err != nil || got.Status != http.StatusBadRequest || got.Rule != "malformed" || !strings.Contains(got.Outcome.Error, "leaves the folder") {
		t.Errorf("got %+v, %v, want that the path leaves its folder", got, err)
	}
	for want, query := range map[string]url.Values{
		"missing url":                         {},
		"connect \"2\" is neither 0 nor 1":    {"url": {"x"}, "connect": {"2"}},
		"method \"a b\" is not one of HTTP":   {"url": {"x"}, "method": {"a b"}},
		"method \"\" is not one of HTTP":      {"url": {"x"}, "method": {""}},
		"header \"x\" has no colon":           {"url": {"x"}, "header": {"x"}},
		"header \"a b: x\" is not a valid":    {"url": {"x"}, "header": {"a b: x"}},
		`header "a: \n" is not a valid`:       {"url": {"x"}, "header": {"a: \n"}},
		"uri: ":                               {"url": {"x"}, "uri": {"x"}},
		"unknown parameter \"target\"":        {"url": {"x"}, "target": {"x"}},
		"parameter url already specified":     {"url": {"x", "y"}},
		"unknown site \"x\": expecting srv0":  {"url": {"x"}, "site": {"x"}},
		"invalid control character in URL":    {"url": {"x"}, "uri": {"/\n"}},
		"header \": x\" is not a valid":       {"url": {"x"}, "header": {": x"}},
		"connect \"true\" is neither 0 nor 1": {"url": {"x"}, "connect": {"true"}},
		"parameter connect already specified": {"url": {"x"}, "connect": {"1", "1"}},
	} {
		if _, err := explainAt(t, query); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), `\\n`, `\n`), want) {
			t.Errorf("%v: got the error %v, want %s", query, err, want)
		}
	}
}

// TestExplainHostile: no text of a request or a nameserver gets into an answer in a form that could control a terminal; explainAt looks at it.
func TestExplainHostile(t *testing.T) {
	const escapes = "\x1b[2J\x07\x00\x7f\u009b31m\u202e\u2028\U000e0001\xff\"'\\<script>\n"
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: testlab.NewAuthority(t)})
	w.dns.Has("name.example", "127.0.0.2")
	w.dns.Set("alias.example", testlab.Reply{Records: []string{`alias.example. 60 IN CNAME a\027[2J\007\155.invalid.`}})
	w.run(w.proxy())
	long := strings.Repeat("a", 63)
	for _, target := range []string{
		escapes, "http://" + escapes, "http://name.example:" + escapes, "http://name.example/" + escapes, escapes + "://x", "http://alias.example",
		"http://" + strings.Join([]string{long, long, long, long[:61]}, "."), "https://name.example:" + b.Port + "/\u202e",
	} {
		for _, param := range []string{"", "site", "method", "uri", "header", "connect"} {
			query := url.Values{"url": {target}, "connect": {"1"}}
			if param != "" {
				query.Set(param, escapes)
			}
			w.askAdmin(http.MethodGet, "/target/explain?"+query.Encode(), "")
		}
		if status, stdout, stderr := caddyTarget(t, "explain", "--connect", "--address="+w.admin, "--", strings.ReplaceAll(target, "\x00", "")); status > 1 {
			t.Errorf("%q: got status %d, %s%s, want 0 or 1", target, status, stdout, stderr)
		}
	}
}
