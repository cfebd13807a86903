package caddytarget

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"caddytarget/internal/testlab"
)

// h2Conn is a connection of HTTP/2 to a backend that a test scripts. It sends no
// more than the client allows.
type h2Conn struct {
	*http2.Framer
	conn    net.Conn
	block   bytes.Buffer // what the encoder writes
	encoder *hpack.Encoder
	streams map[uint32]*h2Stream

	window  int                           // of the connection
	initial int                           // the window of a new stream
	sent    func(stream *h2Stream, n int) // if not nil, is called with the octets of bodies
}

// h2Stream is a request, and the response to it.
type h2Stream struct {
	id           uint32
	method, path string

	window  int
	body    int // octets that are to be sent
	replied bool
}

// newH2Conn begins to speak HTTP/2.
func newH2Conn(conn net.Conn) *h2Conn {
	c := &h2Conn{Framer: http2.NewFramer(conn, conn), conn: conn, streams: make(map[uint32]*h2Stream), window: 65535, initial: 65535}
	c.encoder = hpack.NewEncoder(&c.block)
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.CopyN(io.Discard, conn, int64(len(http2.ClientPreface))); err == nil {
		_ = c.WriteSettings()
	}
	return c
}

// next returns the next request, when it has come whole, or nil at the end. What
// else there is to do meanwhile is done.
func (c *h2Conn) next() *h2Stream {
	for {
		frame, err := c.ReadFrame()
		if err != nil {
			return nil
		}
		id := frame.Header().StreamID
		ended := false
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if f.IsAck() {
				continue
			}
			_ = c.WriteSettingsAck()
			if size, ok := f.Value(http2.SettingInitialWindowSize); ok {
				for _, s := range c.streams {
					s.window += int(size) - c.initial
				}
				c.initial = int(size)
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = c.WritePing(true, f.Data)
			}
		case *http2.WindowUpdateFrame:
			if s := c.streams[id]; s != nil {
				s.window += int(f.Increment)
			} else if id == 0 {
				c.window += int(f.Increment)
			}
		case *http2.RSTStreamFrame:
			delete(c.streams, id)
		case *http2.DataFrame:
			if f.Length > 0 {
				_ = c.WriteWindowUpdate(0, f.Length)
				_ = c.WriteWindowUpdate(id, f.Length)
			}
			ended = f.StreamEnded()
		case *http2.MetaHeadersFrame:
			c.streams[id] = &h2Stream{id: id, method: f.PseudoValue("method"), path: f.PseudoValue("path"), window: c.initial}
			ended = f.StreamEnded()
		}
		c.flush()
		if s := c.streams[id]; s != nil && ended {
			return s
		}
	}
}

// frameSize is how much a client takes in a frame.
const frameSize = 16 << 10

// header sends a header, in as many frames as it takes. Fields may be nil.
func (c *h2Conn) header(s *h2Stream, end bool, status string, fields iter.Seq[field]) error {
	begun := false
	send := func(n int, last bool) error {
		fragment := c.block.Next(n)
		if begun {
			return c.WriteContinuation(s.id, last, fragment)
		}
		begun = true
		return c.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: fragment, EndHeaders: last, EndStream: end})
	}
	_ = c.encoder.WriteField(hpack.HeaderField{Name: ":status", Value: status})
	if fields == nil {
		return send(c.block.Len(), true)
	}
	for f := range fields {
		_ = c.encoder.WriteField(hpack.HeaderField{Name: f.name, Value: f.value})
		for c.block.Len() > frameSize {
			if err := send(frameSize, false); err != nil {
				return err
			}
		}
	}
	return send(c.block.Len(), true)
}

// reply answers a request with a body of n octets.
func (c *h2Conn) reply(s *h2Stream, status string, n int) {
	_ = c.header(s, false, status, nil)
	s.body, s.replied = n, true
	c.flush()
}

// flush sends as much of the bodies as it may.
func (c *h2Conn) flush() {
	for id, s := range c.streams {
		for s.replied {
			n := min(s.body, s.window, c.window, frameSize)
			if n < 0 || n == 0 && s.body > 0 {
				break
			}
			s.body, s.window, c.window = s.body-n, s.window-n, c.window-n
			s.replied = s.body > 0
			_ = c.WriteData(id, !s.replied, bytes.Repeat([]byte("x"), n))
			if c.sent != nil {
				c.sent(s, n)
			}
			if !s.replied {
				delete(c.streams, id)
			}
		}
	}
}

// leave says that streams up to one were served and no others will be, and closes
// the connection.
func (c *h2Conn) leave(last uint32) {
	_ = c.WriteGoAway(last, http2.ErrCodeNo, nil)
	_ = c.conn.(interface{ CloseWrite() error }).CloseWrite()
	_, _ = io.Copy(io.Discard, c.conn)
}

// serveH2 makes a backend of HTTP/2 of a function that serves a request and
// returns whether it serves others on the connection.
func serveH2(request func(c *h2Conn, s *h2Stream) bool) func(net.Conn) {
	return func(conn net.Conn) {
		c := newH2Conn(conn)
		for s := c.next(); s != nil && request(c, s); s = c.next() {
		}
	}
}

// overH2 runs a test for HTTP/2 over TLS and for HTTP/2 without it.
func overH2(t *testing.T, test func(t *testing.T, w *world, scheme string, config *tls.Config)) {
	t.Run("h2", func(t *testing.T) {
		w := newWorld(t)
		test(t, w, "https", w.ca.Config("h2"))
	})
	t.Run("h2c", func(t *testing.T) { test(t, newWorld(t), "h2c", nil) })
}

// TestGoAway: a backend that ends each of its connections after a few requests
// costs none of them.
func TestGoAway(t *testing.T) {
	const requests, each = 400, 5
	overH2(t, func(t *testing.T, w *world, scheme string, config *tls.Config) {
		b := testlab.NewRawBackend(t, "", "127.0.0.2", config, func(conn net.Conn) {
			served := 0
			serveH2(func(c *h2Conn, s *h2Stream) bool {
				if served++; served <= each {
					c.reply(s, "200", 2)
				}
				if served == each {
					_ = c.WriteGoAway(s.id, http2.ErrCodeNo, nil)
				}
				return true
			})(conn)
		})
		w.dns.Has("name.example", "127.0.0.2")
		w.run(w.proxy("schemes https h2c"))
		start := time.Now()
		inParallel(8, requests, func(int) {
			if !t.Failed() {
				w.wantStatus(t, http.StatusOK, http.MethodGet, "/", scheme+"://name.example:"+b.Port)
			}
		})
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("it took %s, want at most 20s", took)
		}
		if n := b.Opened.Load(); n > requests/each*3/2 {
			t.Errorf("%d connections, want at most %d", n, requests/each*3/2)
		}
	})
}

// TestRefusingBackend: a backend that takes no request costs none if there is
// another address; if there is none the client gets to know soon.
func TestRefusingBackend(t *testing.T) {
	for _, test := range []struct {
		name    string
		request func(c *h2Conn, s *h2Stream) bool
	}{
		{"REFUSED_STREAM", func(c *h2Conn, s *h2Stream) bool {
			return c.WriteRSTStream(s.id, http2.ErrCodeRefusedStream) == nil
		}},
		{"GOAWAY", func(c *h2Conn, _ *h2Stream) bool {
			c.leave(0)
			return false
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			overH2(t, func(t *testing.T, w *world, scheme string, config *tls.Config) {
				other := testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, HTTP2: true, HTTP2Only: true}
				if scheme == "https" {
					other.CA = w.ca
				}
				good := testlab.NewBackend(t, other)
				var met atomic.Int64
				bad := testlab.NewRawBackend(t, good.Port, "127.0.0.2", config, serveH2(func(c *h2Conn, s *h2Stream) bool {
					met.Add(1)
					return test.request(c, s)
				}))
				w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
				w.dns.Has("bad.example", "127.0.0.2")
				w.run(w.proxy("schemes https h2c", "fail_duration 0"))
				for _, method := range []string{http.MethodGet, http.MethodPost} {
					before, start := bad.Opened.Load(), time.Now()
					w.wantStatus(t, http.StatusBadGateway, method, "/", scheme+"://bad.example:"+good.Port)
					if n := bad.Opened.Load() - before; n > 10 {
						t.Errorf("%s: %d connections for a request", method, n)
					}
					if took := time.Since(start); took > 20*time.Second {
						t.Errorf("%s: it took %s, want at most 20s", method, took)
					}
				}
				before := met.Load()
				for range 12 {
					for _, method := range []string{http.MethodGet, http.MethodPost} {
						if t.Failed() {
							return // others would take as long
						}
						w.wantStatus(t, http.StatusOK, method, "/", scheme+"://two.example:"+good.Port)
					}
				}
				if met.Load() == before {
					t.Error("none met the backend: this showed nothing")
				}
			})
		})
	}
}

// TestLargeHeaderH2: the header of a response is bounded, in octets and in fields,
// however few of them are sent.
func TestLargeHeaderH2(t *testing.T) {
	overH2(t, func(t *testing.T, w *world, scheme string, config *tls.Config) {
		b := testlab.NewRawBackend(t, "", "127.0.0.2", config, serveH2(func(c *h2Conn, s *h2Stream) bool {
			fields := largeHeaders[s.path].all
			if s.path == "/bomb" {
				bomb := field{"x-bomb", strings.Repeat("x", 3500)} // an octet each but the first
				fields = slices.Values(slices.Repeat([]field{bomb}, 900))
			}
			return c.header(s, true, "200", fields) == nil
		}))
		w.dns.Has("name.example", "127.0.0.2")
		target := scheme + "://name.example:" + b.Port
		w.checkLargeHeaders(t, target, "schemes https h2c")
		w.wantStatus(t, http.StatusBadGateway, http.MethodGet, "/bomb", target)
	})
}

// TestBadStatusH2: a response whose status is none is no response; nor is one that
// changes the protocol, which HTTP/2 does not know.
func TestBadStatusH2(t *testing.T) {
	overH2(t, func(t *testing.T, w *world, scheme string, config *tls.Config) {
		b := testlab.NewRawBackend(t, "", "127.0.0.2", config, serveH2(func(c *h2Conn, s *h2Stream) bool {
			status := strings.TrimPrefix(s.path, "/")
			if status == "101" {
				_ = c.header(s, false, status, nil)
				status = "200"
			}
			c.reply(s, status, 2)
			return true
		}))
		w.dns.Has("name.example", "127.0.0.2")
		w.run(w.proxy("schemes https h2c"))
		for _, status := range []string{"099", "000", "99999", "20", "101"} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				w.wantStatus(t, http.StatusBadGateway, method, "/"+status, scheme+"://name.example:"+b.Port)
			}
		}
		w.run(w.proxy("schemes https h2c", "header_down Run 2")) // what is not in use is closed
		waitClosed(t, b)
	})
}

// TestEndlessInterimsH2: a backend that sends nothing but interim responses is not
// listened to for ever.
func TestEndlessInterimsH2(t *testing.T) {
	overH2(t, func(t *testing.T, w *world, scheme string, config *tls.Config) {
		hint := slices.Values([]field{{"link", "</x>"}})
		b := testlab.NewRawBackend(t, "", "127.0.0.2", config, serveH2(func(c *h2Conn, s *h2Stream) bool {
			left := make(chan struct{})
			go func() { // the client has something to say, too
				defer close(left)
				_, _ = io.Copy(io.Discard, c.conn)
			}()
			for range interims {
				if c.header(s, false, "103", hint) != nil {
					break
				}
			}
			<-left
			return false
		}))
		w.dns.Has("name.example", "127.0.0.2")
		w.run(w.proxy("schemes https h2c"))
		if status, before := w.finalStatus(scheme + "://name.example:" + b.Port); status != http.StatusBadGateway {
			t.Errorf("status %d after %d interim responses", status, before)
		}
	})
}

// sentOctets counts what a backend over HTTP/2 has sent.
type sentOctets struct {
	all atomic.Int64

	mu    sync.Mutex
	conns []map[string]int // by connection and path
}

// serve answers the requests of a connection with size octets each, or with 2 for
// the path /small.
func (o *sentOctets) serve(conn net.Conn, size int) {
	sent := make(map[string]int)
	o.mu.Lock()
	o.conns = append(o.conns, sent)
	o.mu.Unlock()
	serveH2(func(c *h2Conn, s *h2Stream) bool {
		c.sent = func(s *h2Stream, n int) {
			o.mu.Lock()
			sent[s.path] += n
			o.mu.Unlock()
			o.all.Add(int64(n))
		}
		if s.path == "/small" {
			c.reply(s, "200", 2)
		} else {
			c.reply(s, "200", size)
		}
		return true
	})(conn)
}

// TestReadAhead: little is read of what clients do not take, and others who call
// the same target do not have to wait for them.
func TestReadAhead(t *testing.T) {
	const (
		clients, size = 8, 10 << 20
		slack         = 64 << 10 // buffers on the way, for each client
		perStream     = 256<<10 + slack
		perConn       = 1<<20 + clients*slack
	)
	overH2(t, func(t *testing.T, w *world, scheme string, config *tls.Config) {
		var octets sentOctets
		b := testlab.NewRawBackend(t, "", "127.0.0.2", config, func(conn net.Conn) { octets.serve(conn, size) })
		w.dns.Has("name.example", "127.0.0.2")
		// what is in the socket of a client can be known if it is one of Unix
		socket := filepath.Join(t.TempDir(), "s")
		w.run(fmt.Sprintf("\n---\nhttp://unix.example {\nbind unix/%s\n%s\n}", socket, w.proxy("schemes https h2c")))
		target := scheme + "://name.example:" + b.Port

		var unread [clients]*net.UnixConn
		for i := range unread {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: unix.example\r\nX-Target: %s\r\n\r\n", i, target)
			unread[i] = conn.(*net.UnixConn)
		}
		testlab.Eventually(t, "all are answered", func() bool {
			for _, conn := range unread {
				if inSocket(t, conn) == 0 {
					return false
				}
			}
			return true
		})
		standsStill(&octets.all)
		octets.mu.Lock()
		for _, sent := range octets.conns {
			sum := 0
			for path, n := range sent {
				var i int
				if _, err := fmt.Sscanf(path, "/%d", &i); err != nil {
					t.Fatal(err)
				}
				ahead := n - inSocket(t, unread[i])
				if sum += ahead; ahead > perStream {
					t.Errorf("%d octets of a response were read ahead, want at most %d", ahead, perStream)
				}
			}
			if sum > perConn {
				t.Errorf("%d octets of a connection were read ahead, want at most %d", sum, perConn)
			}
		}
		octets.mu.Unlock()

		rt := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}
		defer rt.CloseIdleConnections()
		inParallel(4, 50, func(int) {
			req, cancel := w.request(http.MethodGet, "/small", target, nil, func(r *http.Request) { r.URL.Host, r.Host = "unix.example", "" })
			defer cancel()
			if res, err := do(&http.Client{Transport: rt}, req); err != nil || res.StatusCode != http.StatusOK || res.body != "xx" {
				t.Errorf("got %v, %v, want status 200 and xx", res, err)
			}
		})
	})
}

// inSocket returns how many octets a client could read at once.
func inSocket(t testing.TB, conn syscall.Conn) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFickleProtocol: a backend that speaks now one version of HTTP and now another
// gets no request twice that may have been acted on.
func TestFickleProtocol(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var conns int
	executed := make(map[string]int)
	act := func(conn net.Conn, path string) {
		mu.Lock()
		executed[path]++
		mu.Unlock()
		testlab.Reset(conn)
	}
	config := w.ca.Config()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		conns++
		return w.ca.Config([]string{"h2", "http/1.1"}[(conns+1)%2]), nil
	}
	serve := func(conn net.Conn) {
		if conn.(*tls.Conn).ConnectionState().NegotiatedProtocol == "h2" {
			serveH2(func(c *h2Conn, s *h2Stream) bool {
				if s.path == "/" {
					c.reply(s, "200", 2)
				} else {
					act(conn, s.path)
				}
				return s.path == "/"
			})(conn)
			return
		}
		serveHTTP1(conn, func(r *http.Request) bool {
			if r.URL.Path == "/" {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			} else {
				act(conn, r.URL.Path)
			}
			return r.URL.Path == "/"
		})
	}
	b := testlab.NewRawBackend(t, "", "127.0.0.2", config, serve)
	testlab.NewRawBackend(t, b.Port, "127.0.0.3", config, serve)
	w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
	w.run(w.proxy("fail_duration 0"))
	target := "https://two.example:" + b.Port
	const requests = 60
	for i := range requests {
		inParallel(4, 8, func(int) { w.wantStatus(t, http.StatusOK, http.MethodGet, "/", target) })
		res, err := w.try(http.MethodPost, fmt.Sprint("/", i), target, http.NoBody)
		if err != nil || res.StatusCode < 500 {
			t.Errorf("got %v, %v, want an error of the gateway", res, err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(executed) == 0 {
		t.Error("nothing was executed: this showed nothing")
	}
	for path, n := range executed {
		if n > 1 {
			t.Errorf("%s was executed %d times", path, n)
		}
	}
}
