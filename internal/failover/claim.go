package failover

import (
	"context"
	"net/netip"
	"sync/atomic"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
)

// Claim reserves an address that failed a while ago for one request, which is going to
// try it, or to probe it in the background. It is given up if that does not begin
// before the request is over.
type Claim struct {
	addr  netip.Addr
	trial health.Trial
	taken atomic.Bool // begun, or given up
}

// claim reserves an address of t in a state in which it needs a trial or a probe. It
// returns nil if another request was first.
func (s *Source) claim(ctx context.Context, t *Target, p *health.Policy, a netip.Addr, want health.State) *Claim {
	state, trial := s.Health.Claim(p, t.Host, t.addr(a))
	if state != want {
		if state != health.Ejected && state != health.Healthy {
			trial.Release()
		}
		return nil
	}
	c := &Claim{addr: a, trial: trial}
	context.AfterFunc(ctx, c.release)
	return c
}

// begin reports whether the probe or the attempt may begin.
func (c *Claim) begin() bool { return c.taken.CompareAndSwap(false, true) }

// release gives the claim up, unless the probe or the attempt has begun.
func (c *Claim) release() {
	if c.begin() {
		c.trial.Release()
	}
}

// End gives a claim up that Begin has returned, unless an outcome has been recorded.
// On nil it does nothing.
func (c *Claim) End() {
	if c != nil {
		c.trial.Release()
	}
}

// Begin begins an attempt at an address of t: it starts the probes that were claimed
// for any of the plan's targets, by orders like the attempt's, with what start does, which
// reports whether it could. If the address is on trial Begin returns the claim on it,
// which has to be ended after the attempt; else nil.
func (p *Plan) Begin(t *Target, o *pool.Order, start func(*pool.Order) bool) *Claim {
	for _, other := range p.targets {
		for _, c := range other.probes {
			if c.begin() && !start(other.probe(c.addr, t, o)) {
				c.trial.Release()
			}
		}
	}
	if c := t.trial; c != nil && c.addr == o.Key.Addr.Addr() && c.begin() {
		return c
	}
	return nil
}

// probe returns the order of a connection to an address of t, like that of an attempt
// at target.
func (t *Target) probe(a netip.Addr, target *Target, attempt *pool.Order) *pool.Order {
	o := &pool.Order{Key: attempt.Key, Target: t.Host, Owner: t.Owner, Last: true}
	o.Key.Addr = t.addr(a)
	if o.Key.Host == target.Host {
		o.Key.Host = t.Host
	}
	if o.Key.ServerName == target.Host {
		o.Key.ServerName = t.Host
	}
	return o
}

// Release gives up what was claimed for the plan's targets and has not begun.
func (p *Plan) Release() {
	for _, t := range p.targets {
		t.release()
	}
}

func (t *Target) release() {
	for _, c := range t.probes {
		c.release()
	}
	t.probes = nil
	if t.trial != nil {
		t.trial.release()
		t.trial = nil
	}
}
