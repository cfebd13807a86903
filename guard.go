package caddytarget

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/localnet"
	"caddytarget/internal/targeturl"
)

// Guard defines which targets may be called. The address that is checked is the
// address that is dialled. Addresses and ports on which this server itself
// listens are refused unless `allow_ips` has the address; where it listens for
// other things than sites, such as the admin API, in any case.
type Guard struct {
	// How a target that may not be called is treated: `enforce` refuses it;
	// `report` lets it pass, whatever rule it is against, those that hold by
	// default too, counts it and logs it as a warning, so that rules can be tried
	// on a server in use whose clients are trusted. The admin API is refused even
	// then. Default: `enforce`.
	Mode string `json:"guard,omitempty"`

	// Names that may be called: `example.com`, `*.example.com` (at any depth,
	// without example.com itself), `*`. IP addresses in targets are names,
	// too. Default: every name but those of metadata services of clouds.
	Allow []string `json:"allow,omitempty"`

	// Names that may not be called. They win over `allow`.
	Deny []string `json:"deny,omitempty"`

	// Addresses that may be called beside the globally routable ones: CIDR
	// ranges, single addresses, `private_ranges`, `any`.
	AllowIPs []string `json:"allow_ips,omitempty"`

	// Addresses that may not be called: CIDR ranges, single addresses,
	// `private_ranges`. They win over `allow_ips`.
	DenyIPs []string `json:"deny_ips,omitempty"`

	// Ports that may be called: `443`, `8000-8999`. Default: any but the "bad
	// ports" of the Fetch standard, those of mail, chat and other text protocols.
	Ports []string `json:"ports,omitempty"`

	// Schemes that may be called, of `http`, `https`, `h2c`. Default: `http`
	// and `https`.
	Schemes []string `json:"schemes,omitempty"`
}

// The values of Guard.Mode.
const (
	enforce = "enforce"
	report  = "report"
)

func (g *Guard) compile() (*guard.Rules, error) {
	if g.Mode != "" && g.Mode != enforce && g.Mode != report {
		return nil, fmt.Errorf("guard: unknown mode %q: expecting enforce or report", g.Mode)
	}
	return guard.Config{
		Allow:    g.Allow,
		Deny:     g.Deny,
		AllowIPs: g.AllowIPs,
		DenyIPs:  g.DenyIPs,
		Ports:    g.Ports,
		Schemes:  g.Schemes,
	}.Compile()
}

// isSet reports whether something is configured.
func (g *Guard) isSet() bool {
	return g.Mode != "" || len(g.Allow)+len(g.Deny)+len(g.AllowIPs)+len(g.DenyIPs)+len(g.Ports)+len(g.Schemes) > 0
}

// policy applies the rules of a site to its calls.
type policy struct {
	gate     localnet.Gate
	report   bool // the mode is report
	counters *counters
	log      *zap.Logger
	quiet    bool // a handler logs the failures of its requests itself
}

// policy returns the policy of a site with these rules.
func (a *App) policy(g *Guard, log *zap.Logger) (*policy, error) {
	rules, err := g.compile()
	if err != nil {
		return nil, err
	}
	if g.Mode == report {
		log.Warn("the guard only reports: targets may be called that its rules refuse, private and loopback addresses too")
	}
	return &policy{localnet.Gate{Rules: rules, Listeners: a.listeners}, g.Mode == report, a.shared.counters, log, false}, nil
}

// checkTarget checks scheme, name and port of a call. A source with a name of its own
// has no scheme.
func (p *policy) checkTarget(c *call) error {
	if c.scheme != "" {
		if err := p.gate.CheckScheme(c.scheme); err != nil {
			return p.refused(c, err)
		}
	}
	if err := p.checkName(c); err != nil {
		return err
	}
	return p.checkPort(c)
}

func (p *policy) checkName(c *call) error {
	if err := p.gate.CheckName(c.Host); err != nil {
		return p.refused(c, err)
	}
	return nil
}

// checkFound checks the name that a call's was found to be short for. What is allowed
// is said of names as they stand in targets, what is denied holds for both.
func (p *policy) checkFound(c *call, name string) error {
	if name == "" || name == c.Host {
		return nil
	}
	if err := p.checkComplete(name); err != nil {
		return p.refused(c, fmt.Errorf("%s: %w", c.Host, err))
	}
	return nil
}

// checkComplete checks a name that another one is short for.
func (p *policy) checkComplete(name string) error {
	r, ok := errors.AsType[*guard.Refusal](p.gate.CheckName(name))
	if !ok || r.Rule == guard.RuleAllow {
		return nil
	}
	return r
}

func (p *policy) checkPort(c *call) error {
	if err := p.gate.CheckPort(c.Port); err != nil {
		return p.refused(c, err)
	}
	return nil
}

// filter returns those of a call's addresses that may be called, and how many of them,
// from the first, are preferred. It is an error if there is none.
func (p *policy) filter(c *call, addrs []netip.Addr, preferred int) ([]netip.Addr, int, error) {
	for _, a := range addrs {
		if !p.gate.Allows(netip.AddrPortFrom(a, c.Port)) {
			return p.filterSome(c, addrs, preferred)
		}
	}
	return addrs, preferred, nil
}

func (p *policy) filterSome(c *call, addrs []netip.Addr, preferred int) (kept []netip.Addr, keptPreferred int, err error) {
	var refusals []*guard.Refusal
	for i, a := range addrs {
		if r := p.gate.Check(netip.AddrPortFrom(a, c.Port)); r != nil {
			refusals = append(refusals, r)
			if !p.onlyReports(r) {
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
		reason := max(0, slices.IndexFunc(refusals, func(r *guard.Refusal) bool { return p.onlyReports(r) }))
		if err := p.refused(c, fmt.Errorf("%s: %w", c.Host, refusals[reason])); err != nil {
			return nil, 0, err
		}
	} else {
		for _, r := range refusals {
			p.leftOut(c, r)
		}
	}
	if keptPreferred == 0 {
		keptPreferred = len(kept)
	}
	return kept, keptPreferred, nil
}

// checkUpstream checks the address that a request is about to be sent to. That has
// been done if it is one of the call's; but others may have been put in.
func (p *policy) checkUpstream(c *call, addr netip.AddrPort) error {
	if addr.Port() == c.Port && slices.Contains(c.Addrs, addr.Addr()) {
		return nil
	}
	r := p.gate.Check(addr)
	if r == nil {
		return nil
	}
	err := p.refused(c, fmt.Errorf("%s: %w", c.Host, r))
	if err != nil {
		p.failed(c, http.StatusForbidden, err)
	}
	return err
}

// permit checks the address of a connection that is about to be opened. What is only
// reported has been by now.
func (p *policy) permit(c *call, addr netip.AddrPort) error {
	if p.gate.Allows(addr) {
		return nil
	}
	return p.checkConnection(c, addr)
}

// confirm checks a connection that was just opened, before anything is sent: where it
// has really ended is known only now.
func (p *policy) confirm(c *call, local, remote netip.AddrPort) error {
	if a := remote.Addr().Unmap().WithZone(""); a == local.Addr().Unmap().WithZone("") {
		p.gate.Learn(a, true)
	}
	return p.checkConnection(c, remote)
}

func (p *policy) checkConnection(c *call, addr netip.AddrPort) error {
	r := p.gate.Check(addr)
	if r == nil || p.onlyReports(r) {
		return nil
	}
	err := fmt.Errorf("%s: %w", c.Host, r)
	p.failed(c, http.StatusForbidden, err)
	return err
}

// onlyReports reports whether a refusal is only reported. A target that cannot be
// called is refused in any case, and so is the admin API of this server, which is never
// meant; and therefore an upstream that is no address but a name or a socket, which may
// lead there.
func (p *policy) onlyReports(err error) bool {
	r, ok := errors.AsType[*guard.Refusal](err)
	if !p.report || !ok {
		return false
	}
	switch r.Rule {
	case guard.RuleAdmin, guard.RuleInvalid:
		return false
	}
	return r.Kind != guard.KindScheme || targeturl.DefaultPort(r.Value) != 0
}

// refused returns a refusal, or reports it instead.
func (p *policy) refused(c *call, err error) error {
	if !p.onlyReports(err) {
		return err
	}
	if c.isExplained() {
		return nil
	}
	p.counters.refused.WithLabelValues(report, failure.RuleOf(err)).Inc()
	if ce := p.log.Check(zapcore.WarnLevel, "target would be refused"); ce != nil {
		ce.Write(fields(c, err)...)
	}
	return nil
}

// leftOut counts and logs an address that is left out, or would be.
func (p *policy) leftOut(c *call, r *guard.Refusal) {
	if c.isExplained() {
		return
	}
	mode, level, message := enforce, zapcore.DebugLevel, "address left out"
	if p.onlyReports(r) {
		mode, level, message = report, zapcore.WarnLevel, "address would be left out"
	}
	p.counters.leftOut.WithLabelValues(mode, r.Rule).Inc()
	if ce := p.log.Check(level, message); ce != nil {
		ce.Write(fields(c, r)...)
	}
}

// failed counts a request that was not sent on, and logs it unless the handler does; c
// may be nil.
func (p *policy) failed(c *call, status int, err error) {
	if c.isExplained() {
		return
	}
	f := failure.Of(err)
	if f.Rule != "" {
		p.counters.refused.WithLabelValues(enforce, f.Rule).Inc()
	}
	if p.quiet {
		return
	}
	if ce := p.log.Check(zapcore.DebugLevel, failedMessage(f)); ce != nil {
		ce.Write(append(fields(c, err), zap.Int("status", status))...)
	}
}
