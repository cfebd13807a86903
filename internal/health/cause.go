package health

import (
	"net/netip"
	"time"
)

// Cause is one reason why an address is, or may come to be, in another State than
// Healthy. The times are from now on.
type Cause struct {
	// ForTarget is true if what failed counts for the target alone, else for all targets
	// at the address.
	ForTarget bool

	// Limit is the limit that was exceeded; empty: none. It counts only for requests with
	// the same limit.
	Limit Limit

	// Family is true if addresses of the same family in several networks could not be
	// reached: it is about all addresses of the family.
	Family bool

	Fails    int           // failures in a row
	MaxFails int           // for so many of them an address is ejected
	Age      time.Duration // how long ago the last of them was; 0 without failures
	Reason   Reason        // of the last of them

	// Left is how long the address is still ejected for this; 0: it is not, or no longer.
	// Another request may have claimed it even so.
	Left time.Duration

	// Dialling is how much longer a dial may take that was given up; 0: none goes on.
	Dialling time.Duration
}

// Causes returns those records of an address that count for a request to target. It
// claims nothing.
func (t *Tracker) Causes(p *Policy, target string, addr netip.AddrPort) (causes []Cause) {
	s, family := t.shard(addr), t.family(addr.Addr())
	now := t.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.relevant(p, target, addr) {
		maxFails := p.maxFails(id.limit)
		c := Cause{
			ForTarget: id.target != "", Limit: id.limit, Fails: r.fails, MaxFails: maxFails, Reason: r.reason,
			Dialling: max(0, r.dialEnds.Sub(now)),
		}
		if r.fails > 0 {
			c.Age = now.Sub(r.lastFailed)
		}
		if r.fails >= maxFails {
			c.Left = max(0, p.ejectFor(r)-c.Age)
		}
		causes = append(causes, c)
	}
	if family.dead() {
		causes = append(causes, family.cause(now, p.EjectFor))
	}
	return causes
}

// cause is the Cause for all addresses of a family.
func (f *family) cause(now time.Time, ejectFor time.Duration) Cause {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := Cause{Family: true, Fails: int(f.count.Load()), MaxFails: deadNetworks, Age: now.Sub(f.lastFailed)}
	c.Left = max(0, ejectFor-c.Age)
	return c
}
