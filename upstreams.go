package caddytarget

import (
	"cmp"
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
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/targeturl"
)

func init() { caddy.RegisterModule(new(Upstreams)) }

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

	source   exchange.Source
	fallback bool // reverse_proxy has static upstreams, too
	foreign  bool // reverse_proxy has another transport
	log      *zap.Logger
	lastLog  atomic.Int64 // when a failed lookup was last logged, in Unix seconds
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
	u.MaxUpstreams, u.MaxFails = cmp.Or(u.MaxUpstreams, defaultMaxUpstreams), cmp.Or(u.MaxFails, 1)
	if u.FailDuration == nil {
		u.FailDuration = new(defaultFailDuration)
	}
	app, err := appOf(ctx)
	if err != nil {
		return err
	}
	if u.source.Resolver, err = app.acquire(u.Resolver); err != nil {
		return err
	}
	u.source.Source = failover.Source{
		Health: app.shared.health, MaxFails: u.MaxFails, EjectFor: time.Duration(*u.FailDuration), Max: u.MaxUpstreams,
	}
	u.readProxyConfig(proxyOf(ctx))
	app.useEjections(&u.source.Source)
	if u.source.Dynamic = strings.Contains(u.Name, "{"); u.Name != "" && !u.isService() {
		u.Port = cmp.Or(u.Port, "80")
	}
	u.source.Policy, err = app.policy(&u.Guard, u.log)
	return err
}

// readProxyConfig takes from the reverse_proxy that the source belongs to what it has to
// know of it.
func (u *Upstreams) readProxyConfig(proxy *reverseproxy.Handler) {
	if proxy == nil {
		return
	}
	u.source.Sticky = isSticky(proxy)
	u.source.RetriesByTime = proxy.LoadBalancing != nil && proxy.LoadBalancing.TryDuration > 0
	u.fallback = len(proxy.Upstreams) > 0
	t, ok := proxy.Transport.(*Transport)
	if u.foreign = !ok; u.foreign {
		u.source.EjectFor = 0 // another transport does not report what works again
		return
	}
	u.source.Limit = t.via.Limit
}

// isSticky reports whether the load balancing policy of a reverse_proxy chooses by
// what stays the same, so that it has to be offered the same upstreams for each
// request. One that is not known here may.
func isSticky(proxy *reverseproxy.Handler) bool {
	if proxy.LoadBalancing == nil {
		return false
	}
	switch proxy.LoadBalancing.SelectionPolicy.(type) {
	case nil, // the default, random
		*reverseproxy.RandomSelection, *reverseproxy.RandomChoiceSelection,
		*reverseproxy.LeastConnSelection, *reverseproxy.RoundRobinSelection:
		return false
	}
	return true
}

const (
	defaultMaxUpstreams = 4
	defaultFailDuration = caddy.Duration(10 * time.Second)
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
	case u.source.Dynamic && !guarded:
		return fmt.Errorf("the name %s has placeholders: say what may be called by guard, allow, deny, allow_ips, deny_ips or ports", u.Name)
	case u.Name != "" && !u.source.Dynamic && guarded:
		return fmt.Errorf("the name %s has no placeholders and is not checked: guard, allow, deny, allow_ips, deny_ips and ports have no meaning", u.Name)
	case u.MaxUpstreams < 0:
		return fmt.Errorf("max_upstreams %d is not a positive number", u.MaxUpstreams)
	case u.MaxFails < 0:
		return fmt.Errorf("max_fails %d is not a positive number", u.MaxFails)
	case u.FailDuration != nil && *u.FailDuration < 0:
		return fmt.Errorf("fail_duration %s is negative", time.Duration(*u.FailDuration))
	}
	if u.foreign && u.Name == "" {
		return errors.New("needs transport target in the same reverse_proxy: another one would not follow the scheme and the name of the target")
	}
	if u.Name != "" && !u.source.Dynamic {
		if _, _, err := targeturl.NormalizeHost(u.Name); err != nil {
			return err
		}
	}
	if u.Port != "" && !strings.Contains(u.Port, "{") {
		if _, err := guard.ParsePort(u.Port); err != nil {
			return err
		}
	}
	return nil
}

// GetUpstreams implements reverseproxy.UpstreamSource.
func (u *Upstreams) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	if u.Name != "" {
		return u.namedUpstreams(r)
	}
	c := exchange.CallOf(r.Context())
	if c == nil {
		return nil, errors.New("the request has no target: is there a target handler before reverse_proxy?")
	}
	c.Join(c.State.Enter(r))
	return u.offer(r.Context(), c), nil
}

// namedUpstreams resolves the name of the source, once in an exchange.
func (u *Upstreams) namedUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	st := stateOf(r.Context())
	again := st.HasEntered(r)
	x := st.Enter(r)
	if u.source.Dynamic && !again && outgoing.HasLoopID(r.Header) {
		x.Looped = true
	}
	if u.source.Dynamic && x.Looped {
		return u.failed(st, nil, failure.ErrLoop)
	}
	var n *named
	all := st.namedOf(x)
	if i := slices.IndexFunc(all, func(n *named) bool { return n.source == &u.source }); i >= 0 {
		n = all[i]
	} else {
		n = &named{source: &u.source}
		if c, err := u.resolveName(r, repl, n, x, st); err != nil {
			return u.failed(st, c, err)
		}
		st.named = append(st.named, n)
	}
	if n.service != nil {
		upstreams, err := n.offerService(r.Context())
		if err != nil {
			return u.failed(st, nil, err)
		}
		return upstreams, nil
	}
	upstreams := u.offer(r.Context(), &n.call)
	n.offers = append(n.room[:0], offer{&n.call, upstreams})
	return upstreams, nil
}

// isService reports whether the name is that of a service (RFC 2782).
func (u *Upstreams) isService() bool { return strings.HasPrefix(u.Name, "_") }

// resolveName sets what the source calls for a request. On an error it returns the call
// that failed, if there is one.
func (u *Upstreams) resolveName(r *http.Request, repl *caddy.Replacer, n *named, x *exchange.Exchange, st *requestState) (c *exchange.Call, err error) {
	name := repl.ReplaceAll(u.Name, "")
	if u.isService() {
		n.service, err = u.source.CallService(r, name, x, &st.State)
		return nil, err
	}
	if err = u.source.CallName(&n.call, r, name, repl.ReplaceAll(u.Port, ""), x, &st.State); err == nil {
		n.call.Join(x)
	}
	return &n.call, err
}

// offerService returns upstreams for the addresses of the service that should be tried
// now.
func (n *named) offerService(ctx context.Context) ([]*reverseproxy.Upstream, error) {
	n.offers = n.offers[:0]
	addrs, parts, err := n.service.Next(ctx)
	if err != nil {
		return nil, err
	}
	upstreams := upstreamsFor(addrs)
	for _, p := range parts {
		n.offers = append(n.offers, offer{&n.service.Calls[p.Record], upstreams[p.From:p.To]})
	}
	return upstreams, nil
}

// failed offers nothing, since there was an error. One that is not the request's
// is logged, at most one a second. If reverse_proxy has static upstreams, too, they
// serve the request then, but not one that was refused.
func (u *Upstreams) failed(st *requestState, c *exchange.Call, err error) ([]*reverseproxy.Upstream, error) {
	st.Err = err
	status := failure.StatusOf(err)
	u.source.Policy.Failed(c, status, err)
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
	if u.fallback && (failure.RuleOf(err) == "" || !u.source.Dynamic) {
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
func (u *Upstreams) offer(ctx context.Context, c *exchange.Call) []*reverseproxy.Upstream {
	o := c.Offer(ctx, &u.source.Source)
	var buf [defaultMaxUpstreams]netip.AddrPort
	return upstreamsFor(o.Append(buf[:0], c.Port, u.MaxUpstreams))
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

// Interface guards
var (
	_ caddy.Provisioner           = (*Upstreams)(nil)
	_ caddy.Validator             = (*Upstreams)(nil)
	_ reverseproxy.UpstreamSource = (*Upstreams)(nil)
)
