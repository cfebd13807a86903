package caddytarget

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/record"
	"caddytarget/internal/resolver"
	"caddytarget/internal/targeturl"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/net/idna"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/testlab"
)

// The fuzz tests here send a request all the way that requests go: handler,
// resolver and cache, reverse_proxy, source, transport. Only both ends are not
// real: nameservers, and TCP connections, which lead to a server in this
// process. What counts is what these have seen.

// fuzzGateway is what target_proxy expands to.
type fuzzGateway struct {
	handler   *Handler
	proxy     *reverseproxy.Handler
	source    *Upstreams
	transport *Transport
	server    *caddyhttp.Server

	ca *testlab.Authority
}

func newFuzzGateway(f *testing.F) *fuzzGateway {
	g := &fuzzGateway{ca: testlab.NewAuthority(f)}
	dir := f.TempDir()
	config, err := adapt(fmt.Sprintf(`{
	admin off
	auto_https off
	persist_config off
	storage file_system %q
	log default {
		output discard
	}
	target {
		resolver 127.0.0.1:9 # which is never asked
	}
}

http:// {
	bind unix/%s
	target_proxy {header.X-Target} {
		schemes http https h2c
		tls_trust_pool file %q
		tls_session_cache off
		tls_curves secp256r1
	}
}`, filepath.Join(dir, "storage"), filepath.Join(dir, "socket"), g.ca.File))
	if err != nil {
		f.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = caddy.Stop() })
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		f.Fatal(err)
	}
	g.server = app.(*caddyhttp.App).Servers["srv0"]
	for _, r := range g.server.Routes {
		g.find(r.Handlers)
	}
	g.source = g.proxy.DynamicUpstreams.(*Upstreams)
	g.transport = g.proxy.Transport.(*Transport)
	return g
}

func (g *fuzzGateway) find(handlers []caddyhttp.MiddlewareHandler) {
	for _, h := range handlers {
		switch h := h.(type) {
		case *caddyhttp.Subroute:
			for _, r := range h.Routes {
				g.find(r.Handlers)
			}
		case *Handler:
			g.handler = h
			g.find([]caddyhttp.MiddlewareHandler{h.proxy})
		case *reverseproxy.Handler:
			g.proxy = h
		}
	}
}

// fuzzWorld is the world around the gateway for one execution.
type fuzzWorld struct {
	*fuzzGateway
	t        *testing.T
	resolver *resolver.Resolver
	addr     netip.Addr // of all names

	mu    sync.Mutex
	asked []string // names that the nameserver was asked for
	dials []*fuzzDial
	wg    sync.WaitGroup
}

// fuzzDial is a connection as the other end saw it.
type fuzzDial struct {
	address string      // that was dialled
	pipe    [2]net.Conn // the gateway's end and the server's

	// set by the server
	tls    bool
	sni    string
	h2     bool
	served []fuzzServed
	rest   string // what came after the last request and is none
	err    error
}

// fuzzServed is a request as the server saw it.
type fuzzServed struct {
	hosts  []string // Host fields, or what HTTP/2 has instead
	uri    string
	fields []string // the others, sorted
}

var fuzzAddr = netip.MustParseAddr("93.184.215.14")

func (g *fuzzGateway) newWorld(t *testing.T) *fuzzWorld {
	w := &fuzzWorld{fuzzGateway: g, t: t, addr: fuzzAddr}
	config, err := resolver.Config{
		Nameservers: []string{"192.0.2.53"}, Exchanger: w, Family: "ipv4", CacheSize: 16, MaxLookups: 16, Hosts: "off",
	}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	w.resolver = resolver.New(config)
	tracker := health.New()
	g.source.source.Health, g.transport.via.Health = tracker, tracker
	g.transport.pool.Pool = pool.New(g.transport.pool.Config, tracker, pool.NewLimits(0, nil))
	g.transport.pool.Dial = w.dial
	return w
}

// close ends all connections and waits for the server, so that nothing is left
// of the execution.
func (w *fuzzWorld) close() {
	w.transport.pool.Close()
	w.mu.Lock()
	dials := w.dials
	w.mu.Unlock()
	for _, d := range dials {
		if d.h2 { // which may have to learn first that the request is over
			_ = d.pipe[1].Close()
		}
		_ = d.pipe[0].Close()
	}
	w.wg.Wait()
	w.resolver.Close()
	for deadline := time.Now().Add(testlab.Timeout); w.transport.pool.Open() > 0; time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("connections are left")
		}
	}
}

// Ask implements dnscache.Exchanger.
func (w *fuzzWorld) Ask(_ context.Context, name string, qtype uint16, done func([]netip.Addr, time.Duration, error)) {
	w.mu.Lock()
	w.asked = append(w.asked, name)
	w.mu.Unlock()
	if qtype != dnscache.TypeA {
		done(nil, 0, fmt.Errorf("asked for type %d", qtype))
		return
	}
	done([]netip.Addr{w.addr}, time.Minute, nil)
}

// AskSRV implements dnscache.Exchanger.
func (w *fuzzWorld) AskSRV(_ context.Context, _ string, done func([]net.SRV, time.Duration, error)) {
	done(nil, 0, errors.New("asked for a service"))
}

// Outage implements dnscache.Exchanger.
func (*fuzzWorld) Outage() <-chan struct{} { return nil }

// dial stands in for the dialler of the pool.
func (w *fuzzWorld) dial(_ context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" {
		return nil, fmt.Errorf("dialled %s %s", network, address)
	}
	d := &fuzzDial{address: address}
	d.pipe[0], d.pipe[1] = net.Pipe()
	w.mu.Lock()
	w.dials = append(w.dials, d)
	w.mu.Unlock()
	w.wg.Go(func() { d.err = d.serve(w.fuzzGateway) })
	return d.pipe[0], nil
}

// peekedConn is a connection of which the beginning has been looked at.
type peekedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c peekedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// serve is the server: it speaks what the client begins to speak.
func (d *fuzzDial) serve(g *fuzzGateway) error {
	conn := peekedConn{d.pipe[1], bufio.NewReader(d.pipe[1])}
	defer func() { _ = conn.Close() }()
	start, err := conn.r.Peek(1)
	if err != nil {
		return nil // closed before it was used
	}
	if start[0] != 0x16 { // no ClientHello
		return d.serveHTTP(conn)
	}
	d.tls = true
	server := tls.Server(conn, &tls.Config{
		CurvePreferences:       []tls.CurveID{tls.CurveP256},
		SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			d.sni = hello.ServerName
			return g.ca.Issue(cmp.Or(d.sni, netip.MustParseAddrPort(d.address).Addr().String()))
		},
	})
	if err := server.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	return d.serveHTTP(peekedConn{server, bufio.NewReader(server)})
}

// serveHTTP reads requests and nothing else until the client closes.
func (d *fuzzDial) serveHTTP(conn peekedConn) error {
	var raw []byte
	for {
		c, err := conn.r.ReadByte()
		if err != nil {
			d.rest = string(raw)
			return nil
		}
		raw = append(raw, c)
		if string(raw) == http2.ClientPreface[:min(len(raw), len(http2.ClientPreface))] && len(raw) >= 18 {
			if _, err := conn.r.Discard(len(http2.ClientPreface) - len(raw)); err != nil {
				return err
			}
			return d.serveHTTP2(conn)
		}
		if !strings.HasSuffix(string(raw[max(0, len(raw)-4):]), "\r\n\r\n") {
			continue
		}
		served, err := readRequest(string(raw))
		if err != nil {
			return fmt.Errorf("request %q: %w", raw, err)
		}
		slices.Sort(served.fields)
		d.served = append(d.served, served)
		raw = raw[:0]
		if _, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
			return err
		}
	}
}

// readRequest reads a GET request without a body, strictly by RFC 9112.
func readRequest(raw string) (s fuzzServed, err error) {
	lines := strings.Split(strings.TrimSuffix(raw, "\r\n\r\n"), "\r\n")
	for i, line := range lines {
		for j := range len(line) {
			if c := line[j]; c < ' ' || c >= 0x7f {
				return s, fmt.Errorf("byte %q", c)
			}
		}
		if i == 0 {
			parts := strings.Split(line, " ")
			if len(parts) != 3 || parts[0] != http.MethodGet || parts[2] != "HTTP/1.1" {
				return s, errors.New("request line")
			}
			s.uri = parts[1]
			continue
		}
		name, value, ok := strings.Cut(line, ": ")
		if !ok || !httpguts.ValidHeaderFieldName(name) {
			return s, fmt.Errorf("field %q", line)
		}
		if strings.EqualFold(name, "Host") {
			s.hosts = append(s.hosts, value)
		} else {
			s.fields = append(s.fields, name+": "+value)
		}
	}
	return s, nil
}

// lateWriter takes what is to be written and does not wait for the reader.
type lateWriter chan []byte

func (w lateWriter) Write(p []byte) (int, error) {
	w <- bytes.Clone(p)
	return len(p), nil
}

// serveHTTP2 is serveHTTP for HTTP/2, after the preface.
func (d *fuzzDial) serveHTTP2(conn peekedConn) error {
	d.h2 = true
	// both sides may write at once, which net.Pipe alone does not bear
	late, done := make(lateWriter, 16), make(chan struct{})
	go func() {
		defer close(done)
		for p := range late {
			_, _ = conn.Write(p)
		}
	}()
	defer func() {
		_ = conn.Close()
		close(late)
		<-done
	}()
	framer := http2.NewFramer(late, conn.r)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	for {
		frame, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("HTTP/2: %w", err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = framer.WriteSettingsAck()
			}
		case *http2.DataFrame:
			return errors.New("a body")
		case *http2.MetaHeadersFrame:
			served, bad := readFields(frame)
			if bad != nil {
				return fmt.Errorf("request %v: %w", frame.Fields, bad)
			}
			slices.Sort(served.fields)
			d.served = append(d.served, served)
			err = framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: frame.StreamID, BlockFragment: []byte{0x89}, EndHeaders: true, EndStream: true, // :status 204
			})
		}
		if err != nil {
			return nil // closed
		}
	}
}

// readFields reads a GET request without a body, strictly by RFC 9113.
func readFields(frame *http2.MetaHeadersFrame) (s fuzzServed, err error) {
	if !frame.StreamEnded() {
		return s, errors.New("a body")
	}
	pseudo := make(map[string]string)
	for _, f := range frame.PseudoFields() {
		if _, ok := pseudo[f.Name]; ok {
			return s, fmt.Errorf("field %s twice", f.Name)
		}
		pseudo[f.Name] = f.Value
	}
	if len(pseudo) != 4 || pseudo[":method"] != http.MethodGet || pseudo[":scheme"] != "http" {
		return s, errors.New("pseudo-header fields")
	}
	s.uri, s.hosts = pseudo[":path"], []string{pseudo[":authority"]}
	for _, f := range frame.RegularFields() {
		if f.Name == "host" {
			s.hosts = append(s.hosts, f.Value)
			continue
		}
		s.fields = append(s.fields, http.CanonicalHeaderKey(f.Name)+": "+f.Value)
	}
	return s, nil
}

// fuzzOutcome is what became of a request.
type fuzzOutcome struct {
	status int
	err    string // {http.target.error}
	passed bool   // the handler let it pass
	repl   *caddy.Replacer
}

const fuzzURI = "/original%2Fpath?q=1"

// send sends a request to a handler and, if it passes, to what comes next.
func (w *fuzzWorld) send(h *Handler, target string, vars map[string]any, next caddyhttp.Handler) (out fuzzOutcome) {
	r := &http.Request{
		Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL:        &url.URL{Path: "/original/path", RawPath: "/original%2Fpath", RawQuery: "q=1"},
		RequestURI: fuzzURI, Host: "gateway.example", RemoteAddr: "192.0.2.7:1234", Body: http.NoBody,
		Header: http.Header{"X-Target": []string{target}, "User-Agent": []string{"fuzz"}, "Accept-Encoding": []string{"br"}},
	}
	rec := httptest.NewRecorder()
	repl := caddy.NewReplacer()
	r = caddyhttp.PrepareRequest(r, repl, rec, w.server)
	for name, value := range vars {
		caddyhttp.SetVar(r.Context(), name, value)
	}
	err := h.ServeHTTP(rec, r, caddyhttp.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
		out.passed = true
		return next.ServeHTTP(rw, r)
	}))
	out.status = rec.Code
	if err != nil {
		out.status = http.StatusInternalServerError
		if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
			out.status = e.StatusCode
		}
	}
	out.repl = repl
	out.err = repl.ReplaceAll("{http.target.error}", "")
	return out
}

// proxied is what comes next: all the rest of the gateway.
func (w *fuzzWorld) proxied() caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) error {
		return w.proxy.ServeHTTP(rw, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
			return errors.New("passed on by reverse_proxy")
		}))
	})
}

// accepted is what comes next where it only matters whether it does.
var accepted = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// handlerWith returns the handler with other rules.
func (w *fuzzWorld) handlerWith(rules Guard) *Handler {
	rules.Schemes = []string{"http", "https", "h2c"}
	compiled, err := rules.compile()
	if err != nil {
		w.t.Fatalf("no rule can be made of a host that was called: %v", err)
	}
	p := *w.handler.policy
	p.Rules = compiled
	return &Handler{
		URL: w.handler.URL, strip: w.handler.strip, resolver: w.resolver, policy: &p, trace: w.handler.trace,
		failures: record.FailureLog{Log: p.Log},
	}
}

// finish ends the execution; what arrived must have been requests and no more.
func (w *fuzzWorld) finish() {
	w.close()
	for _, d := range w.dials {
		if d.err != nil || d.rest != "" {
			w.t.Errorf("connection to %s: %v, %q after the last request", d.address, d.err, d.rest)
		}
	}
}

// checkRefused checks a request that did not pass.
func (w *fuzzWorld) checkRefused(out fuzzOutcome) {
	w.t.Helper()
	switch out.status {
	case http.StatusBadRequest, http.StatusForbidden:
	case http.StatusBadGateway:
		if !strings.Contains(out.err, "does not exist in the DNS") { // .onion, .invalid
			w.t.Errorf("status 502, want the reason that the name does not exist in the DNS: %s", out.err)
		}
	default:
		w.t.Errorf("status %d is not one of those that may be: %s", out.status, out.err)
	}
	if out.err == "" {
		w.t.Errorf("status %d without {http.target.error}", out.status)
	}
	if i := strings.IndexFunc(out.err, func(c rune) bool { return c < ' ' || c == 0x7f }); i >= 0 {
		w.t.Errorf("{http.target.error} %q", out.err)
	}
	if len(w.asked) > 0 {
		w.t.Errorf("status %d (%s), but %q was asked for", out.status, out.err, w.asked)
	}
	if len(w.dials) > 0 {
		w.t.Errorf("status %d (%s), but %s was dialled", out.status, out.err, w.dials[0].address)
	}
}

// checkArrived checks that the request arrived, on one connection, in the form
// that it must have, and returns both.
func (w *fuzzWorld) checkArrived(out fuzzOutcome) (*fuzzDial, fuzzServed) {
	w.t.Helper()
	if out.status != http.StatusNoContent {
		w.close()
		for _, d := range w.dials {
			w.t.Logf("connection to %s: %v", d.address, d.err)
		}
		w.t.Fatalf("it was let pass, but then: status %d: %s", out.status, out.err)
	}
	if len(w.dials) != 1 || len(w.dials[0].served) != 1 {
		w.t.Fatalf("%d connections, want 1 with one request", len(w.dials))
	}
	d := w.dials[0]
	s := d.served[0]
	if len(s.hosts) != 1 {
		w.t.Fatalf("Host fields %q, want one", s.hosts)
	}
	if !slices.Equal(s.fields, fuzzFields()) {
		w.t.Errorf("fields %q, not %q", s.fields, fuzzFields())
	}
	for i := range len(s.uri) {
		// RFC 9112, section 3.2.1; that and what everybody sends as it is
		if c := s.uri[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"#<>\`, c) >= 0 {
			w.t.Errorf("byte %q in %q may not be sent", c, s.uri)
		}
	}
	path, _, _ := strings.Cut(s.uri, "?")
	if path == "" || path[0] != '/' || strings.ContainsAny(path, "^`{|}") {
		w.t.Errorf("path %q is not one that may be sent", path)
	}
	for i := range len(path) {
		if path[i] == '%' && (i+2 >= len(path) || !isHex(path[i+1:i+3])) {
			w.t.Errorf("percent sign that stands for itself in %q", path)
		}
	}
	return d, s
}

// scheme is that of a connection as it is used.
func (d *fuzzDial) scheme() string {
	switch {
	case d.tls:
		return "https"
	case d.h2:
		return "h2c"
	}
	return "http"
}

func (d *fuzzDial) defaultPort() string {
	if d.tls {
		return "443"
	}
	return "80"
}

// fuzzFields are those that arrive beside Host, whatever the target is.
func fuzzFields() []string {
	return []string{
		"Accept-Encoding: br", "Cdn-Loop: " + outgoing.LoopID, "User-Agent: fuzz", "Via: 1.1 Caddy",
		"X-Forwarded-For: 192.0.2.7", "X-Forwarded-Host: gateway.example", "X-Forwarded-Proto: http",
	}
}

// fuzzEnd is a host and a port.
type fuzzEnd struct {
	host string
	addr netip.Addr // if the host is one
	port string
}

// readHost reads a Host header. It accepts nothing but names and addresses in
// normal form.
func readHost(s, defaultPort string) (end fuzzEnd, err error) {
	end.port = defaultPort
	host, rest := s, ""
	inner, bracket := strings.CutPrefix(s, "[")
	if bracket {
		var ok bool
		if host, rest, ok = strings.Cut(inner, "]"); !ok {
			return end, errors.New("bracket")
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, rest = s[:i], s[i:]
	}
	if rest != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(rest, ":"), 10, 16)
		if err != nil || ":"+strconv.FormatUint(n, 10) != rest || rest[1:] == defaultPort {
			return end, errors.New("port")
		}
		end.port = rest[1:]
	}
	end.host = host
	last := host[strings.LastIndexByte(host, '.')+1:]
	digits, _ := strings.CutPrefix(last, "0x")
	number := strings.Trim(last, "0123456789") == "" || digits != last && strings.Trim(digits, "0123456789abcdef") == ""
	if bracket || number {
		end.addr, err = netip.ParseAddr(host)
		if err != nil || end.addr.Is6() != bracket || end.addr.Is4In6() || end.addr.String() != host {
			return end, errors.New("address")
		}
		return end, nil
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return end, errors.New("label")
		}
	}
	if len(host) > 253 {
		return end, errors.New("length")
	}
	return end, nil
}

// checkOneHost checks that a connection leads to the host of the request that
// it was opened for.
func (w *fuzzWorld) checkOneHost(d *fuzzDial, s fuzzServed, end fuzzEnd, out fuzzOutcome) {
	w.t.Helper()
	addr, asked, sni := end.addr, []string(nil), ""
	if !addr.IsValid() {
		addr, asked = w.addr, []string{end.host}
		if d.tls {
			sni = end.host
		}
	}
	if !slices.Equal(w.asked, asked) {
		w.t.Errorf("Host %q, but %q was asked for", s.hosts[0], w.asked)
	}
	if d.address != net.JoinHostPort(addr.String(), end.port) {
		w.t.Errorf("Host %q, but %s was dialled", s.hosts[0], d.address)
	}
	// where it is empty, the certificate was made for the address that was dialled
	if d.sni != sni {
		w.t.Errorf("Host %q, but TLS name %q", s.hosts[0], d.sni)
	}
	// the placeholders agree
	for name, want := range map[string]string{
		"scheme": d.scheme(), "host": end.host, "port": end.port, "hostport": s.hosts[0], "addresses": addr.String(),
		"url": d.scheme() + "://" + s.hosts[0] + s.uri, "error": "",
	} {
		if got := out.repl.ReplaceAll("{http.target."+name+"}", ""); got != want {
			w.t.Errorf("{http.target.%s} is %q, not %q", name, got, want)
		}
	}
}

// checkPolicy checks that it is this host that is checked.
func (w *fuzzWorld) checkPolicy(target string, d *fuzzDial, end fuzzEnd) {
	w.t.Helper()
	addr := netip.MustParseAddrPort(d.address).Addr().String()
	asked := len(w.asked)
	for _, test := range []struct {
		rules Guard
		want  int
	}{
		{Guard{Deny: []string{end.host}}, http.StatusForbidden},
		{Guard{Ports: []string{"1-" + end.port}, Allow: []string{"neighbour.test", end.host}}, http.StatusOK},
		{Guard{DenyIPs: []string{addr}}, http.StatusForbidden},
	} {
		out := w.send(w.handlerWith(test.rules), target, nil, accepted)
		if out.status != test.want || out.passed != (test.want == http.StatusOK) {
			w.t.Errorf("Host %q, but with rules %+v the status is %d: %s", end.host, test.rules, out.status, out.err)
		}
		if out.status == http.StatusForbidden && out.err == "" {
			w.t.Error("no {http.target.error}")
		}
	}
	if len(w.asked) != asked || len(w.dials) != 1 {
		w.t.Errorf("checking the target asked for %q and made %d connections", w.asked, len(w.dials))
	}
}

// split takes a target apart as RFC 3986 does, if it has the form of one.
func split(target string) (scheme, authority, rest string) {
	scheme, after, ok := strings.Cut(target, "://")
	if !ok || strings.ContainsAny(scheme, "/?#") {
		return "", target, ""
	}
	if i := strings.IndexAny(after, "/?#"); i >= 0 {
		return strings.ToLower(scheme), after[:i], after[i:]
	}
	return strings.ToLower(scheme), after, ""
}

// mustRefuse tells why a target may not be accepted, if it may not.
func mustRefuse(target string) string {
	if i := strings.IndexFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '\\' }); i >= 0 {
		return strconv.Quote(target[i : i+1])
	}
	if !utf8.ValidString(target) {
		return "what is not UTF-8"
	}
	if _, authority, _ := split(target); strings.Contains(authority, "@") {
		return "userinfo"
	}
	return ""
}

// unescape decodes what is percent-encoded and leaves percent signs that stand
// for themselves.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// checkParsers checks that others read the same from a target.
func (w *fuzzWorld) checkParsers(target string, d *fuzzDial, s fuzzServed, end fuzzEnd) {
	w.t.Helper()
	scheme, authority, rest := split(target)
	if scheme == "" {
		scheme = d.scheme()
		if want := map[bool]string{false: "http", true: "https"}[end.port == "443"]; scheme != want {
			w.t.Errorf("scheme %s for port %s", scheme, end.port)
		}
	}
	if scheme != d.scheme() {
		w.t.Errorf("scheme %s was used, not %s", d.scheme(), scheme)
	}

	u, err := url.Parse(scheme + "://" + authority)
	if err != nil {
		w.t.Fatalf("net/url: %v", err)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || strconv.Itoa(n) != end.port {
			w.t.Errorf("port %s, but net/url has %s", end.port, port)
		}
	} else if end.port != d.defaultPort() {
		w.t.Errorf("port %s, but net/url has none", end.port)
	}
	host := u.Hostname()
	if end.addr.Is6() || strings.Contains(host, ":") {
		if addr, err := netip.ParseAddr(host); err != nil || addr.Unmap() != end.addr {
			w.t.Errorf("host %q, but net/url has %q", end.host, host)
		}
	} else if ascii, err := idna.Lookup.ToASCII(host); err == nil {
		if strings.TrimSuffix(ascii, ".") != end.host {
			w.t.Errorf("host %q, but net/url and idna have %q", end.host, ascii)
		}
	} else if isASCII(host) && strings.ToLower(strings.TrimSuffix(host, ".")) != end.host {
		w.t.Errorf("host %q, but net/url has %q", end.host, host)
	}
	// the whole has the same host, if it can be read at all
	if whole, err := url.Parse(target); err == nil && rest != "" && (whole.Host != u.Host || whole.User != nil) {
		w.t.Errorf("net/url has host %q or %q", u.Host, whole.Host)
	}

	if rest, _, _ = strings.Cut(rest, "#"); rest == "" {
		rest = fuzzURI
	}
	checkURI(w.t, s.uri, rest)
}

// checkURI checks that what was sent means what was given.
func checkURI(t *testing.T, sent, given string) {
	t.Helper()
	if given, _, _ = strings.Cut(given, "#"); !strings.HasPrefix(given, "/") {
		given = "/" + given
	}
	if unescape(sent) != unescape(given) || strings.Contains(sent, "?") != strings.Contains(given, "?") {
		t.Errorf("%q was sent for %q", sent, given)
	}
}

// isHex reports whether s is a hexadecimal number.
func isHex(s string) bool {
	_, err := strconv.ParseUint(s, 16, 64)
	return err == nil
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c >= 0x80 })
}

// checkPool checks that connections are shared with the same host, and with no
// other one.
func (w *fuzzWorld) checkPool(h *Handler, d *fuzzDial, s fuzzServed, end fuzzEnd, out fuzzOutcome) {
	w.t.Helper()
	const neighbour = "neighbour.example"
	w.addr = netip.MustParseAddrPort(d.address).Addr()
	if end.host != neighbour {
		hostport := neighbour
		if end.port != d.defaultPort() {
			hostport += ":" + end.port
		}
		out := w.send(h, d.scheme()+"://"+hostport+"/neighbour", nil, w.proxied())
		if out.status != http.StatusNoContent {
			w.t.Fatalf("a neighbour: status %d, want 204: %s", out.status, out.err)
		}
		other, conns := w.dials[len(w.dials)-1], 2
		last := other.served[len(other.served)-1]
		if len(w.dials) != conns || len(last.hosts) != 1 || last.hosts[0] != hostport || last.uri != "/neighbour" {
			w.t.Errorf("a neighbour arrives as %+v on %d connections", last, len(w.dials))
		}
		if d.tls && other.sni != neighbour {
			w.t.Errorf("the neighbour's TLS name is %q", other.sni)
		}
	}
	// the same again, in its normal form
	conns, requests, asked := len(w.dials), len(d.served), len(w.asked)
	normal := out.repl.ReplaceAll("{http.target.url}", "")
	if out := w.send(h, normal, nil, w.proxied()); out.status != http.StatusNoContent {
		w.t.Fatalf("its normal form %q: status %d: %s", normal, out.status, out.err)
	}
	if len(w.dials) != conns || len(d.served) != requests+1 || len(w.asked) != asked {
		w.t.Fatalf("its normal form %q makes %d connections and asks for %q", normal, len(w.dials), w.asked)
	}
	if again := d.served[requests]; !reflect.DeepEqual(again, s) {
		w.t.Errorf("its normal form %q arrives as %+v, not %+v", normal, again, s)
	}
}

// FuzzOneHost checks that of every string that may be a target either it is
// refused, or the host that is checked, that is asked for, that has to prove its
// name and that stands in the Host header is the same one.
func FuzzOneHost(f *testing.F) {
	for _, seed := range fuzzTargets {
		f.Add(seed)
	}
	g := newFuzzGateway(f)
	f.Fuzz(func(t *testing.T, target string) {
		w := g.newWorld(t)
		defer w.finish()
		h := w.handlerWith(Guard{})
		out := w.send(h, target, nil, w.proxied())
		if !out.passed {
			w.checkRefused(out)
			if out.status == http.StatusBadRequest && strings.Contains(target, "@") &&
				out.err != targeturl.ErrUserinfo.Error() && !strings.HasSuffix(out.err, "is not shown") {
				t.Errorf("{http.target.error} %q may hold a password", out.err)
			}
			return
		}
		if why := mustRefuse(target); why != "" {
			t.Errorf("accepted in spite of %s", why)
		}
		d, s := w.checkArrived(out)
		end, err := readHost(s.hosts[0], d.defaultPort())
		if err != nil {
			t.Fatalf("Host %q: bad %v", s.hosts[0], err)
		}
		w.checkOneHost(d, s, end, out)
		w.checkParsers(target, d, s, end)
		w.checkPolicy(target, d, end)
		w.checkPool(h, d, s, end, out)
	})
}

// fuzzTargets are targets that are what they seem, and tricks.
var fuzzTargets = []string{
	// what is meant
	"http://example.com", "https://example.com", "h2c://example.com", "HTTPS://EXAMPLE.Com:443/A", "example.com", "example.com:8080", "example.com:80",
	"example.com:443", "http://example.com:443", "https://example.com:80", "https://example.com:8443/a%2Fb?c#d", "h2c://example.com:81/a?b", "http://_srv.my_host.example",
	"http://-a-.r3---sn.example", "http://backend", "http://neighbour.example", "https://neighbour.example", "https://xn--bcher-kva.example", "h2c://bücher.example./100%", "http://例え。テスト/ü?ü", "a.:1", "http://a/%",
	"http://a/!'()*[]{|}^`\"<>", "http://example.com/100%/%4/%zz/%/%2541/%%41?%&%zz", "http://example.com//a/../b/./?b?c", "http://example.com?u=http://x/y@z:1", "http://example.com/a:b@c?d@e:f#g@h",
	"http://example.com/%00%0d%0a%20?%00%0d%0a%20", "http://a?%zz", "http://a/?", "http://a?", "http://a#", "http://a#/b?c", "http://a/#?", "http://a/ü?ü#ü", "http://a/\u0085\u00a0\u2028?\u0085",
	"ftp://example.com/", "ws://example.com/", "httpx://example.com", "http+unix://example.com", "h2c://example.com:80",

	// who else might be meant
	"http://joe@example.com", "http://joe:secret@example.com/", "http://@example.com", "http://a@b@example.com", "http://a:80@example.com:81/", "http://example.com#@other.example", "http://example.com?@other.example",
	"http://example.com/@other.example", "http://example.com%40other.example", "http://example.com\uff20other.example", "http://example.com\\@other.example", `http:\\example.com`, `http://example.com\.other.example`, `http://a\b`,
	"http://example.com%2f@other.example", "http://example.com%23.other.example", "http://example.com;other.example", "http://example.com,other.example", "http://example.com&other.example", "http://example.com|other.example",
	"http://example.com:80:81", "http://example.com:80@other.example:81", "http://example.com :80", "http://example.com\t", "http://exa\nmple.com", "http://example.com\r\nHost: other.example", "http://example.com\x00.other.example",
	"http://example.com/ HTTP/1.1\r\nHost: other.example\r\n\r\n", "http://example.com/\x7f", "http://example.com/\xff", "http://\xffexample.com", " http://example.com", "http://example.com ",
	"//example.com", "http:/example.com", "http:example.com", "http:///example.com", "http:////example.com", "http://", "http:///", "http://:80", "://example.com", "/a", "?a", "#a", ":", ":80", "", "@", ".", "[", "]", "[]:80",
	"http://http://example.com", "http://example.com:http://other.example", "example.com://other.example", "example.com:80://other.example", "1http://example.com", "x:y", "mailto:joe@example.com", "javascript:alert(1)", "http://{http.request.host}/", "{env.HOME}:80",
	"http://example.com:", "http://example.com:/", "http://example.com:0", "http://example.com:00080", "http://example.com:0081", "https://example.com:08443/", "http://example.com:65536", "http://example.com:4294967376", "http://example.com:+80", "http://example.com:-1", "http://example.com:0x50", "http://example.com:8_0", "http://example.com:\u0668\u0660", "http://example.com:\uff18\uff10",

	// names in other writing
	"http://example.com.", "http://example.com..", "http://.example.com", "http://example..com", "http://example.com.:8080", "http://ｅｘａｍｐｌｅ．ｃｏｍ", "http://example。com", "http://example\uff61com\u3002", "http://exa\u00admple.com", "http://\u00ad", "http://exa\u200bmple.com",
	"http://exa\u200cmple.com", "http://exa\u200dmple.com", "http://ⓔxample.com", "http://\u212aelvin.example", "http://faß.example", "https://FAẞ.example", "http://ς.example", "http://Bücher.example", "http://bu\u0308cher.example", "http://例え。テスト:8443/", "http://例え.テスト", "https://☃.example",
	"http://\U0001f600.example", "http://ex\u2024ample.com", "http://example\u2025com", "http://example.\u2488com", "http://a\u2100b.example", "http://example.com\uff0fother", "http://example.com\uff1a80", "http://example.com\uff03other", "http://a\u2048.example", "http://\u0430pple.example", "http://xn--a/", "http://xn--", "http://xn--.com",
	"http://xn--a-.example", "http://XN--BCHER-KVA.example", "http://xn--xample-hva.example", "http://xn--example-.com", "http://xn--ls8h.example", "http://xn--11b4d3a.example", "http://xn--0.pt", "http://א.example", "http://a\u05d0b.example", "http://a\u2135b.example", "http://\u2135.example", "http://\u0661.example", "http://ex%61mple.com", "http://b%C3%BCcher.example", "http://example%2ecom",
	"http://example%E3%80%82com", "http://a" + strings.Repeat("b", 63) + ".example", "http://" + strings.Repeat("a.", 126) + "a", "http://" + strings.Repeat("a.", 127) + "a", "http://" + strings.Repeat("漢", 60) + ".example",

	// addresses
	"http://93.184.215.14", "https://93.184.215.14:8443/", "http://93.184.215.14.", "http://8.8.8.8", "https://8.8.8.8", "https://[2606:4700::1111]", "https://[2606:4700:0:0::1111]:8443/a", "h2c://[2606:4700::1111]", "[2606:4700::1111]:443", "[2606:4700::1111]:80", "[2606:4700::1111]", "2606:4700::1111", "2606:4700::1111:443",
	"http://[::ffff:8.8.8.8]:81", "https://[::ffff:808:808]", "http://[::8.8.8.8]", "http://[64:ff9b::808:808]", "http://[64:ff9b::a00:1]", "http://[2002:808:808::]", "http://[2002:a00:1::]", "http://[::ffff:127.0.0.1]", "http://127.0.0.1", "http://[::1]", "http://[::]", "http://0.0.0.0", "http://169.254.169.254", "http://localhost", "http://a.localhost", "http://localhost.",
	"http://0x7f.1", "http://0x7f000001", "http://2130706433", "http://0177.0.0.1", "http://017700000001", "http://127.1", "http://127.0.1", "http://127.0.0.1.1", "http://127.0.0.256", "http://08.8.8.8", "http://8.8.8.08", "http://8.8.8.8x", "http://0x8.8.8.8", "http://8.8.8.0x8", "http://0x08080808", "http://134744072", "http://4429185032", "http://example.1", "http://example.0x", "http://1.2.3.4.example", "http://0x7f.example",
	"http://８.８.８.８", "http://①②⑦.⓪.⓪.①", "http://⑧.⑧.⑧.⑧", "http://⑧。⑧｡⑧．⑧", "http://0ⓧ7f.1", "http://８．８．８．⑧:８０", "http://8%2e8.8.8", "http://٨.8.8.8", "http://⒏⒏⒏8", "http://8.8.8.8\u00ad", "http://\u00ad8.8.8.8",
	"http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[2606:4700::1111%25lo]", "http://[2606:4700::1111%lo]", "http://[2606:4700::1111", "http://2606:4700::1111]", "http://[2606:4700::1111]x:80", "http://[2606:4700::1111]:", "http://x[2606:4700::1111]", "http://[[2606:4700::1111]]", "http://[8.8.8.8]", "http://[example.com]", "http://[]", "http://[:::]", "http://[v1.a]", "http://[２606:4700::1111]", "http://[2606:4700::1111.]",
	"http://nobody.invalid", "http://a.onion:81", "https://invalid", "http://metadata.google.internal", "http://metadata.google.internal.", "http://224.0.0.1", "http://255.255.255.255", "http://240.0.0.1", "http://192.0.2.1", "http://100.64.0.1", "http://[fd00:ec2::254]", "http://[2606:4700::5efe:a00:1]",
}

// FuzzPathAndHost checks the templates for path and Host header: the answer is status
// 400, or the request has what they say and nothing else. The target is not changed.
func FuzzPathAndHost(f *testing.F) {
	for _, seed := range fuzzPathsAndHosts {
		f.Add(seed[0], seed[1])
	}
	g := newFuzzGateway(f)
	f.Fuzz(func(t *testing.T, path, host string) {
		for _, scheme := range []string{"http", "h2c"} {
			w := g.newWorld(t)
			w.checkTemplates(scheme, path, host)
			w.finish()
		}
	})
}

func (w *fuzzWorld) checkTemplates(scheme, path, host string) {
	h := w.handlerWith(Guard{})
	h.Path, h.Host = "{http.vars.path}", "{http.vars.host}"
	out := w.send(h, scheme+"://target.example:8000/replaced?and#dropped", map[string]any{"path": path, "host": host}, w.proxied())
	if !out.passed {
		w.checkRefused(out)
		if out.status != http.StatusBadRequest {
			w.t.Errorf("status %d, want 400: %s", out.status, out.err)
		}
		return
	}
	if why := mustRefuse("http://target.example/" + path); why != "" {
		w.t.Errorf("path accepted in spite of %s", why)
	}
	d, s := w.checkArrived(out)
	if s.hosts[0] != host {
		w.t.Errorf("Host %q, not %q", s.hosts[0], host)
	}
	if d.address != netip.AddrPortFrom(fuzzAddr, 8000).String() || !slices.Equal(w.asked, []string{"target.example"}) {
		w.t.Errorf("%q was asked for, %s was dialled", w.asked, d.address)
	}
	checkURI(w.t, s.uri, path)
}

// fuzzPathsAndHosts are values of both templates.
var fuzzPathsAndHosts = [][2]string{
	{"/a?b", "other.example"}, {"a", "other.example:8000"}, {"", "[2606:4700::1111]:80"}, {"/%2F%zz%?%&%zz", "OTHER.example."},
	{"?a", "8.8.8.8"}, {"#a", "a_b"}, {"/a#b?c", ":80"}, {"//other.example/a", ""}, {"http://other.example/", "other.example:80"},
	{"/a b", "other.example"}, {"/a\r\nHost: x", "other.example"}, {"/\\a", "other.example"}, {"/\xff", "other.example"}, {"/\x00", "other.example"},
	{"/ü?ü", "bücher.example"}, {"/a", "other.example\r\nX: y"}, {"/a", "other example"}, {"/a", "other.example\x00"}, {"/a", "a,b"}, {"/a", "joe@other.example"},
	{"/a", "other.example/x"}, {"/a", "[fe80::1%25eth0]"}, {"/a", "[fe80::1%eth0]:80"}, {"/a", "%41"}, {"/a", "[::1"}, {"/a", "a]b"}, {"/a", "a[b%c]"}, {"/a", "xn--a"}, {"/a", "a:b:c"},
	{"*", "*"}, {"/*", "a.*"}, {"/{http.request.host}", "{http.request.host}"}, {"/{}", "{http.target.hostport}"}, {"/`^|\"<>{}", "ｏther.example"}, {"/\u2028", "other.example\u3002"}, {"/" + strings.Repeat("a", 10_000), strings.Repeat("a", 300)},
}
