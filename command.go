package caddytarget

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/spf13/cobra"

	"caddytarget/internal/admin"
	"caddytarget/internal/command"
	"caddytarget/internal/explain"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "target",
		Usage: "<command>",
		Short: "Shows what a running Caddy knows of its targets, and explains how one would be called",
		Long: `
Asks the admin API of a running Caddy what it knows of its targets. The address of the
admin API is that of --address; otherwise that of the configuration of --config;
otherwise the default.

The exit status is 0, or 1 if the request was refused or failed, or 2 if no server
answered.
`,
		CobraFunc: setUpCommand,
	})
}

// setUpCommand adds flags and subcommands to the command `caddy target`.
func setUpCommand(cmd *cobra.Command) {
	command.SetUp(cmd, &command.Caddy{
		Address: func(address, config, adapter string) (string, error) {
			return caddycmd.DetermineAdminAPIAddress(address, nil, config, adapter)
		},
		Request: caddycmd.AdminAPIRequest,
		Explain: explainServerless,
		Exit: func(cmd *cobra.Command, status int, err error) error {
			return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return status, err })(cmd, nil)
		},
	})
}

// explainServerless explains a request at a site with the defaults that asks a nameserver.
func explainServerless(nameserver string, in *explain.Input) (*explain.Report, error) {
	site, release, err := newServerlessSite(nameserver)
	if err != nil {
		return nil, err
	}
	defer release()
	return newExplanation(site, in).run(), nil
}

// newServerlessSite returns a site with the defaults that asks one nameserver, for a
// process that is no server. release has to be called in the end.
func newServerlessSite(nameserver string) (site *targetSite, release func(), err error) {
	// what a server has saved would be an answer that the nameserver has not given
	resolver, err := json.Marshal(&App{Resolver: &Resolver{Nameservers: []string{nameserver}, Persist: -1}})
	if err != nil {
		return nil, nil, err
	}
	base, err := caddy.ProvisionContext(&caddy.Config{
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{
			caddy.DefaultLoggerName: {BaseLog: caddy.BaseLog{Level: "ERROR"}},
		}},
		AppsRaw: caddy.ModuleMap{"target": resolver},
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := caddy.NewContext(base)
	release = func() {
		cancel()
		if app, err := base.App("target"); err == nil {
			_ = app.(*App).Cleanup() // base itself has no end
		}
	}
	module, err := ctx.LoadModuleByID("http.handlers.target", []byte(`{
		"url": "{http.request.uri}",
		"proxy": {"handler": "reverse_proxy", "dynamic_upstreams": {"source": "target"}, "transport": {"protocol": "target"}}
	}`))
	if err != nil {
		release()
		return nil, nil, err
	}
	h := module.(*Handler)
	return &targetSite{Site: admin.Site{Name: "(defaults)"}, handler: h, proxy: h.proxy.(*reverseproxy.Handler)}, release, nil
}
