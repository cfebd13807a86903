package caddytarget

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/testlab"
)

// optionTest shows what an option of transport target does, by what a backend or
// a client can see of it. Without the option, or with another value, something
// else is seen: no test passes if its option is ignored.
type optionTest struct {
	option  string
	about   string // what of it, where there are several tests
	kinds   []kind
	site    string // a site with %s for a setting; default: target_proxy
	with    string // other options, which all settings have
	global  string // global options
	observe func(tr *trial) string
	wants   wants
}

// wants has what is seen with each setting: subdirectives or, in braces, JSON of
// the transport. Where it begins with "still", something does not happen.
type wants map[string]string

// kind is how a backend is spoken to.
type kind string

const (
	plain1  kind = "http"
	secure1 kind = "https, HTTP/1.1"
	secure2 kind = "https, HTTP/2"
	plain2  kind = "h2c"
)

var (
	allKinds  = []kind{plain1, secure1, secure2, plain2}
	withTLS   = []kind{secure1, secure2}
	withHTTP1 = []kind{plain1, secure1}
)

const (
	// untrusting is a site that trusts no authority but those of its setting.
	untrusting = `target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		%s
	}
	handle_errors {
		respond "{err.status_code} {http.target.error}"
	}`

	// issuing makes Caddy issue certificates itself. It trusts its CA nowhere else:
	// the CA has to be named for that, since automatic HTTPS is off.
	issuing = `local_certs
	skip_install_trust
	pki {
		ca local {
			name test
		}
	}`

	// trusting makes Caddy believe what its clients forward.
	trusting = `servers {
		trusted_proxies static 127.0.0.0/8
	}`

	// handlerless is a site without a target handler, for an address as the target.
	handlerless = `reverse_proxy {header.X-Target} {
		transport target {
			%s
		}
	}`
)

// resumptions are of sessions with two names.
var resumptions = wants{
	"":                      "one resumed, two resumed",
	"tls_session_cache off": "one not resumed, two not resumed",
	"tls_session_cache 1":   "one not resumed, two not resumed",
	"tls_session_cache 2":   "one resumed, two resumed",
}

// optionTests are the tests of all options. Those that look at sockets as only
// Linux shows them are added elsewhere.
var optionTests = []optionTest{
	{option: "dial_timeout", kinds: []kind{plain1}, observe: dialling, wants: wants{
		"dial_timeout 4s": "504, not before 4s", // 3 seconds by default
	}},
	{option: "response_header_timeout", kinds: allKinds, observe: lateResponse, wants: wants{
		"":                              "still nothing, then 200 late",
		"response_header_timeout 300ms": "504",
	}},
	{option: "read_timeout", kinds: allKinds, observe: lateResponse, wants: wants{
		"":                "still nothing, then 200 late",
		"read_timeout 1s": "504",
	}},
	{option: "read_timeout", about: "in a body", kinds: allKinds, observe: haltedResponse, wants: wants{
		"":                "still nothing, then 200 first, last",
		"read_timeout 2s": "broken off",
	}},
	{option: "read_timeout", about: "of a WebSocket", kinds: withHTTP1, observe: silentWebSocket, wants: wants{
		"":                "still nothing, then LINE",
		"read_timeout 2s": "closed",
	}},
	{option: "write_timeout", kinds: withHTTP1, observe: slowReader, wants: wants{
		"":                    "still nothing, then 200",
		"write_timeout 300ms": "failed",
	}},
	{option: "expect_continue_timeout", kinds: withHTTP1, observe: expectation, wants: wants{
		"":                              "the body comes at once",
		"expect_continue_timeout 1h":    "still no body, then it comes",
		"expect_continue_timeout 700ms": "the body comes, not before 700ms",
	}},
	{option: "expect_continue_timeout", about: "and a refusal", kinds: withHTTP1, observe: refusedExpectation, wants: wants{
		"":                           "417, the body was sent",
		"expect_continue_timeout 1h": "417, no body",
	}},
	{option: "max_response_header", kinds: allKinds, observe: largeHeaderOption, wants: wants{
		"":                         "200",
		"max_response_header 8KiB": "502",
	}},
	{option: "compression", kinds: allKinds, observe: encoding, wants: wants{
		"":                     "asked for and decoded; what the client asks for is left to it",
		"compression off":      "not asked for; what the client asks for is left to it",
		`{"compression":true}`: "asked for and decoded; what the client asks for is left to it",
	}},
	{option: "local_address", kinds: allKinds, observe: source, wants: wants{
		"":                        "127.0.0.1",
		"local_address 127.0.0.9": "127.0.0.9",
	}},
	{option: "proxy_protocol", kinds: allKinds, observe: announcements, wants: wants{
		"":                  "1 connection, nothing is announced",
		"proxy_protocol v1": "2 connections, v1 127.0.0.11:0, v1 127.0.0.12:0",
		"proxy_protocol v2": "2 connections, v2 127.0.0.11:0, v2 127.0.0.12:0",
	}},
	{option: "proxy_protocol", about: "IPv6", kinds: []kind{plain1, secure2}, global: trusting, observe: announcedForwarding, wants: wants{
		"":                  "nothing is announced",
		"proxy_protocol v1": "v1 [2001:db8::7]:0",
		"proxy_protocol v2": "v2 [2001:db8::7]:0",
	}},

	{option: "keepalive", kinds: allKinds, observe: idleConnection, wants: wants{
		"":                "still open",
		"keepalive 300ms": "closed",
	}},
	{option: "keepalive", about: "off", kinds: allKinds, observe: connections, wants: wants{
		"":                                "1 connection",
		"keepalive off":                   "3 connections",
		`{"keep_alive":{"enabled":true}}`: "1 connection",
	}},
	{option: "keepalive", about: "field", kinds: withHTTP1, observe: connectionField, wants: wants{
		"":              "[]",
		"keepalive off": "[close]",
	}},
	{option: "keepalive", about: "and WebSockets", kinds: withHTTP1, observe: webSocketEcho, wants: wants{
		"":              "[Upgrade] LINE",
		"keepalive off": "[Upgrade] LINE",
	}},
	{option: "keepalive_idle_conns", kinds: allKinds, observe: idleTargets, wants: wants{
		"":                       "still 5 connections",
		"keepalive_idle_conns 2": "2 connections",
	}},
	{option: "keepalive_idle_conns_per_host", kinds: withHTTP1, observe: idlePool, wants: wants{
		"":                                "still 4 connections",
		"keepalive_idle_conns_per_host 2": "2 connections",
	}},
	{option: "share_connections", kinds: []kind{plain1}, observe: sharedTargets, wants: wants{
		"":                  "4 connections",
		"share_connections": "1 connection",
	}},
	{option: "share_connections", about: "with TLS", kinds: []kind{secure1, secure2}, observe: sharedTargets, wants: wants{
		"share_connections": "4 connections", // which prove different names
	}},
	{option: "max_conns_per_host", kinds: withHTTP1, observe: parallelRequests, wants: wants{
		"":                     "all 6",
		"max_conns_per_host 2": "still 4 of 6, then all", // to two addresses
	}},
	{option: "max_conns_per_host", about: "and a timeout", kinds: withHTTP1, with: "timeout {header.X-Timeout}", observe: waiting, wants: wants{
		"":                     "200, then 200",
		"max_conns_per_host 1": "504, then 200",
	}},
	{option: "max_conns_per_host", about: "over HTTP 2", kinds: []kind{secure2, plain2}, observe: parallelRequests, wants: wants{
		"":                     "all 6",
		"max_conns_per_host 1": "all 6", // over one connection
	}},

	{option: "versions", about: "without TLS", kinds: []kind{plain1}, observe: protocol, wants: wants{
		"":                 "HTTP/1.1",
		"versions 1.1":     "HTTP/1.1",
		"versions 2":       "HTTP/1.1",
		"versions h2c":     "HTTP/2.0",
		"versions h2c 2":   "HTTP/2.0",
		"versions 1.1 h2c": "HTTP/2.0",
	}},
	{option: "versions", about: "and a backend of HTTP 1", kinds: []kind{secure1}, observe: protocol, wants: wants{
		"":             "HTTP/1.1",
		"versions 1.1": "HTTP/1.1",
		"versions 2":   "HTTP/1.1", // which is not refused
		"versions h2c": "HTTP/1.1",
	}},
	{option: "versions", about: "with TLS", kinds: []kind{secure2}, observe: protocol, wants: wants{
		"":                 "HTTP/2.0",
		"versions 1.1":     "HTTP/1.1",
		"versions 2":       "HTTP/2.0",
		"versions 1.1 2":   "HTTP/2.0",
		"versions h2c":     "HTTP/2.0", // says nothing of TLS
		"versions 1.1 h2c": "HTTP/1.1",
	}},
	{option: "versions", about: "and h2c", kinds: []kind{plain2}, observe: protocol, wants: wants{
		"":             "HTTP/2.0",
		"versions 1.1": "HTTP/2.0", // the target decides
	}},

	{option: "tls", kinds: []kind{secure1}, site: handlerless, observe: addressSuccess, wants: wants{
		"":                                 "400", // of a server that expects TLS
		"tls\ntls_trust_pool file CA_FILE": "200",
	}},
	{option: "tls", about: "and a target", kinds: []kind{plain1}, observe: success, wants: wants{
		"tls": "200", // the target decides
	}},
	{option: "tls_trust_pool", kinds: withTLS, site: untrusting, observe: success, wants: wants{
		"":                                  "502",
		"tls_trust_pool file CA_FILE":       "200",
		"tls_trust_pool file OTHER_CA_FILE": "502",
		"tls_trust_pool inline {\ntrust_der CA_DER\n}": "200",
	}},
	{option: "tls_trusted_ca_certs", kinds: withTLS, site: untrusting, observe: success, wants: wants{
		"":                                   "502",
		"tls_trusted_ca_certs CA_FILE":       "200",
		"tls_trusted_ca_certs OTHER_CA_FILE": "502",
		"tls_trusted_ca_certs OTHER_CA_FILE CA_FILE": "200",
		`{"tls":{"root_ca_pool":["CA_DER"]}}`:        "200",
	}},
	{option: "tls_insecure_skip_verify", kinds: withTLS, site: untrusting, observe: success, wants: wants{
		"":                         "502",
		"tls_insecure_skip_verify": "200",
	}},
	{option: "tls_server_name", kinds: withTLS, observe: serverNames, wants: wants{
		"":                          "a.example a.example, 1 connection",
		"tls_server_name b.example": "b.example b.example, 1 connection",
		"tls_server_name {header.X-Name}.example": "one.example two.example, 2 connections",
	}},
	{option: "tls_client_auth", kinds: withTLS, observe: clientCertificate, wants: wants{
		"":                                   "none",
		"tls_client_auth CERT_FILE KEY_FILE": "client.example",
	}},
	{option: "tls_client_auth", about: "automated", kinds: withTLS, global: issuing, observe: clientCertificate, wants: wants{
		"":                             "none",
		"tls_client_auth auto.example": "auto.example",
	}},
	{option: "tls_curves", kinds: withTLS, observe: curve, wants: wants{
		"":                               "X25519MLKEM768 of several",
		"tls_curves secp384r1":           "CurveP384 of 1",
		"tls_curves secp521r1 secp384r1": "CurveP384 of 2", // the order is Go's
	}},
	{option: "tls_timeout", kinds: []kind{secure1}, observe: lateHandshake, wants: wants{
		"":                "504", // 5 seconds by default
		"tls_timeout 30s": "still nothing, then 200",
	}},
	{option: "tls_renegotiation", kinds: []kind{secure1}, observe: renegotiation, wants: wants{
		"":                         "refused",
		"tls_renegotiation never":  "refused",
		"tls_renegotiation once":   "begun",
		"tls_renegotiation freely": "begun",
	}},
	// one after the other: equal configurations share their sessions
	{option: "tls_session_cache", kinds: []kind{secure1}, with: "keepalive off", observe: resumption, wants: resumptions},
	{option: "tls_session_cache", about: "HTTP 2", kinds: []kind{secure2}, with: "keepalive off", observe: resumption, wants: resumptions},

	{option: "unhealthy_status", kinds: allKinds, observe: badAddress, wants: wants{
		"":                         "called again",
		"unhealthy_status 503":     "left out",
		"unhealthy_status 5xx":     "left out",
		"unhealthy_status 429 4xx": "called again",
	}},
	{option: "warm", kinds: withHTTP1, observe: warmed, wants: wants{
		"":                             "still 2 connections", // one to each target
		"warm 3":                       "6 connections",
		"warm 3 1":                     "still 4 connections", // to the busier one
		`{"warm": {"connections": 2}}`: "4 connections",
		`{"warm": {"connections":3,"targets":1}}`: "still 4 connections",
	}},
	{option: "warm", about: "over HTTP/2", kinds: []kind{secure2, plain2}, observe: warmed, wants: wants{
		"":       "still 2 connections",
		"warm 3": "still 2 connections", // one serves all requests
	}},
	{option: "unhealthy_latency", kinds: allKinds, observe: badAddress, wants: wants{
		"":                     "called again",
		"unhealthy_latency 2s": "left out",
		"unhealthy_latency 1h": "called again",
	}},
}

// TestTransportOptions: every option does what it is for. Each test has gateways
// of its own, one for each setting.
func TestTransportOptions(t *testing.T) {
	for _, test := range optionTests {
		t.Run(strings.TrimSpace(test.option+" "+test.about), func(t *testing.T) {
			var wg sync.WaitGroup // all at once, whatever -parallel says: most of them wait
			defer wg.Wait()
			for _, tr := range newTrials(t, &test) {
				wg.Go(func() {
					t.Run(fmt.Sprintf("%s, %s", tr.kind, cmp.Or(tr.setting, "default")), func(t *testing.T) {
						tr.TB = t
						if got := test.observe(tr); got != tr.want {
							t.Errorf("%s, want %s", got, tr.want)
						}
					})
				})
			}
		})
	}
}

// TestTransportOptionsAreTested: there is no option without a test, and none in
// the JSON that no test sets.
func TestTransportOptionsAreTested(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("some tests are for Linux alone")
	}
	var tested []string
	set := make(map[string]bool)
	for _, test := range optionTests {
		tested = append(tested, test.option)
		w := &world{TB: t, dns: new(testlab.Nameserver), ca: testlab.NewAuthority(t), port: testlab.FreePort(t)}
		config, _ := test.configure(w)
		eachTransport(config, func(transport map[string]any) {
			for name, value := range transport {
				set[name] = true
				group, _ := value.(map[string]any)
				for member := range group {
					set[name+"."+member] = true
				}
			}
		})
	}
	refused := []string{"network_proxy", "forward_proxy_url", "resolvers", "dial_fallback_delay", "tls_except_ports"}
	for _, option := range slices.Concat(httpOptions, slices.Collect(maps.Keys(new(Transport).options()))) {
		if !slices.Contains(tested, option) && !slices.Contains(refused, option) {
			t.Errorf("%s has no test", option)
		}
	}
	refused = []string{"network_proxy", "forward_proxy_url", "resolver", "dial_fallback_delay", "tls.except_ports"}
	var walk func(fields reflect.Type, prefix string)
	walk = func(fields reflect.Type, prefix string) {
		for field := range fields.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			kind := field.Type
			if kind.Kind() == reflect.Pointer {
				kind = kind.Elem()
			}
			switch {
			case field.Anonymous && name == "" && kind.Kind() == reflect.Struct:
				walk(kind, prefix)
			case name == "" || name == "-" || slices.Contains(refused, prefix+name):
			case kind.Kind() == reflect.Struct:
				walk(kind, prefix+name+".")
			case !set[prefix+name]:
				t.Errorf("no test sets %s%s", prefix, name)
			}
		}
	}
	walk(reflect.TypeFor[Transport](), "")
}

// trial is a gateway with one setting of an option, and a kind of backends.
type trial struct {
	*world
	kind          kind
	setting, want string
}

// newTrials starts the gateways of a test.
func newTrials(t *testing.T, test *optionTest) []*trial {
	w := newWorld(t)
	w.dns.Has("a.example", "127.0.0.2")
	for try := 0; ; try++ {
		config, trials := test.configure(w)
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		switch err := caddy.Load(text, true); {
		case err == nil:
			w.settle()
			return trials
		case try == 5 || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()): // a port is no longer free
			t.Fatal(err)
		}
	}
}

// configure makes the configuration for all trials of a test.
func (test *optionTest) configure(w *world) (config map[string]any, trials []*trial) {
	cert, key := w.ca.Files(w, "client.example")
	files := strings.NewReplacer("OTHER_CA_FILE", testlab.NewAuthority(w).File, "CA_FILE", w.ca.File,
		"CA_DER", base64.StdEncoding.EncodeToString(w.ca.Cert.Raw), "CERT_FILE", cert, "KEY_FILE", key)
	site := cmp.Or(test.site, strings.ReplaceAll(w.proxy("schemes http https h2c", "fail_duration 1h", test.with, "SETTING"), "SETTING", "%s"))
	w.global = test.global
	text := "respond none\n---\n"
	patches := make(map[string]string) // of the JSON, by port
	ports := freePorts(w, len(test.kinds)*len(test.wants), w.port)
	for _, k := range test.kinds {
		for _, setting := range slices.Sorted(maps.Keys(test.wants)) {
			port, real := ports[len(trials)], files.Replace(setting)
			if strings.HasPrefix(setting, "{") {
				patches[port], real = real, ""
			}
			text += fmt.Sprintf("http://:%s {\nbind 127.0.0.1\n%s\n}\n", port, fmt.Sprintf(site, real))
			own := *w
			own.port = port
			trials = append(trials, &trial{&own, k, setting, test.wants[setting]})
		}
	}
	adapted, err := adapt(w.caddyfile(text))
	if err != nil {
		w.Fatal(err)
	}
	if err := json.Unmarshal(adapted, &config); err != nil {
		w.Fatal(err)
	}
	if issues := strings.Contains(string(adapted), `"internal"`); issues && !strings.Contains(string(adapted), `"install_trust":false`) {
		w.Fatal("Caddy would make this machine trust a test CA")
	}
	for port, patch := range patches {
		eachTransport(serverOf(config, port), func(transport map[string]any) {
			if err := json.Unmarshal([]byte(patch), &transport); err != nil {
				w.Fatal(err)
			}
		})
	}
	return config, trials
}

// freePorts returns ports that no server listens on, and that are not the one taken.
func freePorts(t testing.TB, n int, taken string) (ports []string) {
	t.Helper()
	for len(ports) < n {
		l := testlab.Listen(t, "", "127.0.0.1")[0]
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if port != taken {
			ports = append(ports, port)
		}
	}
	return ports
}

// serverOf returns the server of a configuration that listens on a port.
func serverOf(config any, port string) any {
	for _, name := range []string{"apps", "http", "servers"} {
		config = config.(map[string]any)[name]
	}
	for _, server := range config.(map[string]any) {
		if listen := server.(map[string]any)["listen"].([]any); strings.HasSuffix(listen[0].(string), ":"+port) {
			return server
		}
	}
	return nil
}

// eachTransport calls f with each transport target in a configuration.
func eachTransport(config any, f func(transport map[string]any)) {
	switch config := config.(type) {
	case []any:
		for _, v := range config {
			eachTransport(v, f)
		}
	case map[string]any:
		if config["protocol"] == "target" {
			f(config)
			return
		}
		for _, v := range config {
			eachTransport(v, f)
		}
	}
}

const (
	// long is how long something may take that has to happen, and aWhile how long
	// something is waited for that must not.
	long   = 30 * time.Second
	aWhile = 700 * time.Millisecond
)

// answer asks, and returns the answer; what the backend waits for is released
// when it has come. If none is expected before that, none may come for a while.
func (tr *trial) answer(while time.Duration, release func(), ask func() string) string {
	if !strings.HasPrefix(tr.want, "still") {
		while = long
	}
	answered := make(chan string, 1)
	go func() { answered <- ask() }()
	select {
	case text := <-answered:
		release()
		return text
	case <-time.After(while):
		release()
		return "still nothing, then " + <-answered
	}
}

// becomes waits until ok returns true. It returns false if it does not: for a
// while, if that is expected.
func (tr *trial) becomes(ok func() bool) bool {
	while := aWhile
	if !strings.HasPrefix(tr.want, "still") {
		while = long
	}
	for deadline := time.Now().Add(while); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// secured is true for the kinds with TLS.
func (tr *trial) secured() bool { return slices.Contains(withTLS, tr.kind) }

// backend starts a backend of the trial's kind. One without TLS speaks HTTP/2, too.
func (tr *trial) backend(handler http.HandlerFunc, change ...func(*testlab.BackendConfig)) *testlab.Backend {
	tr.Helper()
	config := testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, HTTP2: tr.kind != secure1, HTTP2Only: tr.kind == plain2}
	if handler != nil {
		config.Handler = handler
	}
	if tr.secured() {
		config.CA = tr.ca
	}
	for _, f := range change {
		f(&config)
	}
	return testlab.NewBackend(tr, config)
}

// serve starts a backend of HTTP/1.1 that is a function for each connection. It
// returns its port.
func (tr *trial) serve(serve func(conn net.Conn)) (port string) {
	tr.Helper()
	cert, err := tr.ca.CertFor("a.example")
	if err != nil {
		tr.Fatal(err)
	}
	b := testlab.NewRawBackend(tr, "", "127.0.0.2", nil, func(conn net.Conn) {
		_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
		_ = conn.(*net.TCPConn).SetReadBuffer(64 << 10)
		if tr.secured() {
			secured := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*cert}})
			if secured.Handshake() == nil {
				serve(secured)
			}
			return
		}
		serve(conn)
	})
	return b.Port
}

// at returns the target for a backend at a host and a port.
func (tr *trial) at(host, port string) string {
	scheme, _, _ := strings.Cut(string(tr.kind), ",")
	return scheme + "://" + host + ":" + port
}

// ask sends a request and returns what came of it.
func (tr *trial) ask(method, target string, body io.Reader) string {
	res, err := tr.try(method, "/", target, body)
	switch {
	case err != nil && res.Response != nil:
		return "broken off"
	case err != nil:
		return err.Error()
	case res.StatusCode >= 400: // the body is why
		return fmt.Sprint(res.StatusCode)
	}
	return strings.TrimSpace(fmt.Sprint(res.StatusCode, " ", res.body))
}

// counted returns a number of connections.
func counted[T int | int64](n T) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprint(n, " connections")
}

// dialling looks at an address that does not answer.
func dialling(tr *trial) string {
	target := tr.at("a.example", testlab.NewBlackhole(tr, "", "127.0.0.2").Port)
	start := time.Now()
	status := tr.ask(http.MethodGet, target, nil)
	if minWait := 4 * time.Second; time.Since(start) >= minWait {
		status += ", not before " + minWait.String()
	}
	return status
}

// lateResponse looks at a backend that does not respond before it is told to.
func lateResponse(tr *trial) string {
	respond := make(chan struct{})
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-respond:
			io.WriteString(rw, "late")
		case <-r.Context().Done():
		}
	})
	return tr.answer(aWhile, func() { close(respond) }, func() string {
		return tr.ask(http.MethodGet, tr.at("a.example", b.Port), nil)
	})
}

// haltedResponse looks at a backend that stops in the middle of a body.
func haltedResponse(tr *trial) string {
	goOn := make(chan struct{})
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "first, ")
		_ = http.NewResponseController(rw).Flush()
		select {
		case <-goOn:
			io.WriteString(rw, "last")
		case <-r.Context().Done():
		}
	})
	return tr.answer(aWhile, func() { close(goOn) }, func() string {
		return tr.ask(http.MethodGet, tr.at("a.example", b.Port), nil)
	})
}

// silentWebSocket looks at a WebSocket over which nothing is sent.
func silentWebSocket(tr *trial) string {
	b := tr.backend(wsHandler)
	ws := tr.webSocket(tr.at("a.example", b.Port))
	return tr.answer(aWhile, func() { fmt.Fprintln(ws, "line") }, func() string {
		line, err := ws.r.ReadString('\n')
		if err != nil {
			return "closed"
		}
		return strings.TrimSpace(line)
	})
}

// slowReader looks at a backend that reads next to nothing before it is told to.
// (Of one that reads nothing at all the kernel would have enough in the end.)
func slowReader(tr *trial) string {
	read := make(chan struct{})
	port := tr.serve(func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		for !isClosed(read) && err == nil {
			time.Sleep(500 * time.Millisecond)
			_, err = io.CopyN(io.Discard, req.Body, 64<<10)
		}
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	return tr.answer(aWhile, func() { close(read) }, func() string {
		got := tr.ask(http.MethodPost, tr.at("a.example", port), newNoise(16<<20))
		if got != "200" { // the body is not read then, and the client may not see the status
			got = "failed"
		}
		return got
	})
}

// expectation looks at a request that waits for 100 (Continue), which is sent
// after a while or, if the body is expected to come without it, not at all.
func expectation(tr *trial) string {
	told := make(chan string, 1)
	port := tr.serve(func(conn net.Conn) {
		r := bufio.NewReader(conn)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		came := make(chan struct{})
		go func() {
			defer close(came)
			_, _ = io.ReadAll(req.Body)
		}()
		text := "the body comes"
		if !tr.becomes(func() bool { return isClosed(came) }) {
			_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
			text = "still no body, then it comes"
		}
		<-came
		told <- text
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	start := time.Now()
	tr.ask100(tr.at("a.example", port))
	text := <-told
	if !strings.HasPrefix(text, "still") {
		if minWait := 700 * time.Millisecond; time.Since(start) >= minWait {
			return text + ", not before " + minWait.String()
		}
		return text + " at once"
	}
	return text
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// ask100 sends a POST that waits for 100 (Continue), and returns the status.
func (tr *trial) ask100(target string) string {
	res, err := tr.try(http.MethodPost, "/", target, strings.NewReader("body"), header("Expect", "100-continue"))
	if err != nil {
		tr.Error(err)
		return ""
	}
	return fmt.Sprint(res.StatusCode)
}

// refusedExpectation looks at a backend that refuses a request by its header, and
// closes the connection then.
func refusedExpectation(tr *trial) string {
	bodies := make(chan string, 1)
	port := tr.serve(func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		refuse := func() {
			_, _ = io.WriteString(conn, "HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}
		if strings.HasSuffix(tr.want, "sent") {
			_, _ = io.ReadAll(req.Body)
			bodies <- "the body was sent"
			refuse()
			return
		}
		refuse()
		n, _ := req.Body.Read(make([]byte, 1))
		bodies <- map[int]string{0: "no body", 1: "the body was sent"}[n]
	})
	status := tr.ask100(tr.at("a.example", port))
	return status + ", " + <-bodies
}

// largeHeaderOption looks at a response with a header of 20 kB.
func largeHeaderOption(tr *trial) string {
	b := tr.backend(func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("X-Fill", strings.Repeat("x", 20_000)) })
	return tr.ask(http.MethodGet, tr.at("a.example", b.Port), nil)
}

// encoding looks at responses that are compressed if that is asked for.
func encoding(tr *trial) string {
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			io.WriteString(rw, "not asked for")
			return
		}
		rw.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(rw)
		io.WriteString(z, "asked for and decoded")
		_ = z.Close()
	})
	target := tr.at("a.example", b.Port)
	text := tr.mustGet("/", target).body + "; "
	res := tr.mustGet("/", target, header("Accept-Encoding", "gzip"))
	if _, err := gzip.NewReader(strings.NewReader(res.body)); err != nil || res.Header.Get("Content-Encoding") != "gzip" {
		return text + "what the client asks for is decoded"
	}
	return text + "what the client asks for is left to it"
}

// source looks at where a connection comes from.
func source(tr *trial) string {
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.RemoteAddr) })
	addr, _, _ := net.SplitHostPort(tr.mustGet("/", tr.at("a.example", b.Port)).body)
	return addr
}

// announcements looks at what is announced in the PROXY protocol for two clients
// that take turns, each over two connections.
func announcements(tr *trial) string {
	b, listener := tr.announcedTo()
	conns := make(map[string]bool) // of the backend, each with a client
	for range 2 {
		for _, addr := range []string{"127.0.0.11", "127.0.0.12"} {
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
			rt := &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}
			req, cancel := tr.request(http.MethodGet, "/", tr.at("a.example", b.Port), nil)
			res, err := do(&http.Client{Transport: rt}, req)
			cancel()
			if err != nil || res.StatusCode != http.StatusOK || res.seen.Conn == 0 {
				tr.Fatalf("got %v, %v, want status 200 and the number of a connection", res, err)
			}
			conns[fmt.Sprint(res.seen.Conn, addr)] = true
		}
	}
	announced := listener.announced()
	if len(announced) == 0 {
		return counted(b.Opened.Load()) + ", nothing is announced"
	}
	if len(conns) != len(announced) {
		tr.Errorf("connections and clients %v", conns)
	}
	return counted(b.Opened.Load()) + ", " + strings.Join(announced, ", ")
}

// announcedForwarding looks at what is announced for a client that another proxy
// has, with an IPv6 address.
func announcedForwarding(tr *trial) string {
	b, listener := tr.announcedTo()
	tr.mustGet("/", tr.at("a.example", b.Port), header("X-Forwarded-For", "2001:db8::7"))
	return cmp.Or(strings.Join(listener.announced(), ", "), "nothing is announced")
}

// announcedTo starts a backend to which clients may be announced.
func (tr *trial) announcedTo() (b *testlab.Backend, listener *proxyListener) {
	b = tr.backend(nil, func(c *testlab.BackendConfig) {
		c.Listener = func(l net.Listener) net.Listener {
			listener = &proxyListener{Listener: l}
			return listener
		}
	})
	return b, listener
}

// proxyListener reads what is announced in the PROXY protocol, if anything is.
type proxyListener struct {
	net.Listener
	mu   sync.Mutex
	list []string
}

func (l *proxyListener) announced() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(slices.Values(l.list))
}

// Accept implements net.Listener.
func (l *proxyListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
	defer conn.SetDeadline(time.Time{})
	r := bufio.NewReader(conn)
	if text := announcement(r); text != "" {
		l.mu.Lock()
		l.list = append(l.list, text)
		l.mu.Unlock()
	}
	return &bufferedConn{conn, r}, nil
}

type bufferedConn struct {
	net.Conn
	r io.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// announcement reads the version of the PROXY protocol and the client's address.
func announcement(r *bufio.Reader) string {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	switch first, _ := r.Peek(4); string(first) {
	case "PROX":
		line, _ := r.ReadString('\n')
		var family, client, server string
		var from, to uint16
		_, err := fmt.Sscanf(line, "PROXY %s %s %s %d %d\r\n", &family, &client, &server, &from, &to)
		addr, _ := netip.ParseAddr(client)
		other, _ := netip.ParseAddr(server)
		if err != nil || addr.BitLen() != map[string]int{"TCP4": 32, "TCP6": 128}[family] || other.BitLen() != addr.BitLen() {
			return "malformed " + line
		}
		return "v1 " + netip.AddrPortFrom(addr, from).String()
	case signature[:4]:
		head := make([]byte, 16)
		_, err := io.ReadFull(r, head)
		size := map[string]int{"\x21\x11\x00\x0c": 4, "\x21\x21\x00\x24": 16}[string(head[12:])] // of an address, in octets
		if err != nil || string(head[:12]) != signature || size == 0 {
			return fmt.Sprintf("malformed %q", head)
		}
		body := make([]byte, 2*(size+2))
		if _, err := io.ReadFull(r, body); err != nil {
			return err.Error()
		}
		addr, _ := netip.AddrFromSlice(body[:size])
		return "v2 " + netip.AddrPortFrom(addr, binary.BigEndian.Uint16(body[2*size:])).String()
	}
	return ""
}

// idleConnection looks at a connection after a request.
func idleConnection(tr *trial) string {
	b := tr.backend(nil)
	tr.mustGet("/", tr.at("a.example", b.Port))
	if tr.becomes(func() bool { return b.Open.Load() == 0 }) {
		return "closed"
	}
	return "still open"
}

// connections looks at how many connections three requests take.
func connections(tr *trial) string {
	b := tr.backend(nil)
	for range 3 {
		tr.mustGet("/", tr.at("a.example", b.Port))
	}
	return counted(b.Opened.Load())
}

// connectionField looks at the Connection field of a request.
func connectionField(tr *trial) string {
	b := tr.backend(nil)
	return fmt.Sprint(tr.mustGet("/", tr.at("a.example", b.Port)).seen.Header["Connection"])
}

// webSocketEcho looks at a WebSocket and the Connection field of its request.
func webSocketEcho(tr *trial) string {
	fields := make(chan []string, 1)
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) {
		fields <- r.Header["Connection"]
		wsHandler(rw, r)
	})
	ws := tr.webSocket(tr.at("a.example", b.Port))
	if err := ws.echo("line"); err != nil {
		return err.Error()
	}
	return fmt.Sprint(<-fields, " LINE")
}

// idleTargets looks at the connections that are left after a request to each of
// five targets.
func idleTargets(tr *trial) string {
	addrs := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"}
	b := tr.backend(nil, func(c *testlab.BackendConfig) { c.Addrs = addrs })
	for _, addr := range addrs {
		name := "n" + addr[len(addr)-1:] + ".example"
		tr.dns.Has(name, addr)
		tr.mustGet("/", tr.at(name, b.Port))
	}
	return tr.left(b, 2)
}

// sharedTargets looks at the connections that are open after a request to each of
// four targets on one address.
func sharedTargets(tr *trial) string {
	b := tr.backend(nil)
	for i := range 4 {
		name := fmt.Sprintf("n%d.example", i)
		tr.dns.Has(name, "127.0.0.2")
		tr.mustGet("/", tr.at(name, b.Port))
	}
	return counted(b.Opened.Load())
}

// warmed returns how many connections there are in the end after requests to two targets,
// one at a time.
func warmed(tr *trial) string {
	b := tr.backend(nil)
	tr.dns.Has("b.example", "127.0.0.2")
	for _, name := range []string{"a.example", "b.example", "a.example", "b.example", "a.example", "b.example", "a.example"} {
		tr.mustGet("/", tr.at(name, b.Port))
	}
	want, still := strings.CutPrefix(tr.want, "still ")
	if !still {
		tr.becomes(func() bool { return counted(b.Open.Load()) == want })
		return counted(b.Open.Load())
	}
	testlab.Eventually(tr, want, func() bool { return counted(b.Open.Load()) == want })
	tr.becomes(func() bool { return counted(b.Open.Load()) != want })
	return "still " + counted(b.Open.Load())
}

// left waits until no more than limit connections are open, and returns how many are left.
func (tr *trial) left(b *testlab.Backend, limit int64) string {
	if tr.becomes(func() bool { return b.Open.Load() <= limit }) {
		return counted(b.Open.Load())
	}
	return "still " + counted(b.Open.Load())
}

// idlePool looks at the connections that are left after four requests at once.
func idlePool(tr *trial) string {
	var arrived sync.WaitGroup
	arrived.Add(4)
	b := tr.backend(func(http.ResponseWriter, *http.Request) {
		arrived.Done()
		arrived.Wait()
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := tr.ask(http.MethodGet, tr.at("a.example", b.Port), nil); got != "200" {
				tr.Errorf("got %s, want status 200", got)
			}
		})
	}
	wg.Wait()
	return tr.left(b, 2)
}

// parallelRequests looks at how many requests of three to each of two addresses
// arrive before one is responded to.
func parallelRequests(tr *trial) string {
	const all = 6
	respond := make(chan struct{})
	var arrived atomic.Int64
	b := tr.backend(func(http.ResponseWriter, *http.Request) {
		arrived.Add(1)
		<-respond
	}, func(c *testlab.BackendConfig) { c.Addrs = []string{"127.0.0.2", "127.0.0.3"} })
	tr.dns.Has("b.example", "127.0.0.3")
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			target := tr.at([]string{"a.example", "b.example"}[i%2], b.Port)
			if got := tr.ask(http.MethodGet, target, nil); got != "200" {
				tr.Errorf("got %s, want status 200", got)
			}
		})
	}
	testlab.Eventually(tr, "four requests arrive", func() bool { return arrived.Load() >= 4 })
	text := "all 6"
	if !tr.becomes(func() bool { return arrived.Load() == all }) {
		text = fmt.Sprintf("still %d of %d, then all", arrived.Load(), all)
	}
	close(respond)
	wg.Wait()
	return text
}

// waiting looks at a request with little time beside one that has a connection,
// and at one after them.
func waiting(tr *trial) string {
	arrived, respond := make(chan struct{}), make(chan struct{})
	b := tr.backend(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			close(arrived)
			<-respond
		}
	})
	target := tr.at("a.example", b.Port)
	var wg sync.WaitGroup
	wg.Go(func() {
		if got := tr.ask(http.MethodPost, target, nil); got != "200" {
			tr.Errorf("got %s, want status 200", got)
		}
	})
	<-arrived
	limit := long
	if strings.HasPrefix(tr.want, "504") {
		limit = 300 * time.Millisecond
	}
	beside := tr.get("/", target, header("X-Timeout", limit.String())).StatusCode
	close(respond)
	wg.Wait()
	return fmt.Sprint(beside, ", then ", tr.get("/", target).StatusCode)
}

// protocol looks at the version of HTTP.
func protocol(tr *trial) string {
	return tr.mustGet("/", tr.at("a.example", tr.backend(nil).Port)).seen.Proto
}

// success looks at whether a request is responded to.
func success(tr *trial) string {
	b := tr.backend(func(http.ResponseWriter, *http.Request) {})
	return tr.ask(http.MethodGet, tr.at("a.example", b.Port), nil)
}

// addressSuccess is the same where an address is called.
func addressSuccess(tr *trial) string {
	b := tr.backend(func(http.ResponseWriter, *http.Request) {})
	return tr.ask(http.MethodGet, "127.0.0.2:"+b.Port, nil)
}

// serverNames looks at the server names of two requests to one target.
func serverNames(tr *trial) string {
	b := tr.backend(nil)
	target := tr.at("a.example", b.Port)
	one, two := tr.mustGet("/", target, header("X-Name", "one")), tr.mustGet("/", target, header("X-Name", "two"))
	if want := "a.example:" + b.Port; one.seen.Host != want || two.seen.Host != want {
		tr.Errorf("Host %q and %q, want %q", one.seen.Host, two.seen.Host, want)
	}
	return one.seen.SNI + " " + two.seen.SNI + ", " + counted(b.Opened.Load())
}

// clientCertificate looks at who a client proves to be.
func clientCertificate(tr *trial) string {
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) {
		if certs := r.TLS.PeerCertificates; len(certs) > 0 {
			fmt.Fprint(rw, certs[0].DNSNames[0])
			return
		}
		fmt.Fprint(rw, "none")
	}, func(c *testlab.BackendConfig) {
		c.TLS = func(config *tls.Config) { config.ClientAuth = tls.RequestClientCert }
	})
	var res response
	testlab.Eventually(tr, "the certificate is there", func() bool { // one that is automated takes a moment
		res = tr.get("/", tr.at("a.example", b.Port))
		return res.StatusCode == http.StatusOK
	})
	return res.body
}

// curve looks at the key exchange, and of how many it was chosen.
func curve(tr *trial) string {
	var offered atomic.Int64
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) {
		of := "several"
		if n := offered.Load(); n <= 2 {
			of = fmt.Sprint(n)
		}
		fmt.Fprint(rw, r.TLS.CurveID, " of ", of)
	}, func(c *testlab.BackendConfig) {
		c.TLS = func(config *tls.Config) {
			config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				offered.Store(int64(len(hello.SupportedCurves)))
				return nil, nil
			}
		}
	})
	return tr.mustGet("/", tr.at("a.example", b.Port)).body
}

// lateHandshake looks at a backend that begins the TLS handshake when it is told to.
func lateHandshake(tr *trial) string {
	begin := make(chan struct{})
	b := tr.backend(func(http.ResponseWriter, *http.Request) {}, func(c *testlab.BackendConfig) {
		c.TLS = func(config *tls.Config) {
			config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				<-begin
				return nil, nil
			}
		}
	})
	return tr.answer(6*time.Second, func() { close(begin) }, func() string {
		return tr.ask(http.MethodGet, tr.at("a.example", b.Port), nil)
	})
}

// renegotiation looks at what comes back if a backend asks for another handshake
// (RFC 5246, section 7.4.1.1).
func renegotiation(tr *trial) string {
	cert, err := tr.ca.CertFor("a.example")
	if err != nil {
		tr.Fatal(err)
	}
	answers := make(chan string, 10)
	b := testlab.NewRawBackend(tr, "", "127.0.0.2", nil, func(conn net.Conn) {
		_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
		var sent, secrets bytes.Buffer
		server := tls.Server(&sniffedConn{conn, &sent}, &tls.Config{
			Certificates:           []tls.Certificate{*cert},
			MaxVersion:             tls.VersionTLS12,
			CipherSuites:           []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
			SessionTicketsDisabled: true,
			KeyLogWriter:           &secrets,
		})
		if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
			return
		}
		_, _ = conn.Write(helloRequest(sent.Bytes(), secrets.String()))
		var record [5]byte
		_, _ = io.ReadFull(conn, record[:])
		switch record[0] {
		case 21: // an alert
			answers <- "refused"
		case 22: // a handshake
			answers <- "begun"
		default:
			answers <- fmt.Sprintf("answered with %v", record)
		}
	})
	_, _ = tr.try(http.MethodGet, "/", tr.at("a.example", b.Port), nil) // which fails: the backend ends there
	return <-answers
}

// sniffedConn keeps what is sent.
type sniffedConn struct {
	net.Conn
	sent *bytes.Buffer
}

func (c *sniffedConn) Write(p []byte) (int, error) {
	c.sent.Write(p)
	return c.Conn.Write(p)
}

// helloRequest returns the record of a HelloRequest, for which crypto/tls has no
// word, as the first of a server after the handshake. It takes what was sent before
// and the line of the key log.
func helloRequest(sent []byte, secrets string) []byte {
	fields := strings.Fields(secrets) // CLIENT_RANDOM, that, the master secret
	clientRandom, _ := hex.DecodeString(fields[1])
	master, _ := hex.DecodeString(fields[2])
	serverRandom := sent[5+4+2:][:32] // of the ServerHello, behind the headers and the version

	// the key block (RFC 5246, section 6.3): two keys, two implicit nonces (RFC 5288)
	seed := slices.Concat([]byte("key expansion"), serverRandom, clientRandom)
	hash := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, master)
		h.Write(slices.Concat(parts...))
		return h.Sum(nil)
	}
	var keys []byte
	for a := hash(seed); len(keys) < 2*16+2*4; a = hash(a) {
		keys = append(keys, hash(a, seed)...)
	}
	block, err := aes.NewCipher(keys[16:32])
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	number := []byte{0, 0, 0, 0, 0, 0, 0, 1} // after Finished
	message := []byte{0, 0, 0, 0}
	nonce := slices.Concat(keys[36:40], number)
	sealed := gcm.Seal(nil, nonce, message, slices.Concat(number, []byte{22, 3, 3, 0, byte(len(message))}))
	return slices.Concat([]byte{22, 3, 3, 0, byte(len(number) + len(sealed))}, number, sealed)
}

// resumption looks at whether the sessions with two names are resumed.
func resumption(tr *trial) string {
	b := tr.backend(func(rw http.ResponseWriter, r *http.Request) {
		if !r.TLS.DidResume {
			fmt.Fprint(rw, "not ")
		}
		fmt.Fprint(rw, "resumed")
	})
	var seen []string
	for range 2 {
		seen = nil
		for _, name := range []string{"one", "two"} {
			tr.dns.Has(name+".example", "127.0.0.2")
			seen = append(seen, name+" "+tr.mustGet("/", tr.at(name+".example", b.Port)).body)
		}
	}
	return strings.Join(seen, ", ")
}

// badAddress looks at one of two addresses that begins to respond with status 503,
// and late if that matters. Connections to both are open by then.
func badAddress(tr *trial) string {
	var bad atomic.Value
	b := tr.backend(func(rw http.ResponseWriter, _ *http.Request) {
		if rw.Header().Get("Backend") != bad.Load() {
			return
		}
		if strings.Contains(tr.setting, "latency") {
			time.Sleep(2 * time.Second)
		}
		rw.WriteHeader(http.StatusServiceUnavailable)
	}, func(c *testlab.BackendConfig) { c.Addrs = []string{"127.0.0.2", "127.0.0.3"} })
	tr.dns.Has("both.example", "127.0.0.2", "127.0.0.3")
	target := tr.at("both.example", b.Port)
	served := make(map[string]int)
	testlab.Eventually(tr, "both addresses are used", func() bool {
		addr := tr.get("/", target).Header.Get("Backend")
		served[addr]++
		return served["127.0.0.2:"+b.Port] > 1 && served["127.0.0.3:"+b.Port] > 1
	})
	bad.Store("127.0.0.2:" + b.Port)
	failing := func() bool { return tr.get("/", target).StatusCode == http.StatusServiceUnavailable }
	testlab.Eventually(tr, "the bad address is called", failing)
	for range 20 {
		if failing() {
			return "called again"
		}
	}
	return "left out"
}

// TestTransportOptionErrors: what cannot be is found when the configuration is
// loaded.
func TestTransportOptionErrors(t *testing.T) {
	for _, test := range []struct{ name, json, err string }{
		{"no such curve", `{"tls":{"curves":["p1"]}}`, "unsupported curve"},
		{"no such renegotiation", `{"tls":{"renegotiation":"often"}}`, "renegotiation"},
		{"certificate without key", `{"tls":{"client_certificate_file":"x"}}`, "client_certificate_key_file"},
		{"key without certificate", `{"tls":{"client_certificate_key_file":"x"}}`, "client_certificate_file"},
		{"no such certificate", `{"tls":{"client_certificate_file":"/nowhere","client_certificate_key_file":"/nowhere"}}`, "client certificate"},
		{"no such authority", `{"tls":{"root_ca_pem_files":["/nowhere"]}}`, "nowhere"},
		{"authority that is none", `{"tls":{"root_ca_pool":["!"]}}`, "CA certificate"},
		{"authorities in two ways", `{"tls":{"root_ca_pem_files":["/dev/null"],"ca":{"provider":"inline","trusted_ca_certs":[]}}}`, "conflicting"},
		{"local address that is UDP", `{"local_address":"udp/127.0.0.1"}`, "UDP"},
		{"local addresses", `{"local_address":"127.0.0.1:1-2"}`, "single address"},
		{"no such version", `{"versions":["1.0"]}`, "1.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var config map[string]any
			adapted, err := adapt(":80\ntarget_proxy {header.X-Target}")
			if err != nil || json.Unmarshal(adapted, &config) != nil {
				t.Fatal(err)
			}
			eachTransport(config, func(transport map[string]any) { err = json.Unmarshal([]byte(test.json), &transport) })
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			if err := validateJSON(t, text); err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%v, want %q", err, test.err)
			}
		})
	}
}
