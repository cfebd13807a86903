package caddytarget

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failover"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
	"caddytarget/internal/warm"
)

// Warm says how many connections are kept open, and to how many targets: those that a site
// has called most of late. They are opened in the background: after a start, since which
// targets these are is saved where the resolver of the site saves what it knows; and while
// requests to them come.
//
// Connections that are idle, in use and being dialled count, at all addresses of a target
// together. Over HTTP/2 one connection to an address is enough. A target gets no more
// connections than it had requests of late, and none once it was not called for as long as a
// connection may be idle. No connection is opened to an address that the guard refuses or
// that failed. If the backend closes connections that no request has used within a minute,
// no others are opened until requests have opened or used as many. At most 100 dials a second
// are begun, and 16 are under way at a time.
type Warm struct {
	// How many connections are kept open to each target, 100 at most.
	Connections int `json:"connections"`

	// To how many targets, 10000 at most. Default: 100.
	Targets int `json:"targets,omitempty"`
}

// defaultIdleTimeout is how long a connection is idle before it is closed.
const defaultIdleTimeout = 150 * time.Second

// checkWarm checks that connections can be kept open for requests to come.
func (t *Transport) checkWarm() error {
	if t.Warm == nil {
		return nil
	}
	if err := warm.Check(t.Warm.Connections, t.Warm.Targets); err != nil {
		return err
	}
	n, keepAlive := t.Warm.Connections, t.KeepAlive
	switch {
	case keepAlive != nil && keepAlive.Enabled != nil && !*keepAlive.Enabled:
		return errors.New("warm: without keepalive no connection is kept")
	case t.ProxyProtocol != "":
		return errors.New("warm: with proxy_protocol a connection is for one client")
	case t.MaxConnsPerHost > 0 && n > t.MaxConnsPerHost:
		return fmt.Errorf("warm: %d connections are more than max_conns_per_host %d", n, t.MaxConnsPerHost)
	case keepAlive != nil && keepAlive.MaxIdleConnsPerHost > 0 && n > keepAlive.MaxIdleConnsPerHost:
		return fmt.Errorf("warm: %d connections are more than keepalive_idle_conns_per_host %d", n, keepAlive.MaxIdleConnsPerHost)
	case t.TLS != nil && strings.Contains(caddy.NewReplacer().ReplaceKnown(t.TLS.ServerName, ""), "{"):
		return fmt.Errorf("warm: the tls_server_name %s is only known per request", t.TLS.ServerName)
	}
	return nil
}

// keepWarm makes the sites of an HTTP app whose transports say so count their targets, and
// keeps connections to these open.
func (a *App) keepWarm(app *caddyhttp.App) {
	if !a.warms {
		return
	}
	var sites []*warm.Site
	var begin []func()
	for _, s := range targetSitesOf(app) {
		if s.proxy == nil {
			continue
		}
		transport, source := targetModules(s.proxy)
		if source == nil || transport.Warm == nil {
			continue
		}
		h := s.handler
		site := &warm.Site{
			Name:        s.Name,
			Connections: transport.Warm.Connections,
			Targets:     cmp.Or(transport.Warm.Targets, warm.DefaultTargets),
			Unused:      transport.pool.Config.IdleTimeout,
			Group:       h.resolver,
			Pool:        transport.pool.Pool,
			Find: func(ctx context.Context, t warm.Target) *warm.Found {
				return h.findWarm(ctx, transport, &source.source.Source, t)
			},
		}
		if site.Unused <= 0 {
			site.Unused = defaultIdleTimeout
		}
		sites = append(sites, site)
		begin = append(begin, func() { h.warm.Store(site) })
	}
	a.shared.warm.Use(a, sites)
	for _, f := range begin {
		f()
	}
}

// findWarm returns where connections to a target may be opened now: where a GET request
// would be sent that has tried nothing. It is nil if the target may not be called or has no
// address.
func (h *Handler) findWarm(ctx context.Context, t *Transport, source *failover.Source, target warm.Target) *warm.Found {
	u, err := targeturl.Parse(target.Scheme + "://" + net.JoinHostPort(target.Host, strconv.Itoa(int(target.Port))))
	if err != nil {
		return nil
	}
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
	st := &exchange.State{Explained: new(exchange.Explained)}
	r := (&http.Request{Method: http.MethodGet, URL: new(url.URL), Header: make(http.Header), Body: http.NoBody}).WithContext(ctx)
	c := new(exchange.Call)
	c.SetURL(u)
	if h.admitCall(c, r, st) != nil || c.Resolve(ctx, u.Addr) != nil {
		return nil
	}
	c.Join(st.Enter(r))
	found := new(warm.Found)
	for _, addr := range c.Addrs {
		found.Keys = append(found.Keys, t.attemptAt(c, r, netip.AddrPortFrom(addr, c.Port)).Order.Key)
	}
	peek := *source
	peek.Peek = true
	offer := peek.Next(ctx, &c.Exchange.Plan, &c.Target, true)
	for _, addr := range offer.Append(nil, c.Port, peek.Max) {
		if peek.State(&c.Target, addr.Addr()) == health.Healthy {
			found.Orders = append(found.Orders, t.spareOrder(c, r, addr))
		}
	}
	return found
}

// spareOrder returns the order of a connection for requests to come.
func (t *Transport) spareOrder(c *exchange.Call, r *http.Request, addr netip.AddrPort) *pool.Order {
	order := t.attemptAt(c, r, addr).Order
	return &pool.Order{Key: order.Key, Target: order.Target, Owner: order.Owner, Last: true}
}

// usedOf counts a request that was answered for its site.
func usedOf(st *exchange.State, site *warm.Site) {
	if c := st.Call; st.Attempts > 0 && st.Err == nil && c.Scheme != "" {
		site.Used(c.Scheme, c.Host, c.Port, !st.Reused)
	}
}
