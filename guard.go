package caddytarget

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/failure"
	"caddytarget/internal/gate"
	"caddytarget/internal/guard"
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

// policy applies the rules of a site to its calls: it counts and logs what is refused.
type policy struct {
	gate     gate.Gate
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
	return &policy{gate.Gate{Rules: rules, Listeners: a.listeners, Report: g.Mode == report}, a.shared.counters, log, false}, nil
}

// checkTarget checks scheme, name and port of a call. A source with a name of its own
// has no scheme.
func (p *policy) checkTarget(c *call) error {
	return p.gate.CheckTarget(c.scheme, c.Host, c.Port, c)
}

// checkUpstream checks the address that a request is about to be sent to. That has
// been done if it is one of the call's; but others may have been put in.
func (p *policy) checkUpstream(c *call, addr netip.AddrPort) error {
	if addr.Port() == c.Port && slices.Contains(c.Addrs, addr.Addr()) {
		return nil
	}
	return p.forbid(c, p.gate.CheckUpstream(c.Host, addr, c))
}

// forbid counts and logs a request that must not be sent to an address. If err is nil, it
// may.
func (p *policy) forbid(c *call, err error) error {
	if err != nil {
		p.failed(c, http.StatusForbidden, err)
	}
	return err
}

// Reported implements gate.Observer.
func (c *call) Reported(err error) {
	if c.isExplained() {
		return
	}
	c.policy.counters.refused.WithLabelValues(report, failure.RuleOf(err)).Inc()
	if ce := c.policy.log.Check(zapcore.WarnLevel, "target would be refused"); ce != nil {
		ce.Write(fields(c, err)...)
	}
}

// LeftOut implements gate.Observer.
func (c *call) LeftOut(r *guard.Refusal, reported bool) {
	if c.isExplained() {
		return
	}
	mode, level, message := enforce, zapcore.DebugLevel, "address left out"
	if reported {
		mode, level, message = report, zapcore.WarnLevel, "address would be left out"
	}
	c.policy.counters.leftOut.WithLabelValues(mode, r.Rule).Inc()
	if ce := c.policy.log.Check(level, message); ce != nil {
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

// Interface guards
var _ gate.Observer = (*call)(nil)
