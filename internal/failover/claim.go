package failover

import (
	"context"
	"net/netip"
	"sync/atomic"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
)

// Claim reserves an address whose ejection is over for one request, which probes it in
// the background, or is itself sent there: then the address is on trial. The claim is
// open until one of these begins. If none has begun when the request is over, the claim
// is released.
type Claim struct {
	addr   netip.Addr
	health health.Claim
	taken  atomic.Bool // it is no longer open
}

// claim reserves an address of t in a state in which it needs a trial or a probe. It
// returns nil if another request was first. With Peek it reserves nothing, and the claim
// that it returns is not open.
func (s *Source) claim(ctx context.Context, t *Target, p *health.Policy, a netip.Addr, want health.State) *Claim {
	if s.Peek {
		c := &Claim{addr: a}
		c.take()
		return c
	}
	state, claim := s.Health.Claim(p, t.Host, t.addr(a))
	if state != want {
		if state != health.Ejected && state != health.Healthy {
			claim.Release()
		}
		return nil
	}
	c := &Claim{addr: a, health: claim}
	context.AfterFunc(ctx, c.release)
	return c
}

// take reports whether the claim is open, and closes it: the caller begins what was
// claimed, or releases it.
func (c *Claim) take() bool { return c.taken.CompareAndSwap(false, true) }

// release gives an open claim up.
func (c *Claim) release() {
	if c.take() {
		c.health.Release()
	}
}

// Begin begins an attempt at an address of t. It starts the probes that were claimed for
// any of the plan's targets: it calls start (Pool.Probe) with an order like the
// attempt's, and releases the claim if start reports that it could not. If the address is
// on trial, the attempt is the trial. Release has to follow it.
func (p *Plan) Begin(t *Target, o *pool.Order, start func(*pool.Order) bool) {
	for _, other := range p.targets {
		for _, c := range other.probes {
			if c.take() && !start(other.probe(c.addr, t, o)) {
				c.health.Release()
			}
		}
	}
	if c := t.trial; c != nil && c.addr == o.Key.Addr.Addr() && c.take() {
		p.trial = c
	}
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

// Release gives up the open claims for the plan's targets, after an attempt. If no outcome
// of a trial has been recorded, another request may claim the address.
func (p *Plan) Release() {
	if p.trial != nil {
		p.trial.health.Release()
		p.trial = nil
	}
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
