package caddytarget

import (
	"fmt"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// handlerVisit is called with a handler of a configuration, its place there, as the admin
// API takes it, and what comes after it.
type handlerVisit func(place string, handler caddyhttp.MiddlewareHandler, after *continuation)

// visitHandlers calls visit with the handlers of an HTTP app.
func visitHandlers(app *caddyhttp.App, visit handlerVisit) {
	for name, server := range app.Servers {
		visit.server(serversPlace+name, server)
	}
}

// serversPlace is where the servers of an HTTP app stand in a configuration.
const serversPlace = "apps/http/servers/"

// server visits the handlers of a server.
func (visit handlerVisit) server(place string, server *caddyhttp.Server) {
	visit.routes(place+"/routes", server.Routes, nil)
	if server.Errors != nil {
		visit.routes(place+"/errors/routes", server.Errors.Routes, nil)
	}
	for route, named := range server.NamedRoutes {
		visit.route(place+"/named_routes/"+route, &continuation{routes: caddyhttp.RouteList{*named}})
	}
}

// continuation is what comes after a handler: the other ones of its route, then the
// routes after that one, then what comes after the handler that has them.
type continuation struct {
	routes         caddyhttp.RouteList
	route, handler int
	up             *continuation
}

// routes visits the routes of a list.
func (visit handlerVisit) routes(place string, list caddyhttp.RouteList, up *continuation) {
	for i := range list {
		visit.route(fmt.Sprintf("%s/%d", place, i), &continuation{routes: list, route: i, up: up})
	}
}

// route visits the handlers of the route at which a continuation begins.
func (visit handlerVisit) route(place string, at *continuation) {
	for i, handler := range at.routes[at.route].Handlers {
		visit.handler(fmt.Sprintf("%s/handle/%d", place, i), handler, &continuation{at.routes, at.route, i, at.up})
	}
}

// handler visits a handler and what belongs to it.
func (visit handlerVisit) handler(place string, handler caddyhttp.MiddlewareHandler, after *continuation) {
	visit(place, handler, after)
	switch h := handler.(type) {
	case *Handler:
		if h.proxy != nil {
			visit.handler(place+"/proxy", h.proxy, after)
		}
	case *caddyhttp.Subroute:
		visit.routes(place+"/routes", h.Routes, after)
	case *reverseproxy.Handler:
		for n := range h.HandleResponse {
			visit.routes(fmt.Sprintf("%s/handle_response/%d/routes", place, n), h.HandleResponse[n].Routes, nil)
		}
	}
}

// lists yields the lists of handlers to come, each of which a request may meet, until
// yield returns false.
func (c *continuation) lists(yield func([]caddyhttp.MiddlewareHandler) bool) {
	for ; c != nil; c = c.up {
		route := &c.routes[c.route]
		if !yield(route.Handlers[c.handler+1:]) || route.Terminal {
			return
		}
		for i := c.route + 1; i < len(c.routes); i++ {
			other := &c.routes[i]
			if other.Group != "" && other.Group == route.Group {
				continue // only one of a group is taken
			}
			if !yield(other.Handlers) {
				return
			}
		}
	}
}

// hosts returns the hosts that the routes of a handler match; none: any.
func (c *continuation) hosts() (hosts []string) {
	for ; c != nil; c = c.up {
		for _, set := range c.routes[c.route].MatcherSets {
			for _, matcher := range set {
				if m, ok := matcher.(*caddyhttp.MatchHost); ok {
					hosts = append(hosts, *m...)
				}
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
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

// firstProxy returns the first reverse_proxy of some handlers that calls targets; nil if
// there is none.
func firstProxy(handlers []caddyhttp.MiddlewareHandler) *reverseproxy.Handler {
	for _, handler := range handlers {
		switch h := handler.(type) {
		case *reverseproxy.Handler:
			if _, ours := h.Transport.(*Transport); ours {
				return h
			}
		case *caddyhttp.Subroute:
			for i := range h.Routes {
				if found := firstProxy(h.Routes[i].Handlers); found != nil {
					return found
				}
			}
		}
	}
	return nil
}
