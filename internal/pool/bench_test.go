package pool

import (
	"fmt"
	"io"
	"net/http"
	"testing"
)

// BenchmarkRoundTrip sends requests one after the other over a connection that is
// kept.
func BenchmarkRoundTrip(b *testing.B) {
	plain := newBackend(b, echo)
	h2 := newBackend2(b, false, 100, from)
	for name, o := range map[string]*Order{"HTTP1": plain.order("a.example"), "HTTP2": h2.order} {
		b.Run(name, func(b *testing.B) {
			p := newPool(b, Config{})
			req := request(b, http.MethodGet, "/", nil)
			b.ReportAllocs()
			for b.Loop() {
				res, err := p.RoundTrip(req, o)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}

// BenchmarkNewConnections opens a connection for each request.
func BenchmarkNewConnections(b *testing.B) {
	backend := newBackend(b, echo)
	p := newPool(b, Config{DisableKeepAlive: true})
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		res, err := p.RoundTrip(request(b, http.MethodGet, "/", nil), backend.order(fmt.Sprint(n)))
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}
