package guard

import "sync"

// InFlight counts the requests in flight to each target. The zero value is ready to use.
type InFlight struct {
	mu     sync.Mutex
	counts map[Origin]int
}

// Origin is scheme, host and port of a target.
type Origin struct {
	Scheme, Host string
	Port         uint16
}

// Count returns how many requests to a target are in flight.
func (f *InFlight) Count(o Origin) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[o]
}

// Enter counts a request to a target until done is called. If as many as limit are in
// flight, it is not counted, and ok is false.
func (f *InFlight) Enter(o Origin, limit int) (done func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = make(map[Origin]int)
	}
	if f.counts[o] >= limit {
		return nil, false
	}
	f.counts[o]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.counts[o]--; f.counts[o] == 0 {
			delete(f.counts, o)
		}
	}, true
}
