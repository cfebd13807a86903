package caddytarget

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// health remembers failures of addresses. The transport reports them, the
// source leaves out the addresses that failed. It is shared by all sites and
// outlives a reload.
//
// There are two levels. A TCP connection that cannot be opened speaks against
// address and port, for all targets. A failed TLS handshake, a reset, or no
// response in time speaks against the pair of target and address only: one bad
// site on the address of a CDN does not take the address from the others.
type health struct {
	size atomic.Int64 // of failed; readers look no further if it is 0

	mu      sync.Mutex
	failed  map[healthID]*failing
	checked time.Time // when failed was last rid of old entries
}

// healthID is an address and port, or a target on it.
type healthID struct {
	host string // empty: for all targets
	addr netip.AddrPort
}

// failing is an address that has failed since it last worked.
type failing struct {
	fails int
	last  time.Time
	trial time.Time // a request was sent there to see whether it works again
	slow  time.Time // until then a connection attempt that was cut is still under way
}

const (
	// forgetAfter is how long a failure is remembered at most.
	forgetAfter = time.Hour

	// maxFailing bounds the failures remembered.
	maxFailing = 1 << 16

	// trialTime is how long a trial request may take before another is sent.
	trialTime = 5 * time.Second
)

// healths holds the one health of the process while a configuration uses it.
var healths = caddy.NewUsagePool()

const healthKey = "health"

func newHealth() *health {
	return &health{failed: make(map[healthID]*failing)}
}

// fail records a failure.
func (h *health) fail(id healthID) {
	h.update(id, func(f *failing, now time.Time) {
		f.fails++
		f.last = now
		f.trial, f.slow = time.Time{}, time.Time{}
	})
}

// suspect records that a connection attempt did not succeed in the time it was
// given, but may still, until its end.
func (h *health) suspect(id healthID, end time.Duration) {
	h.update(id, func(f *failing, now time.Time) {
		f.slow = now.Add(end)
	})
}

func (h *health) update(id healthID, change func(f *failing, now time.Time)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if now.Sub(h.checked) > time.Minute {
		h.checked = now
		for id, f := range h.failed {
			if now.Sub(f.last) > forgetAfter && now.After(f.slow) {
				delete(h.failed, id)
			}
		}
	}
	f := h.failed[id]
	if f == nil {
		if len(h.failed) >= maxFailing {
			for any := range h.failed {
				delete(h.failed, any)
				break
			}
		}
		f = new(failing)
		h.failed[id] = f
	}
	change(f, now)
	h.size.Store(int64(len(h.failed)))
}

// works records that an address works.
func (h *health) works(id healthID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.failed, id)
	h.size.Store(int64(len(h.failed)))
}

// verdict is what health has to say of an address.
type verdict int

const (
	good    verdict = iota
	onTrial         // it failed a while ago: this one request shall try it
	ejected
)

// judge returns the verdict on a target's address for a source that ejects
// after maxFails failures, for duration.
func (h *health) judge(host string, addr netip.AddrPort, maxFails int, duration time.Duration) verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	v := good
	for _, id := range [2]healthID{{addr: addr}, {host, addr}} {
		f := h.failed[id]
		switch {
		case f == nil:
		case now.Before(f.slow):
			return ejected
		case f.fails < maxFails:
		case now.Sub(f.last) < duration || now.Sub(f.trial) < trialTime:
			return ejected
		default:
			f.trial = now
			v = onTrial
		}
	}
	return v
}
