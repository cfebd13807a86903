package caddytarget

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/exchange"
	"caddytarget/internal/explain"
)

// explanation takes one request through the steps of the handler, the source and the
// transport of a site, up to the connection, and writes down what each of them finds. The
// request is marked as explained: it is not counted, logged or sent.
type explanation struct {
	site    *targetSite
	state   *exchange.State
	call    *exchange.Call // nil: there is no target
	request *http.Request
	repl    *caddy.Replacer
	connect bool // a connection is opened
	report  explain.Report
}

// newExplanation prepares the explanation of a request.
func newExplanation(site *targetSite, in *explain.Input) *explanation {
	e := &explanation{site: site, repl: caddy.NewReplacer(), connect: in.Connect}
	e.request = caddyhttp.PrepareRequest(in.Request, e.repl, explain.NoResponse{}, site.server)
	e.state = &stateOf(e.request.Context()).State
	e.state.Explained = &exchange.Explained{URL: in.URL}
	e.report.Site, e.report.Method = site.Name, in.Request.Method
	client, err := netip.ParseAddrPort(in.Request.RemoteAddr)
	if err != nil { // it came over a Unix socket
		client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	}
	caddyhttp.SetVar(e.request.Context(), proxyProtocolVar, reverseproxy.ProxyProtocolInfo{AddrPort: client})
	return e
}

// run goes through the steps, and returns the report.
func (e *explanation) run() *explain.Report {
	c, u, stop, err := e.site.handler.admit(explain.NoResponse{}, e.request, e.repl, nil, e.state)
	if stop != nil {
		defer stop()
	}
	if c != nil {
		e.call = &c.Call
		e.request = e.request.WithContext(c)
		e.describeTarget()
	}
	if err == nil {
		err = e.mayEnter()
	}
	if err == nil {
		err = e.callAddresses(c, u.Addr)
	}
	e.state.Err = err
	e.report.Outcome = explain.NewOutcome(err, e.state.Failure(), e.state.ErrorText())
	return &e.report
}

// describeTarget describes the target and what the guard says of it.
func (e *explanation) describeTarget() {
	c, h := e.call, e.site.handler
	e.report.Target = &explain.Target{
		Scheme: c.Scheme, Host: c.Host, Port: c.Port, HostHeader: c.HostPort, URI: c.URI, Timeout: e.state.Timeout.Seconds(),
	}
	gate := h.policy.Gate
	for _, check := range []struct {
		what, value string
		err         error
	}{
		{"scheme", c.Scheme, gate.CheckScheme(c.Scheme)},
		{"name", c.Host, gate.CheckName(c.Host)},
		{"port", strconv.Itoa(int(c.Port)), gate.CheckPort(c.Port)},
	} {
		e.report.Rules = append(e.report.Rules, explain.NewRule(check.what, check.value, check.err, gate.OnlyReports))
	}
}

// mayEnter returns why there are too many requests to the target, or nil.
func (e *explanation) mayEnter() error {
	h := e.site.handler
	if h.MaxRequests == 0 {
		return nil
	}
	n := h.inFlight.Count(e.call.Origin())
	e.report.InFlight = &explain.InFlight{Requests: n, Max: h.MaxRequests}
	if n >= h.MaxRequests {
		return h.tooMany(e.call)
	}
	return nil
}

// callAddresses resolves the target's name, and goes on to its addresses. literal is the name
// if that is an address. The lookup is observed to the end: offer may ask for the name again.
func (e *explanation) callAddresses(ctx *exchange.Context, literal netip.Addr) (err error) {
	if !literal.IsValid() {
		l, end := explain.NewLookup(e.call.Resolver, e.call.Host)
		defer func() { end(len(e.call.Answer.Addrs) > 0, err) }()
		e.report.Lookup = l
	}
	if err = e.resolve(ctx, literal); err != nil {
		return err
	}
	return e.offer(ctx)
}

// resolve resolves the target's name, and describes that and the addresses.
func (e *explanation) resolve(ctx context.Context, literal netip.Addr) error {
	c := e.call
	err := c.Resolve(ctx, literal)
	if l := e.report.Lookup; l != nil {
		l.From, l.Seconds = c.Answer.From, c.Answer.Waited.Round(time.Microsecond).Seconds()
		if found := c.Answer.Found; found != "" && found != c.Host {
			l.Found = found
			e.report.Rules = append(e.report.Rules, explain.NewRule("name", found, c.Policy.CheckComplete(found), c.Policy.OnlyReports))
		}
	}
	e.describeAddresses()
	return err
}

// describeAddresses describes all addresses of the target, and whether they may be called.
func (e *explanation) describeAddresses() {
	c := e.call
	e.report.Found = nil
	for i, addr := range c.Answer.Addrs {
		a := &explain.Address{Address: netip.AddrPortFrom(addr, c.Port), Preferred: i < c.Answer.Preferred}
		a.Refuse(c.Policy.Check(a.Address), c.Policy.OnlyReports)
		e.report.Found = append(e.report.Found, a)
	}
}

// offer describes which addresses reverse_proxy would be offered, and the connection over
// which the request would be sent.
func (e *explanation) offer(ctx *exchange.Context) error {
	c, proxy := e.call, e.site.proxy
	if proxy == nil {
		return nil
	}
	transport, source := targetModules(proxy)
	if source == nil {
		return nil // it does not call the addresses of the target
	}
	c.Join(e.state.Enter(e.request))
	peek := source.source.Source
	peek.Peek = true
	offer := c.Offer(ctx, &peek)
	e.describeAddresses() // they may be others now
	addrs := offer.Append(nil, c.Port, source.MaxUpstreams)
	for _, a := range e.report.Found {
		if !a.Allowed() {
			continue
		}
		a.SetState(peek.State(&c.Target, a.Address.Addr()), peek.Causes(&c.Target, a.Address.Addr()))
		n := transport.pool.Connections(e.attempt(transport, a.Address).Order.Key)
		a.Connections = &explain.Connections{Open: n.Open, Idle: n.Idle, HTTP2: n.HTTP2, Dials: n.Dials, Waiting: n.Waiting}
		for i, offered := range addrs {
			if offered == a.Address {
				a.Offered = i + 1
			}
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	return e.dial(transport, e.attempt(transport, addrs[0]), len(addrs))
}

// targetModules returns the transport and the source of a reverse_proxy that calls the
// addresses of the target; nil if it does not.
func targetModules(proxy *reverseproxy.Handler) (*Transport, *Upstreams) {
	transport, ok := proxy.Transport.(*Transport)
	source, isTarget := proxy.DynamicUpstreams.(*Upstreams)
	if !ok || !isTarget || source.Name != "" {
		return nil, nil
	}
	return transport, source
}

// attempt returns the attempt at an address that the request would make.
func (e *explanation) attempt(t *Transport, addr netip.AddrPort) *exchange.Attempt {
	a := t.attemptAt(e.call, e.request, addr)
	a.Out.Request = *e.request
	return a
}

// attemptAt returns the attempt at an address that a request for c would make.
func (t *Transport) attemptAt(c *exchange.Call, r *http.Request, addr netip.AddrPort) *exchange.Attempt {
	a := exchange.NewAttempt(&t.via, c, c.Exchange)
	t.setOrder(a, r, reverseproxy.DialInfo{
		Network: "tcp", Address: addr.String(), Host: addr.Addr().String(), Port: strconv.Itoa(int(addr.Port())),
	})
	return a
}

// dial describes the connection for an attempt at one of some addresses, and opens it if
// that is wanted.
func (e *explanation) dial(t *Transport, a *exchange.Attempt, of int) error {
	key := &a.Order.Key
	e.report.Dial = explain.NewDial(a.Address(), of, key, t.pool.Connections(*key))
	if err := a.CheckAddress(); err != nil {
		return e.state.Err // which it has set
	}
	if !e.connect {
		return nil
	}
	check, failed := t.pool.Check(e.request.Context(), &a.Order)
	if failed == nil {
		e.report.Connect = explain.NewConnect(a.Address(), &check, nil)
		return nil
	}
	err := a.NotConnected(failed)
	e.report.Connect = explain.NewConnect(a.Address(), &check, err)
	return err
}
