//go:build unix

package dnsclient

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// A query takes a buffer only when its reply is there.
func TestQueriesInFlightHoldNoBuffer(t *testing.T) {
	const queries = 200
	made := new(atomic.Int32)
	inner := buffers.New
	buffers.New = func() any { made.Add(1); return inner() }
	defer func() { buffers.New = inner }()

	arrived := make(chan struct{})
	s := newScript(t, func(*testlab.Query) { arrived <- struct{}{} }, nil)
	u := newUDP(s.AddrPort, new(atomic.Uint64))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range queries {
		running.Go(func() { u.exchange(ctx, time.Now().Add(longTimeout), rootQuestion, true) })
		<-arrived
	}
	cancel()
	running.Wait()
	if n := made.Load(); n > queries/2 { // with -race, pools forget some
		t.Errorf("%d buffers for %d queries, want %d at most", n, queries, queries/2)
	}
}
