package caddytarget

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/guard"
	"caddytarget/internal/localnet"
	"caddytarget/internal/targeturl"
)

// Guard says which targets may be called. The address that is judged is the
// address that is dialled. Addresses and ports on which this server itself
// listens are refused unless `allow_ips` has the address; where it listens for
// other things than sites, such as the admin API, in any case.
type Guard struct {
	// What becomes of a target that may not be called: `enforce` refuses it;
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

// isSet tells whether something is configured.
func (g *Guard) isSet() bool {
	return g.Mode != "" || len(g.Allow)+len(g.Deny)+len(g.AllowIPs)+len(g.DenyIPs)+len(g.Ports)+len(g.Schemes) > 0
}

// judge applies the rules of a site.
type judge struct {
	rules     *guard.Rules
	report    bool
	listeners *localnet.Listeners
	refusals  *refusals
	log       *zap.Logger
}

// judge returns the judge of a site with these rules.
func (a *App) judge(g *Guard, log *zap.Logger) (*judge, error) {
	rules, err := g.compile()
	if err != nil {
		return nil, err
	}
	if g.Mode == report {
		log.Warn("the guard only reports: targets may be called that its rules refuse, private and loopback addresses too")
	}
	return &judge{rules, g.Mode == report, a.listeners, a.refusals, log}, nil
}

// target judges scheme, name and port of a call. A source with a name of its own
// has no scheme.
func (j *judge) target(c *call) error {
	if c.scheme != "" {
		if err := j.rules.CheckScheme(c.scheme); err != nil {
			return j.refused(c, err)
		}
	}
	if err := j.name(c); err != nil {
		return err
	}
	return j.port(c)
}

func (j *judge) name(c *call) error {
	if err := j.rules.CheckName(c.host); err != nil {
		return j.refused(c, err)
	}
	return nil
}

// found judges the name that a call's was short for. What is allowed is said of
// names as they stand in targets, what is denied holds for both.
func (j *judge) found(c *call) error {
	if c.answer.found == "" || c.answer.found == c.host {
		return nil
	}
	r, ok := errors.AsType[*guard.Refusal](j.rules.CheckName(c.answer.found))
	if !ok || r.Rule == guard.RuleAllow {
		return nil
	}
	return j.refused(c, fmt.Errorf("%s: %w", c.host, r))
}

func (j *judge) port(c *call) error {
	if err := j.rules.CheckPort(c.port); err != nil {
		return j.refused(c, err)
	}
	return nil
}

// addresses judges the addresses of a call. Those that may not be called are
// left out; it is an error if none remains.
func (j *judge) addresses(c *call) error {
	for _, a := range c.addrs {
		if !j.allows(netip.AddrPortFrom(a, c.port)) {
			return j.leaveOut(c)
		}
	}
	return nil
}

func (j *judge) leaveOut(c *call) error {
	var (
		kept      []netip.Addr // not in place: c.addrs is shared
		preferred int
		refusals  []*guard.Refusal
	)
	for i, a := range c.addrs {
		if r := j.check(netip.AddrPortFrom(a, c.port)); r != nil {
			refusals = append(refusals, r)
			if !j.letsPass(r) {
				continue
			}
		}
		kept = append(kept, a)
		if i < c.preferred {
			preferred++
		}
	}
	if len(refusals) == len(c.addrs) {
		// told is why one that is kept would be refused, if there is one
		told := max(0, slices.IndexFunc(refusals, func(r *guard.Refusal) bool { return j.letsPass(r) }))
		if err := j.refused(c, fmt.Errorf("%s: %w", c.host, refusals[told])); err != nil {
			c.addrs, c.preferred = nil, 0
			return err
		}
	} else {
		for _, r := range refusals {
			j.leftOut(c, r)
		}
	}
	if preferred == 0 {
		preferred = len(kept)
	}
	c.addrs, c.preferred = kept, preferred
	return nil
}

// upstream judges the address that a request is about to be sent to. That has
// been done if it is one of the call's; but others may have been put in.
func (j *judge) upstream(c *call, addr netip.AddrPort) error {
	if addr.Port() == c.port && slices.Contains(c.addrs, addr.Addr()) {
		return nil
	}
	r := j.check(addr)
	if r == nil {
		return nil
	}
	err := j.refused(c, fmt.Errorf("%s: %w", c.host, r))
	if err != nil {
		j.failed(c, http.StatusForbidden, err)
	}
	return err
}

// dial judges the address of a connection that is about to be opened. What is
// only reported has been by now.
func (j *judge) dial(c *call, addr netip.AddrPort) error {
	if j.allows(addr) {
		return nil
	}
	return j.connect(c, addr)
}

// connected checks a connection that was just opened, before anything is sent: where
// it has really ended is known only now.
func (j *judge) connected(c *call, local, remote netip.AddrPort) error {
	if a := remote.Addr().Unmap().WithZone(""); a == local.Addr().Unmap().WithZone("") {
		j.listeners.Learn(a, true)
	}
	return j.connect(c, remote)
}

// connect finds out whether there may be a connection to an address.
func (j *judge) connect(c *call, addr netip.AddrPort) error {
	r := j.check(addr)
	if r == nil || j.letsPass(r) {
		return nil
	}
	err := fmt.Errorf("%s: %w", c.host, r)
	j.failed(c, http.StatusForbidden, err)
	return err
}

// letsPass tells whether a refusal is only reported. What nobody could call is
// refused in any case, and so is the admin API of this server, which is never
// meant; and therefore an upstream that is no address but a name or a socket,
// which may lead there.
func (j *judge) letsPass(err error) bool {
	r, ok := errors.AsType[*guard.Refusal](err)
	if !j.report || !ok {
		return false
	}
	switch r.Rule {
	case guard.RuleAdmin, guard.RuleInvalid:
		return false
	}
	return r.Kind != guard.KindScheme || targeturl.DefaultPort(r.Value) != 0
}

// allows reports whether an address may be called. It costs little if it was called before.
func (j *judge) allows(a netip.AddrPort) bool {
	o, known := j.listeners.Known(a)
	return known && j.allowsOwner(o, a) && j.rules.AllowsAddr(a.Addr()) || j.check(a) == nil
}

// allowsOwner reports whether an address of this owner may be called.
func (j *judge) allowsOwner(o localnet.Owner, a netip.AddrPort) bool {
	return o == localnet.NotOwn || o == localnet.OwnSite && j.rules.Opens(a.Addr())
}

// check returns why an address may not be called, or nil.
func (j *judge) check(a netip.AddrPort) *guard.Refusal {
	o, embedded := j.listeners.Find(a)
	r := &guard.Refusal{Kind: guard.KindAddress, Value: a.String(), Embedded: embedded}
	if o == localnet.OwnOther {
		r.Rule = guard.RuleAdmin
		return r
	}
	if err := j.rules.CheckAddr(a.Addr()); err != nil {
		return err.(*guard.Refusal)
	}
	if j.allowsOwner(o, a) {
		return nil
	}
	r.Rule = guard.RuleOwnListener
	return r
}

// refused returns a refusal, or reports it instead.
func (j *judge) refused(c *call, err error) error {
	if !j.letsPass(err) {
		return err
	}
	j.refusals.requests.WithLabelValues(report, ruleOf(err)).Inc()
	if ce := j.log.Check(zapcore.WarnLevel, "target would be refused"); ce != nil {
		ce.Write(fields(c, err)...)
	}
	return nil
}

// leftOut counts and logs an address that is left out, or would be.
func (j *judge) leftOut(c *call, r *guard.Refusal) {
	mode, level, message := enforce, zapcore.DebugLevel, "address left out"
	if j.letsPass(r) {
		mode, level, message = report, zapcore.WarnLevel, "address would be left out"
	}
	j.refusals.addresses.WithLabelValues(mode, r.Rule).Inc()
	if ce := j.log.Check(level, message); ce != nil {
		ce.Write(fields(c, r)...)
	}
}

// failed counts and logs a request that was not sent on; c may be nil.
func (j *judge) failed(c *call, status int, err error) {
	message := "target not resolved"
	if rule := ruleOf(err); rule != "" {
		message = "target refused"
		j.refusals.requests.WithLabelValues(enforce, rule).Inc()
	}
	if ce := j.log.Check(zapcore.DebugLevel, message); ce != nil {
		ce.Write(append(fields(c, err), zap.Int("status", status))...)
	}
}

// fields describes a request that failed, for the log. What it is about is told
// without the path and the query, which may hold secrets.
func fields(c *call, err error) []zap.Field {
	list := []zap.Field{zap.Error(err)}
	if rule := ruleOf(err); rule != "" {
		list = append(list, zap.String("rule", rule))
	}
	if c != nil {
		list = append(list, zap.String("scheme", c.scheme), zap.String("name", c.host), zap.Uint16("port", c.port))
		if c.client.remote != "" {
			list = append(list, zap.String("host", c.client.host), zap.String("remote", c.client.remote))
		}
	}
	if r, ok := errors.AsType[*guard.Refusal](err); ok && r.Kind == guard.KindAddress {
		list = append(list, zap.String("address", r.Value))
	}
	return list
}

// ruleOf returns the rule by which a request was refused: "" if it was not, but
// failed.
func ruleOf(err error) string {
	if r, ok := errors.AsType[*guard.Refusal](err); ok {
		return r.Rule
	}
	switch {
	case errors.Is(err, targeturl.ErrNoTarget):
		return ruleNoTarget
	case errors.Is(err, errLoop):
		return ruleLoop
	case errors.Is(err, errMaxRequests):
		return ruleMaxRequests
	case errors.Is(err, dnscache.ErrOverloaded):
		return ruleMaxLookups
	case errors.Is(err, dnscache.ErrTooManyNewNames):
		return ruleNewNames
	}
	if _, ok := errors.AsType[malformedError](err); ok {
		return ruleMalformed
	}
	return ""
}
