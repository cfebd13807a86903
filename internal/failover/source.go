package failover

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"caddytarget/internal/health"
)

// Source is the settings by which addresses are offered.
type Source struct {
	Health   *health.Tracker
	MaxFails int           // after how many failures in a row an address is ejected
	EjectFor time.Duration // for how long; 0: none is ejected
	Limit    health.Limit  // under which failures count, beside the request's

	Max    int  // how many addresses are offered at most
	Sticky bool // each request is offered the same ones, in the same order

	// RetriesByTime says that a request is tried again for some time, however often
	// that is: when all addresses were tried, all are offered once more.
	RetriesByTime bool
}

// Offer is the addresses of a target that a request may be sent to now.
type Offer struct {
	Healthy bool // they are not known to fail

	addrs []netip.Addr
	first int  // which of them is the first
	trial bool // it is one that failed a while ago
}

// Append appends the addresses to a list, max of them at most.
func (o *Offer) Append(to []netip.AddrPort, port uint16, max int) []netip.AddrPort {
	for k := range min(len(o.addrs), max) {
		to = append(to, netip.AddrPortFrom(o.addrs[(o.first+k)%len(o.addrs)], port))
	}
	return to
}

// policy returns what failures of addresses mean to t.
func (s *Source) policy(t *Target) health.Policy {
	return health.Policy{
		MaxFails: s.MaxFails, EjectFor: s.EjectFor, Retryable: t.Retryable,
		Limits: [2]health.Limit{t.Limit, s.Limit}, Timeout: t.Timeout,
	}
}

// state returns the state of an address of t. One that was tried is ejected for this
// request.
func (s *Source) state(plan *Plan, t *Target, p *health.Policy, a netip.Addr) (health.State, tryState) {
	addr := t.addr(a)
	switch tried := plan.tryState(t, addr); {
	case tried == connected:
		return health.Healthy, tried
	case tried != untried:
		return health.Ejected, tried
	case s.EjectFor == 0:
		return health.Healthy, untried
	}
	return s.Health.State(p, t.Host, addr), untried
}

// Next returns the addresses of t to try now: those that are healthy and were not
// tried, the preferred ones if there are any; else those that are ejected, for some
// address has to be tried; else those that may be tried once more. An address whose
// ejection is over is to be probed in the background if there are others; if it
// takes a request to find out, it is returned alone, on trial. When nothing is left, or
// the request cannot be sent again with all of its body (resendable is false), nothing
// is offered.
func (s *Source) Next(ctx context.Context, plan *Plan, t *Target, resendable bool) Offer {
	o := s.next(ctx, plan, t, resendable)
	t.offered = min(len(o.addrs), s.Max)
	return o
}

func (s *Source) next(ctx context.Context, plan *Plan, t *Target, resendable bool) Offer {
	t.release()
	p, first := s.policy(t), s.first(t)
	if s.preferredHealthy(plan, t, &p, first) {
		t.more = len(t.Addrs) > 1
		return Offer{addrs: t.Addrs[:t.Preferred], first: first, Healthy: true}
	}
	if !resendable {
		t.more = false
		return Offer{}
	}
	c := s.classify(plan, t, &p, first)
	if o, ok := s.claimAll(ctx, t, &p, &c); ok {
		t.more = len(t.Addrs) > 1
		return o
	}
	switch {
	case c.preferred > 0:
		t.more = len(c.healthy) > 1 || c.rest
		return Offer{addrs: c.healthy[:c.preferred], Healthy: true}
	case len(c.healthy) > 0:
		t.more = len(c.healthy) > 1
		return Offer{addrs: c.healthy, Healthy: true}
	case len(c.ejected) > 0:
		t.more = len(c.ejected) > 1
		return Offer{addrs: c.ejected}
	case len(c.retryable) > 0:
		t.more = false
		return Offer{addrs: c.retryable}
	case s.RetriesByTime:
		plan.startOver(t)
		t.more = len(t.Addrs) > 1
		return Offer{addrs: t.Addrs}
	}
	t.more = false
	return Offer{}
}

// preferredHealthy reports whether as many of the preferred addresses as are offered
// are healthy and were not tried.
func (s *Source) preferredHealthy(plan *Plan, t *Target, p *health.Policy, first int) bool {
	for k := range min(t.Preferred, s.Max) {
		if state, _ := s.state(plan, t, p, t.Addrs[t.place(first, k)]); state != health.Healthy {
			return false
		}
	}
	return true
}

// classes are the addresses of a target by what may be done with them.
type classes struct {
	healthy, needProbe, needTrial, ejected, retryable []netip.Addr

	preferred int  // so many of healthy, from the first, are
	rest      bool // there are others, which were not looked at
}

// classify sorts the addresses of t, as far as they matter: the preferred ones are
// enough if one is healthy, and a few more than are offered.
func (s *Source) classify(plan *Plan, t *Target, p *health.Policy, first int) (c classes) {
	for k := range t.Addrs {
		i := t.place(first, k)
		if c.rest = i >= t.Preferred && c.preferred > 0 || len(c.healthy) > s.Max; c.rest {
			break
		}
		a := t.Addrs[i]
		switch state, tried := s.state(plan, t, p, a); {
		case tried == retryable:
			c.retryable = append(c.retryable, a)
		case tried == exhausted:
		case state == health.NeedsTrial:
			c.needTrial = append(c.needTrial, a)
		case state == health.NeedsProbe:
			c.needProbe = append(c.needProbe, a)
		case state == health.Ejected:
			c.ejected = append(c.ejected, a)
		default:
			c.healthy = append(c.healthy, a)
			if i < t.Preferred {
				c.preferred++
			}
		}
	}
	return c
}

// claimAll claims the addresses that need a probe or a trial. It returns the one that
// this request has to try, if there is one; those that other requests have claimed
// count as ejected.
func (s *Source) claimAll(ctx context.Context, t *Target, p *health.Policy, c *classes) (o Offer, ok bool) {
	try := func(claim *Claim) (Offer, bool) {
		t.trial = claim
		return Offer{addrs: []netip.Addr{claim.addr}, trial: true, Healthy: true}, true
	}
	for _, a := range c.needTrial {
		if claim := s.claim(ctx, t, p, a, health.NeedsTrial); claim != nil {
			return try(claim)
		}
	}
	for _, a := range c.needProbe {
		switch claim := s.claim(ctx, t, p, a, health.NeedsProbe); {
		case claim == nil:
			c.ejected = append(c.ejected, a)
		case len(c.healthy) == 0:
			return try(claim)
		default:
			t.probes = append(t.probes, claim)
		}
	}
	return o, false
}

// first returns with which of the addresses of t those begin that a request is
// offered. Where there are more than it is offered this is drawn, so that all of
// them are used.
func (s *Source) first(t *Target) int {
	if s.Sticky || len(t.Addrs) <= s.Max {
		return 0
	}
	return rand.IntN(len(t.Addrs))
}

// place returns the place in the addresses of t of the k-th in the order that begins
// with first: the preferred ones, then the others.
func (t *Target) place(first, k int) int {
	if k < t.Preferred {
		return (first + k) % t.Preferred
	}
	return t.Preferred + (first+k)%(len(t.Addrs)-t.Preferred)
}
