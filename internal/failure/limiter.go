package failure

import (
	"sync"
	"time"
)

const (
	// burst is how many lines of one token are logged at once, and each how long it
	// takes until there may be another one after that.
	burst = 100
	each  = 100 * time.Millisecond
)

// Limiter limits how many lines are logged of each token, so that a flood of failures
// does not fill a disk: 100 at once and 10 a second. The zero value is ready to use.
type Limiter struct {
	mu      sync.Mutex
	buckets map[Token]*bucket
}

type bucket struct {
	full       time.Time // when as many as burst may be logged at once again
	suppressed int       // lines that were not logged since the last one
}

// Allow reports whether a line may be logged now, and how many were not logged since the
// one before.
func (l *Limiter) Allow(t Token, now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets == nil {
		l.buckets = make(map[Token]*bucket)
	}
	b := l.buckets[t]
	if b == nil {
		b = new(bucket)
		l.buckets[t] = b
	}
	if b.full.Before(now) {
		b.full = now
	}
	if b.full.Sub(now) > (burst-1)*each {
		b.suppressed++
		return 0, false
	}
	b.full = b.full.Add(each)
	suppressed, b.suppressed = b.suppressed, 0
	return suppressed, true
}
