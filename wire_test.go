package caddytarget

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/outgoing"
	"caddytarget/internal/testlab"
)

// TestWire plays each of wireCases over a stock reverse_proxy and over
// target_proxy, with and without TLS to the backend. What the backend saw and
// what the client saw has to be the same, octet for octet, but for what is in
// the table of differences.
func TestWire(t *testing.T) {
	w := newWorld(t)
	w.dns.Has(wireName, "127.0.0.1")
	cert, err := w.ca.CertFor(wireName)
	if err != nil {
		t.Fatal(err)
	}
	serverTLS := &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}}

	ports := runWireSites(w)

	names := make(map[string]bool)
	for _, c := range wireCases() {
		if names[c.name] {
			t.Errorf("two cases have the name %q", c.name)
		}
		names[c.name] = true
		for _, secure := range []bool{false, true} {
			if c.only == onlyPlain && secure || c.only == onlyTLS && !secure {
				continue
			}
			how, scheme, config := "plain", "http://", (*tls.Config)(nil)
			if secure {
				how, scheme, config = "TLS", "https://", serverTLS
			}
			target := wireGateway{ports[fmt.Sprint("target", c.duplex)], scheme}
			stock := wireGateway{ports[fmt.Sprint(how, c.duplex)], ""}
			t.Run(c.name+"/"+how, func(t *testing.T) {
				t.Parallel()
				got := playWire(w, t, c, target, config)
				if c.differs != "" {
					c.check(t, got)
					return
				}
				want := playWire(w, t, c, stock, config)
				// stock is not the same each time: it closes a connection if the
				// goroutine that has written the request does not say so within 50 ms
				for n := 0; got != want && n < 2; n++ {
					got, want = playWire(w, t, c, target, config), playWire(w, t, c, stock, config)
				}
				if got != want || strings.Contains(got, timedOut) {
					t.Errorf("the transports differ:%s", unlike(want, got))
				}
			})
		}
	}
	if len(names) < 120 {
		t.Errorf("got %d cases, want at least 120", len(names))
	}
}

// runWireSites runs six sites: target_proxy, stock, and stock with TLS, with and
// without enable_full_duplex. Either proxy repeats a GET once; stock gets the target's
// Host from the client. It returns the port of each site, by the words target, plain
// or TLS and whether it has enable_full_duplex.
func runWireSites(w *world) (ports map[string]string) {
	proxies := map[string]string{
		"target": fmt.Sprintf(`target_proxy {header.X-Target} {
			proxy_status off
			allow_ips 127.0.0.0/8
			tls_trust_pool file %q
			lb_retries 1
		}`, w.ca.File),
	}
	for how, options := range map[string]string{
		"plain": "",
		"TLS": fmt.Sprintf(`transport http {
			tls_trust_pool file %q
			tls_server_name %s
		}`, w.ca.File, wireName),
	} {
		proxies[how] = fmt.Sprintf(`reverse_proxy {header.X-Target} {
			header_up -X-Target
			header_up Host {http.request.hostport}
			lb_retries 1
			%s
		}`, options)
	}
	ports = make(map[string]string)
	var sites strings.Builder
	for how, proxy := range proxies {
		for _, duplex := range []bool{false, true} {
			port := testlab.FreePort(w)
			ports[fmt.Sprint(how, duplex)] = port
			fmt.Fprintf(&sites, "http://:%s {\nbind 127.0.0.1\nrespond /__run 1\n%s\n}\n", port, proxy)
			if duplex {
				w.global += fmt.Sprintf("servers 127.0.0.1:%s {\nenable_full_duplex\n}\n", port)
			}
		}
	}
	w.run("\n---\n" + sites.String())
	return ports
}

// wireName is the name of every backend.
const wireName = "wire.example"

// wireGateway is one of the proxies. Without a scheme it takes an address in
// X-Target, for stock.
type wireGateway struct{ port, scheme string }

// wireCase is what a client and a backend do.
type wireCase struct {
	name    string
	client  script // nil: one GET
	backend script // of each connection to the backend
	second  script // of those after the first, if it differs
	only    string // onlyPlain or onlyTLS
	raw     bool   // the backend speaks no TLS, whatever it is asked for
	duplex  bool   // the gateway answers before it has the whole request (enable_full_duplex)

	differs difference // if stock is not the model
	want    []string   // lines that are in the record then, in this order
}

const (
	onlyPlain = "plain"
	onlyTLS   = "TLS"
)

// check looks for the lines that are wanted.
func (c wireCase) check(t *testing.T, got string) {
	t.Helper()
	rest := strings.Split(got, "\n")
	for _, line := range c.want {
		i := slices.IndexFunc(rest, func(s string) bool { return strings.TrimSpace(s) == line })
		if i < 0 {
			t.Errorf("%s: no line %q, or not there, in\n%s", c.differs, line, got)
			return
		}
		rest = rest[i+1:]
	}
}

// unlike shows two records, with a mark before the lines that are not in the other.
func unlike(stock, target string) string {
	var b strings.Builder
	show := func(title, text, other string) {
		known := strings.Split(other, "\n")
		fmt.Fprintf(&b, "\nover %s:\n", title)
		for line := range strings.SplitSeq(text, "\n") {
			mark := " "
			if !slices.Contains(known, line) {
				mark = ">"
			}
			fmt.Fprintf(&b, "%s %s\n", mark, line)
		}
	}
	show("reverse_proxy", stock, target)
	show("target_proxy", target, stock)
	return b.String()
}

// --- the engine ---

// wirePlay is one case over one of the proxies.
type wirePlay struct {
	c       wireCase
	expand  *strings.Replacer // of what the client sends
	hide    *strings.Replacer // of what differs between plays
	gateway string

	mu     sync.Mutex
	events map[string]chan struct{}
	peers  []*peer // the backend's connections
	over   bool    // connections are closed now
}

// playWire returns the record of a case.
func playWire(w *world, t *testing.T, c wireCase, over wireGateway, config *tls.Config) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	host := net.JoinHostPort(wireName, port)
	target := l.Addr().String()
	if over.scheme != "" {
		target = over.scheme + host
	}
	p := &wirePlay{
		c:       c,
		expand:  strings.NewReplacer("$HOST", host, "$TARGET", target),
		hide:    strings.NewReplacer(host, wireName),
		gateway: "127.0.0.1:" + over.port,
		events:  make(map[string]chan struct{}),
	}
	var wg sync.WaitGroup
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		p.accept(l, config, &wg)
	}()
	w.Cleanup(func() { // not sooner: idle connections to the port may be left
		_ = l.Close()
		<-accepting
	})

	client := p.play(t)
	for _, peer := range p.backends() { // the scripts end before there is another request
		if peer.begun.Load() {
			wait(peer.idle)
		}
	}
	after := p.after(t)

	// a connection that the other request did not go over has been closed, or is
	// going to be
	for _, peer := range p.backends() {
		if peer.after.Load() {
			continue
		}
		select {
		case <-peer.ended:
		case <-time.After(time.Second):
			peer.left.Store(true)
		}
	}
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	for _, peer := range p.backends() {
		_ = peer.tcp.Close()
	}
	wg.Wait()

	var b strings.Builder
	fmt.Fprintf(&b, "the client\n%s", client)
	for i, peer := range p.backends() {
		fmt.Fprintf(&b, "connection %d of the backend\n%s", i+1, peer.story())
		if peer.left.Load() {
			fmt.Fprint(&b, "  left open\n")
		}
	}
	fmt.Fprintf(&b, "another request\n%s", after)
	return b.String()
}

func (p *wirePlay) backends() []*peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.peers)
}

// accept serves the connections to the backend.
func (p *wirePlay) accept(l net.Listener, config *tls.Config, wg *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		peer := p.newPeer(conn, 64<<10)
		p.mu.Lock()
		if p.over {
			p.mu.Unlock()
			_ = conn.Close()
			continue
		}
		p.peers = append(p.peers, peer)
		steps := p.c.backend
		if len(p.peers) > 1 && p.c.second != nil {
			steps = p.c.second
		}
		wg.Go(func() { peer.serve(steps, config) })
		p.mu.Unlock()
	}
}

// wait waits for an event, but not for long if something is wrong.
func wait(event <-chan struct{}) bool {
	select {
	case <-event:
		return true
	case <-time.After(wireLimit):
		return false
	}
}

// wireLimit is how long one step may take.
const wireLimit = 10 * time.Second

// event returns the event of a name.
func (p *wirePlay) event(name string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.events[name] == nil {
		p.events[name] = make(chan struct{})
	}
	return p.events[name]
}

// play plays the client's script and returns its record.
func (p *wirePlay) play(t *testing.T) string {
	client := p.dial(t, 512<<10)
	defer client.tcp.Close()
	steps := p.c.client
	if steps == nil {
		steps = script{ask(request("GET /"))}
	}
	for _, step := range steps {
		if err := step(client); err != nil {
			client.note("%s", kindOf(err))
			return client.story()
		}
	}
	if !client.closed {
		client.probe()
	}
	return client.story()
}

// after sends another request, over a connection of its own, and returns what
// came of it.
func (p *wirePlay) after(t *testing.T) string {
	client := p.dial(t, 4<<10)
	defer client.tcp.Close()
	if err := ask(request("GET /after", "Connection: close"))(client); err != nil {
		client.note("%s", kindOf(err))
	}
	return client.story()
}

func (p *wirePlay) dial(t *testing.T, longest int) *peer {
	t.Helper()
	conn, err := net.Dial("tcp", p.gateway)
	if err != nil {
		t.Fatal(err)
	}
	c := p.newPeer(conn, longest)
	c.client = true
	return c
}

// peer is one end of a connection that is scripted.
type peer struct {
	*wirePlay
	conn   net.Conn // TLS, if there is any
	tcp    *net.TCPConn
	r      *bufio.Reader
	record []string

	client  bool
	method  string       // of the request that was sent last
	expects bool         // a 100 is asked for: Caddy sends one, and the backend's if that comes later
	closing bool         // the connection ends with the response
	body    io.Reader    // of what was read last
	trailer *http.Header // and its trailer, after it

	closed             bool          // by the script
	limit              time.Duration // for each step
	begun, after, left atomic.Bool
	idle, ended        chan struct{}
}

// newPeer returns an end of a connection over which no longer heads come than
// that.
func (p *wirePlay) newPeer(conn net.Conn, longest int) *peer {
	return &peer{
		wirePlay: p, conn: conn, tcp: conn.(*net.TCPConn), r: bufio.NewReaderSize(conn, longest),
		limit: wireLimit, idle: make(chan struct{}), ended: make(chan struct{}),
	}
}

// note adds a line to the record.
func (p *peer) note(format string, args ...any) {
	p.record = append(p.record, p.hide.Replace(fmt.Sprintf(format, args...)))
}

// story returns the record.
func (p *peer) story() string {
	var b strings.Builder
	for _, line := range p.record {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	return b.String()
}

// errAfter is what reading a request yields if it is the one that comes after
// the case.
var errAfter = errors.New("another request")

// serve plays the script of one of the backend's connections, and then serves
// what else comes over it.
func (p *peer) serve(steps script, config *tls.Config) {
	defer close(p.ended)
	defer p.tcp.Close()
	if config != nil && !p.c.raw {
		secured := tls.Server(p.tcp, config)
		p.conn = secured
		p.r.Reset(secured)
		if err := secured.Handshake(); err != nil {
			p.note("no handshake")
			close(p.idle)
			return
		}
	}
	var err error
	for _, step := range steps {
		if err = step(p); err != nil {
			break
		}
	}
	close(p.idle)
	switch {
	case p.closed:
		return
	case err != nil && !errors.Is(err, errAfter):
		p.note("%s", kindOf(err))
		return
	}
	p.limit = time.Hour // until the case is over
	for {
		if err == nil {
			err = readHead(p)
		}
		switch {
		case errors.Is(err, errAfter):
			p.note("another request")
			p.after.Store(true)
			err = send(message("HTTP/1.1 200 OK", "Content-Length: 5") + "after")(p)
		case err == nil:
			p.note("an unexpected request")
			err = send(message("HTTP/1.1 500 Unexpected", "Content-Length: 0"))(p)
		default:
			p.mu.Lock()
			over := p.over
			p.mu.Unlock()
			if !over {
				p.note("closed by the gateway")
			}
			return
		}
	}
}

// probe finds out whether the client's connection can still be used, by asking
// for what Caddy itself answers.
func (p *peer) probe() {
	if !p.closing {
		_ = send("GET /__run HTTP/1.1\r\nHost: run\r\nConnection: close\r\n\r\n")(p)
	}
	p.deadline(wireLimit)
	rest, err := io.ReadAll(p.r)
	_, body, _ := bytes.Cut(rest, []byte("\r\n\r\n"))
	switch {
	case kindOf(err) == timedOut:
		p.note("%s: the connection does not end", timedOut)
	case bytes.HasPrefix(rest, []byte("HTTP/1.1 200 OK\r\n")) && string(body) == "1":
		p.note("the connection goes on")
	case len(rest) > 0:
		p.note("something else comes: %s", excerpt(rest))
	default:
		p.note("the connection ends")
	}
}

func (p *peer) deadline(d time.Duration) { _ = p.tcp.SetDeadline(time.Now().Add(d)) }

// timedOut is in the record if something did not happen in time.
const timedOut = "TIMEOUT"

// kindOf says what an error is. Whether a connection was closed or reset by the
// gateway may be a matter of what was in flight.
func kindOf(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		return timedOut
	}
	return "cut off"
}

// excerpt shows octets, or what they are known by.
func excerpt(data []byte) string {
	if len(data) <= 200 {
		return fmt.Sprintf("%q", data)
	}
	return fmt.Sprintf("%d octets, %.20q…, %x", len(data), data, sha256.Sum256(data))
}

// --- scripts ---

// step is one thing that a peer does. A failure ends its script.
type step func(*peer) error

type script []step

// message is the head of a message.
func message(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

// request is the head of a request for the backend.
func request(line string, fields ...string) string {
	return message(append([]string{line + " HTTP/1.1", "Host: $HOST", "X-Target: $TARGET"}, fields...)...)
}

// ok is a whole response.
func ok(body string, fields ...string) string {
	return message(append([]string{"HTTP/1.1 200 OK", fmt.Sprint("Content-Length: ", len(body))}, fields...)...) + body
}

// send sends octets, each argument in a segment of its own.
func send(segments ...string) step {
	return func(p *peer) error {
		p.deadline(wireLimit)
		for i, s := range segments {
			if i > 0 {
				time.Sleep(time.Millisecond) // so that the one before can be read alone
			}
			if p.client {
				s = p.expand.Replace(s)
				if method, _, found := strings.Cut(s, " "); found && strings.Contains(s, " HTTP/1.") {
					p.method = method
					p.expects = strings.Contains(s, "\r\nExpect: 100-continue\r\n")
				}
			}
			if _, err := io.WriteString(p.conn, s); err != nil {
				return err
			}
		}
		return nil
	}
}

// drip sends octets one by one.
func drip(text string) step {
	return func(p *peer) error {
		p.deadline(wireLimit)
		octets := text
		if p.client {
			octets = p.expand.Replace(octets)
		}
		for i := range len(octets) {
			if _, err := io.WriteString(p.conn, octets[i:i+1]); err != nil {
				return err
			}
			time.Sleep(50 * time.Microsecond)
		}
		return nil
	}
}

// peekHead returns the head that comes next.
func (p *peer) peekHead() (string, error) {
	p.deadline(p.limit)
	for {
		seen, _ := p.r.Peek(p.r.Buffered())
		if len(seen) > 0 {
			p.begun.Store(true)
		}
		if head, _, found := bytes.Cut(seen, []byte("\r\n\r\n")); found {
			return string(head), nil
		}
		if _, err := p.r.Peek(len(seen) + 1); err != nil {
			return "", err
		}
	}
}

// guessed are the types that Caddy makes up for a body, if it has some of it
// before it has to send the head.
var guessed = map[string]bool{"text/plain; charset=utf-8": true, "application/x-gzip": true, "application/octet-stream": true}

// noteHead records a head, without what is bound to differ.
func (p *peer) noteHead(head string) {
	for line := range strings.SplitSeq(head, "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case name == outgoing.LoopHeader && !p.client && value == outgoing.LoopID: // what only target_proxy adds
		case name == "Date" && p.client:
		case name == "Content-Type" && p.client && guessed[value]:
		case name == "Trailer":
			names := strings.Split(value, ", ")
			slices.Sort(names)
			p.note("Trailer: %s", strings.Join(names, ", "))
		default:
			if len(line) > 200 {
				line = excerpt([]byte(line))
			}
			p.note("%s", line)
		}
	}
}

// readHead reads the head of a request.
func readHead(p *peer) error {
	head, err := p.peekHead()
	if err != nil {
		return err
	}
	req, err := http.ReadRequest(p.r)
	if err != nil {
		p.note("not a request: %s", excerpt([]byte(head)))
		return err
	}
	if req.URL.Path == "/after" {
		return errAfter
	}
	p.noteHead(head)
	p.body, p.trailer = req.Body, &req.Trailer
	return nil
}

// readResponse reads the head of a response.
func readResponse(p *peer) error {
	head, err := p.peekHead()
	if err != nil {
		return err
	}
	res, err := http.ReadResponse(p.r, &http.Request{Method: p.method})
	if err != nil {
		return fmt.Errorf("not a response: %w", err)
	}
	if !p.expects || res.StatusCode != http.StatusContinue {
		p.noteHead(head)
	}
	p.closing = res.Close
	p.body, p.trailer = res.Body, &res.Trailer
	if res.StatusCode < 200 && res.StatusCode != http.StatusSwitchingProtocols {
		return readResponse(p)
	}
	return nil
}

// readBody reads the body of what was read last, to its end.
func readBody(p *peer) error {
	p.deadline(wireLimit)
	data, err := io.ReadAll(p.body)
	if p.client && len(data) == 0 { // how that is framed depends on when Caddy flushes
		p.record = slices.DeleteFunc(p.record, func(line string) bool {
			return line == "Transfer-Encoding: chunked" || line == "Content-Length: 0"
		})
	}
	p.note("body %s", excerpt(data))
	for _, name := range slices.Sorted(maps.Keys(*p.trailer)) {
		for _, value := range (*p.trailer)[name] {
			p.note("trailer %s: %s", name, value)
		}
	}
	return err
}

// readInterim reads one response before the response.
func readInterim(p *peer) error {
	head, err := p.peekHead()
	if err != nil {
		return err
	}
	res, err := http.ReadResponse(p.r, nil)
	switch {
	case err != nil:
		return err
	case p.expects && res.StatusCode == http.StatusContinue: // Caddy's own, or the backend's
		p.note("to go on")
	default:
		p.noteHead(head)
	}
	return nil
}

// readSome reads so many octets of the body.
func readSome(n int) step {
	return func(p *peer) error {
		p.deadline(wireLimit)
		data := make([]byte, n)
		n, err := io.ReadFull(p.body, data)
		p.note("first of the body %s", excerpt(data[:n]))
		return err
	}
}

// readRaw reads octets after the head of an upgrade.
func readRaw(n int) step {
	return func(p *peer) error {
		p.deadline(wireLimit)
		data := make([]byte, n)
		n, err := io.ReadFull(p.r, data)
		p.note("octets %s", excerpt(data[:n]))
		return err
	}
}

// readEnd reads until the other side has ended what it sends, in good order.
func readEnd(p *peer) error {
	p.deadline(wireLimit)
	data, err := io.ReadAll(p.r)
	if len(data) > 0 {
		p.note("octets %s", excerpt(data))
	}
	if err == nil {
		p.note("the end")
	}
	return err
}

// gone waits until the connection has been closed, or reset.
func gone(p *peer) error {
	p.deadline(wireLimit)
	_, err := io.Copy(io.Discard, p.r)
	if kindOf(err) == timedOut {
		return err
	}
	p.note("the connection is gone")
	p.closed = true
	return p.tcp.Close()
}

// take reads a request.
func take(p *peer) error {
	if err := readHead(p); err != nil {
		return err
	}
	return readBody(p)
}

// ask sends a request and reads the response.
func ask(segments ...string) step {
	return func(p *peer) error {
		if err := send(segments...)(p); err != nil {
			return err
		}
		if err := readResponse(p); err != nil {
			return err
		}
		return readBody(p)
	}
}

// anyway does something that may fail.
func anyway(s step) step {
	return func(p *peer) error {
		_ = s(p)
		return nil
	}
}

// shut ends what is sent; what is received goes on.
func shut(p *peer) error { return p.conn.(interface{ CloseWrite() error }).CloseWrite() }

// hangUp closes the connection.
func hangUp(p *peer) error {
	p.closed = true
	_ = p.conn.Close()
	return nil
}

// cut closes the connection below TLS.
func cut(p *peer) error {
	p.closed = true
	return p.tcp.Close()
}

// reset resets the connection.
func reset(p *peer) error {
	_ = p.tcp.SetLinger(0)
	return cut(p)
}

// tell makes something known to the other side, and await waits for it.
func tell(event string) step {
	return func(p *peer) error {
		e := p.event(event)
		p.mu.Lock()
		defer p.mu.Unlock()
		select {
		case <-e: // another connection has
		default:
			close(e)
		}
		return nil
	}
}

func await(event string) step {
	return func(p *peer) error {
		if !wait(p.event(event)) {
			return os.ErrDeadlineExceeded
		}
		return nil
	}
}

// soon waits for what should not happen. The record shows it if it did.
func soon(event string) step {
	return func(p *peer) error {
		select {
		case <-p.event(event):
			p.note("soon: %s", event)
		case <-time.After(100 * time.Millisecond):
			p.note("not soon: %s", event)
		}
		return nil
	}
}
