package dnscache

import (
	"context"
	"net"
	"net/netip"
	"regexp"
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
		before := bubbleGoroutines(t)
		for _, name := range names(n) {
			go c.Lookup(t.Context(), name)
		}
		synctest.Wait()
		if more := bubbleGoroutines(t) - before - n; more > n-slots {
			t.Errorf("%d goroutines besides %d readers, want at most %d", more, n, n-slots)
		}
		c.Close()
		synctest.Wait()
		if left := bubbleGoroutines(t) - before; left > 0 {
			t.Errorf("%d goroutines are left, want none", left)
		}
	})
}

// bubbleGoroutines returns how many goroutines the caller's bubble has.
// runtime.NumGoroutine counts those of earlier tests, too, and for a moment those that have
// ended.
func bubbleGoroutines(t *testing.T) int {
	t.Helper()
	stack := func(all bool) string {
		buf := make([]byte, 1<<20)
		return string(buf[:runtime.Stack(buf, all)])
	}
	bubble := regexp.MustCompile(`synctest bubble [0-9]+\b`).FindString(stack(false))
	if bubble == "" {
		t.Fatal("the stack does not show the bubble")
	}
	return len(regexp.MustCompile(`(?m)^goroutine .*`+bubble+`\b`).FindAllString(stack(true), -1))
}
