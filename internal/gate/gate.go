// Package gate decides whether a site may call a target. It joins the rules of the site
// (package guard), what this process itself listens on (package localnet), and the mode in
// which refusals are only reported.
//
// A [Gate] is asked at each step at which more is known of a call: CheckTarget before the
// name is resolved, CheckFound and Filter when it is, CheckUpstream where another address was
// put in, Permit just before a connection is opened, and Confirm when it is open. A check that
// passes allocates nothing. What is not refused but only reported, an [Observer] is told.
package gate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"caddytarget/internal/guard"
	"caddytarget/internal/localnet"
	"caddytarget/internal/targeturl"
)

// The modes of a site.
const (
	ModeEnforce = "enforce"
	ModeReport  = "report"
)

// Gate decides what a site may call: by its rules, and by what listens there.
type Gate struct {
	*guard.Rules
	*localnet.Listeners

	// Report says that refusals are only reported, where OnlyReports allows that.
	Report bool
}

// Observer is told what a Gate lets pass, and what it leaves out, for one call.
type Observer interface {
	// Reported is called with a refusal that is only reported.
	Reported(err error)

	// LeftOut is called with the refusal of an address of which others remain. If it is
	// only reported, the address remains, too.
	LeftOut(r *guard.Refusal, reported bool)
}

// Allows reports whether an address may be called. It costs little if it was called before.
func (g Gate) Allows(a netip.AddrPort) bool {
	o, known := g.Known(a)
	return known && g.allowsOwner(o, a) && g.AllowsAddr(a.Addr()) || g.Check(a) == nil
}

// allowsOwner reports whether an address of this owner may be called.
func (g Gate) allowsOwner(o localnet.Owner, a netip.AddrPort) bool {
	return o == localnet.NotOwn || o == localnet.OwnSite && g.Opens(a.Addr())
}

// Check returns why an address may not be called, or nil.
func (g Gate) Check(a netip.AddrPort) *guard.Refusal {
	o, embedded := g.Find(a)
	r := &guard.Refusal{Kind: guard.KindAddress, Value: a.String(), Embedded: embedded}
	if o == localnet.OwnOther {
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

// OnlyReports reports whether a refusal is only reported. A target that cannot be
// called is refused in any case, and so is the admin API of this server, which is never
// meant; and therefore an upstream that is no address but a name or a socket, which may
// lead there.
func (g Gate) OnlyReports(err error) bool {
	r, ok := errors.AsType[*guard.Refusal](err)
	if !g.Report || !ok {
		return false
	}
	switch r.Rule {
	case guard.RuleAdmin, guard.RuleInvalid:
		return false
	}
	return r.Kind != guard.KindScheme || targeturl.DefaultPort(r.Value) != 0
}

// Enforce returns a refusal, or reports it instead. Of nil it returns nil.
func (g Gate) Enforce(err error, o Observer) error {
	if err == nil || !g.OnlyReports(err) {
		return err
	}
	o.Reported(err)
	return nil
}

// CheckTarget checks scheme, name and port of a call. An empty scheme is not checked: it is
// that of a transport.
func (g Gate) CheckTarget(scheme, host string, port uint16, o Observer) error {
	if scheme != "" {
		if err := g.Enforce(g.CheckScheme(scheme), o); err != nil {
			return err
		}
	}
	if err := g.Enforce(g.CheckName(host), o); err != nil {
		return err
	}
	return g.Enforce(g.CheckPort(port), o)
}

// CheckFound checks the name that a call's was found to be short for. What is allowed
// is said of names as they stand in targets, what is denied holds for both.
func (g Gate) CheckFound(host, found string, o Observer) error {
	if found == "" || found == host {
		return nil
	}
	if err := g.CheckComplete(found); err != nil {
		return g.Enforce(fmt.Errorf("%s: %w", host, err), o)
	}
	return nil
}

// CheckComplete checks a name that another one is short for.
func (g Gate) CheckComplete(name string) error {
	r, ok := errors.AsType[*guard.Refusal](g.CheckName(name))
	if !ok || r.Rule == guard.RuleAllow {
		return nil
	}
	return r
}

// Filter returns those of a call's addresses that may be called, and how many of them,
// from the first, are preferred. It is an error if there is none.
func (g Gate) Filter(host string, port uint16, addrs []netip.Addr, preferred int, o Observer) ([]netip.Addr, int, error) {
	for _, a := range addrs {
		if !g.Allows(netip.AddrPortFrom(a, port)) {
			return g.filterSome(host, port, addrs, preferred, o)
		}
	}
	return addrs, preferred, nil
}

func (g Gate) filterSome(host string, port uint16, addrs []netip.Addr, preferred int, o Observer) (kept []netip.Addr, keptPreferred int, err error) {
	var refusals []*guard.Refusal
	for i, a := range addrs {
		if r := g.Check(netip.AddrPortFrom(a, port)); r != nil {
			refusals = append(refusals, r)
			if !g.OnlyReports(r) {
				continue
			}
		}
		kept = append(kept, a)
		if i < preferred {
			keptPreferred++
		}
	}
	if len(refusals) == len(addrs) {
		// the reason is that of an address that is kept, if there is one
		reason := max(0, slices.IndexFunc(refusals, func(r *guard.Refusal) bool { return g.OnlyReports(r) }))
		if err := g.Enforce(fmt.Errorf("%s: %w", host, refusals[reason]), o); err != nil {
			return nil, 0, err
		}
	} else {
		for _, r := range refusals {
			o.LeftOut(r, g.OnlyReports(r))
		}
	}
	if keptPreferred == 0 {
		keptPreferred = len(kept)
	}
	return kept, keptPreferred, nil
}

// CheckUpstream checks an address that a request is about to be sent to and that Filter has
// not seen.
func (g Gate) CheckUpstream(host string, addr netip.AddrPort, o Observer) error {
	if r := g.Check(addr); r != nil {
		return g.Enforce(fmt.Errorf("%s: %w", host, r), o)
	}
	return nil
}

// Permit checks the address of a connection that is about to be opened for a call. What is
// only reported has been by now.
func (g Gate) Permit(host string, addr netip.AddrPort) error {
	if g.Allows(addr) {
		return nil
	}
	return g.checkConnection(host, addr)
}

// Confirm checks a connection that was just opened, before anything is sent: where it
// has really ended is known only now.
func (g Gate) Confirm(host string, local, remote netip.AddrPort) error {
	if a := remote.Addr().Unmap().WithZone(""); a == local.Addr().Unmap().WithZone("") {
		g.Learn(a, true)
	}
	return g.checkConnection(host, remote)
}

func (g Gate) checkConnection(host string, addr netip.AddrPort) error {
	if r := g.Check(addr); r != nil && !g.OnlyReports(r) {
		return fmt.Errorf("%s: %w", host, r)
	}
	return nil
}
