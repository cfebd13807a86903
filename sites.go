package caddytarget

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/admin"
)

// targetSite is one target handler of the running configuration, for operators.
type targetSite struct {
	admin.Site

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
	slices.SortFunc(sites, func(a, b *targetSite) int { return strings.Compare(a.Place, b.Place) })
	nameSites(sites)
	return sites
}

// newTargetSite returns the site of a handler of a server, without its name.
func newTargetSite(place string, h *Handler, after *continuation, server *caddyhttp.Server) *targetSite {
	s := &targetSite{Site: admin.Site{Place: place, Hosts: after.hosts(), Listen: server.Listen, URL: h.URL}, handler: h, server: server}
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
		for _, host := range s.Hosts {
			sitesOf[host]++
		}
	}
	for _, s := range sites {
		s.Name = s.Place
		if i := slices.IndexFunc(s.Hosts, func(host string) bool { return sitesOf[host] == 1 }); i >= 0 {
			s.Name = s.Hosts[i]
		}
	}
}
