package caddytarget

import (
	"fmt"

	"go.uber.org/zap"

	"caddytarget/internal/exchange"
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

func (g *Guard) compile() (*guard.Rules, error) {
	if g.Mode != "" && g.Mode != gate.ModeEnforce && g.Mode != gate.ModeReport {
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

// policy returns the policy of a site with these rules.
func (a *App) policy(g *Guard, log *zap.Logger) (*exchange.Policy, error) {
	rules, err := g.compile()
	if err != nil {
		return nil, err
	}
	reports := g.Mode == gate.ModeReport
	if reports {
		log.Warn("the guard only reports: targets may be called that its rules refuse, private and loopback addresses too")
	}
	return &exchange.Policy{
		Gate:    gate.Gate{Rules: rules, Listeners: a.listeners, Report: reports},
		Metrics: a.shared.metrics.Requests, Log: log,
	}, nil
}
