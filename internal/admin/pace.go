package admin

import (
	"context"
	"time"
)

const (
	// paceRatio is how many times as long as a page took to make the next one waits.
	paceRatio = 7

	// maxPause bounds that: a page may have taken long only because the machine is busy.
	maxPause = 200 * time.Millisecond
)

// pace makes the pages of long lists one at a time, with a pause after each, so that those
// who read them, however many and fast they are, take an eighth of a CPU from requests at
// most.
type pace struct {
	turn chan struct{}
	next time.Time // when the next page may be made
}

func newPace() *pace { return &pace{turn: make(chan struct{}, 1)} }

// do calls f when it is its turn. It returns the error of a context that ends before.
func (p *pace) do(ctx context.Context, f func() error) error {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	timer := time.NewTimer(time.Until(p.next))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	begun := time.Now()
	defer func() {
		now := time.Now()
		p.next = now.Add(min(paceRatio*now.Sub(begun), maxPause))
	}()
	return f()
}
