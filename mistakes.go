package caddytarget

import (
	"fmt"

	"caddytarget/internal/targeturl"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// Some configurations are valid and can hardly be meant. They are warned about where
// they stand: in a Caddyfile by file and line, in a running server by the place in
// its configuration, as the admin API takes it.

const (
	warnNoBraces = "the target is the same for all requests: if it is meant to be a placeholder, put it in braces, as in {header.X-Target}"
	warnIgnored  = "no reverse_proxy after target calls the target: it needs dynamic target and transport target"
)

// warnCaddyfile warns of a mistake at a place in a Caddyfile.
func warnCaddyfile(d *caddyfile.Dispenser, message string, fields ...zap.Field) {
	caddy.Log().Named("config.adapter.caddyfile").Warn(message, append(fields, zap.String("file", d.File()), zap.Int("line", d.Line()))...)
}

// mistakes looks for them in the HTTP app of a running configuration.
type mistakes struct{ log *zap.Logger }

// find looks at all routes.
func (m *mistakes) find(app *caddyhttp.App) {
	for name, server := range app.Servers {
		place := "apps/http/servers/" + name
		m.routes(place+"/routes", server.Routes, nil)
		if server.Errors != nil {
			m.routes(place+"/errors/routes", server.Errors.Routes, nil)
		}
		for route, named := range server.NamedRoutes {
			m.route(place+"/named_routes/"+route, &continuation{routes: caddyhttp.RouteList{*named}})
		}
	}
}

// continuation is what comes after a handler: the other ones of its route, then the
// routes after that one, then what comes after the handler that has them.
type continuation struct {
	routes         caddyhttp.RouteList
	route, handler int
	up             *continuation
}

// routes looks at the routes of a list.
func (m *mistakes) routes(place string, list caddyhttp.RouteList, up *continuation) {
	for i := range list {
		m.route(fmt.Sprintf("%s/%d", place, i), &continuation{routes: list, route: i, up: up})
	}
}

// route looks at the handlers of the route at which a continuation begins.
func (m *mistakes) route(place string, at *continuation) {
	for i, handler := range at.routes[at.route].Handlers {
		m.handler(fmt.Sprintf("%s/handle/%d", place, i), handler, &continuation{at.routes, at.route, i, at.up})
	}
}

// handler looks at a handler and at what belongs to it.
func (m *mistakes) handler(place string, handler caddyhttp.MiddlewareHandler, after *continuation) {
	switch h := handler.(type) {
	case *Handler:
		if targeturl.LacksBraces(h.URL) {
			m.log.Warn(warnNoBraces, zap.String("url", h.URL), zap.String("place", place))
		}
		if h.proxy != nil {
			m.handler(place+"/proxy", h.proxy, after)
		} else if after.ignores() {
			m.log.Warn(warnIgnored, zap.String("url", h.URL), zap.String("place", place))
		}
	case *caddyhttp.Subroute:
		m.routes(place+"/routes", h.Routes, after)
	case *reverseproxy.Handler:
		for n := range h.HandleResponse {
			m.routes(fmt.Sprintf("%s/handle_response/%d/routes", place, n), h.HandleResponse[n].Routes, nil)
		}
	}
}

// ignores reports whether there is a reverse_proxy to come, but none that calls the
// target of the handler before.
func (c *continuation) ignores() bool {
	found := false
	for ; c != nil; c = c.up {
		route := &c.routes[c.route]
		proxies, calls := proxiesIn(route.Handlers[c.handler+1:])
		if calls {
			return false
		}
		if found = found || proxies; route.Terminal {
			break
		}
		for i := c.route + 1; i < len(c.routes); i++ {
			other := &c.routes[i]
			if other.Group != "" && other.Group == route.Group {
				continue // only one of a group is taken
			}
			proxies, calls := proxiesIn(other.Handlers)
			if calls {
				return false
			}
			found = found || proxies
		}
	}
	return found
}

// proxiesIn reports whether one of some handlers is a reverse_proxy, and whether one
// calls the request's target, or may.
func proxiesIn(handlers []caddyhttp.MiddlewareHandler) (proxies, calls bool) {
	for _, handler := range handlers {
		switch h := handler.(type) {
		case *reverseproxy.Handler:
			_, ours := h.Transport.(*Transport)
			proxies, calls = true, calls || ours
		case *caddyhttp.Subroute:
			for i := range h.Routes {
				p, c := proxiesIn(h.Routes[i].Handlers)
				proxies, calls = proxies || p, calls || c
			}
		case *caddyhttp.Invoke:
			calls = true // another route may
		}
	}
	return proxies, calls
}
