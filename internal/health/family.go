package health

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A family counts as unreachable when connections to addresses in deadNetworks different
// networks failed, each within familyTime of the one before, and none was opened
// meanwhile.
const (
	deadNetworks = 3
	familyTime   = 5 * time.Minute
)

// family is IPv4 or IPv6: the networks that could not be reached since one could.
type family struct {
	version int          // 4 or 6
	count   atomic.Int32 // of networks

	mu         sync.Mutex
	networks   [deadNetworks]netip.Prefix
	lastFailed time.Time
	claimedAt  time.Time // as in record
	ejectedAt  time.Time // as in record
}

// family returns the family of an address.
func (t *Tracker) family(addr netip.Addr) *family {
	if addr.Is4() {
		return &t.families[0]
	}
	return &t.families[1]
}

// Reached records whether an address could be reached: a connection was opened (ok), or
// there was no answer or no route. A refused connection is neither: something answered.
func (t *Tracker) Reached(addr netip.Addr, ok bool) {
	f := t.family(addr)
	switch {
	case !addr.IsValid():
	case !ok:
		t.tell(f.unreached(addr, t.now(), t.longest()))
	case f.count.Load() > 0:
		f.mu.Lock()
		ended := f.reset(Worked, t.now())
		f.mu.Unlock()
		t.tell(ended)
	}
}

// reset forgets all networks, and returns the ejection that ends by it; f.mu is held.
func (f *family) reset(by End, now time.Time) (ended []Ejection) {
	if !f.ejectedAt.IsZero() {
		ended = []Ejection{{Family: f.version, Failures: int(f.count.Load()), Lasted: now.Sub(f.ejectedAt), End: by}}
		f.ejectedAt = time.Time{}
	}
	f.count.Store(0)
	return ended
}

// unreached adds the network of an address. It returns the ejections that begin or end by
// it; one lasts for ejectFor at first.
func (f *family) unreached(addr netip.Addr, now time.Time, ejectFor time.Duration) (ejections []Ejection) {
	bits := 16
	if addr.Is6() {
		bits = 48
	}
	network, _ := addr.Prefix(bits)
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.lastFailed) > familyTime {
		ejections = f.reset(Forgotten, now)
	}
	n := f.count.Load()
	f.lastFailed, f.claimedAt = now, time.Time{}
	if int(n) < deadNetworks && !slices.Contains(f.networks[:n], network) {
		f.networks[n] = network
		n++
	}
	f.count.Store(n)
	if f.dead() && f.ejectedAt.IsZero() && ejectFor > 0 {
		f.ejectedAt = now
		ejections = append(ejections, Ejection{Family: f.version, Failures: int(n), For: ejectFor})
	}
	return ejections
}

// dead reports whether the family counts as unreachable.
func (f *family) dead() bool { return f.count.Load() >= deadNetworks }

// state is as Tracker.state.
func (f *family) state(now time.Time, ejectFor time.Duration, claim bool) State {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.dead():
		return Healthy
	case now.Sub(f.lastFailed) < ejectFor || now.Sub(f.claimedAt) < claimTimeout:
		return Ejected
	}
	if claim {
		f.claimedAt = now
	}
	return NeedsProbe
}

// release gives up the claim that was made at that time.
func (f *family) release(claimedAt time.Time) {
	if !f.dead() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.claimedAt.Equal(claimedAt) {
		f.claimedAt = time.Time{}
	}
}
