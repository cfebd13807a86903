package pool

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The context of a request over HTTP/1.1 is watched only after the request has been in
// flight for one to two watchIntervals: most requests have ended by then, and to watch
// a context costs as much as to write a request. A context whose deadline is near is
// watched at once.
const watchInterval = 20 * time.Millisecond

// watcher aborts requests whose contexts end. Its timer calls watchDue while requests
// are in flight that are not watched yet.
type watcher struct {
	timer   *time.Timer
	running atomic.Bool   // the timer is
	round   atomic.Uint32 // counts the calls of watchDue
}

// unwatched are the requests of a shard in flight whose contexts are not watched yet.
type unwatched struct {
	mu   sync.Mutex
	list []*exchange
}

// watched is the state of an exchange for the watcher.
type watched struct {
	list  *unwatched // nil: the context was watched at once
	index int        // in the list, under its mu; negative: not there
	round uint32     // of the watcher when the exchange began

	mu    sync.Mutex
	ended bool        // the exchange has
	stop  func() bool // ends the watch; nil: the context is not watched
}

// startWatch has the context of a request watched, at once or later. A call of unwatch
// has to follow.
func (p *Pool) startWatch(x *exchange) {
	if deadline, ok := x.req.Context().Deadline(); ok && time.Until(deadline) < 5*watchInterval {
		x.watchContext()
		return
	}
	w, l := &x.watched, &x.c.destination.shard.unwatched
	l.mu.Lock()
	w.list, w.index, w.round = l, len(l.list), p.watcher.round.Load()
	l.list = append(l.list, x)
	l.mu.Unlock()
	p.startWatchTimer()
}

// startWatchTimer has watchDue called after watchInterval.
func (p *Pool) startWatchTimer() {
	if w := &p.watcher; !w.running.Load() && w.running.CompareAndSwap(false, true) {
		w.timer.Reset(watchInterval)
	}
}

// watchDue watches the contexts of requests that have been in flight for an interval or
// more.
func (p *Pool) watchDue() {
	w := &p.watcher
	round := w.round.Add(1)
	var due []*exchange
	for i := range p.shards {
		l := &p.shards[i].unwatched
		l.mu.Lock()
		for _, x := range slices.Backward(l.list) { // remove puts in its place one that was seen before
			if round-x.watched.round > 1 {
				l.remove(x)
				due = append(due, x)
			}
		}
		l.mu.Unlock()
	}
	for _, x := range due {
		x.watchContext()
	}
	w.running.Store(false)
	for i := range p.shards {
		l := &p.shards[i].unwatched
		l.mu.Lock()
		some := len(l.list) > 0
		l.mu.Unlock()
		if some {
			p.startWatchTimer()
			return
		}
	}
}

// remove removes a request; l.mu is held.
func (l *unwatched) remove(x *exchange) {
	last := len(l.list) - 1
	other := l.list[last]
	l.list[x.watched.index], other.watched.index = other, x.watched.index
	l.list[last] = nil
	l.list = l.list[:last]
	x.watched.index = -1
}

// watchContext has the connection aborted when the context ends.
func (x *exchange) watchContext() {
	w := &x.watched
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		ctx := x.req.Context()
		w.stop = context.AfterFunc(ctx, func() { x.c.abort(context.Cause(ctx)) })
	}
}

// unwatch ends the watch. It reports whether the request was not aborted, and will not
// be.
func (x *exchange) unwatch() bool {
	w := &x.watched
	if l := w.list; l != nil {
		l.mu.Lock()
		unwatched := w.index >= 0
		if unwatched {
			l.remove(x)
		}
		l.mu.Unlock()
		if unwatched {
			return true
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	return w.stop == nil || w.stop()
}
