package redirect

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestMethod(t *testing.T) {
	for status, want := range map[int]string{ // after GET, HEAD, POST, PUT
		301: "GET HEAD GET PUT", 302: "GET HEAD GET PUT", 303: "GET HEAD GET GET", 307: "GET HEAD POST PUT", 308: "GET HEAD POST PUT",
	} {
		var got []string
		for _, method := range []string{"GET", "HEAD", "POST", "PUT"} {
			got = append(got, nextMethod(status, method))
		}
		if got := strings.Join(got, " "); got != want || !IsStatus(status) {
			t.Errorf("status %d: got %s, redirect %t, want %s, true", status, got, IsStatus(status), want)
		}
	}
	for _, status := range []int{200, 300, 304, 305, 306, 309, 400} {
		if IsStatus(status) {
			t.Errorf("status %d is a redirect, want none", status)
		}
	}
}

func TestDrop(t *testing.T) {
	header := func() http.Header {
		h := make(http.Header)
		for _, field := range []string{
			"Accept", "Authorization", "Content-Type", "Cookie", "Digest", "Expect", "Idempotency-Key", "Repr-Digest", "X-Api-Key", "X-Csrf-Token", "X-My-Field",
		} {
			h.Set(field, "a")
		}
		return h
	}
	for _, test := range []struct {
		name string
		drop func(http.Header)
		want string
	}{
		{"body", dropBodyFields, "Accept Authorization Cookie Idempotency-Key X-Api-Key X-Csrf-Token X-My-Field"},
		{"credentials", func(h http.Header) { dropCredentials(h, nil) }, "Accept Content-Type Digest Expect Idempotency-Key Repr-Digest X-My-Field"},
		{"a field", func(h http.Header) { dropCredentials(h, []string{"x-MY-field"}) }, "Accept Content-Type Digest Expect Idempotency-Key Repr-Digest"},
		{"suffix", func(h http.Header) { dropCredentials(h, []string{"*-Digest"}) }, "Accept Content-Type Digest Expect Idempotency-Key X-My-Field"},
		{"prefix", func(h http.Header) { dropCredentials(h, []string{"X-*", "i*"}) }, "Accept Content-Type Digest Expect Repr-Digest"},
		{"part", func(h http.Header) { dropCredentials(h, []string{"*e*"}) }, ""},
	} {
		h := header()
		test.drop(h)
		if got := strings.Join(slices.Sorted(maps.Keys(h)), " "); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}

func TestValidPattern(t *testing.T) {
	for pattern, want := range map[string]bool{"X-Key": true, "X-*": true, "*-Key": true, "*key*": true, "": false, "*": false, "a b": false} {
		if got := isPattern(pattern); got != want {
			t.Errorf("%q: got %t, want %t", pattern, got, want)
		}
	}
}

// body counts what is read of it.
type body struct {
	io.Reader
	read   int
	closed bool
}

func (b *body) Read(p []byte) (int, error) {
	if b.closed {
		return 0, errors.New("read after Close")
	}
	n, err := b.Reader.Read(p)
	b.read += n
	return n, err
}

func (b *body) Close() error {
	b.closed = true
	return nil
}

// TestDropBody checks how much is read of the body of a redirect.
func TestDropBody(t *testing.T) {
	for _, test := range []struct {
		length   int64
		size     int
		min, max int
	}{
		{100, 100, 100, 100},
		{-1, 100, 100, 100},
		{-1, 1 << 20, 4<<10 + 1, 64 << 10},
		{1 << 20, 1 << 20, 0, 0},
	} {
		b := &body{Reader: strings.NewReader(strings.Repeat("x", test.size))}
		res := &http.Response{Body: b, ContentLength: test.length, Trailer: http.Header{"A": nil}}
		dropBody(res)
		if b.read < test.min || b.read > test.max || !b.closed {
			t.Errorf("length %d: %d octets were read, closed %t, want %d to %d, true", test.length, b.read, b.closed, test.min, test.max)
		}
		if res.Body != http.NoBody || res.ContentLength != 0 || res.Trailer != nil {
			t.Errorf("length %d: got a response with body, length %d, trailers %v, want none", test.length, res.ContentLength, res.Trailer)
		}
	}
}
