package dnscache

import (
	"context"
	"sync"
	"time"
)

// slotQueue has one slot for each lookup that may be in flight for a reader. While
// a lookup waits for a slot, one that has had its slot for preemptAfter is
// preempted. If instead the next lookup to come were refused, a few names that are
// never answered would keep out all others.
type slotQueue struct {
	taken chan struct{} // as many as slots are taken

	mu         sync.Mutex
	waiting    int
	preempting int // lookups that were preempted, but still have their slots
}

func newSlotQueue(slots int) slotQueue {
	return slotQueue{taken: make(chan struct{}, slots)}
}

// tryTake takes a slot if one is free.
func (q *slotQueue) tryTake() bool {
	select {
	case q.taken <- struct{}{}:
		return true
	default:
		return false
	}
}

// take waits for a slot. It reports false if ctx ends first.
func (q *slotQueue) take(ctx context.Context) bool {
	if !q.tryTake() {
		q.addWaiting(1)
		defer q.addWaiting(-1)
		select {
		case q.taken <- struct{}{}:
		case <-ctx.Done():
			return false
		}
	}
	if ctx.Err() != nil { // both at once
		<-q.taken
		return false
	}
	return true
}

func (q *slotQueue) addWaiting(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting += n
}

// lease is a slot that a lookup has taken.
type lease struct {
	queue   *slotQueue
	preempt func()
	timer   *time.Timer

	// Guarded by queue.mu.
	preempted bool
	released  bool
}

// lease makes a lease of a slot that was taken. Preempt is called, at most once,
// when the lookup has to end so that another one gets the slot. It must not wait
// for anything.
func (q *slotQueue) lease(preempt func()) *lease {
	l := &lease{queue: q, preempt: preempt}
	q.mu.Lock()
	defer q.mu.Unlock()
	l.timer = time.AfterFunc(preemptAfter, l.preemptIfWanted)
	return l
}

// preemptIfWanted preempts the lookup if another one waits, and else checks again
// later.
func (l *lease) preemptIfWanted() {
	q := l.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case l.released:
	case q.waiting > q.preempting:
		q.preempting++
		l.preempted = true
		l.preempt()
	default:
		l.timer.Reset(slowAfter)
	}
}

// wasPreempted reports whether the lookup was preempted.
func (l *lease) wasPreempted() bool {
	l.queue.mu.Lock()
	defer l.queue.mu.Unlock()
	return l.preempted
}

// release gives the slot back. It is called once.
func (l *lease) release() {
	q := l.queue
	<-q.taken
	q.mu.Lock()
	defer q.mu.Unlock()
	l.released = true
	l.timer.Stop()
	if l.preempted {
		q.preempting--
	}
}
