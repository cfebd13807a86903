package caddytarget

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/admin"
	"caddytarget/internal/explain"
	"caddytarget/internal/resolver"
)

func init() { caddy.RegisterModule(adminAPI{}) }

// adminAPI serves what is below /target/ in the admin API: what this process knows of names,
// nameservers, addresses, connections and requests. Package admin has the endpoints.
type adminAPI struct{ endpoints *admin.API }

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.target",
		New: func() caddy.Module { return adminAPI{newAdminAPI()} },
	}
}

// Routes returns the route of all endpoints.
func (a adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: admin.Path, Handler: caddy.AdminHandlerFunc(a.serve)}}
}

// serve implements caddy.AdminHandler.
func (a adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	err := a.endpoints.Serve(w, r)
	if refused, ok := errors.AsType[*admin.Error](err); ok {
		return caddy.APIError{HTTPStatus: refused.Status, Err: refused}
	}
	return err
}

// newAdminAPI returns the endpoints, for what this process has.
func newAdminAPI() *admin.API {
	a := admin.New()
	a.CaddyVersion = func() string {
		version, _ := caddy.Version()
		return version
	}
	a.Resolvers, a.Sites = usedResolvers, usedSites
	a.Running = func() bool {
		app, err := caddy.ActiveContext().AppIfConfigured("target")
		return err == nil && app != nil
	}
	a.Shared = func() *admin.Shared {
		for s := range usedShared() {
			return &admin.Shared{ID: s.id, Began: s.began, Health: s.health, Pools: &s.pools, Top: s.metrics.Requests.Top, Trace: s.trace, Warm: s.warm}
		}
		return nil
	}
	return a
}

// usedResolvers returns the resolvers in use, by ID.
func usedResolvers() (used []*resolver.Resolver) {
	resolvers.Range(func(_, value any) bool {
		used = append(used, value.(*sharedResolver).Resolver)
		return true
	})
	slices.SortFunc(used, func(a, b *resolver.Resolver) int { return strings.Compare(a.ID(), b.ID()) })
	return used
}

// usedSites returns the target handlers of the running configuration, by place.
func usedSites() (sites []*admin.Site) {
	for _, s := range targetSites() {
		s.Explain = func(in *explain.Input) *explain.Report { return newExplanation(s, in).run() }
		sites = append(sites, &s.Site)
	}
	return sites
}

// Interface guards
var (
	_ caddy.Module      = adminAPI{}
	_ caddy.AdminRouter = adminAPI{}
)
