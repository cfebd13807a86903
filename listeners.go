package caddytarget

import (
	"net/netip"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/localnet"
)

// newListeners returns what finds this server's own listeners, so that targets do not reach
// them. The kernel is asked for the addresses of this machine and for the sockets of this
// process, so the spelling of an address does not matter, nor how it was configured.
//
// Where the system does not show the sockets of this process, Caddy's account of its
// listeners is asked instead, those of the admin API and of all apps included. It does not
// have listeners that were handed over as file descriptors, or whose address has an unusual
// spelling.
func newListeners(ctx caddy.Context, s *shared) *localnet.Listeners {
	// when the first request asks, all apps are provisioned
	account := sync.OnceValue(func() *localnet.Account {
		app, err := ctx.AppIfConfigured("http")
		if err != nil {
			return accountOf(new(caddyhttp.App))
		}
		return accountOf(app.(*caddyhttp.App))
	})
	return localnet.NewListeners(localnet.Config{
		Addresses: localnet.Addresses,
		Sockets:   s.sockets,
		Sites:     &s.sites,
		Account:   func(a netip.AddrPort) localnet.Owner { return account().Owner(a) },
	})
}

// siteSocketsOf returns the sockets on which the sites of an HTTP app listen. The app has
// been started.
func siteSocketsOf(app *caddyhttp.App) (ids []uint64) {
	for _, server := range app.Servers {
		ids = append(ids, localnet.IDsOf(server.Listeners())...)
	}
	return ids
}

// accountOf returns Caddy's account of its listeners, with those of the sites of an HTTP app.
func accountOf(app *caddyhttp.App) *localnet.Account {
	account := &localnet.Account{Usage: caddy.ListenerUsage}
	for _, server := range app.Servers {
		for _, listen := range server.Listen {
			na, err := caddy.ParseNetworkAddress(listen)
			if err != nil {
				continue // Caddy cannot listen there
			}
			for i := range na.PortRangeSize() {
				account.AddSite(na.Network, na.JoinHostPort(i))
			}
			account.AddHost(na.Host)
		}
	}
	return account
}
