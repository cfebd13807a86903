package caddytarget

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// Each test runs the Caddyfile of a guide and shows what the guide promises.

func TestGuideOpenResty(t *testing.T) {
	w := newWorld(t)
	backend := testlab.NewBackend(t, testlab.BackendConfig{})
	w.dns.Has("api.partner.example", "127.0.0.1")
	w.dns.Has("other.example", "127.0.0.1")
	var named atomic.Pointer[string] // what the program behind forward_auth says
	program := testlab.NewBackend(t, testlab.BackendConfig{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		is(t, "what the program is asked", r.Method+" "+r.RequestURI+" for "+r.Header.Get("X-Forwarded-Method")+" "+r.Header.Get("X-Forwarded-Uri"),
			"GET /target?x=1 for POST /entrance/7?x=1")
		switch target := *named.Load(); target {
		case "refused":
			http.Error(rw, "pay first", http.StatusPaymentRequired)
		case "":
		default:
			rw.Header().Set("X-Target", target)
		}
	})})
	d := runDocumented(t, "docs/guides/openresty.md", w,
		swap{"http://:8080", "http://:" + w.port},
		swap{"10.0.0.53 10.0.1.53 {", w.nameserver()},
		swap{"tries 5", "tries 3"}, // there is one nameserver
		swap{"remote_ip 10.0.0.0/8", "remote_ip 127.0.0.1"},
		swap{"127.0.0.1:9000", "127.0.0.1:" + program.Port},
		swap{"10.1.0.7", "127.0.0.1"},
		swap{"allow_ips 10.1.0.0/16", "allow_ips 127.0.0.0/8"},
		swap{"timeout 30s", "timeout 1m"},
		swap{"dial_timeout 2s", "dial_timeout 1m"},
	)
	partner := "http://api.partner.example:" + backend.Port
	testlab.Eventually(t, "the name of preload is asked for", func() bool { return w.dns.Asked("api.partner.example") > 0 })

	// Host, path, header fields and connections
	call := func(status int, target string) response {
		t.Helper()
		return d.send(status, "POST", "/call", "body", header("X-Target", target))
	}
	seen := call(200, partner+"/v1/ping?y=2").seen
	is(t, "Host", seen.Host, "api.partner.example:"+backend.Port)
	is(t, "path", seen.URI, "/v1/ping?y=2")
	is(t, "X-Real-IP", seen.Header.Get("X-Real-IP"), "127.0.0.1")
	is(t, "X-Forwarded-For", seen.Header.Get("X-Forwarded-For"), "127.0.0.1")
	is(t, "Content-Type", seen.Header.Get("Content-Type"), "application/json")
	is(t, "X-Target", seen.Header.Get("X-Target"), "")
	d.logs("target", "api.partner.example:"+backend.Port, "failure", "", "reused", false)
	is(t, "connection", call(200, partner+"/").seen.Conn, seen.Conn)
	d.logs("target", "api.partner.example:"+backend.Port, "failure", "", "reused", true, "lookup", "hit")
	is(t, "Host of an IP address", call(200, "http://127.0.0.1:"+backend.Port).seen.Host, "127.0.0.1:"+backend.Port)
	d.logs("lookup", "literal")

	// bad input, names that may not be called and those that do not exist
	is(t, "no target", d.send(400, "POST", "/call", "").body, "400 no target")
	d.logs("failure", "http_request_error")
	call(403, "http://other.example:"+backend.Port)
	d.logs("failure", "http_request_denied")
	call(502, "http://gone.partner.example")
	d.logs("failure", "destination_not_found", "lookup", "miss")
	before := w.dns.Asked("gone.partner.example")
	call(502, "http://gone.partner.example")
	d.logs("failure", "destination_not_found")
	is(t, "queries for a name that does not exist", w.dns.Asked("gone.partner.example"), before)

	// the internal location: the program names the target, the client cannot
	enter := func(status int, target string) response {
		t.Helper()
		named.Store(&target)
		return d.send(status, "POST", "/entrance/7?x=1", "body", header("X-Target", "http://other.example:"+backend.Port))
	}
	seen = enter(200, partner+"/from/program").seen
	is(t, "what the program named", seen.Host+seen.URI, "api.partner.example:"+backend.Port+"/from/program")
	is(t, "method and body", seen.Method+" "+seen.Body, "POST body")
	is(t, "X-Target", seen.Header.Get("X-Target"), "")
	is(t, "the program's refusal", enter(402, "refused").body, "pay first\n")
	is(t, "the program names none", enter(400, "").body, "400 no target")
	enter(403, "http://other.example:"+backend.Port)
	d.send(404, "GET", "/elsewhere", "")

	w.from(t, "127.0.0.9")
	d.send(404, "POST", "/call", "", header("X-Target", partner))
	enter(200, partner+"/from/program")
}

func TestGuideDynamicA(t *testing.T) {
	for _, test := range []struct {
		name, file, resolver string
		more                 []swap
		stays                bool // while no nameserver replies
	}{
		{name: "stock", file: "docs/guides/dynamic-a.md#2", more: []swap{{"refresh 1m", "refresh 1ns"}, {"grace_period 10m", "refresh 1h"}}},
		{name: "target", file: "docs/guides/dynamic-a.md", stays: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			app := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1", "127.0.0.2"}})
			for _, name := range []string{"app.internal.example", "shop.apps.internal.example"} {
				w.dns.Set(name, testlab.Reply{Addrs: []string{"127.0.0.1", "127.0.0.2"}, TTL: 1})
			}
			w.dns.Set("_billing._tcp.internal.example", testlab.Reply{TTL: 60, SRV: []string{"1 1 " + app.Port + " one.internal.example."}})
			w.dns.Has("one.internal.example", "127.0.0.1")
			swaps := append(test.more, swap{"http://:8080", "http://:" + w.port}, swap{"example 8080", "example " + app.Port},
				swap{"10.0.0.53 10.0.1.53", w.dns.Addr})
			if test.stays {
				swaps = append(swaps, swap{"resolver " + w.dns.Addr + " {", "resolver " + w.dns.Addr + " {\nhosts off"}, swap{"10.0.0.0/8", "127.0.0.0/8"})
			}
			d := runDocumented(t, test.file, w, swaps...)
			client := header("Host", "site.example")

			// these are the same
			for range 5 {
				is(t, "Host", d.send(200, "GET", "/api/x", "", client).seen.Host, "site.example")
			}
			if test.stays {
				reused := false
				for range 5 { // there are two addresses
					reused = reused || d.access()["reused"] == true
				}
				is(t, "some connection was used before", reused, true)
			}
			if test.stays { // stock Caddy asks the system's resolver for the hosts of SRV records
				is(t, "path of a service", d.send(200, "GET", "/billing/x", "", client).seen.URI, "/billing/x")
			}
			d.send(200, "GET", "/", "", client, header("X-App", "shop"))
			d.send(503, "GET", "/", "", client, header("X-App", "gone"))

			// an outage of the nameservers is not
			before := w.dns.Asked("app.internal.example")
			w.dns.Set("app.internal.example", testlab.Reply{Rcode: dns.RcodeServerFailure})
			if !test.stays {
				d.send(503, "GET", "/api/x", "", client)
				return
			}
			testlab.Eventually(t, "the name is asked for again", func() bool {
				d.send(200, "GET", "/api/x", "", client)
				return w.dns.Asked("app.internal.example") > before+1
			})
			d.send(200, "GET", "/api/x", "", client)

			res := d.send(503, "GET", "/", "", client, header("X-App", "gone"))
			is(t, "why", strings.HasPrefix(res.body, "503 gone.apps.internal.example: DNS lookup "), true)
			res = d.send(503, "GET", "/", "", client, header("X-App", "evil.test#"))
			if strings.Contains(res.body, "DNS lookup") {
				t.Errorf("got %v for a name that leads elsewhere, want a refusal", res)
			}
		})
	}
}

func TestGuideEnvoy(t *testing.T) {
	w := newWorld(t)
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1"}})
	secure := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1", "127.0.0.2"}, CA: w.ca, HTTP2: true})
	w.dns.Has("api.partner.example", "127.0.0.3", "127.0.0.1", "127.0.0.2") // nothing listens at the first one
	w.dns.Has("www.other.example", "127.0.0.1")
	w.dns.Has("db.internal.example", "127.0.0.1")
	w.dns.Has("rebound.example", "10.1.2.3")
	d := runDocumented(t, "docs/guides/envoy.md", w,
		swap{"http://:10000", "http://:" + w.port},
		swap{"10.0.0.53 10.0.1.53 {", w.dns.Addr + " {\nhosts off"},
		swap{"remote_ip 10.0.0.0/8", "remote_ip 127.0.0.1"},
		swap{"ports 443", "ports 443 " + secure.Port + "\n" + w.trust()},
		swap{"ports 80", "ports 80 " + plain.Port + "\nallow_ips 127.0.0.0/8"},
		swap{"timeout 15s", "timeout 1m"},
		swap{"dial_timeout 1s", "dial_timeout 1m"},
	)
	testlab.Eventually(t, "the name of preload is asked for", func() bool { return w.dns.Asked("api.partner.example") > 0 })
	secureTarget := "api.partner.example:" + secure.Port

	addresses := make(map[string]bool)
	for range 30 {
		seen := d.send(200, "GET", "/v1?x=1", "", header("X-Host-Port", secureTarget)).seen
		is(t, "Host", seen.Host, secureTarget)
		is(t, "path", seen.URI, "/v1?x=1")
		is(t, "name of TLS", seen.SNI, "api.partner.example")
		is(t, "X-Host-Port", seen.Header.Get("X-Host-Port"), "")
		addresses[seen.Address] = true
		is(t, "target in the log", d.access()["target"], any(secureTarget))
	}
	is(t, "addresses that were used", len(addresses), 2)
	d.send(200, "GET", "/", "", header("X-Host-Port", secureTarget))
	d.logs("failure", "", "reused", true)

	// a client that has http_proxy, and one whose Host is the target
	proxy, _ := url.Parse("http://127.0.0.1:" + w.port)
	rt := &http.Transport{Proxy: http.ProxyURL(proxy)}
	t.Cleanup(rt.CloseIdleConnections)
	req, _ := http.NewRequest("GET", "http://www.other.example:"+plain.Port+"/page?x=1", nil)
	res, err := do(&http.Client{Transport: rt}, req)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("got %v, %v by way of http_proxy, want status 200", res, err)
	}
	is(t, "by way of http_proxy", res.seen.Host+res.seen.URI, "www.other.example:"+plain.Port+"/page?x=1")
	d.logs("target", "www.other.example:"+plain.Port, "failure", "", "reused", false)
	is(t, "by Host", d.send(200, "GET", "/", "", header("Host", "www.other.example:"+plain.Port)).seen.Conn, res.seen.Conn)
	d.logs("target", "www.other.example:"+plain.Port, "failure", "", "reused", true)

	for _, test := range []struct {
		status  int
		failure string
		change  func(*http.Request)
	}{
		{403, "http_request_denied", header("X-Host-Port", "db.internal.example:"+secure.Port)},
		{403, "http_request_denied", header("X-Host-Port", "api.partner.example:22")},
		{403, "destination_ip_prohibited", header("Host", "rebound.example")},
		{403, "destination_ip_prohibited", header("Host", "169.254.169.254")},
		{502, "destination_not_found", header("Host", "gone.example")},
		{403, "http_request_denied", header("Host", "127.0.0.1:"+w.port)}, // this server
	} {
		is(t, "body", d.send(test.status, "GET", "/", "", test.change).body[4:], test.failure)
		d.logs("failure", test.failure, "status", float64(test.status))
	}
	w.from(t, "127.0.0.9")
	d.send(403, "GET", "/", "", header("X-Host-Port", secureTarget))
}

// TestGuideSmokescreen runs the configurations of the guide. It is long because they are
// for the same backend and follow each other.
func TestGuideSmokescreen(t *testing.T) {
	w := newWorld(t)
	backend := testlab.NewBackend(t, testlab.BackendConfig{CA: w.ca})
	backend.SetCertificate("wrong.hooks.example", "other.example")
	for _, name := range []string{"api.partner.example", "wrong.hooks.example", "hooks.example", "www.bank.example", "www.other.example", "db.internal.example"} {
		w.dns.Has(name, "127.0.0.1")
	}
	w.dns.Has("private.other.example", "10.1.2.3", "169.254.169.254")
	certFile, keyFile := w.ca.Files(t, "egress.test")
	for name, file := range map[string]string{"SERVER_CERT": certFile, "SERVER_KEY": keyFile, "CLIENT_CA": w.ca.File} {
		t.Setenv(name, file)
	}
	health := testlab.FreePort(t)
	d := runDocumented(t, "docs/guides/smokescreen.md", w,
		swap{"https://:4750", "https://:" + w.port},
		swap{"http://:9810", "http://:" + health},
		swap{"10.0.0.53 10.0.1.53 {", w.nameserver()},
		swap{"ports 80 443", "ports 80 443 " + backend.Port + "\n" + w.trust()},
		swap{"dial_timeout 10s", "dial_timeout 1m"},
		swap{"allow *.bank.example", "allow *.bank.example\nallow_ips 127.0.0.0/8"},
	)
	roles := make(map[string]*http.Client)
	as := func(role string) *http.Client {
		if roles[role] == nil {
			config := &tls.Config{RootCAs: w.ca.Pool(), ServerName: "egress.test"}
			if role != "" {
				cert, err := w.ca.Issue(role)
				if err != nil {
					t.Fatal(err)
				}
				config.Certificates = []tls.Certificate{*cert}
			}
			rt := &http.Transport{TLSClientConfig: config}
			t.Cleanup(rt.CloseIdleConnections)
			roles[role] = &http.Client{Transport: rt}
		}
		return roles[role]
	}
	ask := func(role, target string) (response, error) {
		req, cancel := w.request("POST", "/", target, strings.NewReader("event"), header("Host", "egress.test"))
		defer cancel()
		req.URL.Scheme = "https"
		return do(as(role), req)
	}
	at := func(name string) string { return "https://" + name + ":" + backend.Port + "/v1" }
	warnings := func() int {
		data, err := os.ReadFile(d.logFile)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "target would be refused")
	}
	for _, test := range []struct {
		role, target string
		status       int
		failure      string
	}{
		{"webhooks", at("api.partner.example"), 200, ""},
		{"webhooks", at("wrong.hooks.example"), 502, "tls_certificate_error"},
		{"webhooks", at("hooks.example"), 403, "http_request_denied"},
		{"webhooks", at("www.other.example"), 403, "http_request_denied"},
		{"webhooks", "https://127.0.0.1:" + backend.Port, 403, "http_request_denied"},
		{"billing", at("www.bank.example"), 200, ""},
		{"billing", at("www.other.example"), 200, ""}, // and a warning
		{"billing", at("private.other.example"), 403, "destination_ip_prohibited"},
		{"billing", at("db.internal.example"), 403, "http_request_denied"},
		{"billing", "http://169.254.169.254/", 403, "destination_ip_prohibited"},
		{"automation", at("www.other.example"), 200, ""},
		{"automation", at("db.internal.example"), 403, "http_request_denied"},
		{"automation", at("private.other.example"), 403, "destination_ip_prohibited"},
		{"automation", at("gone.other.example"), 502, "destination_not_found"},
		{"automation", "https://api.partner.example:8443/", 403, "http_request_denied"},
		{"stranger", at("api.partner.example"), 403, ""},
	} {
		before := warnings()
		res, err := ask(test.role, test.target)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != test.status {
			t.Errorf("%s to %s: got %v, want status %d", test.role, test.target, res, test.status)
		}
		role := test.role
		if test.status == 200 {
			is(t, "path and body", res.seen.URI+" "+res.seen.Body, "/v1 event")
		} else if test.failure != "" {
			is(t, "the message", strings.HasSuffix(res.body, "\n\nAsk the network team if "+role+" should be able to do that.\n"), true)
		}
		line := d.access()
		is(t, "role in the log", line["role"], any(role))
		if test.role != "stranger" { // whose request has come to no handler
			is(t, test.role+" to "+test.target, line["failure"], any(test.failure))
		}
		is(t, "warnings", warnings()-before > 0, test.role == "billing" && test.target != at("www.bank.example"))
	}
	if res, err := ask("", at("api.partner.example")); err == nil {
		t.Errorf("got %v without a certificate, want no connection", res)
	}
	if again, err := ask("webhooks", at("api.partner.example")); err != nil || again.StatusCode != 200 {
		t.Errorf("got %v, %v, want status 200", again, err)
	}
	if line := d.access(); line["reused"] != true {
		t.Errorf("got %v in the access log, want a connection that was used before", line)
	}

	w.port = health
	is(t, "health", d.send(200, "GET", "/healthcheck", "").body, "")
	metrics := d.send(200, "GET", "/metrics", "").body
	is(t, "refusals that were reported", strings.Contains(metrics, `caddy_target_refused_total{mode="report",rule="allow"}`), true)
}
