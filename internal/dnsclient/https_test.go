package dnsclient

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"caddytarget/internal/testlab"
)

// web is a nameserver over HTTPS on loopback.
type web struct {
	*httptest.Server
	Nameserver
	roots  *x509.CertPool
	conns  atomic.Int32 // accepted
	silent atomic.Int32 // how many of them, from the first, send nothing more
}

// newWeb starts a nameserver that ends with the test. Its certificate is for
// 127.0.0.1 and ns.example.
func newWeb(t *testing.T, handler http.HandlerFunc, change ...func(*httptest.Server)) *web {
	ca := testlab.NewAuthority(t)
	w := &web{Server: httptest.NewUnstartedServer(handler), roots: ca.Pool()}
	w.EnableHTTP2 = true
	w.TLS = serverConfig(t, ca, "127.0.0.1", "ns.example")
	w.Config.ErrorLog = log.New(io.Discard, "", 0)
	w.Listener = &freezer{Listener: w.Listener, web: w}
	for _, f := range change {
		f(w.Server)
	}
	w.StartTLS()
	t.Cleanup(w.Close)
	w.Nameserver = Nameserver{Network: "https", AddrPort: w.Listener.Addr().(*net.TCPAddr).AddrPort(), Path: defaultPath}
	return w
}

func (w *web) client(t *testing.T, timeout time.Duration) *Client {
	return newClient(t, Config{Roots: w.roots, Timeout: timeout}, &script{Nameserver: w.Nameserver})
}

// freezer accepts connections that may become silent.
type freezer struct {
	net.Listener
	web *web
}

func (f *freezer) Accept() (net.Conn, error) {
	conn, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &freezing{Conn: conn, n: f.web.conns.Add(1), silent: &f.web.silent}, nil
}

type freezing struct {
	net.Conn
	n      int32
	silent *atomic.Int32
}

func (c *freezing) Write(b []byte) (int, error) {
	if c.n <= c.silent.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// onWeb answers a query, or fails the test if it is not one.
func onWeb(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has closed the connection, and sends the query again or fails
		}
		var m dns.Msg
		if err := m.Unpack(body); err != nil {
			t.Errorf("got %x, %v; want a DNS message", body, err)
			return
		}
		q := &testlab.Query{Msg: &m}
		w.Header().Set("Content-Type", messageType)
		w.Write(testlab.Pack(q.Answer(m.Question[0].Name + " 60 IN A 192.0.2.1")))
	}
}

func TestHTTPS(t *testing.T) {
	var requests []*http.Request
	var bodies [][]byte
	answer := onWeb(t)
	w := newWeb(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		requests, bodies = append(requests, r), append(bodies, body)
		http.SetCookie(w, &http.Cookie{Name: "you", Value: "again"})
		answer(w, r)
	})
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	w.Path = "/q?tenant=1"
	c := w.client(t, longTimeout)
	for range 2 {
		if got, _, err := c.Lookup(t.Context(), "a.example", dns.TypeA); err != nil || len(got) != 1 || got[0].String() != "192.0.2.1" {
			t.Errorf("got %v, %v; want 192.0.2.1", got, err)
		}
	}
	for i, r := range requests {
		if r.Method != http.MethodPost || r.ProtoMajor != 2 || r.RequestURI != "/q?tenant=1" || r.Host != w.AddrPort.String() ||
			r.Header.Get("Content-Type") != messageType || r.Header.Get("Accept") != messageType || r.ContentLength != int64(len(bodies[i])) {
			t.Errorf("got request %+v, want a POST over HTTP/2 of %s to /q?tenant=1 at %s", r, messageType, w.AddrPort)
		}
		for name := range r.Header {
			switch name {
			case "Accept", "Content-Type", "Content-Length":
			default:
				t.Errorf("got header field %s: %s, want none", name, r.Header.Get(name))
			}
		}
		if binary.BigEndian.Uint16(bodies[i]) != 0 {
			t.Errorf("got %x, want the ID zero", bodies[i])
		}
	}
	if n := w.conns.Load(); n != 1 || len(requests) != 2 {
		t.Errorf("%d connections for %d requests, want 1 for 2", n, len(requests))
	}
}

func TestHTTPSNames(t *testing.T) {
	for _, test := range []struct {
		name, verified, host string
		byName               bool
		text                 string
	}{
		{name: "address", host: "127.0.0.1:%d"},
		{name: "address and name", verified: "ns.example", host: "ns.example:%d"},
		{name: "address and another name", verified: "other.example", text: "cannot be trusted to be other.example"},
		{name: "host name that the certificate is not for", verified: "localhost", byName: true, text: "cannot be trusted to be localhost"},
	} {
		t.Run(test.name, func(t *testing.T) {
			hosts := make(chan string, 1)
			names := make(chan string, 1)
			answer := onWeb(t)
			w := newWeb(t, func(w http.ResponseWriter, r *http.Request) {
				hosts <- r.Host
				names <- r.TLS.ServerName
				answer(w, r)
			})
			if w.Name = test.verified; test.byName {
				w.AddrPort = portOf(w.AddrPort)
			}
			err := lookUp(t, w.client(t, longTimeout), "a.example")
			if test.text != "" {
				if wantError(t, err, Network); !strings.Contains(err.Error(), test.text) {
					t.Errorf("got %v, want %q in it", err, test.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if host, name := <-hosts, <-names; host != fmt.Sprintf(test.host, w.AddrPort.Port()) || name != test.verified {
				t.Errorf("Host %q, server name %q; want %q, %q", host, name, fmt.Sprintf(test.host, w.AddrPort.Port()), test.verified)
			}
		})
	}
	t.Run("URL", func(t *testing.T) {
		for in, want := range map[string]string{
			"https://[fe80::1%eth0]":        "https://[fe80::1]/dns-query",
			"https://[::1]:8443/q":          "https://[::1]:8443/q",
			"https://9.9.9.9/q#dns.example": "https://dns.example/q",
			"https://dns.example:444":       "https://dns.example:444/dns-query",
		} {
			ns, err := ParseNameserver(in)
			if err != nil {
				t.Fatal(err)
			}
			if h := newHTTPS(ns, nil); h.url != want {
				t.Errorf("%s is asked at %s, want %s", in, h.url, want)
			}
		}
	})
}

func TestHTTPSRefusesBadResponses(t *testing.T) {
	write := func(body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", messageType)
			w.Write(body)
		}
	}
	target := newWeb(t, func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed, want it refused") })
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc
		kind    Kind
		text    string
	}{
		{"status", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, Network, "HTTP status 503"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, target.URL, http.StatusTemporaryRedirect)
		}, Network, "HTTP status 307"},
		{"type", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Write([]byte("<html>"))
		}, Malformed, `content type "text/html; charset=utf-8"`},
		{"no type", func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = nil
			w.Write([]byte("hello"))
		}, Malformed, `content type ""`},
		{"type with a parameter", func(w http.ResponseWriter, r *http.Request) {
			inner := httptest.NewRecorder()
			onWeb(t)(inner, r)
			w.Header().Set("Content-Type", "Application/DNS-Message; x=y")
			w.Write(inner.Body.Bytes())
		}, 0, ""},
		{"too long", write(make([]byte, maxMessage+1)), Malformed, "longer than any message"},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", messageType)
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, maxMessage))
			}
		}, Malformed, "longer than any message"},
		{"empty", write(nil), Malformed, "not a reply to the query"},
		{"another question", func(w http.ResponseWriter, r *http.Request) {
			m := new(dns.Msg).SetQuestion("b.example.", dns.TypeA)
			m.Id, m.Response = 0, true
			write(testlab.Pack(m))(w, r)
		}, Malformed, "not a reply to the query"},
		{"another ID", func(w http.ResponseWriter, r *http.Request) {
			m := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
			m.Id, m.Response = 1, true
			write(testlab.Pack(m))(w, r)
		}, Malformed, "not a reply to the query"},
		{"cut off", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			write(make([]byte, 50))(w, r)
		}, Malformed, "shorter than its length says"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWeb(t, test.handler)
			err := lookUp(t, w.client(t, longTimeout), "a.example")
			if test.kind == 0 {
				if err != nil {
					t.Errorf("got %v, want an answer", err)
				}
				return
			}
			if wantError(t, err, test.kind); !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %q", err, test.text)
			}
		})
	}
}

func TestHTTPSNeedsHTTP2(t *testing.T) {
	t.Run("other protocols", func(t *testing.T) {
		w := newWeb(t, onWeb(t), func(s *httptest.Server) { s.EnableHTTP2 = false })
		err := lookUp(t, w.client(t, longTimeout), "a.example")
		if wantError(t, err, Network); !strings.Contains(err.Error(), "no application protocol") {
			t.Errorf("got %v, want that there is no common protocol", err)
		}
	})
	t.Run("no protocols", func(t *testing.T) {
		ca := testlab.NewAuthority(t)
		s := newTLSScript(t, serverConfig(t, ca, "127.0.0.1"), nil)
		s.Network, s.Path = "https", defaultPath
		err := lookUp(t, newClient(t, Config{Roots: ca.Pool()}, s), "a.example")
		if wantError(t, err, Network); !strings.Contains(err.Error(), "does not speak HTTP/2") {
			t.Errorf("got %v, want that the server does not speak HTTP/2", err)
		}
	})
}

// A burst of queries shares one connection even if there is none yet. More queries
// than a connection takes at a time are answered too.
func TestHTTPSBurst(t *testing.T) {
	var arrived atomic.Int32
	two := make(chan struct{}) // closed when two requests are in flight
	answer := onWeb(t)
	w := newWeb(t, func(w http.ResponseWriter, r *http.Request) {
		if arrived.Add(1) == 2 {
			close(two)
		}
		select {
		case <-two:
			answer(w, r)
		case <-r.Context().Done():
		}
	}, func(s *httptest.Server) { s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 100} })
	c := w.client(t, longTimeout)
	burst := func(n int) {
		var running sync.WaitGroup
		for i := range n {
			running.Go(func() {
				if err := lookUp(t, c, fmt.Sprintf("n%d.example", i)); err != nil {
					t.Errorf("got %v, want an answer", err)
				}
			})
		}
		running.Wait()
	}
	burst(50)
	if n := w.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	burst(500)
	t.Logf("%d connections after more queries than one takes at a time", w.conns.Load())
}

func TestHTTPSServerFallsSilent(t *testing.T) {
	t.Parallel()
	w := newWeb(t, onWeb(t))
	c := w.client(t, longTimeout)
	if err := lookUp(t, c, "a.example"); err != nil {
		t.Fatal(err)
	}
	w.silent.Store(1)
	start := time.Now()
	if err := lookUp(t, c, "a.example"); err != nil {
		t.Errorf("got %v, want an answer over another connection", err)
	}
	if took := time.Since(start); took > longTimeout/2 {
		t.Errorf("answered after %v, want less than %v", took, longTimeout/2)
	}
	if n := w.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// A server that closes the connection between two queries fails no query.
func TestHTTPSServerCloses(t *testing.T) {
	w := newWeb(t, onWeb(t))
	c := w.client(t, longTimeout)
	for range 3 {
		if err := lookUp(t, c, "a.example"); err != nil {
			t.Fatal(err)
		}
		w.CloseClientConnections()
	}
}

// framed is a nameserver over HTTPS that a test writes frame by frame.
type framed struct {
	Nameserver
	*testlab.RawBackend
	roots    *x509.CertPool
	requests atomic.Int64
}

// newFramed starts a nameserver that ends with the test. It calls onConn for each
// connection and onRequest for each request, and closes the connection when they
// return false.
func newFramed(t *testing.T, onConn func(*http2.Framer) bool, onRequest func(f *http2.Framer, stream uint32, query []byte) bool) *framed {
	ca := testlab.NewAuthority(t)
	s := &framed{roots: ca.Pool()}
	config := serverConfig(t, ca, "127.0.0.1")
	config.NextProtos = []string{"h2"}
	s.RawBackend = testlab.NewRawBackend(t, "", "127.0.0.1", config, func(conn net.Conn) {
		conn.SetDeadline(time.Now().Add(longTimeout))
		f := http2.NewFramer(conn, conn)
		if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil || f.WriteSettings() != nil {
			return
		}
		for on := onConn == nil || onConn(f); on; {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			if data, ok := frame.(*http2.DataFrame); ok && len(data.Data()) > 0 {
				s.requests.Add(1)
				on = onRequest(f, data.StreamID, bytes.Clone(data.Data()))
			}
		}
	})
	s.Nameserver = Nameserver{Network: "https", AddrPort: netip.MustParseAddrPort("127.0.0.1:" + s.Port), Path: defaultPath}
	return s
}

// answerFramed answers a query.
func answerFramed(f *http2.Framer, stream uint32, query []byte) bool {
	var m dns.Msg
	if m.Unpack(query) != nil {
		return false
	}
	var header bytes.Buffer
	fields := hpack.NewEncoder(&header)
	fields.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	fields.WriteField(hpack.HeaderField{Name: "content-type", Value: messageType})
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: header.Bytes(), EndHeaders: true})
	return f.WriteData(stream, true, testlab.Pack(new(dns.Msg).SetReply(&m))) == nil
}

// An exchange sends its query twice at most, and begins two connections at most.
func TestHTTPSServerRefuses(t *testing.T) {
	type onRequest = func(*http2.Framer, uint32, []byte) bool
	reset := func(code http2.ErrCode) onRequest {
		return func(f *http2.Framer, stream uint32, _ []byte) bool { return f.WriteRSTStream(stream, code) == nil }
	}
	goAway := func(open bool, code http2.ErrCode) onRequest {
		return func(f *http2.Framer, _ uint32, _ []byte) bool {
			f.WriteGoAway(0, code, nil)
			return open
		}
	}
	for name, test := range map[string]struct {
		onConn    func(*http2.Framer) bool
		onRequest onRequest
		hungUp    bool
	}{
		"GOAWAY":               {nil, goAway(true, http2.ErrCodeNo), true},
		"GOAWAY and close":     {nil, goAway(false, http2.ErrCodeNo), true},
		"GOAWAY for a reason":  {nil, goAway(true, http2.ErrCodeEnhanceYourCalm), true},
		"GOAWAY, closed at it": {nil, goAway(false, http2.ErrCodeEnhanceYourCalm), true},
		"GOAWAY at once": {func(f *http2.Framer) bool {
			return f.WriteGoAway(0, http2.ErrCodeNo, nil) == nil
		}, goAway(true, http2.ErrCodeNo), true},
		"GOAWAY at once and close": {func(f *http2.Framer) bool {
			f.WriteGoAway(0, http2.ErrCodeNo, nil)
			return false
		}, nil, true},
		"GOAWAY that includes the request": {nil, func(f *http2.Framer, stream uint32, _ []byte) bool {
			f.WriteGoAway(stream, http2.ErrCodeNo, nil)
			return false
		}, true},
		"close at once":  {func(*http2.Framer) bool { return false }, nil, true},
		"close":          {nil, func(*http2.Framer, uint32, []byte) bool { return false }, true},
		"REFUSED_STREAM": {nil, reset(http2.ErrCodeRefusedStream), true},
		"PROTOCOL_ERROR": {nil, reset(http2.ErrCodeProtocol), true},
		"INTERNAL_ERROR": {nil, reset(http2.ErrCodeInternal), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFramed(t, test.onConn, test.onRequest)
			h := newHTTPS(s.Nameserver, s.roots)
			defer h.close()
			total := int64(0) // the server may count late
			for _, n := range []int64{1, 1, 20} {
				total += n
				start := time.Now()
				var running sync.WaitGroup
				for range n {
					running.Go(func() {
						_, _, err := h.exchange(t.Context(), time.Now().Add(longTimeout), rootQuestion, true)
						if err == nil || errors.Is(err, errHungUp) != test.hungUp || test.hungUp && err != errHungUp {
							t.Errorf("%d at a time: got error %v, want one that the server hung up: %v", n, err, test.hungUp)
						}
					})
				}
				running.Wait()
				if conns, requests := s.Opened.Load(), s.requests.Load(); conns > maxDials*total || requests > 2*total {
					t.Errorf("%d exchanges: %d connections, %d requests; want at most %d and %d", total, conns, requests, maxDials*total, 2*total)
				} else {
					t.Logf("%d exchanges: %d connections, %d requests", total, conns, requests)
				}
				if took := time.Since(start); took > longTimeout/2 {
					t.Errorf("%d at a time: took %v, want less than %v", n, took, longTimeout/2)
				}
			}
		})
	}
}

// A query that the server did not process is sent again, once.
func TestHTTPSRefusedOnce(t *testing.T) {
	for name, refuse := range map[string]func(*http2.Framer, uint32){
		"GOAWAY":         func(f *http2.Framer, _ uint32) { f.WriteGoAway(0, http2.ErrCodeNo, nil) },
		"REFUSED_STREAM": func(f *http2.Framer, stream uint32) { f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) },
	} {
		t.Run(name, func(t *testing.T) {
			var refused atomic.Bool
			s := newFramed(t, nil, func(f *http2.Framer, stream uint32, query []byte) bool {
				if refused.CompareAndSwap(false, true) {
					refuse(f, stream)
					return true
				}
				return answerFramed(f, stream, query)
			})
			h := newHTTPS(s.Nameserver, s.roots)
			defer h.close()
			if _, _, err := h.exchange(t.Context(), time.Now().Add(longTimeout), rootQuestion, true); err != nil {
				t.Errorf("got %v, want a reply", err)
			}
			if n := s.requests.Load(); n != 2 {
				t.Errorf("%d requests, want 2", n)
			}
		})
	}
}

// An error of dialing is not one of an established connection.
func TestHTTPSDialErrors(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	}()
	for _, network := range []string{"tls", "https"} {
		ns := Nameserver{Network: network, AddrPort: listener.Addr().(*net.TCPAddr).AddrPort(), Path: defaultPath}
		tr, _ := newTransports(ns, nil, new(atomic.Uint64))
		if _, _, err := tr.exchange(t.Context(), time.Now().Add(longTimeout), rootQuestion, true); err == nil || errors.Is(err, errHungUp) {
			t.Errorf("%s: got error %v, want one of dialing", network, err)
		}
		tr.close()
	}
}

func TestHTTPSCallerLeaves(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	answer := onWeb(t)
	w := newWeb(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // which cannot be read when the caller has left
		r.Body = io.NopCloser(bytes.NewReader(body))
		arrived <- struct{}{}
		<-release
		answer(w, r)
	})
	c := w.client(t, longTimeout)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	for _, ctx := range []context.Context{ctx, t.Context()} {
		go func() {
			_, _, err := c.Lookup(ctx, "a.example", dns.TypeA)
			errs <- err
		}()
		<-arrived
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	close(release)
	if err := <-errs; err != nil {
		t.Errorf("got %v, want an answer for the caller that stays", err)
	}
	if n := w.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestCloseHTTPS(t *testing.T) {
	links := func(h *https) int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.links)
	}
	t.Run("in use, and used afterwards", func(t *testing.T) {
		var h *https
		answer := onWeb(t)
		w := newWeb(t, func(w http.ResponseWriter, r *http.Request) {
			h.close()
			answer(w, r)
		})
		h = newHTTPS(w.Nameserver, w.roots)
		for range 2 {
			if _, _, err := h.exchange(t.Context(), time.Now().Add(longTimeout), rootQuestion, true); err != nil {
				t.Errorf("got %v, want a reply", err)
			}
			if n := links(h); n != 0 {
				t.Errorf("%d connections are left, want 0", n)
			}
		}
		if n := w.conns.Load(); n != 2 {
			t.Errorf("%d connections, want 2", n)
		}
	})
	t.Run("dialing", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		h := newHTTPS(Nameserver{Network: "https", AddrPort: listener.Addr().(*net.TCPAddr).AddrPort(), Path: "/"}, nil)
		start := time.Now()
		if _, _, err := h.exchange(t.Context(), time.Now().Add(shortTimeout), rootQuestion, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want context.DeadlineExceeded", err)
		}
		h.close()
		if n, took := links(h), time.Since(start); n != 0 || took >= minDial {
			t.Errorf("%d connections are left after %v, want 0 before %v", n, took, minDial)
		}
	})
}
