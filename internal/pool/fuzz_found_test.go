//go:build linux

package pool

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"caddytarget/internal/health"
)

// TestWindowOverflow: one WINDOW_UPDATE by which a stream's window exceeds 2^31-1
// ends the request, and no more. In net/http of Go 1.26.8 the loop that reads the
// connection deadlocks there (processWindowUpdate, under cc.mu, calls abortStream, which
// locks it): with its http.ClientConn the request never ended. golang.org/x/net has
// fixed that.
func TestWindowOverflow(t *testing.T) {
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
	p := New(fuzzConfig(), health.New(), NewLimits(0, nil)) // Close would wait for ever
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
			t.Errorf("request %d, which has one second, has not ended", i)
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
		t.Errorf("%d of %d shards stay locked, want none", stuck, len(p.shards))
	}
}

// TestExpectEnds: the body of a request that has failed is closed at once. It used to
// stay open until ExpectContinueTimeout, with a goroutine, since the upload was not told
// that there will be no 100 (Continue).
func TestExpectEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := fuzzConfig()
		config.ExpectContinueTimeout = time.Minute
		p := New(config, health.New(), NewLimits(0, nil))
		defer time.Sleep(2 * time.Minute)
		defer p.Close()
		p.Dial = func(context.Context, string, string) (net.Conn, error) {
			client, backend := memPipe()
			go func() {
				_, _ = http.ReadRequest(bufio.NewReader(backend))
				_ = backend.Close()
			}()
			return client, nil
		}
		body := &closable{Reader: strings.NewReader("body")}
		req, _ := http.NewRequest(http.MethodPost, "http://backend.example/", body)
		req.ContentLength = 4
		req.Header.Set("Expect", "100-continue")
		_, err := p.RoundTrip(req, &Order{Key: memKey, Target: memKey.Host, Last: true})
		time.Sleep(time.Second)
		if !body.closed.Load() {
			t.Errorf("%v, and a second later the body is open, want it closed", err)
		}
	})
}

// TestMaxPerKeyFailed: a request that waits because MaxPerKey was reached is assigned a
// dial when the one before has failed. It used to wait until the next request came.
func TestMaxPerKeyFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := fuzzConfig()
		config.MaxPerKey = 1
		p := New(config, health.New(), NewLimits(0, nil))
		defer p.Close()
		var dials atomic.Int64
		p.Dial = func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(10 * time.Millisecond)
			if dials.Add(1) == 1 {
				return nil, syscall.ECONNREFUSED
			}
			client, backend := memPipe()
			go echo(backend, bufio.NewReader(backend))
			return client, nil
		}
		order := &Order{Key: memKey, Target: memKey.Host, Last: true}
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://backend.example/", nil)
				start := time.Now()
				res, err := p.RoundTrip(req, order)
				if err == nil {
					_ = res.Body.Close()
				}
				if took := time.Since(start); took > time.Minute {
					t.Errorf("request %d took %v, want less: %v", i, took, err)
				}
			})
		}
		wg.Wait()
	})
}

type closable struct {
	io.Reader
	closed atomic.Bool
}

func (c *closable) Close() error {
	c.closed.Store(true)
	return nil
}
