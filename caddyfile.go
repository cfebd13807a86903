package caddytarget

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"caddytarget/internal/resolver"
	"caddytarget/internal/targeturl"
	"caddytarget/internal/warm"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("target", parseGlobalOption)
	httpcaddyfile.RegisterHandlerDirective("target", parseHandler)
	httpcaddyfile.RegisterDirective("target_proxy", parseTargetProxy)
	httpcaddyfile.RegisterDirectiveOrder("target", httpcaddyfile.Before, "reverse_proxy")
	httpcaddyfile.RegisterDirectiveOrder("target_proxy", httpcaddyfile.Before, "reverse_proxy")
}

func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next() // so that the error has a line
		return nil, d.Err("target already specified")
	}
	app := new(App)
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "target", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile sets up the app from Caddyfile tokens, as a global option.
// Syntax:
//
//	target {
//	    resolver [<nameserver...>] {
//	        ...
//	    }
//	    metrics_targets
//	}
//
// See [Resolver.UnmarshalCaddyfile] for the block of the resolver.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume option name
	if d.NextArg() {
		return d.ArgErr()
	}
	_, err := parseBlock(d, options{"resolver": resolverOption(&a.Resolver), "metrics_targets": flagOption(&a.MetricsTargets)}, nil)
	return err
}

// UnmarshalCaddyfile sets up the resolver from Caddyfile tokens. Syntax:
//
//	resolver [<nameserver...>] {
//	    nameservers          <address...>
//	    zone                 <suffix> <nameserver...>
//	    tls_trusted_ca_certs <pem_file...>
//	    timeout              <duration>
//	    tries                <n>
//	    deadline             <duration>
//	    family               auto|ipv4|ipv6|prefer_ipv4|prefer_ipv6
//	    min_ttl              <duration>
//	    max_ttl              <duration>
//	    negative_ttl         <duration>
//	    stale                <duration>|off
//	    stale_wait           <duration>
//	    refresh              <duration>|always|off
//	    refresh_queries      <n>
//	    preload              <name|file...>
//	    cache_size           <n>
//	    max_lookups          <n>
//	    new_names            <n>
//	    persist              <duration>|off
//	    hosts                <file>|off
//	    search
//	}
//
// The addresses of nameservers are
//
//	[udp://|tcp://]ADDRESS[:PORT]
//	tls://ADDRESS[:PORT][#NAME]
//	tls://HOST[:PORT]
//	https://ADDRESS[:PORT][/PATH][#NAME]
//	https://HOST[:PORT][/PATH]
func (r *Resolver) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume option name
	r.Nameservers = d.RemainingArgs()
	if err := wrap(d, r.checkNameservers()); err != nil {
		return err
	}
	seen, err := parseBlock(d, r.options(), nil)
	if err != nil {
		return err
	}
	// what is left to find is that two of them contradict each other
	err = r.config().Validate()
	at := d
	if e, ok := errors.AsType[*resolver.OptionError](err); ok {
		at = seen.last(d, e.Options...)
	}
	return wrap(at, err)
}

// options returns how to parse the subdirectives of the resolver.
func (r *Resolver) options() options {
	return options{
		"nameservers":          listOption(&r.Nameservers, r.checkNameservers),
		"zone":                 r.parseZone,
		"tls_trusted_ca_certs": listOption(&r.TLSTrustedCACerts, func() error { return nil }),
		"timeout":              durationOption(&r.Timeout),
		"tries":                numberOption(&r.Tries),
		"deadline":             durationOption(&r.Deadline),
		"family":               checked(textOption(&r.Family), r.checkFamily),
		"min_ttl":              durationOption(&r.MinTTL),
		"max_ttl":              durationOption(&r.MaxTTL),
		"negative_ttl":         durationOption(&r.NegativeTTL),
		"stale":                orOff(&r.Stale, durationOption(&r.Stale)),
		"stale_wait":           durationOption(&r.StaleWait),
		"refresh":              orWord("always", &r.RefreshAlways, true, orOff(&r.Refresh, durationOption(&r.Refresh))),
		"refresh_queries":      numberOption(&r.RefreshQueries),
		"preload":              listOption(&r.Preload, r.checkPreload),
		"cache_size":           numberOption(&r.CacheSize),
		"max_lookups":          numberOption(&r.MaxLookups),
		"new_names":            numberOption(&r.NewNames),
		"persist":              orOff(&r.Persist, checked(durationOption(&r.Persist), r.checkPersist)),
		"hosts":                checked(textOption(&r.Hosts), r.checkHosts),
		"search":               flagOption(&r.Search),
	}
}

// parseZone parses one of the zones. The same one twice is found by CheckZones,
// unless it is written in the same way.
func (r *Resolver) parseZone(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 2 {
		return d.ArgErr()
	}
	if _, ok := r.Zones[args[0]]; ok {
		return d.Errf("zone %s already specified", args[0])
	}
	if r.Zones == nil {
		r.Zones = make(map[string][]string)
	}
	r.Zones[args[0]] = args[1:]
	return wrap(d, resolver.CheckZones(r.Zones))
}

func (r *Resolver) checkNameservers() error { return resolver.CheckNameservers(r.Nameservers) }

func (r *Resolver) checkFamily() error { return resolver.CheckFamily(r.Family) }

func (r *Resolver) checkPersist() error { return resolver.CheckPersist(time.Duration(r.Persist)) }

func (r *Resolver) checkHosts() error { return resolver.CheckHosts(r.Hosts) }

func (r *Resolver) checkPreload() error { return resolver.CheckPreload(r.Preload) }

func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	target [<matcher>] <url> {
//	    path         <template>
//	    host         <template>
//	    guard        enforce|report
//	    allow        <name...>
//	    deny         <name...>
//	    allow_ips    <cidr...|private_ranges|any>
//	    deny_ips     <cidr...|private_ranges>
//	    ports        <port|from-to ...>
//	    schemes      <http|https|h2c ...>
//	    timeout      <template>
//	    max_requests <n>
//	    follow_redirects <n> {
//	        status   <code...>
//	        max_body <size>
//	        drop     <field...>
//	    }
//	    log_failures debug|info|warn|error
//	    proxy_status on|details|off
//	    resolver     [<nameserver...>] {
//	        ...
//	    }
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	if err := h.parseURL(d); err != nil {
		return err
	}
	_, err := parseBlock(d, h.options(), nil)
	return err
}

func (h *Handler) parseURL(d *caddyfile.Dispenser) error {
	if err := checked(textOption(&h.URL), h.Validate)(d); err != nil {
		return err
	}
	if targeturl.LacksBraces(h.URL) {
		warnCaddyfile(d, warnNoBraces, zap.String("url", h.URL))
	}
	return nil
}

// options returns how to parse the subdirectives of the handler.
func (h *Handler) options() options {
	opts := h.Guard.options()
	opts["schemes"] = listOption(&h.Schemes, h.Guard.check)
	opts["path"] = checked(textOption(&h.Path), h.Validate)
	opts["host"] = checked(textOption(&h.Host), h.Validate)
	opts["timeout"] = checked(textOption(&h.Timeout), h.Validate)
	opts["max_requests"] = numberOption(&h.MaxRequests)
	opts["follow_redirects"] = redirectsOption(&h.FollowRedirects)
	opts["log_failures"] = checked(textOption(&h.LogFailures), h.Validate)
	opts["proxy_status"] = checked(textOption(&h.ProxyStatus), h.Validate)
	opts["resolver"] = resolverOption(&h.Resolver)
	return opts
}

// UnmarshalCaddyfile sets up redirects from the tokens of follow_redirects, whose syntax
// stands at UnmarshalCaddyfile of Handler.
func (f *Redirects) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume option name
	if err := numberOption(&f.Max)(d); err != nil {
		return err
	}
	_, err := parseBlock(d, options{
		"status":   checked(codesOption(&f.Status, "not a status code", func(n int) bool { return n >= 100 }), f.validate),
		"max_body": checked(sizeOption(&f.MaxBody), f.validate),
		"drop":     listOption(&f.Drop, f.validate),
	}, nil)
	return err
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	dynamic target [<name> [<port>]] {
//	    resolver      [<nameserver...>] {
//	        ...
//	    }
//	    max_upstreams <n>
//	    max_fails     <n>
//	    fail_duration <duration>
//	    guard         enforce|report
//	    allow         <name...>
//	    deny          <name...>
//	    allow_ips     <cidr...|private_ranges|any>
//	    deny_ips      <cidr...|private_ranges>
//	    ports         <port|from-to ...>
//	}
//
// What may be called, from guard to ports, is for a name with placeholders. A
// name that begins with an underscore is that of a service, and has no port.
func (u *Upstreams) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume source name
	switch args := d.RemainingArgs(); len(args) {
	case 0:
	case 1:
		u.Name = args[0]
	case 2:
		if u.Name, u.Port = args[0], args[1]; u.Port == "" {
			return d.Err("no port")
		}
	default:
		return d.ArgErr()
	}
	u.source.Dynamic = strings.Contains(u.Name, "{")
	args := *d
	seen, err := parseBlock(d, u.options(), nil)
	if err != nil {
		return err
	}
	// an error is about subdirectives that have no meaning here, or about
	// the arguments
	var useless []string
	if !u.source.Dynamic {
		useless = guardOptions
	}
	if u.Name == "" {
		useless = append([]string{"resolver"}, useless...)
	}
	return wrap(seen.last(&args, useless...), u.Validate())
}

// options returns how to parse the subdirectives of the source.
func (u *Upstreams) options() options {
	opts := u.Guard.options()
	opts["resolver"] = resolverOption(&u.Resolver)
	opts["max_upstreams"] = numberOption(&u.MaxUpstreams)
	opts["max_fails"] = numberOption(&u.MaxFails)
	opts["fail_duration"] = func(d *caddyfile.Dispenser) error {
		u.FailDuration = new(caddy.Duration)
		return parseDuration(d, u.FailDuration, true)
	}
	return opts
}

// UnmarshalCaddyfile sets up the transport from Caddyfile tokens. Syntax:
//
//	transport target {
//	    tls_session_cache <n>|off
//	    unhealthy_status  <status...>
//	    unhealthy_latency <duration>
//	    share_connections
//	    warm              <n> [<targets>]
//	    # and the options of transport http, except network_proxy,
//	    # forward_proxy_url, resolvers, dial_fallback_delay, tls_except_ports
//	    # and version 3
//	}
func (t *Transport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume transport name
	if d.NextArg() {
		return d.ArgErr()
	}
	seen, err := parseBlock(d, t.options(), t.parseHTTPOption)
	if err != nil {
		return err
	}
	return wrap(seen.last(d, "warm"), t.checkWarm())
}

// options returns how to parse the transport's own subdirectives.
func (t *Transport) options() options {
	return options{
		"tls_session_cache": orOff(&t.TLSSessionCache, numberOption(&t.TLSSessionCache)),
		"unhealthy_status":  codesOption(&t.UnhealthyStatus, "neither a status code nor a class of them such as 5xx", isStatus),
		"unhealthy_latency": durationOption(&t.UnhealthyLatency),
		"share_connections": flagOption(&t.ShareConnections),
		"warm":              warmOption(&t.Warm),
	}
}

// warmOption parses
//
//	warm <n> [<targets>]
func warmOption(to **Warm) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) < 1 || len(args) > 2 {
			return d.ArgErr()
		}
		var numbers [2]int
		for i, arg := range args {
			n, err := strconv.Atoi(arg)
			if err != nil || n < 1 {
				return d.Errf("warm %q is not a positive number", arg)
			}
			numbers[i] = n
		}
		*to = &Warm{Connections: numbers[0], Targets: numbers[1]}
		return wrap(d, warm.Check(numbers[0], numbers[1]))
	}
}

// parseHTTPOption parses a subdirective of the HTTP transport.
func (t *Transport) parseHTTPOption(d *caddyfile.Dispenser) error {
	name := *d
	if err := t.HTTPTransport.UnmarshalCaddyfile(newBlock("transport", d.NextSegment())); err != nil {
		return err
	}
	return wrap(&name, t.refused())
}

// httpOptions are the subdirectives of the HTTP transport. None of them is one
// of reverse_proxy, too.
var httpOptions = []string{
	"read_buffer", "write_buffer", "read_timeout", "write_timeout", "max_response_header", "proxy_protocol",
	"forward_proxy_url", "network_proxy", "dial_timeout", "dial_fallback_delay", "response_header_timeout",
	"expect_continue_timeout", "resolvers", "tls", "tls_client_auth", "tls_insecure_skip_verify", "tls_curves",
	"tls_timeout", "tls_trusted_ca_certs", "tls_server_name", "tls_renegotiation", "tls_except_ports", "keepalive",
	"keepalive_interval", "keepalive_idle_conns", "keepalive_idle_conns_per_host", "versions", "compression",
	"max_conns_per_host", "tls_trust_pool", "local_address",
}

// parseTargetProxy parses the shortcut. Syntax:
//
//	target_proxy [<matcher>] <url> {
//	    # any subdirective of target, dynamic target or transport target,
//	    # and any of reverse_proxy
//	}
//
// It is the same as
//
//	target [<matcher>] <url> {
//	    ...
//	}
//	reverse_proxy [<matcher>] {
//	    dynamic target {
//	        ...
//	    }
//	    transport target {
//	        ...
//	    }
//	    lb_retries 7 # 2 * max_upstreams - 1
//	    ...
//	}
//
// with `header_up -NAME` if the URL is {header.NAME}, unless header_up sets it.
func parseTargetProxy(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcherSet, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, h.WrapErr(err)
	}

	h.Next() // the dispenser was reset
	handler := new(Handler)
	if err := handler.parseURL(h.Dispenser); err != nil {
		return nil, err
	}
	source, transport, proxy := new(Upstreams), new(Transport), new(reverseproxy.Handler)

	opts := source.options()
	maps.Copy(opts, handler.options()) // the guard and the resolver are the handler's
	maps.Copy(opts, transport.options())
	var rest []caddyfile.Segment
	seen, err := parseBlock(h.Dispenser, opts, func(d *caddyfile.Dispenser) error {
		switch name := d.Val(); {
		case name == "to" || name == "dynamic" || name == "transport":
			return d.Errf("%s has no place in target_proxy, which sets it itself; use target and reverse_proxy", name)
		case strings.HasPrefix(name, "health_"):
			return d.Errf("%s: active health checks do not work for upstreams that are only known per request", name)
		case slices.Contains(httpOptions, name):
			return transport.parseHTTPOption(d)
		}
		rest = append(rest, d.NextSegment())
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := wrap(seen.last(h.Dispenser, "warm"), transport.checkWarm()); err != nil {
		return nil, err
	}
	if err := proxy.UnmarshalCaddyfile(newBlock("reverse_proxy", rest...)); err != nil {
		return nil, err
	}
	if err := proxy.FinalizeUnmarshalCaddyfile(h); err != nil {
		return nil, err
	}

	proxy.DynamicUpstreamsRaw = caddyconfig.JSONModuleObject(source, "source", "target", nil)
	proxy.TransportRaw = caddyconfig.JSONModuleObject(transport, "protocol", "target", nil)
	upstreams := cmp.Or(source.MaxUpstreams, defaultMaxUpstreams)
	if !seen.has("lb_retries") && !seen.has("lb_try_duration") {
		if proxy.LoadBalancing == nil {
			proxy.LoadBalancing = new(reverseproxy.LoadBalancing)
		}
		// each address, and once more where that makes sense
		proxy.LoadBalancing.Retries = 2*upstreams - 1
	}
	if name, ok := targeturl.HeaderOf(handler.URL); ok {
		// a value that the user gives it is not the client's
		handler.StripHeader = true
		if proxy.Headers != nil && proxy.Headers.Request != nil {
			ops := proxy.Headers.Request
			handler.StripHeader = ops.Set[name] == nil && ops.Add[name] == nil && ops.Replace[name] == nil
		}
	}

	// Caddy keeps only the first handler of a named route that consists of one route: so
	// this is one handler, and a list of matchers that is empty, not nil, keeps Caddy
	// from putting it into the route before it
	handler.ProxyRaw = caddyconfig.JSONModuleObject(proxy, "handler", "reverse_proxy", nil)
	route := caddyhttp.Route{
		MatcherSetsRaw: []caddy.ModuleMap{},
		HandlersRaw:    []json.RawMessage{caddyconfig.JSONModuleObject(handler, "handler", "target", nil)},
	}
	if matcherSet != nil {
		route.MatcherSetsRaw = append(route.MatcherSetsRaw, matcherSet)
	}
	return []httpcaddyfile.ConfigValue{{Class: "route", Value: route}}, nil
}

// wrap adds file and line to an error, if there is one.
func wrap(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

// options says how to parse each subdirective of a block.
type options map[string]func(d *caddyfile.Dispenser) error

// guardOptions are the subdirectives that the guard has everywhere.
var guardOptions = []string{"guard", "allow", "deny", "allow_ips", "deny_ips", "ports"}

// repeatable are the subdirectives that may stand in a block more than once.
var repeatable = []string{
	"allow", "deny", "allow_ips", "deny_ips", "ports", "schemes",
	"nameservers", "zone", "tls_trusted_ca_certs", "preload", "unhealthy_status", "drop", "status",
}

// block is what stood in a block: for each subdirective a dispenser at its name.
type block []*caddyfile.Dispenser

// has reports whether a subdirective was given.
func (b block) has(name string) bool { return b.last(nil, name) != nil }

// last returns the last of the subdirectives with one of the names; without
// any, other.
func (b block) last(other *caddyfile.Dispenser, names ...string) *caddyfile.Dispenser {
	for _, d := range slices.Backward(b) {
		if slices.Contains(names, d.Val()) {
			return d
		}
	}
	return other
}

// parseBlock parses a block. The subdirectives that opts does not have are
// parsed by other; without other, they are refused.
func parseBlock(d *caddyfile.Dispenser, opts options, other func(*caddyfile.Dispenser) error) (block, error) {
	var seen block
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		parse, own := opts[name]
		switch {
		case own && seen.has(name) && !slices.Contains(repeatable, name):
			return nil, d.Errf("%s already specified", name)
		case !own && other == nil:
			return nil, d.Errf("unrecognized subdirective %s", name)
		case !own:
			parse = other
		}
		at := *d
		seen = append(seen, &at)
		if err := parse(d); err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// options returns how to parse the subdirectives of a guard.
func (g *Guard) options() options {
	return options{
		"guard":     checked(textOption(&g.Mode), g.check),
		"allow":     listOption(&g.Allow, g.check),
		"deny":      listOption(&g.Deny, g.check),
		"allow_ips": listOption(&g.AllowIPs, g.check),
		"deny_ips":  listOption(&g.DenyIPs, g.check),
		"ports":     listOption(&g.Ports, g.check),
	}
}

func (g *Guard) check() error {
	_, err := g.compile()
	return err
}

func resolverOption(to **Resolver) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		*to = new(Resolver)
		return (*to).UnmarshalCaddyfile(d.NewFromNextSegment())
	}
}

func redirectsOption(to **Redirects) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		*to = new(Redirects)
		return (*to).UnmarshalCaddyfile(d.NewFromNextSegment())
	}
}

func textOption(to *string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if !d.AllArgs(to) {
			return d.ArgErr()
		}
		return nil
	}
}

// checked adds a check to an option.
func checked(parse func(*caddyfile.Dispenser) error, check func() error) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if err := parse(d); err != nil {
			return err
		}
		return wrap(d, check())
	}
}

// flagOption has no arguments.
func flagOption(to *bool) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if d.NextArg() {
			return d.ArgErr()
		}
		*to = true
		return nil
	}
}

func listOption(to *[]string, check func() error) func(*caddyfile.Dispenser) error {
	return checked(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.ArgErr()
		}
		*to = append(*to, args...)
		return nil
	}, check)
}

func numberOption(to *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name, arg := d.Val(), ""
		if !d.AllArgs(&arg) {
			return d.ArgErr()
		}
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 {
			return d.Errf("%s %q is not a positive number", name, arg)
		}
		*to = n
		return nil
	}
}

// sizeOption is a number of octets.
func sizeOption(to *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name, arg := d.Val(), ""
		if !d.AllArgs(&arg) {
			return d.ArgErr()
		}
		size, err := humanize.ParseBytes(arg)
		if err != nil || size < 1 || size > math.MaxInt {
			return d.Errf("%s %q is not a positive size", name, arg)
		}
		*to = int(size)
		return nil
	}
}

// codesOption is a list of status codes and, as 5xx, classes of them. What is not valid is
// refused as what it is not.
func codesOption(to *[]int, otherwise string, valid func(int) bool) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name, args := d.Val(), d.RemainingArgs()
		if len(args) == 0 {
			return d.ArgErr()
		}
		for _, arg := range args {
			digits, class := strings.CutSuffix(arg, "xx")
			status, err := strconv.Atoi(digits)
			if err != nil || class != (status < 10) || !valid(status) {
				return d.Errf("%s %q is %s", name, arg, otherwise)
			}
			*to = append(*to, status)
		}
		return nil
	}
}

func durationOption(to *caddy.Duration) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error { return parseDuration(d, to, false) }
}

// parseDuration parses a duration that is not negative; zero reports whether it may be 0.
func parseDuration(d *caddyfile.Dispenser, to *caddy.Duration, zero bool) error {
	name, arg := d.Val(), ""
	if !d.AllArgs(&arg) {
		return d.ArgErr()
	}
	duration, err := caddy.ParseDuration(arg)
	switch {
	case err != nil:
		return d.Errf("%s %q is not a duration: %v", name, arg, err)
	case zero && duration < 0:
		return d.Errf("%s %s is negative", name, arg)
	case !zero && duration <= 0:
		return d.Errf("%s %s is not a positive duration", name, arg)
	}
	*to = caddy.Duration(duration)
	return nil
}

// orOff makes an option accept "off", which is stored as -1.
func orOff[T ~int | ~int64](to *T, parse func(*caddyfile.Dispenser) error) func(*caddyfile.Dispenser) error {
	return orWord("off", to, -1, parse)
}

// orWord makes an option accept a word, which stands for a value.
func orWord[T any](word string, to *T, value T, parse func(*caddyfile.Dispenser) error) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if d.CountRemainingArgs() == 1 && d.NextArg() {
			if d.Val() == word {
				*to = value
				return nil
			}
			d.Prev()
		}
		return parse(d)
	}
}

// newBlock returns a dispenser of a directive with a block of subdirectives,
// which keep their files and lines.
func newBlock(directive string, subdirectives ...caddyfile.Segment) *caddyfile.Dispenser {
	tokens := []caddyfile.Token{{Text: directive}, {Text: "{"}}
	for _, s := range subdirectives {
		tokens = append(tokens, s...)
	}
	last := tokens[len(tokens)-1]
	end := caddyfile.Token{File: last.File, Line: last.Line + last.NumLineBreaks() + 1, Text: "}"}
	return caddyfile.NewDispenser(append(tokens, end))
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Resolver)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Redirects)(nil)
	_ caddyfile.Unmarshaler = (*Upstreams)(nil)
	_ caddyfile.Unmarshaler = (*Transport)(nil)
)
