package caddytarget

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// health remembers failures of addresses. The transport reports them, the
// source leaves out the addresses that failed. It is shared by all sites and
// outlives a reload.
//
// There are two levels. A TCP connection that cannot be opened speaks against
// address and port, for all targets. A failed TLS handshake, a reset, or no
// response in time speaks against the pair of target and address only: one bad
// site on the address of a CDN does not take the address from the others.
//
// What is said of an address stands in one of many shards, each with a lock of
// its own, which nobody takes while nothing in the shard has failed.
type health struct {
	now    func() time.Time
	seed   maphash.Seed
	shards [256]healthShard
}

type healthShard struct {
	size atomic.Int32 // of failed

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

	// maxFailing bounds the failures remembered in a shard.
	maxFailing = 256

	// trialTime is how long a trial request may take before another is sent.
	trialTime = 5 * time.Second
)

func newHealth() *health {
	return &health{now: time.Now, seed: maphash.MakeSeed()}
}

func (h *health) shard(addr netip.AddrPort) *healthShard {
	return &h.shards[maphash.Comparable(h.seed, addr)%uint64(len(h.shards))]
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
	s := h.shard(id.addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := h.now()
	if now.Sub(s.checked) > time.Minute {
		s.checked = now
		for id, f := range s.failed {
			if now.Sub(f.last) > forgetAfter && now.After(f.slow) {
				delete(s.failed, id)
			}
		}
	}
	f := s.failed[id]
	if f == nil {
		if s.failed == nil {
			s.failed = make(map[healthID]*failing)
		}
		if len(s.failed) >= maxFailing {
			for other := range s.failed {
				delete(s.failed, other)
				break
			}
		}
		f = new(failing)
		s.failed[id] = f
	}
	change(f, now)
	s.size.Store(int32(len(s.failed)))
}

// works records that an address works, for a target and so for all.
func (h *health) works(host string, addr netip.AddrPort) {
	s := h.shard(addr)
	if s.size.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failed, healthID{addr: addr})
	delete(s.failed, healthID{host, addr})
	s.size.Store(int32(len(s.failed)))
}

// verdict is what health has to say of an address.
type verdict int

const (
	good    verdict = iota
	onTrial         // it failed a while ago, and nobody has tried it since
	ejected
)

// judge returns the verdict on a target's address for a source that ejects
// after maxFails failures, for duration. With try, what is on trial is taken to
// be tried now: for others it is ejected until that has ended.
func (h *health) judge(host string, addr netip.AddrPort, maxFails int, duration time.Duration, try bool) verdict {
	s := h.shard(addr)
	if s.size.Load() == 0 {
		return good
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := h.now()
	levels := [2]*failing{s.failed[healthID{addr: addr}], s.failed[healthID{host, addr}]}
	v := good
	for _, f := range levels {
		switch {
		case f == nil:
		case now.Before(f.slow):
			return ejected
		case f.fails < maxFails:
		case now.Sub(f.last) < duration || now.Sub(f.trial) < trialTime:
			return ejected
		default:
			v = onTrial
		}
	}
	if v == onTrial && try {
		for _, f := range levels {
			if f != nil && f.fails >= maxFails {
				f.trial = now
			}
		}
	}
	return v
}
