//go:build linux

package pool

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"caddytarget/internal/health"
)

const (
	reqBody    = 3      // of the flags of a request: whether it has a body, and which
	reqUnzip   = 1 << 2 // the pool asks for gzip
	reqClose   = 1 << 3 // Request.Close
	reqTrailer = 1 << 4
	reqExpect  = 1 << 5
	reqOpaque  = 1 << 6 // the path is URL.Opaque
	reqWrong   = 1 << 7 // Content-Length is not that of the body
	reqOnce    = 1 << 8 // DisableKeepAlive
	reqRaw     = 1 << 9 // the path is URL.RawPath too, and there is a query
)

// recorded is a connection that keeps what was read from it.
type recorded struct {
	net.Conn
	octets bytes.Buffer
}

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.octets.Write(p[:n])
	return n, err
}

// FuzzRequest: what is sent for a request is that request, and nothing else;
// nothing is sent for what is none.
func FuzzRequest(f *testing.F) {
	for i, c := range []struct{ method, host, path, fields, body string }{
		{"GET", "backend.example", "/", "", ""}, {"", "", "", "", ""}, {"POST", "backend.example", "/a b?c#d", "X-A: b\nX-A: c\nX-B:  d ", "body"},
		{"GET /x HTTP/1.1\r\nX: y", "a", "/", "", ""}, {"GE T", "a", "/", "", ""}, {"CONNECT", "a:443", "", "", ""}, {"OPTIONS", "a", "*", "", ""}, {"PRI", "a", "*", "", ""},
		{"GET", "a\r\nX: y", "/", "", ""}, {"GET", "a/b", "/", "", ""}, {"GET", "[::1%25eth0]:80", "/", "", ""}, {"GET", "bücher.example", "/", "", ""}, {"GET", "a b", "/", "", ""},
		{"GET", "a", "/\r\nX: y", "", ""}, {"GET", "a", "/ HTTP/1.1\r\nHost: b\r\n\r\nGET /", "", ""}, {"GET", "a", "//b/c", "", ""}, {"GET", "a", "b", "", ""}, {"GET", "a", "/%zz\x00\xff", "", ""},
		{"GET", "a", "/", "X-A: b\rc", ""}, {"GET", "a", "/", "X A: b", ""}, {"GET", "a", "/", "X-A : b", ""}, {"GET", "a", "/", ": b", ""}, {"GET", "a", "/", "X-A: b\x00", ""}, {"GET", "a", "/", "X-Ä: b", ""}, {"GET", "a", "/", "X-A: für\xff", ""},
		{"POST", "a", "/", "Content-Length: 100", "body"}, {"POST", "a", "/", "Transfer-Encoding: chunked", "body"}, {"POST", "a", "/", "Transfer-Encoding: gzip\nContent-Length: 0", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n"},
		{"GET", "a", "/", "Host: b", ""}, {"GET", "a", "/", "User-Agent: ", ""}, {"GET", "a", "/", "User-Agent: x\nAccept-Encoding: br", ""}, {"GET", "a", "/", "Connection: close", ""}, {"GET", "a", "/", "Connection: keep-alive, X-A\nX-A: b", ""},
		{"GET", "a", "/", "Connection: Upgrade\nUpgrade: x", ""}, {"HEAD", "a", "/", "Range: bytes=0-1", ""}, {"DELETE", "a", "/", "Trailer: X-T", "body"}, {"GET", "a", "/", "Pragma: no-cache", ""}, {"PUT", "a", "/", "Expect: 100-continue", "body"},
		{"GET", "a", "/", "X-A: \nX-A: ", ""}, {"get", "a", "/", "x-a: b\nCOOKIE: a=b", ""}, {"POST", "a", "/", "", strings.Repeat("body ", 2000)}, {"!#$%&'*+-.^_`|~", "a", "/", "", ""},
	} {
		for _, flags := range []uint16{uint16(i & 3), uint16(1 << (2 + i%8)), 2 | reqTrailer, 1 | reqWrong, 3 | reqUnzip | reqOpaque} {
			f.Add(c.method, c.host, c.path, c.fields, []byte(c.body), flags)
		}
	}
	f.Fuzz(func(t *testing.T, method, host, path, fields string, body []byte, flags uint16) {
		if len(method)+len(host)+len(path)+len(fields)+len(body) > maxFuzz {
			t.Skip()
		}
		synctest.Test(t, func(t *testing.T) {
			(&fuzzedRequest{method: method, host: host, path: path, fields: fields, body: body, flags: flags}).play(t)
		})
	})
}

// fuzzedRequest is a request that is made out of fuzzed values.
type fuzzedRequest struct {
	method, host, path, fields string
	body                       []byte
	flags                      uint16
	wrong                      bool // its ContentLength is not that of its body
}

func (f *fuzzedRequest) is(flag uint16) bool { return f.flags&flag != 0 }

// build returns the request. It skips those for which net/http does not check what is
// to be checked here.
func (f *fuzzedRequest) build(ctx context.Context, t *testing.T) *http.Request {
	req := (&http.Request{
		Method: f.method, Host: f.host, URL: &url.URL{Scheme: "http", Host: "backend.example", Path: f.path},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Close: f.is(reqClose),
	}).WithContext(ctx)
	if f.is(reqOpaque) {
		req.URL.Path, req.URL.Opaque = "", f.path
	}
	if f.is(reqRaw) {
		req.URL.RawPath, req.URL.RawQuery = f.path, f.path
	}
	if f.fields != "" {
		for line := range strings.SplitSeq(f.fields, "\n") {
			name, value, _ := strings.Cut(line, ":")
			req.Header.Add(name, value)
		}
	}
	if f.is(reqExpect) {
		req.Header.Set("Expect", "100-continue")
	}
	switch f.flags & reqBody {
	case 1: // of a known length
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(f.body)), int64(len(f.body))
	case 2: // of an unknown length
		req.Body, req.ContentLength = io.NopCloser(io.MultiReader(bytes.NewReader(f.body))), -1
	case 3:
		req.Body = http.NoBody
	}
	if f.is(reqWrong) && f.flags&reqBody == 1 && len(f.body) > 0 {
		req.ContentLength += int64(f.body[0])%5 - 2
		f.wrong = int(req.ContentLength) != len(f.body)
	}
	if f.is(reqTrailer) && req.ContentLength < 0 {
		req.Trailer = http.Header{"X-T": {"t"}}
		for name, values := range req.Header {
			req.Trailer[name] = values
			break
		}
	}
	if f.method == http.MethodConnect {
		if _, err := url.Parse("http://" + f.host); err != nil || f.is(reqOpaque) {
			t.Skip("net/http does not check that")
		}
	}
	if uri := req.URL.RequestURI(); f.method != http.MethodConnect && strings.Contains(uri, " ") {
		t.Skip("net/http does not check that")
	} else if _, err := url.ParseRequestURI(uri); err != nil && !strings.ContainsFunc(uri, unicode.IsControl) {
		t.Skip("nor that")
	}
	return req
}

// play sends the request and checks what the backend got.
func (f *fuzzedRequest) play(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req := f.build(ctx, t)
	sent := req.Clone(ctx)
	s := newStage(t, new(plan))
	conn := new(recorded)
	s.serve = func(c net.Conn) {
		conn.Conn = c
		br := bufio.NewReader(conn)
		got, err := http.ReadRequest(br)
		if err != nil {
			if conn.octets.Len() > 0 && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Errorf("the request cannot be read: %v: %q", err, conn.octets.Bytes())
			}
			return
		}
		if len(got.Header["Expect"]) > 0 && got.ContentLength != 0 {
			_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		_, _ = io.Copy(io.Discard, got.Body)
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		_, _ = io.Copy(io.Discard, br) // nothing more is to come
	}
	config := fuzzConfig()
	config.DisableCompression, config.DisableKeepAlive = !f.is(reqUnzip), f.is(reqOnce)
	p := New(config, health.New(), NewLimits(0, nil))
	p.Dial = s.dial
	start := time.Now()
	res, err := p.RoundTrip(req, &Order{Key: memKey, Target: memKey.Host, Last: true})
	const longest = fuzzHeader + lateResponseTime + fuzzRead + 200*time.Millisecond
	if took := time.Since(start); took > longest {
		t.Errorf("RoundTrip took %v, want at most %v; its error: %v", took, longest, err)
	}
	if err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	p.Close()
	s.wg.Wait()
	time.Sleep(2 * sweepInterval)
	synctest.Wait()
	if p.Open() != 0 || p.destinations() != 0 {
		t.Errorf("%d connections and %d destinations are left, want none", p.Open(), p.destinations())
	}
	if s.n.Load() > 1 {
		t.Fatalf("%d connections were opened, want one at most", s.n.Load())
	}
	f.check(t, sent, s.n.Load() > 0, conn.octets.Bytes(), err)
}

// check compares the octets that were sent with the request. dialled is true if a
// connection was opened, err the error of RoundTrip.
func (f *fuzzedRequest) check(t *testing.T, sent *http.Request, dialled bool, octets []byte, err error) {
	if err != nil {
		if invalid := validate(sent); invalid != nil && (len(octets) > 0 || dialled) {
			t.Errorf("%q was sent, want nothing: %v", octets, invalid)
		}
		if !f.wrong && len(octets) > 0 && !f.is(reqTrailer) {
			t.Errorf("%q was sent, want nothing after %v", octets, err)
		}
		if e := err.(*Error); (e.Sent == Nothing) != (len(octets) == 0) {
			t.Errorf("Sent is %d, but the octets %q were sent", e.Sent, octets)
		}
	}
	if len(octets) == 0 {
		if err == nil {
			t.Error("there is a response although nothing was sent, want none")
		}
		return
	}
	br := bufio.NewReader(bytes.NewReader(octets))
	got, parseErr := http.ReadRequest(br)
	if parseErr != nil {
		if err == nil {
			t.Errorf("what was sent is no request: %v: %q", parseErr, octets)
		}
		return
	}
	gotBody, bodyErr := io.ReadAll(got.Body)
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("%q was sent after the request, want nothing", rest)
	}
	method := cmp.Or(f.method, http.MethodGet)
	if got.Method != method {
		t.Errorf("method %q, want %q", got.Method, method)
	}
	if want := sent.URL.RequestURI(); got.RequestURI != want && method != http.MethodConnect {
		t.Errorf("URI %q, want %q", got.RequestURI, want)
	}
	wantBody := f.body
	if sent.Body == nil || sent.Body == http.NoBody {
		wantBody = nil
	}
	switch {
	case f.wrong:
		if !bytes.HasPrefix(wantBody, gotBody) {
			t.Errorf("body %q, want %q", gotBody, wantBody)
		}
	case bodyErr != nil && err == nil || bodyErr == nil && !bytes.Equal(gotBody, wantBody):
		t.Errorf("body %q, %v, want %q", gotBody, bodyErr, wantBody)
	}
	want := f.wantHeader(sent, method)
	got.Header.Del("Content-Length")
	if len(want["Pragma"]) > 0 { // net/http adds a field
		want.Del("Cache-Control")
		got.Header.Del("Cache-Control")
	}
	slices.Sort(got.Header["Connection"])
	slices.Sort(want["Connection"])
	if !reflect.DeepEqual(got.Header, want) {
		t.Errorf("header %q, want %q: %q", got.Header, want, octets)
	}
}

// wantHeader returns the header that the backend has to get.
func (f *fuzzedRequest) wantHeader(sent *http.Request, method string) http.Header {
	want := make(http.Header)
	for name, values := range sent.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
		case "User-Agent":
			if values[0] != "" {
				want[name] = []string{trimmed(values[0])}
			}
		default:
			for _, value := range values {
				want.Add(name, trimmed(value))
			}
		}
	}
	if _, ok := sent.Header["User-Agent"]; !ok {
		want.Set("User-Agent", "Go-http-client/1.1")
	}
	if f.is(reqUnzip) && sent.Header.Get("Accept-Encoding") == "" && sent.Header.Get("Range") == "" && method != http.MethodHead {
		want["Accept-Encoding"] = append(want["Accept-Encoding"], "gzip")
	}
	if f.is(reqClose) || f.is(reqOnce) && sent.Header["Upgrade"] == nil {
		want["Connection"] = append([]string{"close"}, want["Connection"]...)
	}
	return want
}

// trimmed returns a value of a field as it is sent.
func trimmed(value string) string {
	return strings.Trim(strings.NewReplacer("\n", " ", "\r", " ").Replace(value), " \t")
}
