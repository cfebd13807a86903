package caddytarget

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// targetSite is one target handler of the running configuration, for operators.
type targetSite struct {
	name   string   // a host that no other one has, or else place
	place  string   // in the configuration, without what all have in common
	hosts  []string // that its routes match; none: any
	listen []string // the addresses of its server

	handler *Handler
	proxy   *reverseproxy.Handler // that calls the targets; nil: none is known
	server  *caddyhttp.Server     // nil: it has none
}

// targetSites returns the target handlers of the running configuration, by place.
func targetSites() []*targetSite {
	app, err := caddy.ActiveContext().AppIfConfigured("http")
	if err != nil {
		return nil
	}
	return targetSitesOf(app.(*caddyhttp.App))
}

// targetSitesOf returns the target handlers of an HTTP app, by place.
func targetSitesOf(app *caddyhttp.App) (sites []*targetSite) {
	for name, server := range app.Servers {
		handlerVisit(func(place string, handler caddyhttp.MiddlewareHandler, after *continuation) {
			if h, ok := handler.(*Handler); ok {
				sites = append(sites, newTargetSite(place, h, after, server))
			}
		}).server(name, server)
	}
	slices.SortFunc(sites, func(a, b *targetSite) int { return strings.Compare(a.place, b.place) })
	nameSites(sites)
	return sites
}

// newTargetSite returns the site of a handler of a server, without its name.
func newTargetSite(place string, h *Handler, after *continuation, server *caddyhttp.Server) *targetSite {
	s := &targetSite{place: place, hosts: after.hosts(), handler: h, server: server, listen: server.Listen}
	if h.proxy != nil {
		s.proxy, _ = h.proxy.(*reverseproxy.Handler)
		return s
	}
	for handlers := range after.lists {
		if s.proxy = firstProxy(handlers); s.proxy != nil {
			break
		}
	}
	return s
}

// nameSites gives sites their names.
func nameSites(sites []*targetSite) {
	sitesOf := make(map[string]int) // by host
	for _, s := range sites {
		for _, host := range s.hosts {
			sitesOf[host]++
		}
	}
	for _, s := range sites {
		s.name = s.place
		if i := slices.IndexFunc(s.hosts, func(host string) bool { return sitesOf[host] == 1 }); i >= 0 {
			s.name = s.hosts[i]
		}
	}
}

// isCalled reports whether a name is one of the site's: a host, its place in the
// configuration or an address on which its server listens.
func (s *targetSite) isCalled(name string) bool {
	isName := func(other string) bool { return strings.EqualFold(other, name) }
	return isName(s.place) || slices.ContainsFunc(s.hosts, isName) || slices.ContainsFunc(s.listen, isName)
}

// selectSite returns the only one of some sites that has a name; empty: the only one
// there is.
func selectSite(sites []*targetSite, name string) (*targetSite, error) {
	if len(sites) == 0 {
		return nil, adminErrorf(http.StatusNotFound, "no site has a target handler")
	}
	found := sites
	if name != "" {
		found = slices.DeleteFunc(slices.Clone(sites), func(s *targetSite) bool { return !s.isCalled(name) })
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return nil, adminErrorf(http.StatusNotFound, "unknown site %q: expecting %s", name, siteNames(sites))
	case name != "":
		return nil, adminErrorf(http.StatusBadRequest, "site %q is several: expecting %s", name, siteNames(found))
	}
	return nil, adminErrorf(http.StatusBadRequest, "which site? expecting the parameter site, one of %s", siteNames(sites))
}

// siteNames lists the first names of some sites.
func siteNames(sites []*targetSite) string {
	const shown = 8
	names := make([]string, min(shown, len(sites)))
	for i := range names {
		names[i] = sites[i].name
	}
	list := strings.Join(names, ", ")
	if more := len(sites) - shown; more > 0 {
		list += fmt.Sprintf(" (and %d more, which %s shows)", more, adminPath)
	}
	return list
}

// adminSite is a site as the admin API shows it.
type adminSite struct {
	Site   string   `json:"site"` // its name
	Place  string   `json:"place"`
	Hosts  []string `json:"hosts,omitempty"`
	Listen []string `json:"listen"`
	URL    string   `json:"url"` // the template
}

func newAdminSites() []adminSite {
	sites := []adminSite{}
	for _, s := range targetSites() {
		sites = append(sites, adminSite{s.name, s.place, s.hosts, s.listen, s.handler.URL})
	}
	return sites
}
