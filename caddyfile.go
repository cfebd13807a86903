package caddytarget

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
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
//	}
//
// See [Resolver.UnmarshalCaddyfile] for the block of the resolver.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume option name
	if d.NextArg() {
		return d.ArgErr()
	}
	return parseBlock(d, options{"resolver": resolverOption(&a.Resolver)})
}

// UnmarshalCaddyfile sets up the resolver from Caddyfile tokens. Syntax:
//
//	resolver [<nameserver...>] {
//	    nameservers  <address...>
//	    timeout      <duration>
//	    tries        <n>
//	    deadline     <duration>
//	    family       auto|ipv4|ipv6|prefer_ipv4|prefer_ipv6
//	    min_ttl      <duration>
//	    max_ttl      <duration>
//	    negative_ttl <duration>
//	    stale        <duration>|off
//	    stale_wait   <duration>
//	    refresh      <duration>|off
//	    cache_size   <n>
//	    max_lookups  <n>
//	    hosts        <file>|off
//	}
func (r *Resolver) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	checkNameservers := func() error {
		_, err := r.parseNameservers()
		return err
	}
	d.Next() // consume option name
	r.Nameservers = d.RemainingArgs()
	if err := wrap(d, checkNameservers()); err != nil {
		return err
	}
	err := parseBlock(d, options{
		"nameservers":  listOption(&r.Nameservers, checkNameservers),
		"timeout":      durationOption(&r.Timeout),
		"tries":        numberOption(&r.Tries),
		"deadline":     durationOption(&r.Deadline),
		"family":       checked(textOption(&r.Family), r.checkFamily),
		"min_ttl":      durationOption(&r.MinTTL),
		"max_ttl":      durationOption(&r.MaxTTL),
		"negative_ttl": durationOption(&r.NegativeTTL),
		"stale":        orOff(&r.Stale, durationOption(&r.Stale)),
		"stale_wait":   durationOption(&r.StaleWait),
		"refresh":      orOff(&r.Refresh, durationOption(&r.Refresh)),
		"cache_size":   numberOption(&r.CacheSize),
		"max_lookups":  numberOption(&r.MaxLookups),
		"hosts":        textOption(&r.Hosts),
	})
	if err != nil {
		return err
	}
	complete := r.defaults()
	return wrap(d, complete.validate())
}

func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	target [<matcher>] <url> {
//	    path         <template>
//	    host         <template>
//	    allow        <name...>
//	    deny         <name...>
//	    allow_ips    <cidr...|private_ranges|any>
//	    deny_ips     <cidr...|private_ranges>
//	    ports        <port|from-to ...>
//	    schemes      <http|https|h2c ...>
//	    timeout      <template>
//	    max_requests <n>
//	    resolver     [<nameserver...>] {
//	        ...
//	    }
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	if !d.Args(&h.URL) || d.NextArg() {
		return d.ArgErr()
	}
	// what can be checked now is
	if err := wrap(d, h.Validate()); err != nil {
		return err
	}
	opts := h.Guard.options(true)
	opts["path"] = textOption(&h.Path)
	opts["host"] = textOption(&h.Host)
	opts["timeout"] = checked(textOption(&h.Timeout), h.Validate)
	opts["max_requests"] = numberOption(&h.MaxRequests)
	opts["resolver"] = resolverOption(&h.Resolver)
	return parseBlock(d, opts)
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	dynamic target [<name> <port>] {
//	    resolver      [<nameserver...>] {
//	        ...
//	    }
//	    max_upstreams <n>
//	    max_fails     <n>
//	    fail_duration <duration>
//	    allow         <name...>
//	    deny          <name...>
//	    allow_ips     <cidr...|private_ranges|any>
//	    deny_ips      <cidr...|private_ranges>
//	    ports         <port|from-to ...>
//	}
//
// What may be called, from allow to ports, is for a name with placeholders.
func (u *Upstreams) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume source name
	switch args := d.RemainingArgs(); len(args) {
	case 0:
	case 2:
		u.Name, u.Port = args[0], args[1]
	default:
		return d.ArgErr()
	}
	opts := u.Guard.options(false)
	opts["resolver"] = resolverOption(&u.Resolver)
	opts["max_upstreams"] = numberOption(&u.MaxUpstreams)
	opts["max_fails"] = numberOption(&u.MaxFails)
	opts["fail_duration"] = func(d *caddyfile.Dispenser) error {
		u.FailDuration = new(caddy.Duration)
		return parseDuration(d, u.FailDuration, 0)
	}
	if err := parseBlock(d, opts); err != nil {
		return err
	}
	u.dynamic = strings.Contains(u.Name, "{")
	return wrap(d, u.Validate())
}

// UnmarshalCaddyfile sets up the transport from Caddyfile tokens. Syntax:
//
//	transport target {
//	    tls_session_cache <n>|off
//	    # and the options of transport http, except network_proxy,
//	    # forward_proxy_url, resolvers, dial_fallback_delay, tls_except_ports
//	    # and version 3
//	}
func (t *Transport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	parts, err := split(d, func(name string) (string, error) {
		if name == "tls_session_cache" {
			return "own", nil
		}
		return "http", nil
	})
	if err != nil {
		return err
	}
	for _, segment := range parts.segments["http"] {
		one := new(Transport)
		d := parts.dispenser(segment)
		if err := one.HTTPTransport.UnmarshalCaddyfile(d); err != nil {
			return err
		}
		if err := wrap(d, one.refused()); err != nil {
			return err
		}
	}
	if err := t.HTTPTransport.UnmarshalCaddyfile(parts.dispenser(parts.segments["http"]...)); err != nil {
		return err
	}
	own := parts.dispenser(parts.segments["own"]...)
	own.Next()
	return parseBlock(own, options{"tls_session_cache": orOff(&t.TLSSessionCache, numberOption(&t.TLSSessionCache))})
}

// What the subdirectives of target_proxy belong to, if not to reverse_proxy.
var (
	handlerOptions = []string{
		"path", "host", "allow", "deny", "allow_ips", "deny_ips", "ports", "schemes", "timeout", "max_requests", "resolver",
	}
	sourceOptions    = []string{"max_upstreams", "max_fails", "fail_duration"}
	transportOptions = []string{
		"tls_session_cache",
		"read_buffer", "write_buffer", "read_timeout", "write_timeout", "max_response_header", "proxy_protocol",
		"forward_proxy_url", "network_proxy", "dial_timeout", "dial_fallback_delay", "response_header_timeout",
		"expect_continue_timeout", "resolvers", "tls", "tls_client_auth", "tls_insecure_skip_verify", "tls_curves",
		"tls_timeout", "tls_trusted_ca_certs", "tls_server_name", "tls_renegotiation", "tls_except_ports", "keepalive",
		"keepalive_interval", "keepalive_idle_conns", "keepalive_idle_conns_per_host", "versions", "compression",
		"max_conns_per_host", "tls_trust_pool", "local_address",
	}
)

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
//	    lb_retries 3 # max_upstreams - 1
//	    ...
//	}
//
// with `header_up -NAME` if the URL is {header.NAME}.
func parseTargetProxy(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcherSet, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}

	h.Next() // the dispenser was reset
	d := h.NewFromNextSegment()
	specified := make(map[string]bool)
	parts, err := split(d, func(name string) (string, error) {
		specified[name] = true
		switch {
		case name == "to" || name == "dynamic" || name == "transport":
			return "", errors.New(name + " has no place in target_proxy, which sets it itself; use target and reverse_proxy")
		case strings.HasPrefix(name, "health_"):
			return "", errors.New(name + ": active health checks do not work for upstreams that are only known per request")
		case slices.Contains(handlerOptions, name):
			return "handler", nil
		case slices.Contains(sourceOptions, name):
			return "source", nil
		case slices.Contains(transportOptions, name):
			return "transport", nil
		}
		return "proxy", nil
	})
	if err != nil {
		return nil, err
	}

	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(parts.dispenserWithArgs(parts.segments["handler"]...)); err != nil {
		return nil, err
	}
	source := new(Upstreams)
	if err := source.UnmarshalCaddyfile(parts.dispenser(parts.segments["source"]...)); err != nil {
		return nil, err
	}
	transport := new(Transport)
	if err := transport.UnmarshalCaddyfile(parts.dispenser(parts.segments["transport"]...)); err != nil {
		return nil, err
	}
	proxy := new(reverseproxy.Handler)
	if err := proxy.UnmarshalCaddyfile(parts.dispenser(parts.segments["proxy"]...)); err != nil {
		return nil, err
	}
	if err := proxy.FinalizeUnmarshalCaddyfile(h); err != nil {
		return nil, err
	}

	proxy.DynamicUpstreamsRaw = caddyconfig.JSONModuleObject(source, "source", "target", nil)
	proxy.TransportRaw = caddyconfig.JSONModuleObject(transport, "protocol", "target", nil)
	if !specified["lb_retries"] && !specified["lb_try_duration"] {
		if proxy.LoadBalancing == nil {
			proxy.LoadBalancing = new(reverseproxy.LoadBalancing)
		}
		upstreams := source.MaxUpstreams
		setDefault(&upstreams, defaultMaxUpstreams)
		proxy.LoadBalancing.Retries = upstreams - 1
	}
	if checks := proxy.HealthChecks; checks != nil && checks.Passive != nil {
		// reverse_proxy needs to be told how long to remember what it sees
		checks.Passive.MaxFails = source.MaxFails
		checks.Passive.FailDuration = caddy.Duration(defaultFailDuration)
		if source.FailDuration != nil {
			checks.Passive.FailDuration = *source.FailDuration
		}
	}
	if name, ok := headerOf(handler.URL); ok {
		if proxy.Headers == nil {
			proxy.Headers = new(headers.Handler)
		}
		if proxy.Headers.Request == nil {
			proxy.Headers.Request = new(headers.HeaderOps)
		}
		proxy.Headers.Request.Delete = append(proxy.Headers.Request.Delete, name)
	}

	route := caddyhttp.Route{}
	if matcherSet != nil {
		route.MatcherSetsRaw = []caddy.ModuleMap{matcherSet}
	}
	route.HandlersRaw = append(route.HandlersRaw,
		caddyconfig.JSONModuleObject(handler, "handler", "target", nil),
		caddyconfig.JSONModuleObject(proxy, "handler", "reverse_proxy", nil))
	return []httpcaddyfile.ConfigValue{{Class: "route", Value: route}}, nil
}

// headerOf returns the name of the header field that a template consists of.
func headerOf(template string) (string, bool) {
	name, ok := strings.CutPrefix(template, "{http.request.header.")
	if !ok {
		return "", false
	}
	name, ok = strings.CutSuffix(name, "}")
	return http.CanonicalHeaderKey(name), ok && !strings.ContainsAny(name, "{}")
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

// repeatable are the subdirectives that may stand in a block more than once.
var repeatable = []string{"allow", "deny", "allow_ips", "deny_ips", "ports", "schemes", "nameservers"}

// parseBlock parses a block.
func parseBlock(d *caddyfile.Dispenser, opts options) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		parse, ok := opts[name]
		if !ok {
			return d.Errf("unrecognized subdirective: %s", name)
		}
		if seen[name] && !slices.Contains(repeatable, name) {
			return d.Errf("%s already specified", name)
		}
		seen[name] = true
		if err := parse(d); err != nil {
			return err
		}
	}
	return nil
}

// options returns how to parse the subdirectives of a guard.
func (g *Guard) options(withSchemes bool) options {
	check := func() error {
		_, err := g.compile()
		return err
	}
	opts := options{
		"allow":     listOption(&g.Allow, check),
		"deny":      listOption(&g.Deny, check),
		"allow_ips": listOption(&g.AllowIPs, check),
		"deny_ips":  listOption(&g.DenyIPs, check),
		"ports":     listOption(&g.Ports, check),
	}
	if withSchemes {
		opts["schemes"] = listOption(&g.Schemes, check)
	}
	return opts
}

func resolverOption(to **Resolver) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		*to = new(Resolver)
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
		var arg string
		if !d.AllArgs(&arg) {
			return d.ArgErr()
		}
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 {
			return d.Errf("%q is not a positive number", arg)
		}
		*to = n
		return nil
	}
}

func durationOption(to *caddy.Duration) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error { return parseDuration(d, to, 1) }
}

// parseDuration parses a duration that is not shorter than least.
func parseDuration(d *caddyfile.Dispenser, to *caddy.Duration, least time.Duration) error {
	var arg string
	if !d.AllArgs(&arg) {
		return d.ArgErr()
	}
	duration, err := caddy.ParseDuration(arg)
	if err != nil {
		return d.Errf("bad duration %q: %v", arg, err)
	}
	if duration < least {
		return d.Errf("duration %s is too short", arg)
	}
	*to = caddy.Duration(duration)
	return nil
}

// orOff makes an option accept "off", which is stored as -1.
func orOff[T ~int | ~int64](to *T, parse func(*caddyfile.Dispenser) error) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if d.CountRemainingArgs() == 1 && d.NextArg() {
			if d.Val() == "off" {
				*to = -1
				return nil
			}
			d.Prev()
		}
		return parse(d)
	}
}

// parts are the subdirectives of a block, sorted by what they belong to.
type parts struct {
	name     caddyfile.Token
	args     []caddyfile.Token
	brace    caddyfile.Token // the opening one
	end      caddyfile.Token
	segments map[string][]caddyfile.Segment
}

// split takes a block apart by the names of its subdirectives.
func split(d *caddyfile.Dispenser, part func(name string) (string, error)) (*parts, error) {
	p := &parts{segments: make(map[string][]caddyfile.Segment)}
	d.Next()
	p.name = d.Token()
	p.args = d.RemainingArgsAsTokens()
	for d.NextBlock(0) {
		name, err := part(d.Val())
		if err != nil {
			return nil, d.WrapErr(err)
		}
		p.segments[name] = append(p.segments[name], d.NextSegment())
	}
	p.end = d.Token()
	p.brace, p.end.Text = p.name, "}"
	p.brace.Text = "{"
	return p, nil
}

// dispenser returns the directive without arguments and with some of its
// subdirectives.
func (p *parts) dispenser(segments ...caddyfile.Segment) *caddyfile.Dispenser {
	return p.tokens(nil, segments)
}

// dispenserWithArgs returns the directive with its arguments and with some of
// its subdirectives.
func (p *parts) dispenserWithArgs(segments ...caddyfile.Segment) *caddyfile.Dispenser {
	return p.tokens(p.args, segments)
}

func (p *parts) tokens(args []caddyfile.Token, segments []caddyfile.Segment) *caddyfile.Dispenser {
	tokens := append([]caddyfile.Token{p.name}, args...)
	if len(segments) > 0 {
		tokens = append(tokens, p.brace)
		tokens = append(tokens, slices.Concat(segments...)...)
		tokens = append(tokens, p.end)
	}
	return caddyfile.NewDispenser(tokens)
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Resolver)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Upstreams)(nil)
	_ caddyfile.Unmarshaler = (*Transport)(nil)
)
