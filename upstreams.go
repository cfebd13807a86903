package caddytarget

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"caddytarget/internal/health"
	"caddytarget/internal/targeturl"
)

// Upstreams offers the addresses of a request's target, which the handler
// `target` has resolved, to `reverse_proxy`; or, with a name, those of this name.
//
// If a name of its own cannot be resolved, the static upstreams of `reverse_proxy`
// serve the request, if there are any; if it is refused, none does.
//
// A name that begins with an underscore, `_http._tcp.example.com`, is that of a
// service, whose SRV records (RFC 2782) say on which hosts and ports it is
// offered. Records of the lowest priority number that has an address that works
// are used. If their weights differ, each request goes to one record, chosen
// in proportion to the weights; else the addresses of all records are offered.
// Where TLS is used, it is the host of the record that has to prove its name.
//
// Addresses that failed are left out for a while, as long as others remain. A
// TCP connection that cannot be opened takes the address and port from all
// targets; a failed TLS handshake, a reset or silence takes it from this target
// only, and what exceeds a limit of a site (a timeout, an unhealthy status or
// latency) only for requests with the same limits. A timeout that the client of a
// request has chosen counts if three of them in a row ran out, for requests with as
// little time. When the time is over, it is
// tried whether a connection can be opened or, if that is not what failed, one
// request is sent there. Within one request, an address that was tried is left out
// while others remain.
type Upstreams struct {
	// The name to resolve, instead of the request's target. Placeholders are
	// supported, but then at least one of the fields of the guard has to be
	// set; a name without placeholders is not checked. Of a service its name is
	// checked, its ports and its addresses.
	Name string `json:"name,omitempty"`

	// The port to use with the name. Placeholders are supported. A service has
	// none. Default: 80.
	Port string `json:"port,omitempty"`

	Guard

	// The resolver for the name. Default: that of the app.
	Resolver *Resolver `json:"resolver,omitempty"`

	// How many addresses are offered at most. If there are more, each request is
	// offered others, drawn at random; but always the same where the load
	// balancing policy chooses by what stays the same (`ip_hash`, `cookie` …).
	// Default: 4.
	MaxUpstreams int `json:"max_upstreams,omitempty"`

	// After how many failures in a row an address is left out. Default: 1.
	MaxFails int `json:"max_fails,omitempty"`

	// For how long an address is left out; 0: never. Default: `10s`.
	FailDuration *caddy.Duration `json:"fail_duration,omitempty"`

	failDuration time.Duration
	sticky       bool // each request is offered the same addresses
	patient      bool // reverse_proxy tries for some time
	fallback     bool // reverse_proxy has static upstreams, too
	dynamic      bool // the name has placeholders
	alone        bool // reverse_proxy has another transport
	judge        *judge
	resolver     *resolver
	health       *health.Tracker
	limit        health.Limit // of the transport
	log          *zap.Logger
	lastLog      atomic.Int64 // when a failed lookup was last logged, in Unix seconds
}

// CaddyModule returns the Caddy module information.
func (*Upstreams) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.upstreams.target",
		New: func() caddy.Module { return new(Upstreams) },
	}
}

// Provision sets up the source.
func (u *Upstreams) Provision(ctx caddy.Context) error {
	u.log = ctx.Logger()
	setDefault(&u.MaxUpstreams, defaultMaxUpstreams)
	setDefault(&u.MaxFails, 1)
	u.failDuration = defaultFailDuration
	if u.FailDuration != nil {
		u.failDuration = time.Duration(*u.FailDuration)
	}
	app, err := appOf(ctx)
	if err != nil {
		return err
	}
	u.health = app.health
	if u.resolver, err = app.acquire(u.Resolver); err != nil {
		return err
	}
	proxy, ours := proxyOf(ctx), true
	if proxy != nil {
		var t *Transport
		if t, ours = proxy.Transport.(*Transport); ours {
			u.limit = t.limit
		}
		u.sticky = sticks(proxy)
		u.patient = proxy.LoadBalancing != nil && proxy.LoadBalancing.TryDuration > 0
		u.fallback = len(proxy.Upstreams) > 0
	}
	if !ours {
		u.failDuration = min(u.failDuration, 0) // another transport does not report what works again
	}
	if u.Name != "" {
		if !u.isService() {
			setDefault(&u.Port, "80")
		}
		u.dynamic = strings.Contains(u.Name, "{")
	} else {
		u.alone = !ours
	}
	u.judge, err = app.judge(&u.Guard, u.log)
	return err
}

const (
	defaultMaxUpstreams = 4
	defaultFailDuration = 10 * time.Second
)

// Validate checks the configuration.
func (u *Upstreams) Validate() error {
	guarded := u.Guard.isSet()
	switch {
	case len(u.Schemes) > 0:
		return errors.New("schemes has no meaning here: it is the transport that decides")
	case u.Name == "" && u.Port != "":
		return errors.New("a port without a name")
	case u.isService() && u.Port != "":
		return fmt.Errorf("%s is the name of a service, whose SRV records have the ports: no port goes with it", u.Name)
	case u.Name == "" && (guarded || u.Resolver != nil):
		return errors.New("without a name, the resolver and what may be called are configured at the target handler")
	case u.dynamic && !guarded:
		return fmt.Errorf("the name %s has placeholders: say what may be called by guard, allow, deny, allow_ips, deny_ips or ports", u.Name)
	case u.Name != "" && !u.dynamic && guarded:
		return fmt.Errorf("the name %s has no placeholders and is not judged: guard, allow, deny, allow_ips, deny_ips and ports have no meaning", u.Name)
	case u.MaxUpstreams < 0:
		return fmt.Errorf("max_upstreams %d is negative", u.MaxUpstreams)
	case u.MaxFails < 0:
		return fmt.Errorf("max_fails %d is negative", u.MaxFails)
	case u.failDuration < 0:
		return fmt.Errorf("fail_duration %s is negative", u.failDuration)
	}
	if u.alone {
		return errors.New("needs transport target in the same reverse_proxy: another one would not follow the scheme and the name of the target")
	}
	if u.Name != "" && !u.dynamic {
		if _, _, err := targeturl.NormalizeHost(u.Name); err != nil {
			return err
		}
	}
	if u.Port != "" && !strings.Contains(u.Port, "{") {
		if _, err := targeturl.ParsePort(u.Port); err != nil {
			return err
		}
	}
	return nil
}

// namedCall is the call of a source with a name, or of one record of a service,
// for the transport, which finds it by the upstream that was selected.
type namedCall struct {
	source *Upstreams
	call   call
	offers []*reverseproxy.Upstream
}

// callOf returns what is called by way of an upstream, and the pass that this belongs
// to: nil if neither a handler nor a source of this module knows of it.
func callOf(r *http.Request, upstream *reverseproxy.Upstream) (*call, *pass) {
	ctx := r.Context()
	var p *pass
	if st, ok := caddyhttp.GetVar(ctx, stateVar).(*requestState); ok && st.pass != nil {
		p = st.pass
		for _, n := range p.named {
			if slices.Contains(n.offers, upstream) {
				return &n.call, p
			}
		}
	}
	c, ok := ctx.Value(callKey{}).(*call)
	if ok {
		if p != nil && p.request != nil && p.request.Context().Value(callKey{}) == c {
			c.enter(p) // beside a source with a name
		}
		p = c.inPass()
	}
	return c, p
}

// GetUpstreams implements reverseproxy.UpstreamSource.
func (u *Upstreams) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	if u.Name != "" {
		return u.named(r)
	}
	c, ok := r.Context().Value(callKey{}).(*call)
	if !ok {
		return nil, errors.New("the request has no target: is there a target handler before reverse_proxy?")
	}
	p := c.state.enter(r)
	c.enter(p)
	offers := u.offer(r.Context(), c)
	p.offered = len(offers) > 0
	return offers, nil
}

// named resolves the name of the source, once in a pass.
func (u *Upstreams) named(r *http.Request) ([]*reverseproxy.Upstream, error) {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	st := stateOf(r.Context(), repl)
	again := st.pass != nil && st.pass.request == r
	p := st.enter(r)
	if u.dynamic && !again && hasLoopID(r.Header) {
		p.looped = true
	}
	if u.dynamic && p.looped {
		return u.failed(st, nil, errLoop)
	}
	if u.isService() {
		s, err := u.service(r, repl, st)
		if err != nil {
			return u.failed(st, nil, err)
		}
		upstreams, err := u.offerService(r.Context(), s)
		if err != nil {
			return u.failed(st, nil, err)
		}
		return upstreams, nil
	}
	i := slices.IndexFunc(p.named, func(n *namedCall) bool { return n.source == u })
	if i < 0 {
		n := &namedCall{source: u}
		n.call.state, n.call.pass = st, p
		if err := u.resolveName(r, repl, &n.call); err != nil {
			return u.failed(st, &n.call, err)
		}
		i = len(p.named)
		p.named = append(p.named, n)
	}
	n := p.named[i]
	n.offers = u.offer(r.Context(), &n.call)
	return n.offers, nil
}

// resolveName sets the call that u makes for a request.
func (u *Upstreams) resolveName(r *http.Request, repl *caddy.Replacer, c *call) error {
	host, literal, err := targeturl.NormalizeHost(repl.ReplaceAll(u.Name, ""))
	if err != nil {
		return malformedError{err}
	}
	port, err := targeturl.ParsePort(repl.ReplaceAll(u.Port, ""))
	if err != nil {
		return malformedError{err}
	}
	c.host, c.port, c.resolver = host, port, u.resolver
	c.hostport = r.Host // as long as there is no TLS, the client's
	c.repeats = isRepeatable(r.Method)
	if u.dynamic {
		c.judge, c.client = u.judge, clientOf(r)
		if err := c.judge.target(c); err != nil {
			return err
		}
	}
	return c.resolve(r.Context(), literal)
}

// failed offers nothing, since there was an error. One that is not the request's
// is logged, at most one a second. If reverse_proxy has static upstreams, too, they
// serve the request then, but not one that was refused.
func (u *Upstreams) failed(st *requestState, c *call, err error) ([]*reverseproxy.Upstream, error) {
	st.err = err
	status := statusOf(err)
	u.judge.failed(c, status, err)
	if status < http.StatusInternalServerError {
		return nil, nil
	}
	now := time.Now().Unix()
	if last := u.lastLog.Load(); last != now && u.lastLog.CompareAndSwap(last, now) {
		configured := u.Name
		if !u.isService() {
			configured = net.JoinHostPort(u.Name, u.Port)
		}
		u.log.Error("no upstreams", zap.String("configured", configured), zap.Error(err))
	}
	if u.fallback && (ruleOf(err) == "" || !u.dynamic) {
		return nil, err
	}
	return nil, nil
}

// slab holds n upstreams and the pointers to them in one allocation, for the
// usual n.
func slab(n int) ([]reverseproxy.Upstream, []*reverseproxy.Upstream) {
	switch {
	case n == 1:
		s := new(struct {
			upstreams [1]reverseproxy.Upstream
			pointers  [1]*reverseproxy.Upstream
		})
		return s.upstreams[:], s.pointers[:]
	case n <= defaultMaxUpstreams:
		s := new(struct {
			upstreams [defaultMaxUpstreams]reverseproxy.Upstream
			pointers  [defaultMaxUpstreams]*reverseproxy.Upstream
		})
		return s.upstreams[:], s.pointers[:n]
	}
	return make([]reverseproxy.Upstream, n), make([]*reverseproxy.Upstream, n)
}

// offer returns upstreams for the addresses of c that should be tried now.
func (u *Upstreams) offer(ctx context.Context, c *call) []*reverseproxy.Upstream {
	chosen := u.choose(ctx, c)
	if !chosen.working && c.renew(ctx) {
		chosen = u.choose(ctx, c)
	}
	c.more = chosen.more
	var buf [defaultMaxUpstreams]netip.AddrPort
	addrs := buf[:0]
	for k := range chosen.len(u.MaxUpstreams) {
		addrs = append(addrs, netip.AddrPortFrom(chosen.at(k), c.port))
	}
	return upstreamsFor(addrs)
}

// upstreamsFor returns upstreams for some addresses.
func upstreamsFor(addrs []netip.AddrPort) []*reverseproxy.Upstream {
	upstreams, pointers := slab(len(addrs))
	// one string for all
	var buf [defaultMaxUpstreams * len("[0000:0000:0000:0000:0000:0000:0000:0000]:65535")]byte
	text := buf[:0]
	var ends [16]int
	dials := ends[:0]
	for _, a := range addrs {
		text = a.AppendTo(text)
		dials = append(dials, len(text))
	}
	all, start := string(text), 0
	for i, end := range dials {
		upstreams[i].Dial = all[start:end]
		pointers[i] = &upstreams[i]
		start = end
	}
	return pointers
}

// policy returns what failures of addresses mean to c.
func (u *Upstreams) policy(c *call) health.Policy {
	return health.Policy{MaxFails: u.MaxFails, EjectFor: u.failDuration, Retryable: c.repeats, Limits: [2]health.Limit{c.limit, u.limit}, Timeout: c.timeout}
}

// usable returns the state of an address of c for u. One that was tried for this
// request is ejected.
func (u *Upstreams) usable(c *call, p *health.Policy, a netip.Addr) (health.State, wear) {
	addr := netip.AddrPortFrom(a, c.port)
	switch n := c.wearOf(addr); {
	case n == ready:
		return health.Healthy, n
	case n != untried:
		return health.Ejected, n
	case u.failDuration == 0:
		return health.Healthy, n
	}
	return u.health.State(p, c.host, addr), untried
}

// choice is what a source offers of a call's addresses.
type choice struct {
	addrs   []netip.Addr
	first   int  // with which of them it begins: see at
	trial   bool // it is one that failed a while ago
	working bool // they are not known to fail
	more    bool // if the one that is chosen of them fails, there is another one
}

// choose returns the addresses to try now: those that work and were not tried,
// the preferred ones if there are any; else those that do not work, for some
// address has to be tried; else those that may be tried once more. An address
// whose time is over is probed in the background, if there are others; if it
// takes a request to find out, it is returned alone, on trial. When nothing is
// left, or the request's body cannot be sent again, there is an end; unless
// reverse_proxy is to try for some time: then all begins again.
func (u *Upstreams) choose(ctx context.Context, c *call) choice {
	c.release()
	p, first := u.policy(c), u.firstOf(c)
	healthy := 0
	for healthy < min(c.preferred, u.MaxUpstreams) {
		if v, _ := u.usable(c, &p, c.addrs[c.place(first, healthy)]); v != health.Healthy {
			break
		}
		healthy++
	}
	if healthy == min(c.preferred, u.MaxUpstreams) {
		return choice{addrs: c.addrs[:c.preferred], first: first, working: true, more: len(c.addrs) > 1}
	}
	if !c.inPass().sendable() {
		return choice{}
	}

	var working, probe, trial, failing, again []netip.Addr
	preferred, rest := 0, false
	for k := range c.addrs {
		i := c.place(first, k)
		a := c.addrs[i]
		// the preferred ones are enough, or more than are offered work
		if rest = i >= c.preferred && preferred > 0 || len(working) > u.MaxUpstreams; rest {
			break
		}
		switch v, n := u.usable(c, &p, a); {
		case n == worn:
			again = append(again, a)
		case n == spent:
		case v == health.NeedsTrial:
			trial = append(trial, a)
		case v == health.NeedsProbe:
			probe = append(probe, a)
		case v == health.Ejected:
			failing = append(failing, a)
		default:
			working = append(working, a)
			if i < c.preferred {
				preferred++
			}
		}
	}
	for _, a := range trial {
		if l := u.claim(ctx, c, &p, a, health.NeedsTrial); l != nil {
			c.trial = l
			return choice{addrs: []netip.Addr{a}, trial: true, working: true, more: len(c.addrs) > 1}
		}
	}
	for _, a := range probe {
		switch l := u.claim(ctx, c, &p, a, health.NeedsProbe); {
		case l == nil:
			failing = append(failing, a)
		case len(working) == 0:
			c.trial = l
			return choice{addrs: []netip.Addr{a}, trial: true, working: true, more: len(c.addrs) > 1}
		default:
			c.probe = append(c.probe, l)
		}
	}
	switch {
	case preferred > 0:
		return choice{addrs: working[:preferred], working: true, more: len(working) > 1 || rest}
	case len(working) > 0:
		return choice{addrs: working, working: true, more: len(working) > 1}
	case len(failing) > 0:
		return choice{addrs: failing, more: len(failing) > 1}
	case len(again) > 0:
		return choice{addrs: again}
	case u.patient:
		c.tried, c.inPass().deadlines = c.tried[:0], [2]time.Time{}
		return choice{addrs: c.addrs, more: len(c.addrs) > 1}
	}
	return choice{}
}

// renew asks for the addresses of c again, for none of those that were known is
// healthy. It reports whether there are others now.
func (c *call) renew(ctx context.Context) bool {
	if c.lookup == "literal" || c.lookup == "hosts" || c.resolver == nil {
		return false
	}
	renewed := *c
	var err error
	if renewed.answer, err = c.resolver.renew(ctx, c); err != nil || slices.Equal(renewed.all, c.all) {
		return false
	}
	if c.judge != nil && c.judge.addresses(&renewed) != nil {
		return false
	}
	renewed.lookup, renewed.waited = c.lookup, c.waited
	c.answer = renewed.answer
	return true
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Upstreams)(nil)
	_ caddy.Validator             = (*Upstreams)(nil)
	_ reverseproxy.UpstreamSource = (*Upstreams)(nil)
)
