package pool

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"caddytarget/internal/testlab"
)

// age makes the idle connections for an order's key seem idle for longer.
func (p *Pool) age(o *Order, by time.Duration) {
	s := p.shard(&o.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.destinations[o.Key].idle {
		c.idleSince = c.idleSince.Add(-by)
	}
}

// post sends a request with a body.
func post(t testing.TB, p *Pool, o *Order, body io.Reader) error {
	t.Helper()
	res, err := p.RoundTrip(request(t, http.MethodPost, "/", body), o)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// TestKnock: a POST over a connection that has been idle for a while is sent over
// another one if the backend closes it at the first octet, and is executed once.
func TestKnock(t *testing.T) {
	t.Run("", func(t *testing.T) { testKnock(t, false) })
	t.Run("TLS", func(t *testing.T) { testKnock(t, true) })
}

func testKnock(t *testing.T, secure bool) {
	config := serverTLS()
	var posts, closes, bad atomic.Int64
	var closing atomic.Bool
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		if secure {
			s := tls.Server(c, config)
			defer s.Close()
			c, r = s, bufio.NewReader(s)
		}
		for served := 0; ; served++ {
			if _, err := r.Peek(1); err != nil {
				return
			}
			if served > 0 && closing.Load() {
				if r.Buffered() != 1 {
					bad.Add(1)
				}
				closes.Add(1)
				return
			}
			req, err := http.ReadRequest(r)
			if err != nil {
				bad.Add(1)
				return
			}
			if body, _ := io.ReadAll(req.Body); req.Method == http.MethodPost {
				posts.Add(1)
				if len(body) > 0 && string(body) != "body" {
					bad.Add(1)
				}
			}
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	p := newPool(t, Config{TLS: anyCertificate()})
	o := b.order("a.example")
	if secure {
		o.Key.Protocol = TLSHTTP1
	}
	for _, body := range []string{"", "body"} {
		for _, close := range []bool{true, false} {
			closing.Store(false)
			if _, err := get(t, p, o, "/"); err != nil {
				t.Fatal(err)
			}
			opened := b.Opened.Load()
			posts.Store(0)
			closes.Store(0)
			closing.Store(close)
			p.age(o, knockIdle)
			var r io.Reader
			if body != "" {
				r = strings.NewReader(body)
			}
			if err := post(t, p, o, r); err != nil {
				t.Errorf("body %q, closing %t: %v, want a response", body, close, err)
			}
			want := int64(0)
			if close {
				want = 1
			}
			if n := posts.Load(); n != 1 {
				t.Errorf("body %q, closing %t: executed %d times, want once", body, close, n)
			}
			if n, m := closes.Load(), b.Opened.Load()-opened; n != want || m != want {
				t.Errorf("body %q, closing %t: %d connections closed, %d opened, want %d", body, close, n, m, want)
			}
		}
	}
	if bad.Load() != 0 {
		t.Error("a backend got more than one octet before it closed a connection, or a broken request")
	}
}

// serverTLS returns a configuration with some certificate.
func serverTLS() *tls.Config {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"http/1.1"}}
}

// TestNoKnock: there is no knock where a request may be sent again, or the connection
// was used a moment before.
func TestNoKnock(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{})
	o := b.order("a.example")
	for _, test := range []struct {
		method string
		idle   time.Duration
		knock  bool
	}{{http.MethodGet, knockIdle, false}, {http.MethodPost, 0, false}, {http.MethodPost, knockIdle, true}} {
		if _, err := get(t, p, o, "/"); err != nil {
			t.Fatal(err)
		}
		p.age(o, test.idle)
		res, err := p.RoundTrip(request(t, test.method, "/path", nil), o)
		if err != nil {
			t.Fatal(err)
		}
		if x := res.Body.(*exchange); x.knocked != test.knock {
			t.Errorf("%s after %s: knocked %t, want %t", test.method, test.idle, x.knocked, test.knock)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	if n := b.Opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
}

// TestLateTimer: the timer for the header of a response, however late it fires, aborts
// no connection whose request has ended.
func TestLateTimer(t *testing.T) {
	b := newBackend(t, echo)
	p := newPool(t, Config{})
	take := func() *exchange {
		c, _, err := p.getConn(request(t, http.MethodGet, "/", nil), b.order("a.example"))
		if err != nil {
			t.Fatal(err)
		}
		return &exchange{c: c}
	}

	// it fires, and is about to lock the exchange when the response comes
	x := take()
	x.abortAfter(20*time.Millisecond, errResponseHeaderTimeout)
	x.headerWait.Lock()
	time.Sleep(40 * time.Millisecond)
	x.headerWait.over = true // what stopWaiting does
	x.headerWait.Unlock()
	time.Sleep(10 * time.Millisecond)
	if err := x.c.cause(nil); err != nil {
		t.Errorf("the connection was aborted after its request had ended: %v", err)
	}

	// it is about to abort the connection: the request does not go on until it has
	x = &exchange{c: x.c}
	x.c.ended.Lock()
	x.abortAfter(time.Millisecond, errResponseHeaderTimeout)
	testlab.Eventually(t, "the timer has fired", func() bool {
		free := x.headerWait.TryLock()
		if free {
			x.headerWait.Unlock()
		}
		return !free
	})
	stopped := make(chan struct{})
	go func() {
		x.stopHeaderWait()
		close(stopped)
	}()
	select {
	case <-stopped:
		t.Error("the request goes on before the timer has aborted the connection")
	case <-time.After(20 * time.Millisecond):
	}
	x.c.ended.Unlock()
	<-stopped
	if err := x.c.cause(nil); err != errResponseHeaderTimeout {
		t.Errorf("the connection was aborted with %v, want %v", err, errResponseHeaderTimeout)
	}
	p.discard(x.c)

	// whatever comes first
	for i := range 100 {
		x := take()
		x.abortAfter(50*time.Microsecond, errResponseHeaderTimeout)
		for begin := time.Now(); time.Since(begin) < time.Duration(40+i%20)*time.Microsecond; {
		}
		x.stopHeaderWait()
		before := x.c.cause(nil)
		time.Sleep(200 * time.Microsecond)
		if after := x.c.cause(nil); after != before {
			t.Fatalf("the connection was aborted with %v after its request had ended, want %v as before", after, before)
		}
		p.discard(x.c)
	}
}

// TestHeaderTime: the time for the header of a response ends with the header, and does
// not end the next request over the same connection.
func TestHeaderTime(t *testing.T) {
	const limit = 50 * time.Millisecond
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.URL.Path == "/late" {
				time.Sleep(4 * limit)
			}
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
			if req.URL.Path == "/slow" {
				time.Sleep(2 * limit)
			}
			fmt.Fprint(c, "body")
		}
	})
	p := newPool(t, Config{ResponseHeaderTimeout: limit})
	for _, path := range []string{"/", "/slow", "/", "/slow"} {
		if got, err := get(t, p, b.order("a.example"), path); err != nil || got != "body" {
			t.Errorf("%s: %q, %v, want the body", path, got, err)
		}
	}
	if n := b.Opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
	_, err := get(t, p, b.order("a.example"), "/late")
	if e, ok := errors.AsType[*Error](err); !ok || e.Err != errResponseHeaderTimeout || e.Phase != Response || e.Sent != All {
		t.Errorf("a late header: %v, want %v after all was sent", err, errResponseHeaderTimeout)
	}
}

// TestKeepAliveOff: no connection carries a second request, even if the backend keeps
// it open.
func TestKeepAliveOff(t *testing.T) {
	var highest, asked atomic.Int64
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for i := int64(1); ; i++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.Close {
				asked.Add(1)
			}
			if i > 1 {
				highest.Store(i)
			}
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	p := newPool(t, Config{DisableKeepAlive: true, MaxPerKey: 1})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2 {
				if got, err := get(t, p, b.order("a.example"), "/"); err != nil || got != "ok" {
					t.Errorf("got %q, %v, want ok", got, err)
				}
			}
		})
	}
	wg.Wait()
	if highest.Load() > 1 || b.Opened.Load() != 8 || asked.Load() != 8 || p.Open() != 0 {
		t.Errorf("%d requests over a connection, %d connections, %d asked to be closed, %d left, want 1, 8, 8, 0", max(highest.Load(), 1), b.Opened.Load(), asked.Load(), p.Open())
	}
}

// TestUnsendable: a request that cannot be written as it is fails, without harm to others.
func TestUnsendable(t *testing.T) {
	var requests atomic.Int64
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			requests.Add(1)
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	p := newPool(t, Config{})
	o := b.order("a.example")
	served := int64(0)
	for name, change := range map[string]func(req *http.Request){
		"a control character in the path": func(req *http.Request) {
			req.URL = &url.URL{Scheme: "http", Host: "backend.example", Opaque: "/a\x01b"}
		},
		"a control character in the query": func(req *http.Request) { req.URL.RawQuery = "a\x01b" },
		"an invalid field name":            func(req *http.Request) { req.Header["a b"] = nil },
		"an invalid field value":           func(req *http.Request) { req.Header["A"] = []string{"a\r\nB: c"} },
		"an invalid trailer":               func(req *http.Request) { req.Trailer = http.Header{"A b": nil} },
		"an invalid method":                func(req *http.Request) { req.Method = "GET /" },
	} {
		for _, body := range []bool{false, true} {
			for _, idle := range []bool{false, true} {
				if idle {
					if _, err := get(t, p, o, "/"); err != nil {
						t.Fatal(err)
					}
					served++
				}
				var r io.Reader
				if body {
					r = strings.NewReader("body")
				}
				req := request(t, http.MethodPost, "/", r)
				change(req)
				_, err := p.RoundTrip(req, o)
				if e, ok := errors.AsType[*Error](err); !ok || e.Phase != Prepare || e.Sent != Nothing || e.mayRetry(req) {
					t.Errorf("%s, body %t, idle connection %t: %+v, want an error of the request", name, body, idle, err)
				}
				if n := p.health.Len(); n != 0 {
					t.Errorf("%s: %d records of failures, want none", name, n)
				}
			}
		}
	}
	if _, err := get(t, p, o, "/"); err != nil {
		t.Errorf("a GET after these: %v, want a response", err)
	}
	if n := requests.Load(); n != served+1 {
		t.Errorf("the backend got %d requests, want %d", n, served+1)
	}
}

// segments has the octets of each read.
type segments struct {
	mu  sync.Mutex
	all []string
}

func (s *segments) read(c net.Conn) error {
	b := make([]byte, 64<<10)
	n, err := c.Read(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, string(b[:n]))
	return err
}

func (s *segments) get() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// TestHeadOfUnknownLength: net/http reads an octet of a DELETE's body before it writes
// the header. The header comes in one piece nevertheless, alone or with that octet.
func TestHeadOfUnknownLength(t *testing.T) {
	var got segments
	b := newBackend(t, func(c net.Conn, _ *bufio.Reader) {
		for got.read(c) == nil {
			if strings.HasSuffix(strings.Join(got.get(), ""), "\r\n0\r\n\r\n") {
				_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			}
		}
	})
	p := newPool(t, Config{})
	pr, pw := io.Pipe()
	go func() {
		time.Sleep(10 * time.Millisecond)
		_, _ = pw.Write([]byte("x"))
		_ = pw.Close()
	}()
	res, err := p.RoundTrip(request(t, http.MethodDelete, "/", pr), b.order("a.example"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	all := got.get()
	if !strings.HasPrefix(all[0], "DELETE / HTTP/1.1\r\nHost: backend.example\r\n") || !strings.Contains(all[0], "\r\n\r\n") {
		t.Errorf("the header does not come in one piece: %q", all)
	}
	if text := strings.Join(all, ""); !strings.HasSuffix(text, "\r\n\r\n1\r\nx\r\n0\r\n\r\n") {
		t.Errorf("got %q, want a chunk of one octet after the header", text)
	}
}

// TestHeadFirst: RoundTrip does not return before the header of the request has been
// written, even if the response is there.
func TestHeadFirst(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_, _ = io.Copy(io.Discard, r)
	})
	p := newPool(t, Config{})
	pr, pw := io.Pipe()
	timer := time.AfterFunc(50*time.Millisecond, func() {
		_, _ = pw.Write([]byte("x")) // ends when the body is closed
	})
	defer timer.Stop()
	res, err := p.RoundTrip(request(t, http.MethodDelete, "/", pr), b.order("a.example"))
	if err != nil {
		t.Fatal(err)
	}
	if n := res.Body.(*exchange).c.raw.written.Load(); n < int64(len("DELETE / HTTP/1.1\r\nHost: backend.example\r\n\r\n")) {
		t.Errorf("RoundTrip has returned when %d octets were written, want the whole header", n)
	}
	pw.Close()
	res.Body.Close()
}

// TestRecords: tlsRecords knows where records end, in all pieces in which they may come.
func TestRecords(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var stream []byte
		ends := map[int]bool{0: true}
		for range random.IntN(8) {
			n := [...]int{0, 1, 4, 5, 6, 255, 256, random.IntN(1 << 14)}[random.IntN(8)]
			stream = append(stream, 23, 3, 3, byte(n>>8), byte(n))
			stream = append(stream, bytes.Repeat([]byte{0xff}, n)...)
			ends[len(stream)] = true
		}
		r := tlsRecords{on: true}
		largest := [...]int{1, 3, 7, 100, 40000}[random.IntN(5)]
		for at := 0; ; {
			if r.complete() != ends[at] {
				t.Fatalf("after %d octets, in pieces of up to %d: complete is %t, want %t", at, largest, r.complete(), ends[at])
			}
			if at == len(stream) {
				break
			}
			n := min(random.IntN(largest+1), len(stream)-at)
			r.follow(stream[at : at+n])
			at += n
		}
	}
	off := tlsRecords{}
	if off.follow([]byte("HTTP")); !off.complete() {
		t.Error("half a record without TLS, want none")
	}
}

// fields returns so many fields of a header.
func fields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "F%d: x\r\n", i)
	}
	return b.String()
}

// TestHeaderLimit: a header may have a thousand fields, in all pieces in which it may
// come. Each interim response may have as many.
func TestHeaderLimit(t *testing.T) {
	const interim = "HTTP/1.1 103 Early Hints\r\n"
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n" // which is one field
	body := strings.Repeat("x\n", 2000)                      // its lines do not count
	for name, test := range map[string]struct {
		response string
		err      error
	}{
		"as many as allowed":          {ok + fields(maxFields-1) + "\r\n" + body, nil},
		"one more":                    {ok + fields(maxFields) + "\r\n" + body, errHeaderFields},
		"more without an end":         {ok + fields(3*maxFields), errHeaderFields},
		"only line feeds":             {strings.ReplaceAll(ok+fields(maxFields-1)+"\r\n", "\r", "") + body, nil},
		"few and many lines":          {ok + "\r\n" + body, nil},
		"interim":                     {interim + fields(maxFields) + "\r\n" + ok + fields(maxFields-1) + "\r\n" + body, nil},
		"two interim":                 {strings.Repeat(interim+fields(maxFields)+"\r\n", 2) + ok + fields(maxFields-1) + "\r\n" + body, nil},
		"interim has more":            {interim + fields(maxFields+1) + "\r\n" + ok + "\r\n" + body, errHeaderFields},
		"more after interim":          {interim + "\r\n" + ok + fields(maxFields) + "\r\n" + body, errHeaderFields},
		"many small interim":          {strings.Repeat(interim+"\r\n", maxInterim) + ok + "\r\n" + body, nil},
		"one interim response more":   {strings.Repeat(interim+"\r\n", maxInterim+1) + ok + "\r\n" + body, errInterim},
		"octets without a field":      {ok + "X: " + strings.Repeat("x", 64<<10), errHeaderSize},
		"octets of interim responses": {strings.Repeat(interim+"X: "+strings.Repeat("x", 20<<10)+"\r\n\r\n", 4) + ok + "\r\n" + body, nil},
	} {
		for _, piece := range []int{1, 4096} {
			served := net.Conn(&script{r: &pieces{strings.NewReader(test.response), piece}})
			p := newPool(t, Config{MaxResponseHeader: 40 << 10})
			p.Dial = dialScript(served)
			res, err := p.RoundTrip(request(t, http.MethodGet, "/", nil), &Order{Key: Key{Dial: "tcp script"}, Last: true})
			if !errors.Is(err, test.err) {
				t.Errorf("%s in pieces of %d: %v, want %v", name, piece, err, test.err)
			}
			if err != nil {
				continue
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || string(got) != body {
				t.Errorf("%s in pieces of %d: %d octets of body, %v, want %d", name, piece, len(got), err, len(body))
			}
			res.Body.Close()
		}
	}
}

// TestHeaderLimitPieces: the end of a header is found where CR LF is split, too.
func TestHeaderLimitPieces(t *testing.T) {
	for _, end := range []string{"\r\n", "\n"} {
		text := "HTTP/1.1 200 OK" + end + "A: b" + end + "C: d\re" + end
		whole := text + end
		for at := 1; at < len(whole); at++ {
			var l headerLimit
			l.begin(1 << 20)
			r := io.MultiReader(strings.NewReader(whole[:at]), strings.NewReader(whole[at:]))
			read(t, &l, r)
			if l.lines != maxFields+2 {
				t.Errorf("%q split at %d: %d lines are left, want %d after the end of the header", end, at, l.lines, maxFields+2)
			}
		}
		var l headerLimit
		l.begin(1 << 20)
		read(t, &l, iotest.OneByteReader(strings.NewReader(text)))
		if l.lines != maxFields+2-3 {
			t.Errorf("%q: %d lines are left after 3, want %d", end, l.lines, maxFields+2-3)
		}
	}
}

// read reads everything through a limit.
func read(t *testing.T, l *headerLimit, r io.Reader) {
	t.Helper()
	for {
		if _, err := l.read(r, make([]byte, 4096)); err == io.EOF {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// script is a connection over which a response comes that does not depend on what
// is sent.
type script struct {
	net.Conn
	r io.Reader
}

// Read implements net.Conn.
func (s *script) Read(p []byte) (int, error) { return s.r.Read(p) }

// Write implements net.Conn.
func (*script) Write(p []byte) (int, error) { return len(p), nil }

// Close implements net.Conn.
func (*script) Close() error { return nil }

// dialScript returns a Dial that returns this connection.
func dialScript(c net.Conn) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return c, nil }
}

// pieces reads no more than so many octets at a time.
type pieces struct {
	r   io.Reader
	max int
}

// Read implements io.Reader.
func (r *pieces) Read(p []byte) (int, error) { return r.r.Read(p[:min(r.max, len(p))]) }
