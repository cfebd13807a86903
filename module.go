// Package caddytarget lets Caddy's reverse proxy call backends whose domain is
// only known per request. It resolves the domain with a DNS resolver of its
// own, keeps connections in pools by address and target, and sets the Host
// header and the path of the target.
//
// Its modules are the handler `target`, which takes the target from the
// request, checks and resolves it; the upstream source `dynamic target`, which
// offers its addresses to reverse_proxy; and the transport `transport target`,
// which connects to them. The directive `target_proxy` is all three in one.
//
// This package translates between Caddy and the packages that do the work. A request
// passes these files:
//
//	handler.go    the handler: its options, the order of its steps, timeout, max_requests
//	call.go       what is called: read from templates
//	guard.go      the options of the guard; the warning where it only reports
//	upstreams.go  the source: which addresses reverse_proxy gets
//	transport.go  the transport: its options, the steps of one attempt
//	outgoing.go   what an attempt sends: connection key, Host
//	redirect.go   redirects that the handler follows
//	state.go      what is known of a request, by its variables; which call an upstream is of
//	failure.go    errors: the report, what reverse_proxy has to know
//
// and these are there for a configuration: module.go (the app), shared.go (what
// configurations share); resolver.go, pools.go (the options of the resolver; the resolvers
// and the pools of connections, which outlive a reload); persist.go (what resolvers know
// outlives them); listeners.go (this server's own); admin.go (what the admin API shows of
// this process), command.go (the command line); routes.go, sites.go (the target handlers of
// a configuration), mistakes.go (warnings); caddyfile.go (parses the subdirectives of all
// modules). warm.go keeps connections open to the targets that are called most. explain.go
// takes a request through the steps above without sending it. A new option is a field of
// its module's struct, and an entry in options() of that module in caddyfile.go. Defaults
// stand in Provision of their module, those of the resolver in internal/resolver/config.go.
//
// The work is done below internal: exchange (the core of a request: what it calls, its
// attempts, what is known of it); resolver, dnscache, dnsclient, dnsname (names to
// addresses), snapshot (the file of what they know); failover, health (which address
// next), ejection (counted and logged); pool (connections); guard, gate, localnet (what
// may be called); targeturl, redirect, replay, outgoing, httpfield (URLs, redirects,
// bodies, requests as they are sent, header fields); failure (the words for what failed);
// explain (the words for what would be done with a request); topk (counts by target);
// metrics (for Prometheus); warm (connections for requests to come); record, trace,
// clientspan (single requests: in the log, live, and as spans); purge (what an operator
// forgets); admin, command (the endpoints of the admin API, and the command that asks
// them).
package caddytarget

import (
	"context"
	"errors"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"caddytarget/internal/failover"
	"caddytarget/internal/localnet"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
)

func init() { caddy.RegisterModule(new(App)) }

// App holds what the modules of caddytarget share: the default resolver. It
// need not be configured.
type App struct {
	// The resolver of all sites that do not configure their own.
	Resolver *Resolver `json:"resolver,omitempty"`

	// Whether the 20 busiest and the 20 most failing targets of late are series of the
	// metrics `caddy_target_top_…`, and all others one series together. Which ones those
	// are, clients decide. Default: false.
	MetricsTargets bool `json:"metrics_targets,omitempty"`

	resolver   *resolver.Resolver
	resolvers  resolver.Generation // of this app and of the modules of its configuration
	storage    certmagic.Storage
	acquired   []*sharedResolver // those of resolvers, to be released
	transports []*pool.Settings  // those of its transports
	listeners  *localnet.Listeners
	sockets    []uint64 // on which its sites listen
	shared     *shared
	log        *zap.Logger // of its transports; nil: it has none
	releases   []func()    // of what it uses of shared
	warms      bool        // a transport keeps targets warm
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "target",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision sets up the app.
func (a *App) Provision(ctx caddy.Context) error {
	if a.Resolver == nil {
		a.Resolver = new(Resolver)
	}
	a.shared, a.storage = acquireShared(), ctx.Storage()
	a.resolvers.UseStore = a.useStorage(a.shared)
	a.listeners = newListeners(ctx, a.shared)
	if err := a.watchSites(ctx); err != nil {
		return err
	}
	if err := a.shared.metrics.Register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if a.MetricsTargets {
		if err := a.shared.metrics.RegisterTargets(ctx.GetMetricsRegistry()); err != nil {
			return err
		}
	}
	var err error
	a.resolver, err = a.acquire(a.Resolver)
	return err
}

// watchSites takes down the sockets of the configuration's sites as soon as all
// apps are started. Until then they are not known to be for sites, and refused
// whatever is configured. It warns of mistakes in the sites, and keeps their targets warm,
// too.
func (a *App) watchSites(ctx caddy.Context) error {
	log := ctx.Logger()
	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	return events.(*caddyevents.App).On("started", eventFunc(func() {
		app, err := ctx.AppIfConfigured("http")
		if err != nil || a.shared == nil {
			return
		}
		sites := app.(*caddyhttp.App)
		a.sockets = siteSocketsOf(sites)
		a.shared.sites.Add(a.sockets)
		(&mistakes{log}).find(sites)
		a.keepWarm(sites)
	}))
}

// eventFunc is a function that is called on an event.
type eventFunc func()

// Handle implements caddyevents.Handler.
func (f eventFunc) Handle(context.Context, caddy.Event) error {
	f()
	return nil
}

// acquire returns the resolver of a module's configuration, or the default one
// if it has none. The app starts it, and releases it in the end.
func (a *App) acquire(config *Resolver) (*resolver.Resolver, error) {
	if config == nil {
		return a.resolver, nil
	}
	settings := config.config()
	a.persistBy(&settings)
	r, err := acquireResolver(settings)
	if err != nil {
		return nil, err
	}
	a.acquired = append(a.acquired, r)
	a.resolvers.Add(r.Resolver)
	return r.Resolver, nil
}

// useEjections makes ejections by a source's settings count.
func (a *App) useEjections(s *failover.Source) {
	a.releases = append(a.releases, a.shared.health.Use(s.MaxFails, s.EjectFor))
}

// Start starts the resolvers that were acquired.
func (a *App) Start() error {
	if a.log != nil {
		a.releases = append(a.releases, a.shared.ejections.Use(a.log))
	}
	for _, r := range a.acquired {
		r.Start()
	}
	a.shared.lineage.Started(&a.resolvers)
	return nil
}

// Stop ends live traces, for which the admin API would wait, and saves what the resolvers
// know, unless another configuration takes over. They may be in use by that one, and are
// released when this one is cleaned up.
func (a *App) Stop() error {
	a.shared.trace.Disconnect()
	if a.shared.lineage.IsLast(&a.resolvers) {
		a.saveAll()
	}
	a.shared.warm.Release(a)
	return nil
}

// Cleanup releases the resolvers.
func (a *App) Cleanup() error {
	for _, release := range a.releases {
		release()
	}
	a.releases = nil
	if a.shared != nil {
		a.shared.sites.Release(a.sockets)
		a.shared.lineage.Ended(&a.resolvers)
		releaseShared()
		a.shared = nil
	}
	var errs []error
	for _, r := range a.acquired {
		errs = append(errs, r.release())
	}
	a.acquired = nil
	return errors.Join(errs...)
}

// appOf returns the app of a configuration.
func appOf(ctx caddy.Context) (*App, error) {
	app, err := ctx.App("target")
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
