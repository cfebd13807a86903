package caddytarget

import (
	"hash/maphash"
	"net/netip"
	"slices"
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
//
// Beside that, a family of addresses of which nothing can be reached, wherever
// it leads, speaks against all of its addresses.
type health struct {
	now      func() time.Time
	seed     maphash.Seed
	shards   [256]healthShard
	families [2]familyHealth // IPv4, IPv6
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
	sent  bool      // when it last failed, a request may have been sent
	trial time.Time // it was tried to see whether it works again
	slow  time.Time // until then a connection attempt that was cut is still under way
}

// familyHealth is how many networks of a family could not be reached since one
// could.
type familyHealth struct {
	count atomic.Int32 // of networks

	mu       sync.Mutex
	networks [deadNetworks]netip.Prefix
	last     time.Time
	trial    time.Time // as in failing
}

const (
	// forgetAfter is how long a failure is remembered at most.
	forgetAfter = time.Hour

	// maxFailing bounds the failures remembered in a shard.
	maxFailing = 256

	// trialTime is how long a trial request may take before another is sent.
	trialTime = 5 * time.Second

	// A family is taken to be out of reach when connections to addresses in
	// deadNetworks different networks fail, the next one within familyTime, and
	// none comes about meanwhile.
	deadNetworks = 3
	familyTime   = 5 * time.Minute
)

func newHealth() *health {
	return &health{now: time.Now, seed: maphash.MakeSeed()}
}

func (h *health) shard(addr netip.AddrPort) *healthShard {
	return &h.shards[maphash.Comparable(h.seed, addr)%uint64(len(h.shards))]
}

// fail records a failure; sent says whether a request may have been sent.
func (h *health) fail(id healthID, sent bool) {
	h.update(id, func(f *failing, now time.Time) {
		f.fails++
		f.last, f.sent = now, sent
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
	onProbe         // connections to it failed a while ago, and nobody has opened one since
	onTrial         // it failed a while ago, and no request has tried it since
	ejected
)

func (h *health) family(addr netip.Addr) *familyHealth {
	if addr.Is4() {
		return &h.families[0]
	}
	return &h.families[1]
}

// reached records that a connection to an address came about.
func (h *health) reached(addr netip.Addr) {
	f := h.family(addr)
	if f.count.Load() == 0 || !addr.IsValid() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count.Store(0)
}

// unreached records that nothing came back from an address, or that there is no
// way to it.
func (h *health) unreached(addr netip.Addr) {
	bits := 16
	if addr.Is6() {
		bits = 48
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return // no IP address
	}
	f := h.family(addr)
	f.mu.Lock()
	defer f.mu.Unlock()
	now := h.now()
	n := f.count.Load()
	if now.Sub(f.last) > familyTime {
		n = 0
	}
	f.last, f.trial = now, time.Time{}
	if int(n) < deadNetworks && !slices.Contains(f.networks[:n], network) {
		f.networks[n] = network
		n++
	}
	f.count.Store(n)
}

// dead tells whether nothing of the family can be reached.
func (f *familyHealth) dead() bool { return f.count.Load() >= deadNetworks }

// verdict is as that of an address.
func (f *familyHealth) verdict(now time.Time, duration time.Duration, try bool) verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.dead():
		return good
	case now.Sub(f.last) < duration || now.Sub(f.trial) < trialTime:
		return ejected
	}
	if try {
		f.trial = now
	}
	return onProbe
}

// judging is what a verdict on addresses of a target depends on.
type judging struct {
	host     string
	maxFails int           // after as many failures an address is ejected
	duration time.Duration // for how long

	// repeatable says that the request can be tried on an address that may fail
	// after it was sent. One that cannot is not, unless none that can has come
	// for as long again.
	repeatable bool
}

// judge returns the verdict on an address. With try, what is to be probed or on
// trial is taken to be tried now: for others it is ejected until that has ended.
func (h *health) judge(j *judging, addr netip.AddrPort, try bool) verdict {
	s, family := h.shard(addr), h.family(addr.Addr())
	if s.size.Load() == 0 && !family.dead() {
		return good
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := h.now()
	levels := [2]*failing{s.failed[healthID{addr: addr}], s.failed[healthID{j.host, addr}]}
	v := good
	for _, f := range levels {
		switch {
		case f == nil:
		case now.Before(f.slow):
			return ejected
		case f.fails < j.maxFails:
		case now.Sub(f.last) < j.duration || now.Sub(f.trial) < trialTime:
			return ejected
		case f.sent && !j.repeatable && now.Sub(f.last) < 2*j.duration:
			return ejected
		case f.sent:
			v = onTrial
		default:
			v = max(v, onProbe)
		}
	}
	if family.dead() {
		v = max(v, family.verdict(now, j.duration, try))
	}
	if v != ejected && try {
		for _, f := range levels {
			if f != nil && f.fails >= j.maxFails {
				f.trial = now
			}
		}
	}
	return v
}
