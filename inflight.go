package caddytarget

import "sync"

// inFlight counts the requests in flight to each target.
type inFlight struct {
	mu     sync.Mutex
	counts map[inFlightKey]int
}

type inFlightKey struct {
	scheme, host string
	port         uint16
}

// enter counts a request, unless there are limit already.
func (f *inFlight) enter(c *call, limit int) (done func(), ok bool) {
	key := inFlightKey{c.scheme, c.Host, c.Port}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = make(map[inFlightKey]int)
	}
	if f.counts[key] >= limit {
		return nil, false
	}
	f.counts[key]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.counts[key]--; f.counts[key] == 0 {
			delete(f.counts, key)
		}
	}, true
}
