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
	MaxFails int           // after how many failures in a row an address is ejected, of all requests together
	EjectFor time.Duration // for how long, from the last failure; 0: none is ejected
	Limit    health.Limit  // under which failures count, beside the request's: that of the Transport

	Max    int  // how many addresses are offered at most
	Sticky bool // each request is offered the same ones, in the same order

	// RetriesByTime says that a request is tried again for some time, however often
	// that is: when all addresses were tried, all are offered once more.
	RetriesByTime bool

	// Peek says that no request follows: what Next offers is only looked at, and nothing
	// is claimed.
	Peek bool
}

// Offer is the addresses of a target that a request may be sent to now.
type Offer struct {
	// Healthy is false if the addresses are ejected or were tried, or if there are none: it
	// may help to resolve the name again. One that is on trial counts as healthy.
	Healthy bool

	addrs []netip.Addr
	first int  // which of them is the first
	trial bool // there is one, and this request finds out whether it works again
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

// state returns the state of an address of t for this request, by health and by the
// request's own tries. One that was tried is ejected for the request, unless its dial has
// succeeded since.
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
// address has to be tried; else those that may be tried once more.
//
// An address whose ejection is over is claimed. It is probed in the background if that
// will show whether it works and others are healthy. Else it is returned alone, on trial.
//
// When nothing is left, nothing is offered. A request that cannot be sent again with all
// of its body (resendable is false) is offered the preferred addresses if these are
// healthy, else nothing.
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

// State returns the state of an address of t for a request that has tried nothing.
func (s *Source) State(t *Target, a netip.Addr) health.State {
	p := s.policy(t)
	state, _ := s.state(new(Plan), t, &p, a)
	return state
}

// Causes returns those failures of an address of t that count for a request to t.
func (s *Source) Causes(t *Target, a netip.Addr) []health.Cause {
	if s.EjectFor == 0 {
		return nil
	}
	p := s.policy(t)
	return s.Health.Causes(&p, t.Host, t.addr(a))
}

// preferredHealthy reports whether the preferred addresses, or as many of them as are
// offered, are healthy and were not tried. That is so for nearly all requests.
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
	healthy, needProbe, needTrial, ejected []netip.Addr // not tried
	retryable                              []netip.Addr // tried, see tryState

	preferred int  // so many of healthy, from the first, are preferred
	rest      bool // there are others, which were not classified
}

// classify sorts the addresses of t into classes. It leaves out those that do not matter:
// others than the preferred ones if one of these is healthy, and all others once more
// are healthy than are offered.
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

// claimAll claims the addresses that need a probe or a trial, up to the first one that
// this request has to try, which it returns (ok). Those that other requests have claimed
// count as ejected.
func (s *Source) claimAll(ctx context.Context, t *Target, p *health.Policy, c *classes) (o Offer, ok bool) {
	offerTrial := func(claim *Claim) (Offer, bool) {
		t.trial = claim
		return Offer{addrs: []netip.Addr{claim.addr}, trial: true, Healthy: true}, true
	}
	for _, a := range c.needTrial {
		if claim := s.claim(ctx, t, p, a, health.NeedsTrial); claim != nil {
			return offerTrial(claim)
		}
		c.ejected = append(c.ejected, a)
	}
	for _, a := range c.needProbe {
		switch claim := s.claim(ctx, t, p, a, health.NeedsProbe); {
		case claim == nil:
			c.ejected = append(c.ejected, a)
		case len(c.healthy) == 0: // no other address could serve the request meanwhile
			return offerTrial(claim)
		default:
			t.probes = append(t.probes, claim)
		}
	}
	return o, false
}

// first returns at which of the addresses of t the order begins in which they are
// offered: see place. If there are more than are offered, it is drawn at random, so that
// all of them are used.
func (s *Source) first(t *Target) int {
	if s.Sticky || len(t.Addrs) <= s.Max {
		return 0
	}
	return rand.IntN(len(t.Addrs))
}

// place returns the index in t.Addrs of the k-th address in the order that begins with
// first: the preferred ones come first, then the others.
func (t *Target) place(first, k int) int {
	if k < t.Preferred {
		return (first + k) % t.Preferred
	}
	return t.Preferred + (first+k)%(len(t.Addrs)-t.Preferred)
}
