package caddytarget

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/explain"
	"caddytarget/internal/failure"
	"caddytarget/internal/testlab"
)

// A fault is planted in one place, and has to be told in one way.
type fault struct {
	name          string
	target        string
	options       string // of the site
	phase, token  string
	status        int
	rule, details string
}

// faultyBackends starts a backend for each way to fail. It returns their ports.
func faultyBackends(w *world) map[string]string {
	t := w.TB
	ports := map[string]string{"refuses": testlab.FreePort(t)}
	ports["hangs in connect"] = testlab.FreePort(t)
	hole := testlab.NewBlackhole(t, ports["hangs in connect"], "127.0.0.3")
	t.Cleanup(hole.Close)
	ports["silent"] = testlab.SilentBackend(t, "", "127.0.0.3").Port
	ports["resets"] = testlab.ResettingBackend(t, "", "127.0.0.3").Port
	raw := func(name, response string) {
		ports[name] = testlab.NewRawBackend(t, "", "127.0.0.3", nil, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, response)
			_ = conn.Close()
		}).Port
	}
	raw("not HTTP", "SSH-2.0-OpenSSH_9.2\r\n")
	raw("header too large", "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 300<<10)+"\r\n\r\n")
	raw("closes", "")
	raw("cut in the header", "HTTP/1.1 200 OK\r\nContent-Le")
	raw("cut between fields", "HTTP/1.1 200 OK\r\nX: y\r\n")
	raw("ends too early", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
	backend := func(name string, change func(*testlab.BackendConfig)) {
		config := testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca}
		change(&config)
		ports[name] = testlab.NewBackend(t, config).Port
	}
	backend("own certificate", func(*testlab.BackendConfig) {})
	backend("another authority", func(c *testlab.BackendConfig) { c.CA = testlab.NewAuthority(t) })
	backend("wants a certificate", func(c *testlab.BackendConfig) {
		c.TLS = func(config *tls.Config) { config.ClientAuth = tls.RequireAnyClientCert }
	})
	slow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(testlab.Timeout):
		}
	})
	backend("slow", func(c *testlab.BackendConfig) { c.CA, c.Handler = nil, slow })
	wrong, err := w.ca.Issue("another.example")
	if err != nil {
		t.Fatal(err)
	}
	backend("wrong name", func(c *testlab.BackendConfig) {
		c.TLS = func(config *tls.Config) {
			config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return wrong, nil }
		}
	})
	return ports
}

// TestFailures plants faults, one after the other, and checks that each is told by its
// own words in all places: placeholders, Proxy-Status, log.
func TestFailures(t *testing.T) {
	w := newWorld(t)
	ports := faultyBackends(w)
	w.dns.Has("name.example", "127.0.0.3")
	w.dns.Set("none.example", testlab.Reply{})
	w.dns.Set("failing.example", testlab.Reply{Rcode: 2})
	w.dns.Set("silent.example", testlab.Reply{Silent: true})
	w.dns.Has("private.example", "10.0.0.1")
	at := func(name string) string { return "http://name.example:" + ports[name] + "/" }
	secure := func(name string) string { return "https://name.example:" + ports[name] + "/" }
	faults := []fault{
		{name: "no target", phase: "request", token: "http_request_error", status: 400, rule: "no_target"},
		{name: "malformed", target: "http://a b/", phase: "request", token: "http_request_error", status: 400, rule: "malformed"},
		{name: "NXDOMAIN", target: "http://unknown.example/", phase: "dns", token: "destination_not_found", status: 502},
		{name: "NODATA", target: "http://none.example/", phase: "dns", token: "dns_no_data", status: 502},
		{name: "SERVFAIL", target: "http://failing.example/", phase: "dns", token: "dns_error", status: 502, details: "SERVFAIL"},
		{name: "nameserver silent", target: "http://silent.example/", phase: "dns", token: "dns_timeout", status: 504},
		{name: "refused by name", target: "http://denied.example/", phase: "policy", token: "http_request_denied", status: 403, rule: "deny"},
		{name: "refused by address", target: "http://private.example/", phase: "policy", token: "destination_ip_prohibited", status: 403, rule: "private"},
		{name: "refuses", target: at("refuses"), phase: "connect", token: "connection_refused", status: 502},
		{name: "hangs in connect", target: at("hangs in connect"), phase: "connect", token: "connection_timeout", status: 504},
		{name: "hangs in the handshake", target: secure("silent"), phase: "tls", token: "connection_timeout", status: 504},
		{name: "wrong name", target: secure("wrong name"), phase: "tls", token: "tls_certificate_error", status: 502},
		{name: "unknown authority", target: secure("another authority"), phase: "tls", token: "tls_certificate_error", status: 502},
		{name: "client certificate wanted", target: secure("wants a certificate"), phase: "tls", token: "tls_alert_received", status: 502},
		{name: "no TLS there", target: secure("not HTTP"), phase: "tls", token: "tls_protocol_error", status: 502},
		{name: "reset before the response", target: at("resets"), phase: "response", token: "connection_terminated", status: 502},
		{name: "closed without a response", target: at("closes"), phase: "response", token: "connection_terminated", status: 502},
		{name: "cut in the header", target: at("cut in the header"), phase: "response", token: "connection_terminated", status: 502, details: "within the response header"},
		{name: "cut between fields", target: at("cut between fields"), phase: "response", token: "connection_terminated", status: 502, details: "within the response header"},
		{name: "not HTTP", target: at("not HTTP"), phase: "response", token: "http_protocol_error", status: 502},
		{name: "header too large", target: at("header too large"), phase: "response", token: "http_response_header_size", status: 502},
		{name: "slow answer", target: at("slow"), options: "response_header_timeout 200ms", phase: "response", token: "http_response_timeout", status: 504},
		{name: "ends too early", target: at("ends too early"), phase: "response", token: "http_response_incomplete", status: 200},
	}
	for _, timeout := range []string{"", "timeout 2s"} {
		for _, f := range faults {
			t.Run(f.name+" "+timeout, func(t *testing.T) { w.checkFault(t, f, timeout) })
		}
	}
	t.Run("timeout in a slow answer", func(t *testing.T) {
		w.checkFault(t, fault{target: at("slow"), phase: "response", token: "http_response_timeout", status: 504, details: "timeout of 300ms"}, "timeout 300ms")
	})
	t.Run("timeout in connect", func(t *testing.T) {
		w.checkFault(t, fault{target: at("hangs in connect"), phase: "connect", token: "connection_timeout", status: 504, details: "timeout of 300ms"}, "timeout 300ms")
	})
	t.Run("timeout in the handshake", func(t *testing.T) {
		w.checkFault(t, fault{target: secure("silent"), phase: "tls", token: "connection_timeout", status: 504, details: "TLS handshake: no answer within the timeout of 300ms"}, "timeout 300ms")
	})
	t.Run("timeout in DNS", func(t *testing.T) {
		w.checkFault(t, fault{target: "http://silent.example/", phase: "dns", token: "dns_timeout", status: 504, details: "timeout of 300ms"}, "timeout 300ms")
	})
	w.run("metrics /metrics")
	series := w.dnsSeries("failures_total")
	if got, want := len(series), len(failure.RequestFailures()); got != want || len(notZero(series)) < 15 {
		t.Errorf("got %d series of failures, %d not 0, want the %d that were there from the start", got, len(series), want)
	}
}

// checkFault checks one fault at a new site.
func (w *world) checkFault(t *testing.T, f fault, timeout string) {
	lines := w.logTo("INFO", "http.handlers.target", "target refused", "target not resolved", "target failed")
	w.resolver = "timeout 300ms\ndeadline 1s"
	w.run(fmt.Sprintf(`target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		deny denied.example
		tls_trust_pool file %q
		dial_timeout 1s
		tls_timeout 1s
		proxy_status details
		lb_retries 0
		fail_duration 0
		%s
		%s
	}
	handle_errors {
		respond "{err.status_code} {http.target.phase} {http.target.failure} {http.target.rule}|{http.target.error}"
	}`, w.ca.File, timeout, f.options))
	res, err := w.try(http.MethodGet, "/secret", f.target, nil)
	if f.status == http.StatusOK {
		if err == nil {
			t.Errorf("the response came to its end: %v", res)
		}
		if got := res.Header["Proxy-Status"]; got != nil {
			t.Errorf("Proxy-Status %q of a response that the backend began, want none", got)
		}
	} else {
		if err != nil {
			t.Fatal(err)
		}
		w.checkTold(t, f, res)
	}
	checkExplained(t, f, res)
	testlab.Eventually(t, "one line", func() bool { return len(lines()) == 1 })
	line := lines()[0]
	for field, want := range map[string]any{"phase": f.phase, "failure": f.token, "level": "info", "rule": any(f.rule)} {
		if got := line[field]; got != want && (want != "" || got != nil) {
			t.Errorf("logged %s %v, want %v", field, got, want)
		}
	}
	if got, ok := line["status"].(float64); ok != (f.status != http.StatusOK) || ok && int(got) != f.status {
		t.Errorf("logged status %v, want %d, or none where the response had begun", line["status"], f.status)
	}
	if strings.Contains(fmt.Sprint(line), "secret") {
		t.Errorf("the log has the path: %v", line)
	}
}

// checkExplained checks that a fault is explained as it was told, up to the connection.
func checkExplained(t *testing.T, f fault, res response) {
	query := url.Values{"url": {f.target}, "connect": {"1"}}
	got := mustExplain(t, query)
	switch {
	case got == nil:
		return
	case f.phase == "response": // which begins when the connection is open
		if !got.WouldSend || got.Connect == nil {
			t.Errorf("explained as %+v with the connection %+v, want that it is sent over one", got.Outcome, got.Connect)
		}
		return
	}
	want := explain.Outcome{Status: f.status, Phase: f.phase, Failure: f.token, Rule: f.rule}
	_, want.Error, _ = strings.Cut(res.body, "|")
	// the ports of this side differ
	ports := regexp.MustCompile(`127\.0\.0\.1:\d+`)
	got.Outcome.Error, want.Error = ports.ReplaceAllString(got.Outcome.Error, "HERE"), ports.ReplaceAllString(want.Error, "HERE")
	if got.Outcome != want {
		t.Errorf("explained as %+v, want %+v", got.Outcome, want)
	}
	if dialled := f.phase == "connect" || f.phase == "tls"; dialled != (got.Connect != nil) {
		t.Errorf("explained with the connection %+v, want one: %t", got.Connect, dialled)
	}
}

// checkTold checks what an error response says.
func (w *world) checkTold(t *testing.T, f fault, res response) {
	want := fmt.Sprintf("%d %s %s %s|", f.status, f.phase, f.token, f.rule)
	if !strings.HasPrefix(res.body, want) || !strings.Contains(res.body, f.details) {
		t.Errorf("got %q, want %q and %q", res.body, want, f.details)
	}
	_, text, _ := strings.Cut(res.body, "|")
	if strings.ContainsAny(text, "\"\\\n") {
		t.Errorf("%q cannot stand in a JSON string", text)
	}
	if f.phase != "request" {
		_, host, _ := strings.Cut(f.target, "://")
		host, _, _ = strings.Cut(host, ":")
		if host = strings.Trim(host, "/"); !strings.HasPrefix(text, host) {
			t.Errorf("%q does not begin with the target %s", text, host)
		}
	}
	status := res.Header["Proxy-Status"]
	if len(status) != 1 || !strings.HasPrefix(status[0], "caddytarget; error="+f.token+"; ") || !strings.Contains(status[0], `details="`) {
		t.Errorf("Proxy-Status %q, want the error %s with details", status, f.token)
	}
}

// TestStuckUpload: a backend that takes no more of the request has failed in another phase
// than one that does not answer.
func TestStuckUpload(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("name.example", "127.0.0.3")
	wait := make(chan struct{})
	t.Cleanup(func() { close(wait) })
	h2 := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-wait })})
	for _, target := range []string{"http://name.example:" + testlab.SilentBackend(t, "", "127.0.0.3").Port, "https://name.example:" + h2.Port} {
		for _, option := range []string{"timeout 1s", "read_timeout 1s", "write_timeout 1s"} {
			for size, want := range map[int64]string{1: "response ", 64 << 20: "send connection_write_timeout"} {
				if option == "write_timeout 1s" && (size == 1 || strings.HasPrefix(target, "https")) {
					continue // ends nothing
				}
				w.run(fmt.Sprintf(`target_proxy {header.X-Target} {
					allow_ips 127.0.0.0/8
					tls_trust_pool file %q
					fail_duration 0
					lb_retries 0
					%s
				}
				handle_errors {
					respond "{http.target.phase} {http.target.failure} {http.target.error}"
				}`, w.ca.File, option))
				conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nX-Target: %s\r\n\r\n", size, target)
				go func() { _, _ = io.CopyN(conn, zeros{}, size) }()
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				_ = conn.Close()
				if res.StatusCode != http.StatusGatewayTimeout || !strings.HasPrefix(string(body), want) {
					t.Errorf("%s, %s, %d octets: status %d, %q, want 504 and %q", target, option, size, res.StatusCode, body, want)
				}
			}
		}
	}
}

// zeros is a body of zeros without an end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestUnavailable: where all addresses are known to fail, that is the reason.
func TestUnavailable(t *testing.T) {
	w := newWorld(t)
	lines := w.logTo("INFO", "http.handlers.target", "target failed")
	w.dns.Has("dead.example", "127.0.0.2", "127.0.0.3")
	port := testlab.FreePort(t)
	w.run(w.proxy("proxy_status details"))
	for _, want := range []string{"connection_refused", "destination_unavailable"} {
		res := w.get("/", "http://dead.example:"+port)
		if got := res.Header.Get("Proxy-Status"); res.StatusCode != 502 || !strings.HasPrefix(got, "caddytarget; error="+want+"; ") {
			t.Errorf("status %d, Proxy-Status %q, want 502 and %s", res.StatusCode, got, want)
		}
		testlab.Eventually(t, "a line with "+want, func() bool {
			all := lines()
			return len(all) > 0 && all[len(all)-1]["failure"] == want
		})
	}
}

// TestProxyStatusEverywhere: a backend cannot forge the field in interim responses and
// trailers either, announced or not.
func TestProxyStatusEverywhere(t *testing.T) {
	const forged = "Proxy-Status: CaddyTarget; error=dns_error, other\r\n"
	w := newWorld(t)
	w.dns.Has("name.example", "127.0.0.2")
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header()["Proxy-Status"] = []string{"caddytarget; error=dns_error", "other"}
		rw.WriteHeader(http.StatusEarlyHints)
		rw.Header().Set("Trailer", "X-Announced")
		rw.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(rw, "hi")
		rw.Header()[http.TrailerPrefix+"Proxy-Status"] = []string{"caddytarget; error=dns_error", "other"}
	})})
	response := func(trailer string) string {
		return testlab.NewRawBackend(t, "", "127.0.0.2", nil, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n"+forged+"\r\n"+
				"HTTP/1.1 200 OK\r\n"+forged+trailer+"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"+forged+"X-Last: 1\r\n\r\n")
		}).Port
	}
	w.run(w.proxy())
	for name, target := range map[string]string{
		"announced":     "http://name.example:" + response("Trailer: Proxy-Status, X-Last\r\n"),
		"not announced": "http://name.example:" + response(""),
		"HTTP/2":        "https://name.example:" + b.Port,
	} {
		var interim []string
		res := w.get("/", target, func(r *http.Request) {
			*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
				interim = append(interim, header["Proxy-Status"]...)
				return nil
			}}))
		})
		for where, got := range map[string][]string{"interim response": interim, "header": res.Header["Proxy-Status"], "trailer": res.Trailer["Proxy-Status"]} {
			if got = slices.Compact(got); !slices.Equal(got, []string{"other"}) { // an announced one has those of the header, too
				t.Errorf("%s: Proxy-Status of the %s is %q, want what the other said", name, where, got)
			}
		}
		if res.body != "hi" {
			t.Errorf("%s: got %v", name, res)
		}
	}
}

// TestProxyStatus: the field is on own error responses alone, and backends cannot forge it.
func TestProxyStatus(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("name.example", "127.0.0.2")
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header()["Proxy-Status"] = r.Header["X-Status"]
		rw.Header().Set("Trailer", "Proxy-Status")
		rw.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(rw, "mine")
	})})
	w.run(w.proxy())
	for _, test := range []struct{ sent, want []string }{
		{nil, nil},
		{[]string{"caddytarget; error=dns_error"}, nil},
		{[]string{"CaddyTarget; error=dns_error"}, nil},
		{[]string{`"caddytarget"; error=dns_error`}, nil},
		{[]string{"other; error=dns_error"}, []string{"other; error=dns_error"}},
		{[]string{`a; details="x, caddytarget; error=y", caddytarget; error=z`, "b"}, []string{`a; details="x, caddytarget; error=y"`, "b"}},
		{[]string{"a", "caddytarget", "b; received-status=200"}, []string{"a", "b; received-status=200"}},
		{[]string{`a; details="caddytarget; error=y`}, nil},
	} {
		res := w.get("/", "http://name.example:"+b.Port, func(r *http.Request) { r.Header["X-Status"] = test.sent })
		if got := res.Header["Proxy-Status"]; res.body != "mine" || !slices.Equal(got, test.want) {
			t.Errorf("%q came as %q, want %q", test.sent, got, test.want)
		}
	}
	for options, want := range map[string]string{
		"":                     "caddytarget; error=http_request_denied",
		"proxy_status on":      "caddytarget; error=http_request_denied",
		"proxy_status off":     "",
		"proxy_status details": `caddytarget; error=http_request_denied; details="name.example: scheme 'ftp' is refused: `,
	} {
		w.run(w.proxy(options))
		res := w.get("/", "ftp://name.example/")
		if got := res.Header.Get("Proxy-Status"); res.StatusCode != 403 || (want == "") != (got == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%s: status %d, Proxy-Status %q, want 403 and %q", options, res.StatusCode, got, want)
		}
	}
}

// TestFailureLog: the level of lines about failures, and how many there are.
func TestFailureLog(t *testing.T) {
	w := newWorld(t)
	for option, want := range map[string]string{
		"": "info", "log_failures debug": "debug", "log_failures info": "info", "log_failures warn": "warn", "log_failures error": "error",
	} {
		lines := w.logTo("DEBUG", "http.handlers.target", "target refused")
		w.run(w.proxy(option))
		w.get("/", "ftp://name.example/")
		testlab.Eventually(t, "a line", func() bool { return len(lines()) == 1 })
		if got := lines()[0]["level"]; got != want {
			t.Errorf("%q: level %v, want %s", option, got, want)
		}
	}
	lines := w.logTo("DEBUG", "http.handlers.target", "target refused", "target not resolved")
	w.run(w.proxy())
	for range 300 {
		w.get("/", "ftp://name.example/")
	}
	w.get("/", "http://unknown.example/")
	testlab.Eventually(t, "a line of another kind", func() bool {
		return slices.ContainsFunc(lines(), func(line map[string]any) bool { return line["msg"] == "target not resolved" })
	})
	if n := len(lines()); n < 101 || n > 290 {
		t.Errorf("%d lines of 300 equal failures and another one, want 101 and a few", n)
	}
}

// TestFailureSeries: the series of all failures are there when a configuration is loaded, so
// that the first failure of its kind is an increase. They are those of docs/failures.md.
func TestFailureSeries(t *testing.T) {
	w := newWorld(t)
	w.run("metrics /metrics\n" + w.proxy())
	before := w.dnsSeries("failures_total")
	series := func(phase, token string) string {
		return fmt.Sprintf("failures_total{error=%q,phase=%q}", token, phase)
	}
	documented, inAny := make(map[string]bool), make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| (`\\w+`|any) \\| `(\\w+)` \\|").FindAllStringSubmatch(readFile(t, "docs/failures.md"), -1) {
		if row[1] == "any" {
			inAny[row[2]] = true
			continue
		}
		s := series(strings.Trim(row[1], "`"), row[2])
		documented[s] = true
		if _, ok := before[s]; !ok {
			t.Errorf("got no series %s at the start", s)
		}
	}
	if len(documented) < 25 || len(inAny) != 2 {
		t.Errorf("got %d failures and %d of any phase in the docs, want more", len(documented), len(inAny))
	}
	token := regexp.MustCompile(`error="(\w+)"`)
	for s, n := range before {
		if parts := token.FindStringSubmatch(s); n != 0 || !documented[s] && !inAny[parts[1]] {
			t.Errorf("got %s with %g at the start, want 0 and a failure that is documented", s, n)
		}
	}
	w.get("/", "ftp://name.example/")
	w.get("/", "http://none.example/")
	want := map[string]float64{series("policy", "http_request_denied"): 1, series("dns", "destination_not_found"): 1}
	after := w.dnsSeries("failures_total")
	if len(after) != len(before) {
		t.Errorf("got %d series after two failures, want the %d of the start", len(after), len(before))
	}
	if got := notZero(after); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestFailuresDocs holds docs/failures.md against the tokens and phases.
func TestFailuresDocs(t *testing.T) {
	docs, err := os.ReadFile("docs/failures.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("internal/failure/failure.go")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?:Token|Phase) += "([a-z_]+)"`).FindAllSubmatch(source, -1)
	if len(found) < 30 {
		t.Fatalf("%d tokens and phases in the source", len(found))
	}
	for _, m := range found {
		if !bytes.Contains(docs, append(append([]byte("`"), m[1]...), '`')) {
			t.Errorf("docs/failures.md does not have %s", m[1])
		}
	}
	if f := failure.Of(nil); f.Token != "" {
		t.Errorf("no error is %v", f)
	}
}
