package dnscache

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// silent answers nothing, and has no goroutines for that.
type silent struct{}

func (silent) Ask(ctx context.Context, _ string, _ uint16, done func([]netip.Addr, time.Duration, error)) {
	context.AfterFunc(ctx, func() { done(nil, 0, ctx.Err()) })
}

func (silent) AskSRV(context.Context, string, func([]net.SRV, time.Duration, error)) {}

func (silent) Outage() <-chan struct{} { return nil }

// A lookup in flight has no goroutine. One that waits for a slot has one.
func TestFlightsTakeNoGoroutine(t *testing.T) {
	const n, slots = 100, 60
	synctest.Test(t, func(t *testing.T) {
		c := New(silent{}, Config{MaxLookups: slots})
		before := runtime.NumGoroutine()
		for _, name := range names(n) {
			go c.Lookup(t.Context(), name)
		}
		synctest.Wait()
		if more := runtime.NumGoroutine() - before - n; more > n-slots {
			t.Errorf("%d goroutines besides %d readers, want at most %d", more, n, n-slots)
		}
		c.Close()
		synctest.Wait()
		if left := runtime.NumGoroutine() - before; left > 0 {
			t.Errorf("%d goroutines are left, want none", left)
		}
	})
}
