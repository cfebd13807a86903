package caddytarget

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The integration tests run Caddy in this process, with a real DNS server and
// real backends, all on loopback addresses and free ports.

// patience is how long a test waits for something that has to happen. Nothing
// fails because the machine is slow, unless it is that slow.
const patience = 60 * time.Second

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not after %s: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// checkLeaks makes the test fail if there are goroutines left when everything
// that is registered after it has been cleaned up.
func checkLeaks(t testing.TB) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		options := []goleak.Option{
			before,
			// what Caddy and its dependencies start once and never end
			goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"),
			goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"),
			goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Upstream).fillDynamicHost.func1.1"),
			goleak.IgnoreAnyFunction("github.com/DeRuina/timberjack.(*Logger).millRun"), // of access logs
		}
		var err error
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if err = goleak.Find(options...); err == nil {
				return
			}
		}
		t.Errorf("goroutines are left: %v", err)
	})
}

// --- DNS ---

// dnsName is what the DNS server says of a name.
type dnsName struct {
	addrs  []string
	ttl    uint32
	hold   <-chan struct{} // no reply until it is closed
	silent bool            // no reply
	rcode  int
	srv    []string // priority, weight, port, target
	alias  string   // the reply has this alias, and nothing about where it leads
	broken bool     // the reply ends too early

	records []string // more records of the reply, as in a zone file
	then    *dnsName // what is said of the name after this reply
}

// dnsServer is a nameserver. Names that it does not know do not exist.
type dnsServer struct {
	addr string

	mu      sync.Mutex
	names   map[string]dnsName
	silent  bool           // no reply to anything
	queries map[string]int // for A records, by name; AAAA as "AAAA name", SRV as "SRV name"
	total   int

	stop chan struct{}
}

func newDNSServer(t testing.TB) *dnsServer {
	t.Helper()
	s := &dnsServer{
		names:   make(map[string]dnsName),
		queries: make(map[string]int),
		stop:    make(chan struct{}),
	}
	// one port for both protocols
	var udp net.PacketConn
	var tcp net.Listener
	for try := 0; ; try++ {
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		_ = udp.Close()
		if try == 20 {
			t.Fatal(err)
		}
	}
	s.addr = udp.LocalAddr().String()
	var wg sync.WaitGroup
	for _, server := range []*dns.Server{{PacketConn: udp}, {Listener: tcp}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		server.Handler = s
		wg.Go(func() { _ = server.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	t.Cleanup(func() { close(s.stop) })
	return s
}

// set says what is to be replied.
func (s *dnsServer) set(name string, n dnsName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = n
}

// has makes a name have addresses, for a minute.
func (s *dnsServer) has(name string, addrs ...string) {
	s.set(name, dnsName{addrs: addrs, ttl: 60})
}

func (s *dnsServer) setSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

// asked returns how many queries there were for the A records of a name.
func (s *dnsServer) asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries[name]
}

func (s *dnsServer) askedInAll() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// ServeDNS implements dns.Handler.
func (s *dnsServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	s.mu.Lock()
	n, known := s.names[name]
	silent := s.silent || n.silent
	if n.then != nil {
		s.names[name] = *n.then
	}
	s.total++
	if q.Qtype == dns.TypeA {
		s.queries[name]++
	} else {
		s.queries[dns.TypeToString[q.Qtype]+" "+name]++
	}
	s.mu.Unlock()
	if silent {
		return
	}
	if n.hold != nil {
		select {
		case <-n.hold:
		case <-s.stop:
			return
		}
	}
	reply := new(dns.Msg)
	reply.SetReply(query)
	reply.RecursionAvailable = true
	reply.Rcode = n.rcode
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	for _, text := range n.addrs {
		header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: n.ttl}
		addr := netip.MustParseAddr(text)
		switch {
		case q.Qtype == dns.TypeA && addr.Is4():
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
		case q.Qtype == dns.TypeAAAA && addr.Is6():
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	if n.alias != "" {
		header := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: n.ttl}
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: header, Target: dns.Fqdn(n.alias)})
	}
	if q.Qtype == dns.TypeSRV {
		for _, text := range n.srv {
			rr, err := dns.NewRR(fmt.Sprintf("%s %d IN SRV %s", q.Name, n.ttl, text))
			if err != nil {
				panic(err)
			}
			reply.Answer = append(reply.Answer, rr)
		}
	}
	for _, text := range n.records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		reply.Answer = append(reply.Answer, rr)
	}
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	if n.broken {
		if wire, err := reply.Pack(); err == nil {
			_, _ = w.Write(wire[:len(wire)-2])
		}
		return
	}
	if len(reply.Answer) == 0 && n.rcode == 0 {
		reply.Ns = append(reply.Ns, &dns.SOA{
			Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
			Ns:  "ns.", Mbox: "m.", Serial: 1, Refresh: 1, Retry: 1, Expire: 1, Minttl: 60,
		})
	}
	_ = w.WriteMsg(reply)
}

// --- certificates ---

// authority is a test CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate, in PEM

	mu    sync.Mutex
	certs map[string]*tls.Certificate
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "caddytarget test CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, certs: make(map[string]*tls.Certificate)}
	a.file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// certFor returns a certificate for a name or an IP address.
func (a *authority) certFor(name string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cert, ok := a.certs[name]; ok {
		return cert, nil
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(a.certs) + 2)),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	a.certs[name] = cert
	return cert, nil
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// files writes a certificate and its key, for Caddy.
func (a *authority) files(t testing.TB, name string) (certFile, keyFile string) {
	t.Helper()
	cert, err := a.certFor(name)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// --- backends ---

// seen is a request as a backend saw it.
type seen struct {
	Address string // of the backend
	Proto   string
	Method  string
	Host    string
	URI     string
	SNI     string
	Header  http.Header
	Body    string
	Conn    int64 // the number of the connection
}

// backend is a web server on one or more addresses, with one port. If it is
// given nothing else to do, it replies with what it saw as JSON.
type backend struct {
	port    string
	handler http.Handler

	opened atomic.Int64 // connections, in all
	open   atomic.Int64
	served atomic.Int64 // requests

	mu       sync.Mutex
	names    map[int64]map[string]bool // by connection: the SNI and each Host
	perAddr  map[string]int            // requests by address
	accepted map[string]int            // connections by address
	conns    map[net.Conn]bool
	badCerts map[string]string // by name: the name that the certificate is for instead

	servers []*http.Server
}

// backendConfig says what a backend is.
type backendConfig struct {
	addrs   []string   // default: 127.0.0.1
	ca      *authority // nil: no TLS
	h2      bool       // HTTP/2: negotiated, or without TLS
	only    bool       // HTTP/2 alone, for without TLS
	port    string     // default: a free one
	handler http.Handler
	hello   func()        // is called in every TLS handshake
	idle    time.Duration // for how long connections may be idle; default: any time

	listener func(net.Listener) net.Listener // wraps each listener
	tls      func(*tls.Config)               // changes the TLS configuration
}

type connKey struct{}

// countedConn tells when it is closed, hijacked or not.
type countedConn struct {
	net.Conn
	backend *backend
	once    sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.backend.open.Add(-1)
		c.backend.mu.Lock()
		delete(c.backend.conns, c)
		c.backend.mu.Unlock()
	})
	return c.Conn.Close()
}

type countedListener struct {
	net.Listener
	backend *backend
}

func (l countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	b := l.backend
	b.opened.Add(1)
	b.open.Add(1)
	c := &countedConn{Conn: conn, backend: b}
	b.mu.Lock()
	b.conns[c] = true
	if addr, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		b.accepted[addr.AddrPort().Addr().Unmap().String()]++
	}
	b.mu.Unlock()
	return c, nil
}

// listenAll listens on the same port of several addresses.
func listenAll(t testing.TB, port string, addrs ...string) (listeners []net.Listener) {
	t.Helper()
	for range 50 {
		listeners = listeners[:0]
		want := port
		if want == "" {
			want = "0"
		}
		for _, addr := range addrs {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, want))
			if err != nil {
				break
			}
			listeners = append(listeners, l)
			_, want, _ = net.SplitHostPort(l.Addr().String())
		}
		if len(listeners) == len(addrs) {
			return listeners
		}
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	t.Fatalf("no port %q on all of %v", port, addrs)
	return nil
}

func newBackend(t testing.TB, config backendConfig) *backend {
	t.Helper()
	if len(config.addrs) == 0 {
		config.addrs = []string{"127.0.0.1"}
	}
	b := &backend{
		handler:  config.handler,
		names:    make(map[int64]map[string]bool),
		perAddr:  make(map[string]int),
		accepted: make(map[string]int),
		conns:    make(map[net.Conn]bool),
		badCerts: make(map[string]string),
	}
	listeners := listenAll(t, config.port, config.addrs...)
	_, b.port, _ = net.SplitHostPort(listeners[0].Addr().String())

	var numbers atomic.Int64
	var wg sync.WaitGroup
	for _, l := range listeners {
		server := &http.Server{
			Handler:     http.HandlerFunc(b.serve),
			Protocols:   new(http.Protocols),
			ErrorLog:    log.New(io.Discard, "", 0),
			IdleTimeout: config.idle,
			ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
				return context.WithValue(ctx, connKey{}, numbers.Add(1))
			},
		}
		server.Protocols.SetHTTP1(!config.only)
		server.Protocols.SetHTTP2(config.h2)
		server.Protocols.SetUnencryptedHTTP2(config.h2 && config.ca == nil)
		b.servers = append(b.servers, server)
		if config.listener != nil {
			l = config.listener(l)
		}
		l = countedListener{l, b}
		if config.ca == nil {
			wg.Go(func() { _ = server.Serve(l) })
			continue
		}
		server.TLSConfig = &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if config.hello != nil {
				config.hello()
			}
			name := hello.ServerName
			if name == "" {
				name, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String())
			}
			b.mu.Lock()
			if other, ok := b.badCerts[name]; ok {
				name = other
			}
			b.mu.Unlock()
			return config.ca.certFor(name)
		}}
		if config.tls != nil {
			config.tls(server.TLSConfig)
		}
		wg.Go(func() { _ = server.ServeTLS(l, "", "") })
	}
	t.Cleanup(wg.Wait)
	t.Cleanup(b.close)
	return b
}

// close ends the backend and its connections, upgraded ones too.
func (b *backend) close() {
	for _, s := range b.servers {
		_ = s.Close()
	}
	b.closeConns()
}

func (b *backend) closeConns() {
	b.mu.Lock()
	conns := make([]net.Conn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

func (b *backend) serve(w http.ResponseWriter, r *http.Request) {
	b.served.Add(1)
	local := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
	addr, _, _ := net.SplitHostPort(local)
	conn := r.Context().Value(connKey{}).(int64)
	s := seen{
		Address: addr, Proto: r.Proto, Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header, Conn: conn,
	}
	b.mu.Lock()
	if b.names[conn] == nil {
		b.names[conn] = make(map[string]bool)
	}
	if r.TLS != nil {
		s.SNI = r.TLS.ServerName
		b.names[conn][s.SNI] = true
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		b.names[conn][host] = true
	}
	b.perAddr[addr]++
	b.mu.Unlock()
	w.Header().Set("Backend", local)
	if b.handler != nil {
		b.handler.ServeHTTP(w, r)
		return
	}
	var body bytes.Buffer
	if _, err := io.Copy(&body, r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.Body = body.String()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

// requestsTo returns how many requests one address has served.
func (b *backend) requestsTo(addr string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.perAddr[addr]
}

// sharedConns returns the connections that served more than one name.
func (b *backend) sharedConns() (shared []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn, names := range b.names {
		if len(names) > 1 {
			shared = append(shared, fmt.Sprint(conn, ": ", names))
		}
	}
	return shared
}

// freePort returns a port that nobody listens on, over TCP or UDP.
func freePort(t testing.TB) string {
	t.Helper()
	for range 20 {
		l := listenAll(t, "", "127.0.0.1")[0]
		address := l.Addr().String()
		_ = l.Close()
		if udp, err := net.ListenPacket("udp", address); err == nil {
			_ = udp.Close()
			_, port, _ := net.SplitHostPort(address)
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// silentTCP listens and answers nothing: TCP connections are opened, TLS
// handshakes get no reply.
func silentTCP(t testing.TB, port, addr string) string {
	t.Helper()
	l := listenAll(t, port, addr)[0]
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// serveTCP listens and serves each connection, which it closes then.
func serveTCP(t testing.TB, port, addr string, serve func(conn *net.TCPConn)) string {
	t.Helper()
	l := listenAll(t, port, addr)[0]
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { _ = l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// resetTCP accepts connections, reads a little, and resets them.
func resetTCP(t testing.TB, port, addr string) string {
	t.Helper()
	return serveTCP(t, port, addr, func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0)
	})
}

// blackhole is an address where TCP connections are neither opened nor refused:
// nobody accepts them and the queue is full.
func blackhole(t testing.TB, addr string) (port string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(addr).As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port = strconv.Itoa(name.(*unix.SockaddrInet4).Port)
	for range 64 {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, port), 200*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("the queue of connections does not fill")
	return ""
}

// --- Caddy ---

// world is a DNS server and a test CA, and the gateway between them and the
// client.
type world struct {
	testing.TB
	dns    *dnsServer
	ca     *authority
	port   string // of the gateway
	client *http.Client

	// what the gateway is configured with
	runs     int
	global   string // more global options
	resolver string // more of the default resolver
	log      string // the default log, instead of none
}

func newWorld(t testing.TB) *world {
	t.Helper()
	checkLeaks(t)
	w := &world{TB: t, dns: newDNSServer(t), ca: newAuthority(t), port: freePort(t)}
	rt := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 256}
	w.client = &http.Client{
		Transport:     rt,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		rt.CloseIdleConnections()
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// caddyfile returns a whole Caddyfile for what stands in the gateway's site;
// what follows after a line of dashes stands at the top level.
func (w *world) caddyfile(site string) string {
	site, more, _ := strings.Cut(site, "\n---\n")
	return fmt.Sprintf(`{
	admin off
	auto_https off
	persist_config off
	storage file_system %q
	log default {
		%s
	}
	%s
	target {
		resolver %s {
			hosts off
			family ipv4
			%s
		}
	}
}

http://:%s {
	bind 127.0.0.1
	@run path /__run
	log_skip @run
	respond @run %d
	%s
}
%s`, w.storage(), cmp.Or(w.log, "output discard\nlevel ERROR"), w.global, w.dns.addr, w.resolver, w.port, w.runs, site, more)
}

// logTo makes the next configuration log from a level on. It returns a function
// that returns what a logger has said until now with one of some messages.
func (w *world) logTo(level, logger string, messages ...string) func() []map[string]any {
	file := filepath.Join(w.TempDir(), "log")
	w.log = fmt.Sprintf("output file %q\nformat json\nlevel %s", file, level)
	return func() (lines []map[string]any) {
		data, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				w.Fatalf("%s: %v", line, err)
			}
			if fields["logger"] == logger && slices.Contains(messages, fields["msg"].(string)) {
				lines = append(lines, fields)
			}
		}
		return lines
	}
}

func (w *world) storage() string { return filepath.Join(filepath.Dir(w.ca.file), "storage") }

// adapt turns a Caddyfile into JSON.
func adapt(caddyfile string) ([]byte, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	return config, err
}

// run starts the gateway, or reloads it.
func (w *world) run(site string) {
	w.Helper()
	if err := w.tryRun(site); err != nil {
		w.Fatal(err)
	}
}

func (w *world) tryRun(site string) error {
	w.runs++
	config, err := adapt(w.caddyfile(site))
	if err != nil {
		return err
	}
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	w.settle()
	return nil
}

// settle waits until connections to the gateway meet the new configuration
// alone. Caddy opens the listener anew, and takes a moment to close the old one;
// whoever is in its queue then is sent away.
func (w *world) settle() {
	w.Helper()
	w.client.CloseIdleConnections()
	want := fmt.Sprint(w.runs, " 200 OK")
	inARow := 0
	eventually(w, "the new configuration", func() bool {
		for inARow < 20 {
			conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
			if err != nil {
				inARow = 0
				return false
			}
			_, _ = io.WriteString(conn, "GET /__run HTTP/1.1\r\nHost: run\r\nConnection: close\r\n\r\n")
			got := ""
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				body, _ := io.ReadAll(res.Body)
				got = string(body) + " " + res.Status
			}
			_ = conn.Close()
			if got != want {
				inARow = 0
				return false
			}
			inARow++
		}
		return true
	})
}

// proxy is a site that proxies to what the header X-Target names; errors tell
// why in their body.
func (w *world) proxy(options ...string) string {
	return fmt.Sprintf(`target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8 ::1
		tls_trust_pool file %q
		%s
	}
	handle_errors {
		respond "{err.status_code} {http.target.error}"
	}`, w.ca.file, strings.Join(options, "\n\t\t"))
}

// response is a response that was read to its end.
type response struct {
	*http.Response
	body string
	seen seen // if the backend told
}

func (r response) String() string {
	if r.Response == nil {
		return "no response"
	}
	return fmt.Sprintf("status %d: %.300s", r.StatusCode, r.body)
}

// request makes a request to the gateway.
func (w *world) request(method, path, target string, body io.Reader, change ...func(*http.Request)) (*http.Request, context.CancelFunc) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+w.port+path, body)
	if err != nil {
		w.Fatal(err)
	}
	if target != "" {
		req.Header["X-Target"] = []string{target}
	}
	for _, f := range change {
		f(req)
	}
	return req, cancel
}

// try sends a request to the gateway.
func (w *world) try(method, path, target string, body io.Reader, change ...func(*http.Request)) (response, error) {
	w.Helper()
	req, cancel := w.request(method, path, target, body, change...)
	defer cancel()
	return do(w.client, req)
}

// do sends a request and reads the response.
func do(client *http.Client, req *http.Request) (response, error) {
	res, err := client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	r := response{Response: res, body: string(text)}
	if err != nil {
		return r, fmt.Errorf("reading the body: %w", err)
	}
	if res.StatusCode == http.StatusOK && res.Header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(text, &r.seen); err != nil {
			return r, err
		}
	}
	return r, nil
}

// get sends a GET request, which has to be answered.
func (w *world) get(path, target string, change ...func(*http.Request)) response {
	w.Helper()
	res, err := w.try(http.MethodGet, path, target, nil, change...)
	if err != nil {
		w.Fatal(err)
	}
	return res
}

// mustGet sends a GET request, which has to be answered by the backend.
func (w *world) mustGet(path, target string, change ...func(*http.Request)) response {
	w.Helper()
	res := w.get(path, target, change...)
	if res.StatusCode != http.StatusOK {
		w.Fatalf("GET %s of %s: status %d: %s", path, target, res.StatusCode, res.body)
	}
	return res
}

// header returns a change to a request.
func header(name, value string) func(*http.Request) {
	return func(r *http.Request) {
		if name == "Host" {
			r.Host = value
			return
		}
		r.Header.Set(name, value)
	}
}
