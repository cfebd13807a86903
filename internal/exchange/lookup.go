package exchange

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"caddytarget/internal/failure"
	"caddytarget/internal/resolver"
)

// addresses is what was found out of the addresses of a call.
type addresses struct {
	answer    resolver.Answer
	addrs     []netip.Addr // that may be called
	preferred int          // so many of addrs, from the first, are preferred
}

// set makes the addresses those of the call.
func (c *Call) set(a addresses) { c.Answer, c.Addrs, c.Preferred = a.answer, a.addrs, a.preferred }

// Resolve sets the addresses of c to those that may be called. literal is c's name if that is
// an address.
func (c *Call) Resolve(ctx context.Context, literal netip.Addr) error {
	a, err := c.find(ctx, literal)
	c.set(a)
	return err
}

// find returns the addresses of c that may be called.
func (c *Call) find(ctx context.Context, literal netip.Addr) (a addresses, err error) {
	switch {
	case literal.IsValid():
		a.answer = resolver.Answer{Addrs: []netip.Addr{literal.Unmap()}, Preferred: 1, From: resolver.Literal}
	case c.Complete:
		a.answer, err = c.Resolver.LookupComplete(ctx, c.Host)
	default:
		a.answer, err = c.Resolver.Lookup(ctx, c.Host)
	}
	if err != nil {
		e := failure.OfLookup(c.Host, err)
		c.ranOut(endOf(ctx), e)
		return a, e
	}
	if c.Policy != nil {
		if err := c.Policy.CheckFound(c.Host, a.answer.Found, c); err != nil {
			return a, err
		}
		a.addrs, a.preferred, err = c.Policy.Filter(c.Host, c.Port, a.answer.Addrs, a.answer.Preferred, c)
		return a, err
	}
	a.addrs, a.preferred = a.answer.Addrs, a.answer.Preferred
	return a, nil
}

// ranOut makes an error say that the request's timeout is over, if that ended its context.
func (c *Call) ranOut(ended error, e *failure.Error) {
	if c.hasRunOut(ended) {
		e.RanOut(c.State.Timeout)
	}
}

// hasRunOut reports whether it is the request's timeout that ended a context.
func (c *Call) hasRunOut(ended error) bool {
	return errors.Is(ended, context.DeadlineExceeded) && c.State != nil && c.State.Timeout > 0
}

// renew asks for the addresses of c again, for none of those that were known is
// healthy. It reports whether there are others now.
func (c *Call) renew(ctx context.Context) bool {
	if c.Resolver == nil {
		return false
	}
	renewed, err := c.Resolver.Renew(ctx, c.Host, c.Answer)
	if err != nil || slices.Equal(renewed.Addrs, c.Answer.Addrs) {
		return false
	}
	a := addresses{renewed, renewed.Addrs, renewed.Preferred}
	if c.Policy != nil {
		if a.addrs, a.preferred, err = c.Policy.Filter(c.Host, c.Port, renewed.Addrs, renewed.Preferred, c); err != nil {
			return false
		}
	}
	c.set(a)
	return true
}
