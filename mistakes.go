package caddytarget

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"caddytarget/internal/targeturl"
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

// find looks at all handlers.
func (m *mistakes) find(app *caddyhttp.App) { visitHandlers(app, m.handler) }

// handler looks at a handler.
func (m *mistakes) handler(place string, handler caddyhttp.MiddlewareHandler, after *continuation) {
	h, ok := handler.(*Handler)
	if !ok {
		return
	}
	if targeturl.LacksBraces(h.URL) {
		m.log.Warn(warnNoBraces, zap.String("url", h.URL), zap.String("place", place))
	}
	if h.proxy == nil && after.ignores() {
		m.log.Warn(warnIgnored, zap.String("url", h.URL), zap.String("place", place))
	}
}

// ignores reports whether there is a reverse_proxy to come, but none that calls the
// target of the handler before.
func (c *continuation) ignores() bool {
	found := false
	for handlers := range c.lists {
		proxies, calls := proxiesIn(handlers)
		if calls {
			return false
		}
		found = found || proxies
	}
	return found
}
