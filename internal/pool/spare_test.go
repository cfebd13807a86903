package pool

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

// spareCounts counts what a SpareObserver is told.
type spareCounts struct{ opened, failed, taken, wasted atomic.Int32 }

func (c *spareCounts) Dialled(opened bool) {
	if opened {
		c.opened.Add(1)
	} else {
		c.failed.Add(1)
	}
}
func (c *spareCounts) Taken()               { c.taken.Add(1) }
func (c *spareCounts) Wasted(time.Duration) { c.wasted.Add(1) }

// await waits until the counts are these.
func (c *spareCounts) await(t *testing.T, opened, failed, taken, wasted int32) {
	t.Helper()
	testlab.Eventually(t, "what the observer was told", func() bool {
		return c.opened.Load() == opened && c.failed.Load() == failed && c.taken.Load() == taken && c.wasted.Load() == wasted
	})
}

// TestSpare: connections that no request asked for are opened, up to a number, and serve the
// next requests. The observer learns of each first use, or of its end.
func TestSpare(t *testing.T) {
	for _, secure := range []bool{false, true} {
		b, config := newBackend(t, echo), Config{}
		var o *Order
		if secure {
			serve, roots := secureEcho(t)
			b = newBackend(t, serve)
			config.TLS = &tls.Config{RootCAs: roots}
		}
		p := newPool(t, config)
		if o = b.order("a.example"); secure {
			o.Key.Protocol, o.Key.ServerName = TLS, "a.example"
		}
		counts := new(spareCounts)
		for i := range 3 {
			if got, want := p.Spare(o, 2, counts), i < 2; got != want {
				t.Fatalf("connection %d is opened: %t, want %t", i+1, got, want)
			}
		}
		counts.await(t, 2, 0, 0, 0)
		for range 3 { // over the same one
			if _, err := get(t, p, o, "/"); err != nil {
				t.Fatal(err)
			}
		}
		counts.await(t, 2, 0, 1, 0)
		p.CloseIdle(anyKey)
		counts.await(t, 2, 0, 1, 1)
		if n := b.Opened.Load(); n != 2 {
			t.Errorf("%d connections were opened, want 2", n)
		}
	}
}

// TestSpareIsWasted: a connection that the backend has closed was not used, though a request
// has found it.
func TestSpareIsWasted(t *testing.T) {
	var served atomic.Int32
	b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
		if served.Add(1) == 1 {
			return // the first connection is closed at once
		}
		echo(c, r)
	})
	p, counts := newPool(t, Config{}), new(spareCounts)
	if !p.Spare(b.order("a.example"), 1, counts) {
		t.Fatal("no connection, want one")
	}
	counts.await(t, 1, 0, 0, 0)
	testlab.Eventually(t, "the backend has closed it", func() bool { return b.Open.Load() == 0 })
	if _, err := get(t, p, b.order("a.example"), "/"); err != nil {
		t.Fatal(err)
	}
	counts.await(t, 1, 0, 0, 1)
}

// TestSpareIsRefused: nothing is opened where the owner refuses it, where it would take the
// place of others, or where none is kept.
func TestSpareIsRefused(t *testing.T) {
	b := newBackend(t, echo)
	for _, test := range []struct {
		name   string
		config Config
		open   int // connections to another host before
		limit  int // of NewLimits
		begins bool
	}{
		{"no keep-alive", Config{DisableKeepAlive: true}, 0, 0, false},
		{"MaxIdlePerKey", Config{MaxIdlePerKey: -1}, 0, 0, false},
		{"MaxIdle", Config{MaxIdle: 8}, 7, 0, false},
		{"Limits", Config{}, 1, 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := New(test.config, health.New(), NewLimits(test.limit, nil))
			defer p.Close()
			others := new(spareCounts)
			for i := range test.open {
				if !p.Spare(b.order("other.example"), i+1, others) {
					t.Fatal("no connection to another host")
				}
				others.await(t, int32(i+1), 0, 0, 0)
			}
			counts := new(spareCounts)
			if begins := p.Spare(b.order("a.example"), 1, counts); begins != test.begins {
				t.Errorf("Spare reported %v, want %v", begins, test.begins)
			}
			if test.begins {
				counts.await(t, 0, 1, 0, 0)
			}
			if n := p.Open(); n != test.open {
				t.Errorf("%d connections are open, want %d as before", n, test.open)
			}
		})
	}
	p, counts, o := newPool(t, Config{}), new(spareCounts), b.order("a.example")
	o.Owner = &checkOwner{permit: errors.New("refused")}
	opened := b.Opened.Load()
	p.Spare(o, 1, counts)
	counts.await(t, 0, 1, 0, 0)
	if n := b.Opened.Load(); n != opened {
		t.Error("a connection was opened that the owner refuses")
	}
}

// TestSpareResetsNothing: that a connection can be opened is no reason to forget failures
// of requests, as it is after a probe.
func TestSpareResetsNothing(t *testing.T) {
	b := newBackend(t, echo)
	tracker := health.New()
	p := New(Config{}, tracker, NewLimits(0, nil))
	defer p.Close()
	o, counts := b.order("a.example"), new(spareCounts)
	tracker.Failed(o.Target, o.Key.Addr, true, nil)
	p.Spare(o, 1, counts)
	counts.await(t, 1, 0, 0, 0)
	if n := tracker.Len(); n != 1 {
		t.Errorf("%d failures are recorded, want 1", n)
	}
}
