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

	"caddytarget/internal/explain"
	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
)

// explanation takes one request through the steps of the handler, the source and the
// transport of a site, up to the connection, and writes down what each of them finds. The
// request is marked as explained: it is not counted, logged or sent.
type explanation struct {
	site    *targetSite
	state   *requestState
	call    *call // nil: there is no target
	request *http.Request
	repl    *caddy.Replacer
	connect bool // a connection is opened
	report  explain.Report

	endLookup func(err error) // completes what the report has of the lookup; nil: there is none
}

// newExplanation prepares the explanation of a request.
func newExplanation(site *targetSite, in *explain.Input) *explanation {
	e := &explanation{site: site, repl: caddy.NewReplacer(), connect: in.Connect}
	e.request = caddyhttp.PrepareRequest(in.Request, e.repl, explain.NoResponse{}, site.server)
	e.state = stateOf(e.request.Context())
	e.state.explained = &explained{in.URL}
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
		e.call = &c.call
		e.request = e.request.WithContext(c)
		e.describeTarget()
	}
	if err == nil {
		err = e.mayEnter()
	}
	if err == nil {
		err = e.resolve(c, u.Addr)
	}
	if err == nil {
		err = e.offer(c)
	}
	if e.endLookup != nil {
		e.endLookup(err)
	}
	e.state.err = err
	e.report.Outcome = explain.NewOutcome(err, e.state.failure(), e.state.errorText())
	return &e.report
}

// describeTarget describes the target and what the guard says of it.
func (e *explanation) describeTarget() {
	c, h := e.call, e.site.handler
	e.report.Target = &explain.Target{
		Scheme: c.scheme, Host: c.Host, Port: c.Port, HostHeader: c.hostport, URI: c.uri, Timeout: e.state.timeout.Seconds(),
	}
	gate := h.policy.gate
	for _, check := range []struct {
		what, value string
		err         error
	}{
		{"scheme", c.scheme, gate.CheckScheme(c.scheme)},
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
	n := h.inFlight.Count(e.call.origin())
	e.report.InFlight = &explain.InFlight{Requests: n, Max: h.MaxRequests}
	if n >= h.MaxRequests {
		return h.tooMany(e.call)
	}
	return nil
}

// resolve resolves the target's name, and describes that and the addresses.
func (e *explanation) resolve(ctx context.Context, literal netip.Addr) error {
	c := e.call
	if literal.IsValid() {
		err := c.resolve(ctx, literal)
		e.describeAddresses()
		return err
	}
	l, end := explain.NewLookup(c.resolver, c.Host)
	e.report.Lookup = l
	e.endLookup = func(err error) { end(len(c.answer.Addrs) > 0, err) }
	err := c.resolve(ctx, literal)
	l.From, l.Seconds = c.answer.From, c.answer.Waited.Round(time.Microsecond).Seconds()
	if found := c.answer.Found; found != "" && found != c.Host {
		l.Found = found
		e.report.Rules = append(e.report.Rules, explain.NewRule("name", found, c.policy.gate.CheckComplete(found), c.policy.gate.OnlyReports))
	}
	e.describeAddresses()
	return err
}

// describeAddresses describes all addresses of the target, and whether they may be called.
func (e *explanation) describeAddresses() {
	c := e.call
	e.report.Found = nil
	for i, addr := range c.answer.Addrs {
		a := &explain.Address{Address: netip.AddrPortFrom(addr, c.Port), Preferred: i < c.answer.Preferred}
		a.Refuse(c.policy.gate.Check(a.Address), c.policy.gate.OnlyReports)
		e.report.Found = append(e.report.Found, a)
	}
}

// offer describes which addresses reverse_proxy would be offered, and the connection over
// which the request would be sent.
func (e *explanation) offer(ctx *callContext) error {
	c, proxy := e.call, e.site.proxy
	if proxy == nil {
		return nil
	}
	transport, source := targetModules(proxy)
	if source == nil {
		return nil // it does not call the addresses of the target
	}
	c.enter(e.state.enter(e.request))
	peek := source.source
	peek.Peek = true
	offer := choose(ctx, &peek, c)
	e.describeAddresses() // they may be others now
	addrs := offer.Append(nil, c.Port, source.MaxUpstreams)
	for _, a := range e.report.Found {
		if !a.Allowed() {
			continue
		}
		a.SetState(peek.State(&c.Target, a.Address.Addr()), peek.Causes(&c.Target, a.Address.Addr()))
		n := transport.pool.Connections(e.attempt(transport, a.Address).order.Key)
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
	return e.dial(e.attempt(transport, addrs[0]), len(addrs))
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
func (e *explanation) attempt(t *Transport, addr netip.AddrPort) *attempt {
	a := e.call.attemptAt(t, e.request, addr)
	a.out.Request = *e.request
	return a
}

// attemptAt returns the attempt at an address that a request for c would make.
func (c *call) attemptAt(t *Transport, r *http.Request, addr netip.AddrPort) *attempt {
	a := &attempt{transport: t, call: c, exchange: c.exchange}
	a.setOrder(r, reverseproxy.DialInfo{
		Network: "tcp", Address: addr.String(), Host: addr.Addr().String(), Port: strconv.Itoa(int(addr.Port())),
	})
	return a
}

// dial describes the connection for an attempt at one of some addresses, and opens it if
// that is wanted.
func (e *explanation) dial(a *attempt, of int) error {
	key := &a.order.Key
	e.report.Dial = explain.NewDial(a.address(), of, key, a.transport.pool.Connections(*key))
	if err := a.checkAddress(); err != nil {
		return e.state.err // which it has set
	}
	if !e.connect {
		return nil
	}
	check, failed := a.transport.pool.Check(e.request.Context(), &a.order)
	if failed == nil {
		e.report.Connect = explain.NewConnect(a.address(), &check, nil)
		return nil
	}
	err := a.notConnected(failed)
	e.report.Connect = explain.NewConnect(a.address(), &check, err)
	return err
}

// notConnected returns the error of the attempt if its connection could not be opened.
func (a *attempt) notConnected(e *pool.Error) error {
	if failure.RuleOf(e) != "" {
		return e.Err
	}
	failed := a.failure(e)
	if ended := a.out.Context().Err(); ended != nil {
		failed.Err = ended
		a.call.ranOut(ended, failed)
	}
	return failed
}
