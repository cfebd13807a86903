//go:build linux

package pool

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

// The times of the fuzzed pools. In a bubble nothing may take longer.
const (
	fuzzRead      = 50 * time.Millisecond
	fuzzHeader    = 100 * time.Millisecond
	fuzzHandshake = 200 * time.Millisecond
	fuzzCancel    = 2 * time.Millisecond
	fuzzPause     = time.Millisecond
)

func fuzzConfig() Config {
	return Config{
		ReadTimeout: fuzzRead, WriteTimeout: fuzzRead, ResponseHeaderTimeout: fuzzHeader,
		DialTimeout: time.Second, HandshakeTimeout: fuzzHandshake, ExpectContinueTimeout: 20 * time.Millisecond,
	}
}

// How a backend ends its reply.
const (
	endStay  = iota // the connection goes on
	endClose        // it is closed
	endShut         // the backend sends no more
	endReset        // it is reset after what was sent
	endLose         // it is reset before all was read
	ends
)

// plan is how a backend replies, and how a client asks and reads.
type plan struct {
	octets []byte
	cuts   []byte // where they are cut into segments, and where there is a pause

	method   string
	upgrade  bool // the client asks for another protocol
	end      int
	early    bool // the reply does not wait for the body of the request
	unasked  bool // nor for the request
	together bool // the next request waits already
	gzip     bool // the pool asks for gzip by itself
	drop     bool // the client does not read the body
	cancel   bool // the client goes away after fuzzCancel
	post     bool // the next request is not replayable
	large    bool // so much of a body that it has to be read
	expect   bool // the client waits for 100 (Continue)
}

// words stand for one octet of 128 and more, in octets that are expanded.
var words = []string{
	"HTTP/1.1 200 OK\r\n", "HTTP/1.1 ", "HTTP/1.0 200 OK\r\n", "Content-Length: ", "Content-Length: 5\r\n", "Content-Length: 0\r\n",
	"Transfer-Encoding: chunked\r\n", "Transfer-Encoding: ", "chunked", "Connection: close\r\n", "Connection: keep-alive\r\n",
	"Connection: ", "close", "\r\n", "\r\n\r\n", "\n", "\r", "hello", "0\r\n\r\n", "0\r\n", "5\r\nhello\r\n", "1\r\nx\r\n", "5;a=b\r\n",
	"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	"HTTP/1.1 204 No Content\r\n", "HTTP/1.1 304 Not Modified\r\n", "HTTP/1.1 099 Odd\r\n", "HTTP/1.1 1000 Odd\r\n", "HTTP/1.1 205 Reset Content\r\n",
	"HTTP/1.1 404 Not Found\r\n", "Trailer: X-T\r\n", "X-T: b\r\n", "X-A: b\r\n", "Keep-Alive: timeout=", "Keep-Alive: timeout=1\r\n",
	"Content-Encoding: gzip\r\n", "Upgrade: x\r\n", ": ", " ", "\t", "\x00", "ffffffffffffffff", "9223372036854775807", "-1", "1e",
	"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "HTTP/1.1 200 OK\r\nX-Token: evil\r\nContent-Length: 4\r\n\r\nevil",
	"Content-Length: 5, 5\r\n", "Transfer-Encoding: identity\r\n", " folded\r\n", "HTTP/1.1 413 Content Too Large\r\n",
}

func expand(octets []byte) []byte {
	var b []byte
	for _, c := range octets {
		if c >= 128 && int(c-128) < len(words) {
			b = append(b, words[c-128]...)
		} else {
			b = append(b, c)
		}
	}
	return b
}

const (
	flagEnd      = 2 // and two more bits
	flagEarly    = 1 << 5
	flagUnasked  = 1 << 6
	flagTogether = 1 << 7
	flagExpand   = 1 << 8
	flagGzip     = 1 << 9
	flagDrop     = 1 << 10
	flagCancel   = 1 << 11
	flagPost     = 1 << 12
	flagLarge    = 1 << 13
	flagExpect   = 1 << 14
)

const maxFuzz = 64 << 10

func newPlan(octets, cuts []byte, flags uint16) *plan {
	if flags&flagExpand != 0 {
		octets = expand(octets)
	}
	octets = octets[:min(len(octets), maxFuzz)]
	is := func(flag uint16) bool { return flags&flag != 0 }
	pl := &plan{
		octets: octets, cuts: cuts, end: int(flags>>flagEnd&7) % ends, method: http.MethodGet,
		early: is(flagEarly), unasked: is(flagUnasked), together: is(flagTogether), gzip: is(flagGzip),
		drop: is(flagDrop), cancel: is(flagCancel), post: is(flagPost), large: is(flagLarge), expect: is(flagExpect),
	}
	switch flags & 3 {
	case 1:
		pl.method = http.MethodHead
	case 2:
		pl.method = http.MethodPost
	case 3:
		pl.upgrade = true
	}
	if pl.together { // all has to be there before the next request gets the connection
		pl.unasked, pl.early = false, false
		pl.cuts = bytes.Clone(pl.cuts)
		for i := range pl.cuts {
			pl.cuts[i] &^= 0x80
		}
	}
	return pl
}

// group is segments that are sent at once, and a pause after them.
type group struct {
	segments [][]byte
	pause    time.Duration
}

// groups returns the octets in segments.
func (pl *plan) groups() (groups []group, pauses time.Duration) {
	var g group
	rest := pl.octets
	for _, b := range pl.cuts {
		if len(rest) == 0 {
			break
		}
		n := int(b&0x7f) + 1
		if n > 64 {
			n = (n - 63) * 64
		}
		n = min(n, len(rest))
		g.segments = append(g.segments, rest[:n])
		rest = rest[n:]
		switch {
		case b == 0xff:
			g.pause = fuzzRead + fuzzPause
		case b&0x80 != 0:
			g.pause = fuzzPause
		default:
			continue
		}
		pauses += g.pause
		groups = append(groups, g)
		g = group{}
	}
	g.segments = append(g.segments, rest)
	return append(groups, g), pauses
}

// answer1 is what the first client may get of a reply, as net/http reads it.
type answer1 struct {
	err     error // there is no response
	res     *http.Response
	interim int
	body    []byte
	bodyErr error
	surplus []byte // what no client may get
}

func (pl *plan) parse() (a answer1) {
	r := bytes.NewReader(pl.octets)
	br := bufio.NewReader(r)
	for ; ; a.interim++ {
		if a.res, a.err = http.ReadResponse(br, &http.Request{Method: pl.method}); a.err != nil {
			return a
		}
		if code := a.res.StatusCode; code < 100 || code > 999 {
			a.err = fmt.Errorf("status %d", code)
			return a
		} else if code == http.StatusSwitchingProtocols {
			a.body, _ = io.ReadAll(br)
			return a
		} else if code >= 200 {
			break
		}
	}
	a.body, a.bodyErr = io.ReadAll(a.res.Body)
	a.surplus, _ = io.ReadAll(br)
	return a
}

// stage is a backend whose first connection follows a plan. All others, and the
// first one afterwards, answer each request with its path.
type stage struct {
	*plan
	t      *testing.T
	real   bool // sockets, and not in a bubble
	n      atomic.Int32
	sent   chan struct{} // closed when the reply has been sent
	once   sync.Once
	reused atomic.Bool // the first connection got another request
	wg     sync.WaitGroup

	// dial opens connections to the stage.
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	tlsFlags   uint16
	incomplete bool // not all of the octets are sent
	foreign    bool // there are others, which TLS may ignore

	serve func(c net.Conn) // the first connection; nil: as the plan says
	later func(c net.Conn) // others
}

func newStage(t *testing.T, pl *plan) *stage {
	s := &stage{plan: pl, t: t, sent: make(chan struct{})}
	s.serve = func(c net.Conn) { s.follow(c, c) }
	s.later = s.laterOver
	s.dial = s.dialMemory
	return s
}

// laterOver answers requests over a connection.
func (s *stage) laterOver(c net.Conn) { s.answer(bufio.NewReader(c), c, func(string) {}) }

// dialMemory opens a connection in memory.
func (s *stage) dialMemory(ctx context.Context, network, address string) (net.Conn, error) {
	client, backend := memPipe()
	s.accept(backend)
	return client, nil
}

func (s *stage) accept(backend net.Conn) {
	first := s.n.Add(1) == 1
	s.wg.Go(func() {
		defer backend.Close()
		if first {
			defer s.isSent()
			s.serve(backend)
		} else {
			s.later(backend)
		}
	})
}

func (s *stage) isSent() { s.once.Do(func() { close(s.sent) }) }

// follow follows the plan over a connection, raw or with TLS above.
func (s *stage) follow(c, raw net.Conn) {
	br := bufio.NewReader(c)
	if s.unasked {
		s.reply(c, raw)
	}
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	if !s.early {
		_, _ = io.Copy(io.Discard, req.Body)
	}
	if s.together {
		time.Sleep(fuzzPause) // until the next request waits
	}
	if !s.unasked {
		s.reply(c, raw)
	}
	s.isSent()
	if s.end != endStay && s.end != endShut {
		return
	}
	_, _ = io.Copy(io.Discard, req.Body)
	s.answer(br, c, func(path string) {
		if path != "/upgraded" {
			s.reused.Store(true)
		}
	})
}

// reply sends the octets and ends as the plan says.
func (s *stage) reply(c, raw net.Conn) {
	if c, ok := c.(*secured); ok {
		s.replySecured(c)
		return
	}
	groups, _ := s.groups()
	for i, g := range groups {
		if mem, ok := c.(*memConn); ok {
			var end error
			switch {
			case i < len(groups)-1 || s.end == endStay:
			case s.end >= endReset:
				end = unix.ECONNRESET
			default:
				end = io.EOF
			}
			mem.out.push(end, g.segments...)
		} else {
			for _, segment := range g.segments {
				_, _ = c.Write(segment)
			}
		}
		if g.pause > 0 {
			time.Sleep(g.pause)
		}
	}
	switch s.end {
	case endClose:
		_ = c.Close()
		_ = raw.Close()
	case endShut:
		_ = closeWrite(c)
	case endReset, endLose:
		if m, ok := raw.(*memConn); ok {
			if s.end == endLose {
				m.lose()
			}
			_ = m.closeWith(unix.ECONNRESET)
			return
		}
		_ = raw.(socket).SetLinger(0)
		_ = raw.Close()
	}
}

// answer answers each request with its path.
func (s *stage) answer(br *bufio.Reader, c net.Conn, got func(path string)) {
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		got(req.URL.Path)
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Token: %s\r\nContent-Length: %d\r\n\r\n%s", req.URL.Path, len(req.URL.Path), req.URL.Path)
	}
}

// play sends requests to the stage and checks the results.
func (s *stage) play(config Config, key Key) {
	t := s.t
	config.DisableCompression = !s.gzip
	if s.together {
		config.MaxPerKey = 1
	}
	p := New(config, health.New(), NewLimits(0, nil))
	p.Dial = s.dial
	order := &Order{Key: key, Target: key.Host, Last: true}
	var second sync.WaitGroup
	if s.together {
		second.Go(func() {
			time.Sleep(fuzzPause / 2)
			s.next(p, order, "/second")
		})
	}
	reusable := s.first(p, order)
	second.Wait()
	<-s.sent
	if !s.together {
		s.next(p, order, "/second")
	}
	s.next(p, order, "/third")
	if s.reused.Load() && !reusable && !s.foreign {
		t.Error("the connection was used again, want another one")
	}
	if !s.reused.Load() && reusable && !s.foreign && !s.cancel && !s.real {
		t.Error("the connection was not used again, want it used")
	}
	other := *order
	other.Key.Host = "other.example"
	s.next(p, &other, "/other")
	if !s.real {
		synctest.Wait()
		p.checkIdle(t)
	}
	p.Close()
	s.wg.Wait()
	if !s.real {
		time.Sleep(2 * sweepInterval) // what ends by itself has time for that
		synctest.Wait()
	} else {
		testlab.Eventually(t, "nothing is left", func() bool { return p.Open() == 0 && p.destinations() == 0 })
	}
	p.checkEmpty(t)
}

// checkEmpty checks that nothing is left of a pool that was closed.
func (p *Pool) checkEmpty(t *testing.T) {
	limits := p.limits
	limits.mu.Lock()
	defer limits.mu.Unlock()
	if p.Open() != 0 || p.destinations() != 0 || limits.open != 0 || len(limits.groups) != 0 || len(limits.pools) != 0 {
		t.Errorf("%d connections, %d destinations, %d in limits, %v are left, want none", p.Open(), p.destinations(), limits.open, limits.groups)
	}
}

// traced1 returns a context that checks interim responses.
func traced1(ctx context.Context, t *testing.T) context.Context {
	n := 0
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
		if n++; n > maxInterim || code == http.StatusSwitchingProtocols || code > 199 {
			t.Errorf("interim response %d has status %d, want at most %d of status 100 to 199 but 101", n, code, maxInterim)
		}
		return nil
	}})
}

// slack is how much longer than configured something may take.
func (s *stage) slack() time.Duration {
	if s.real {
		return 10 * time.Second
	}
	return 0
}

// first sends the first request and compares its response with what net/http reads.
// It reports whether the connection may be used again.
func (s *stage) first(p *Pool, order *Order) (reusable bool) {
	want := s.parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	if s.cancel {
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), fuzzCancel)
	}
	defer cancel()
	req := s.firstRequest(ctx)
	start := time.Now()
	res, err := p.RoundTrip(req, order)
	s.checkTime(time.Since(start), req.Body != nil, order.Key.secure(), err)
	if err != nil {
		s.checkError(want, req.Body != nil, err)
		return false
	}
	s.checkHeader(res, want)
	if s.drop {
		_ = res.Body.Close()
		return res.Body == http.NoBody && s.clean(want)
	}
	return s.checkBody(res, want)
}

// firstRequest returns the request that the plan describes.
func (s *stage) firstRequest(ctx context.Context) *http.Request {
	t := s.t
	var body io.Reader
	if s.method == http.MethodPost {
		body = strings.NewReader("body")
		if s.large {
			body = io.MultiReader(strings.NewReader(strings.Repeat("large ", 2*memLimit/6)))
		}
	}
	req, err := http.NewRequestWithContext(traced1(ctx, t), s.method, "http://backend.example/first", body)
	if err != nil {
		t.Fatal(err)
	}
	if s.upgrade {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "x")
	}
	if s.expect && body != nil {
		req.Header.Set("Expect", "100-continue")
	}
	return req
}

// checkTime checks how long RoundTrip took.
func (s *stage) checkTime(took time.Duration, hasBody, secure bool, err error) {
	_, pauses := s.groups()
	bound := fuzzHeader + 2*fuzzHandshake
	if !secure {
		bound = fuzzHeader
	}
	if hasBody {
		bound += lateResponseTime + pauses + fuzzRead + 20*time.Millisecond
	}
	if s.cancel {
		bound = fuzzCancel
	}
	if took > bound+s.slack() {
		s.t.Errorf("RoundTrip took %v, want at most %v: %v", took, bound, err)
	}
}

// checkError checks the error of RoundTrip, which must not be where net/http reads a
// response and nothing in the plan stands in its way.
func (s *stage) checkError(want answer1, hasBody bool, err error) {
	t := s.t
	if _, ok := err.(*Error); !ok {
		t.Errorf("an error of type %T, want *Error: %v", err, err)
	}
	_, pauses := s.groups()
	switches := want.err == nil && want.res.StatusCode == http.StatusSwitchingProtocols && !s.upgrade
	plain := !switches && !s.unasked && !s.cancel && !s.real && !s.early && pauses == 0 && s.end <= endShut && !s.incomplete && !s.foreign
	if plain && !hasBody && want.err == nil && want.interim < maxInterim && fieldsOf(want.res.Header) <= maxFields && !s.huge() {
		t.Errorf("%v, want a response", err)
	}
}

// checkHeader compares the header of a response with what net/http reads.
func (s *stage) checkHeader(res *http.Response, want answer1) {
	t := s.t
	if res.StatusCode < 100 || res.StatusCode > 999 {
		t.Fatalf("status %d, want 100 to 999", res.StatusCode)
	}
	if res.StatusCode == http.StatusSwitchingProtocols && !s.upgrade {
		t.Errorf("status 101, which was not asked for")
	}
	if want.err != nil {
		t.Fatalf("a response %d where net/http has %v", res.StatusCode, want.err)
	}
	if res.StatusCode != want.res.StatusCode || res.Status != want.res.Status {
		t.Errorf("status %q, want %q", res.Status, want.res.Status)
	}
	header := want.res.Header.Clone()
	if res.Uncompressed {
		header.Del("Content-Encoding")
		header.Del("Content-Length")
	}
	if !reflect.DeepEqual(res.Header, header) && len(res.Header)+len(header) > 0 {
		t.Errorf("header %q, want %q", res.Header, header)
	}
}

// checkBody reads the body of a response and compares it with what net/http reads. It
// reports whether the connection may be used again.
func (s *stage) checkBody(res *http.Response, want answer1) (reusable bool) {
	t := s.t
	_, pauses := s.groups()
	if w, ok := res.Body.(io.Writer); ok {
		_, _ = w.Write([]byte("GET /upgraded HTTP/1.1\r\nHost: a\r\n\r\n"))
	}
	start := time.Now()
	got, err := io.ReadAll(res.Body)
	took := time.Since(start)
	bound := pauses + fuzzRead + writeGrace
	if s.cancel && res.StatusCode != http.StatusSwitchingProtocols { // as with net/http
		bound = fuzzCancel + writeGrace
	}
	if took > bound+s.slack() {
		t.Errorf("reading the body took %v, want at most %v: %v", took, bound, err)
	}
	_ = res.Body.Close()
	body1 := want.body
	if res.Uncompressed {
		body1 = unzip(want.body)
	}
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols:
		// after that, the backend may say what it wants
		if n := min(len(got), len(body1)); !bytes.Equal(got[:n], body1[:n]) {
			t.Errorf("after 101: %q, want %q", got, body1)
		}
	case err == nil && (want.bodyErr != nil && !res.Uncompressed || !bytes.Equal(got, body1)):
		t.Errorf("body %q, want %q, %v", got, body1, want.bodyErr)
	case !bytes.HasPrefix(body1, got):
		t.Errorf("body %q, want %q", got, body1)
	}
	if err == nil && !reflect.DeepEqual(res.Trailer, want.res.Trailer) && len(res.Trailer)+len(want.res.Trailer) > 0 {
		t.Errorf("trailer %q, want %q", res.Trailer, want.res.Trailer)
	}
	if err != nil && res.Uncompressed && s.clean(want) {
		s.foreign = true // all may have been read nevertheless
	}
	if (s.early || s.unasked) && s.large && pauses > 0 {
		s.foreign = true // the backend may read the request too late
	}
	return err == nil && s.clean(want)
}

// clean reports whether a connection may be used again after a response that was
// read to its end.
func (s *stage) clean(want answer1) bool {
	return want.bodyErr == nil && !want.res.Close && len(want.surplus) == 0 && s.end == endStay && !s.incomplete &&
		want.res.StatusCode != http.StatusSwitchingProtocols
}

// huge reports whether a header may be too large.
func (s *stage) huge() bool {
	return len(s.octets) > 32<<10 || bytes.Count(s.octets, []byte("\n")) > maxFields
}

func unzip(b []byte) []byte {
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	b, _ = io.ReadAll(zr)
	return b
}

// next sends another request, which has to get its own response.
func (s *stage) next(p *Pool, order *Order, path string) {
	t := s.t
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	method := http.MethodGet
	if s.post && path == "/second" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://backend.example"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	res, err := p.RoundTrip(req, order)
	if took := time.Since(start); !s.together && !s.real && took > fuzzHeader+2*fuzzHandshake+s.slack() {
		t.Errorf("%s took %v, want less", path, took)
	}
	if err != nil {
		if !s.real || method == http.MethodGet && !IsTimeout(err) { // a busy machine may be late
			t.Errorf("%s: %v, want a response", path, err)
		}
		return
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK || string(body) != path || err != nil || res.Header.Get("X-Token") != path {
		t.Errorf("%s got %q, %q, %q, %v, want its own response", path, res.Status, res.Header, body, err)
	}
}

var memKey = Key{Addr: netip.MustParseAddrPort("192.0.2.1:80"), Host: "backend.example"}

// replies are the octets that the fuzzers start from.
func replies() []string {
	ok := func(fields string, body string) string { return "HTTP/1.1 200 OK\r\n" + fields + "\r\n" + body }
	evil := "HTTP/1.1 200 OK\r\nX-Token: /second\r\nContent-Length: 4\r\n\r\nevil"
	length, chunked := "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"
	interim := "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	_, _ = zw.Write([]byte("hello"))
	_ = zw.Close()
	return []string{
		"", "x", "\r\n", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nX-A: b", "<html>hello</html>\r\n\r\n", "\x15\x03\x01\x00\x02\x02\x46",
		ok(length, "hello"), ok(length, "hell"), ok(length, "hello!"), ok(length, "hello"+evil), ok("Content-Length: 0\r\n", ""), ok("Content-Length: 0\r\n", evil),
		ok(length, "hello\r\n"), ok(length+"Connection: close\r\n", "hello"+evil), ok(length+"Keep-Alive: timeout=1\r\n", "hello"),
		ok("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), ok("Content-Length: 5, 5\r\n", "hello"), ok("Content-Length: -5\r\n", "hello"),
		ok("Content-Length: 99999999999999999999\r\n", "hello"), ok("Content-Length: 3\r\n"+chunked, "5\r\nhello\r\n0\r\n\r\n"),
		ok("", "hello"), ok("", ""), ok(chunked, "5\r\nhello\r\n0\r\n\r\n"), ok(chunked, "0\r\n\r\n"), ok(chunked, "5\r\nhello\r\n0\r\n\r\n"+evil),
		ok(chunked, "5\r\nhello\r\n0\r\n"), ok(chunked, "5\r\nhello\r\n0\r\nX-T: b\r\n\r\n"), ok(chunked+"Trailer: X-T\r\n", "5\r\nhello\r\n0\r\nX-T: b\r\n\r\n"+evil),
		ok(chunked, "5;a=b\r\nhello\r\n0;last\r\n\r\n"), ok(chunked, "5\nhello\n0\n\n"), ok(chunked, "5\r\nhello!\r\n0\r\n\r\n"), ok(chunked, "fffffffffffffffff\r\n"),
		ok(chunked, "-5\r\nhello\r\n"), ok(chunked+chunked, "0\r\n\r\n"), ok("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), ok("Transfer-Encoding: identity\r\n"+length, "hello"),
		"HTTP/1.0 200 OK\r\n" + length + "\r\nhello", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + length + "\r\nhello" + evil, "HTTP/1.0 200 OK\r\n" + chunked + "\r\n0\r\n\r\n",
		"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\nevil", "HTTP/1.1 204 No Content\r\n" + length + "\r\nhello", "HTTP/1.1 204 No Content\r\n" + chunked + "\r\n0\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\n" + length + "\r\n", "HTTP/1.1 304 Not Modified\r\n" + length + "\r\nhello", "HTTP/1.1 205 Reset Content\r\n\r\n" + evil,
		interim + ok(length, "hello"), interim + interim + ok(length, "hello"+evil), interim, strings.Repeat(interim, 99) + ok(length, "hello"), strings.Repeat(interim, 101) + ok(length, "hello"),
		"HTTP/1.1 100 Continue\r\n\r\n" + ok(length, "hello"), "HTTP/1.1 100 Continue\r\n" + length + "\r\nhello" + ok(length, "hello"), "HTTP/1.1 199 Odd\r\n\r\n" + ok(length, "hello"),
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello" + evil,
		"HTTP/1.1 099 Odd\r\n" + length + "\r\nhello", "HTTP/1.1 000 Odd\r\n\r\n", "HTTP/1.1 99999 Odd\r\n\r\n", "HTTP/1.1 +20 Odd\r\n\r\n", "HTTP/1.1 999 Odd\r\n" + length + "\r\nhello",
		"HTTP/1.1 200\r\n" + length + "\r\nhello", "HTTP/2.0 200 OK\r\n" + length + "\r\nhello", "HTTP/1.1 200 OK\n" + "Content-Length: 5\n\nhello", "\r\n" + ok(length, "hello"),
		"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n",
		ok("X-A: one\r\n two\r\n"+length, "hello"), ok("X-A b\r\n"+length, "hello"), ok("X-A : b\r\n"+length, "hello"), ok("Content-Length : 5\r\n", "hello"), ok("X-A: a\x00b\r\n"+length, "hello"),
		ok("Content-Encoding: gzip\r\n"+fmt.Sprintf("Content-Length: %d\r\n", zipped.Len()), zipped.String()), ok("Content-Encoding: gzip\r\n"+length, "hello"+evil),
		ok("Content-Encoding: gzip\r\n"+chunked, fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", zipped.Len(), zipped.String())+evil),
		ok(strings.Repeat("X-A: b\r\n", 1001)+length, "hello"), ok("X-A: "+strings.Repeat("a", 10000)+"\r\n"+length, "hello"), ok("Content-Length: 20000\r\n", strings.Repeat("hello", 4000)),
	}
}

// surplusAt returns where the surplus of a reply begins, or 0.
func surplusAt(reply string) int {
	head, _, ok := strings.Cut(reply, "evil")
	if !ok {
		return 0
	}
	if i := strings.LastIndex(head, "HTTP/1.1"); i > 0 {
		return i
	}
	return len(head)
}

// seedPlans calls add with ways to play a reply.
func seedPlans(add func(cuts []byte, flags uint16)) {
	for _, cuts := range [][]byte{nil, {0x7f, 0x80}, {0x40, 0x82}} {
		add(cuts, 0)
	}
	for end := range uint16(ends) {
		add(nil, end<<flagEnd|flagGzip)
	}
	for method := range uint16(4) {
		add([]byte{0x90, 0x8a}, method|flagPost)
		add(nil, method|flagTogether)
	}
	add(bytes.Repeat([]byte{0}, 200), 0)
	add(bytes.Repeat([]byte{0x80}, 120), 0)
	add([]byte{0x20, 0xff}, 0)
	add(nil, flagUnasked)
	add(nil, flagEarly|flagLarge|2)
	add(nil, flagExpect|2)
	add(nil, flagDrop)
	add(bytes.Repeat([]byte{0x8f}, 10), flagCancel)
}

// FuzzResponse: of all that a backend may send, in all segments, its client gets what
// net/http reads from it, or an error in time. No other client gets any of it.
func FuzzResponse(f *testing.F) {
	n := 0
	for _, reply := range replies() {
		seedPlans(func(cuts []byte, flags uint16) {
			if n++; n%5 < 2 {
				f.Add([]byte(reply), cuts, flags)
			}
		})
		// where the surplus is by itself
		if n := surplusAt(reply); n > 0 {
			for _, last := range []byte{0, 0x80} {
				cuts := bytes.Repeat([]byte{0x3f}, n/64)
				if n%64 > 0 {
					cuts = append(cuts, byte(n%64-1)|last)
				}
				f.Add([]byte(reply), cuts, uint16(0))
				f.Add([]byte(reply), cuts, uint16(flagPost))
			}
		}
	}
	f.Add([]byte("0"), []byte(nil), uint16(2|endLose<<flagEnd|flagEarly|flagExpect))
	f.Add([]byte("HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 5\r\n\r\nhello"), []byte("\xff]\xb2\x7fr"), uint16(2|flagEarly|flagLarge))
	f.Add([]byte("HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 5\r\n\r\nhello"), []byte("\xff]\xb2\x7fr"), uint16(2|5<<flagEnd|flagUnasked|flagLarge))
	// a timeout after 4160 octets, in the middle of a line
	f.Add([]byte("HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: b\r\n", 517)+"X-A: bb\r\n"), []byte{0xff}, uint16(0))
	for _, program := range []string{"\x80\x84\x8d\x91", "\x80\x86\x8d\x94\x92\xaf", "\x97\x98\x80\x85\x8d", "\x81\x3200\x8d\x84\x8d\x91"} {
		f.Add([]byte(program), []byte{0x80, 0x80}, uint16(flagExpand))
	}
	f.Fuzz(func(t *testing.T, octets, cuts []byte, flags uint16) {
		synctest.Test(t, func(t *testing.T) {
			newStage(t, newPlan(octets, cuts, flags)).play(fuzzConfig(), memKey)
		})
	})
}
