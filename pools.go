package caddytarget

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
)

// acquirePool returns the connections for the settings of a transport: its options, as JSON
// has them, and config. They have to be released, and outlive a reload that leaves the
// settings as they are.
func (a *App) acquirePool(options *reverseproxy.HTTPTransport, config pool.Config) (*pool.Shared, error) {
	text, err := json.Marshal(struct {
		Transport any
		Sessions  int
	}{options, config.SessionCache})
	if err != nil {
		return nil, err
	}
	settings := pool.NewSettings(text, config.TLS, a.transports)
	a.transports = append(a.transports, settings)
	s := a.shared
	config.Observer, config.Interim = s.metrics.Dials, failure.DropProxyStatus
	return s.pools.Acquire(settings, config, func(config pool.Config) *pool.Pool { return pool.New(config, s.health, s.limits) }), nil
}
