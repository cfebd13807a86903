package localnet

import (
	"net/netip"

	"caddytarget/internal/guard"
)

// Gate decides which addresses a site may call: by its rules, and by what listens there.
type Gate struct {
	*guard.Rules
	*Listeners
}

// Allows reports whether an address may be called. It costs little if it was called before.
func (g Gate) Allows(a netip.AddrPort) bool {
	o, known := g.Known(a)
	return known && g.allowsOwner(o, a) && g.AllowsAddr(a.Addr()) || g.Check(a) == nil
}

// allowsOwner reports whether an address of this owner may be called.
func (g Gate) allowsOwner(o Owner, a netip.AddrPort) bool {
	return o == NotOwn || o == OwnSite && g.Opens(a.Addr())
}

// Check returns why an address may not be called, or nil.
func (g Gate) Check(a netip.AddrPort) *guard.Refusal {
	o, embedded := g.Find(a)
	r := &guard.Refusal{Kind: guard.KindAddress, Value: a.String(), Embedded: embedded}
	if o == OwnOther {
		r.Rule = guard.RuleAdmin
		return r
	}
	if err := g.CheckAddr(a.Addr()); err != nil {
		return err.(*guard.Refusal)
	}
	if g.allowsOwner(o, a) {
		return nil
	}
	r.Rule = guard.RuleOwnListener
	return r
}
