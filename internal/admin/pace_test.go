package admin

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestPace: pages are made one at a time, each after a pause that the one before has earned.
func TestPace(t *testing.T) {
	const took = 10 * time.Millisecond
	p := newPace()
	var (
		wg      sync.WaitGroup
		making  atomic.Int64
		mu      sync.Mutex
		lastEnd time.Time
	)
	for range 4 {
		wg.Go(func() {
			err := p.do(t.Context(), func() error {
				if n := making.Add(1); n != 1 {
					t.Errorf("%d pages are being made at a time, want one", n)
				}
				mu.Lock()
				if pause := time.Since(lastEnd); !lastEnd.IsZero() && pause < paceRatio*took {
					t.Errorf("a page was begun %s after another one had taken %s, want %s or more", pause, took, paceRatio*took)
				}
				mu.Unlock()
				time.Sleep(took)
				mu.Lock()
				lastEnd = time.Now()
				mu.Unlock()
				making.Add(-1)
				return nil
			})
			if err != nil {
				t.Errorf("got %v, want no error", err)
			}
		})
	}
	wg.Wait()
}

// TestPaceOfClientThatLeaves: no page is made for a client that leaves while it waits.
func TestPaceOfClientThatLeaves(t *testing.T) {
	p := newPace()
	gone := errors.New("gone")
	for name, prepare := range map[string]func(){
		"pause": func() { p.next = time.Now().Add(time.Hour) },
		"turn":  func() { p.turn <- struct{}{} },
	} {
		prepare()
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		err := p.do(ctx, func() error {
			t.Errorf("%s: a page was made", name)
			return nil
		})
		if !errors.Is(err, gone) {
			t.Errorf("%s: got %v, want that the client is gone", name, err)
		}
		select {
		case <-p.turn:
		default:
		}
	}
}
