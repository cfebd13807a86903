//go:build linux

package pool

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestWindowOverflow: one WINDOW_UPDATE by which a stream's window exceeds 2^31-1
// ends the request, and no more. In net/http of Go 1.26.8 the loop that reads the
// connection locks itself out there (processWindowUpdate, under cc.mu, calls
// abortStream, which locks it): the request stays beyond all its times, Reserve
// holds shard.mu for good, and with that a part of all other targets. It is skipped
// until that is dealt with, since it leaves goroutines behind.
func TestWindowOverflow(t *testing.T) {
	if os.Getenv("FOUND") == "" {
		t.Skip("fails for now; FOUND=1 runs it")
	}
	b := newBackend(t, func(c net.Conn, _ *bufio.Reader) {
		in := reader2(c)
		if in == nil {
			return
		}
		hello2(c)
		for {
			frame, err := in.ReadFrame()
			if err != nil {
				return
			}
			if frame, ok := frame.(*http2.MetaHeadersFrame); ok {
				_ = http2.NewFramer(c, nil).WriteWindowUpdate(frame.StreamID, 1<<31-1)
			}
		}
	})
	p := New(fuzzConfig(), newPool(t, Config{}).health, NewLimits(0)) // Close would wait for ever
	p.Dial = new(net.Dialer).DialContext
	o := b.order("backend.example")
	o.Key.Protocol = HTTP2
	done := make(chan error, 1)
	send := func(o *Order) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://backend.example/", nil)
		_, err := p.RoundTrip(req, o)
		done <- err
	}
	for i := range 2 {
		go send(o)
		select {
		case err := <-done:
			t.Logf("request %d: %v", i, err)
		case <-time.After(3 * time.Second):
			t.Errorf("request %d, which has one second, goes on for ever", i)
		}
	}
	stuck := 0
	for i := range p.shards {
		if locked := p.shards[i].mu.TryLock(); locked {
			p.shards[i].mu.Unlock()
		} else {
			stuck++
		}
	}
	if stuck > 0 {
		t.Errorf("%d of %d shards are locked for good", stuck, len(p.shards))
	}
}
