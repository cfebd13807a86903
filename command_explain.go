package caddytarget

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/spf13/cobra"

	"caddytarget/internal/explain"
)

// newExplainCommand returns the command `caddy target explain`.
func newExplainCommand() *cobra.Command {
	cmd := subcommand(showExplanation, "explain [<url>]", "Shows how a request for a target would be treated, and why", 1)
	cmd.Long = `
Shows how a request for a target would be treated: what the rules say, what the
nameservers reply, which addresses may be called, their state and connections, and
the result. The request is not sent.

The exit status is 0 if it would be sent, or 1 if it would be refused or fail, or 2
if no server answered.
`
	flags := cmd.Flags()
	flags.String("site", "", "The site, if there are several with targets: a host, an address on which its server listens, or a place in the configuration")
	flags.String("method", http.MethodGet, "The method of the request")
	flags.String("uri", "/", "Path and query of the request")
	flags.StringArrayP("header", "H", nil, "A header field of the request, as in 'Name: value'; it may be there several times")
	flags.Bool("connect", false, "Open a connection to one of the addresses, TLS handshake included, to see how that ends; no request is sent")
	flags.String("nameserver", "", "Ask this nameserver, without a server and with the default rules")
	return cmd
}

func showExplanation(c *adminClient) error {
	query := make(url.Values)
	if c.flags.NArg() > 0 {
		query.Set("url", c.flags.Arg(0))
	}
	for _, param := range []string{"site", "method", "uri"} {
		if c.flags.Changed(param) {
			query.Set(param, c.flags.String(param))
		}
	}
	if header, err := c.flags.GetStringArray("header"); err == nil && len(header) > 0 {
		query["header"] = header
	}
	if c.flags.Bool("connect") {
		query.Set("connect", "1")
	}
	var report explain.Report
	if err := c.explanation(query, &report); err != nil {
		return err
	}
	if !c.json {
		if err := c.table(report.Rows()); err != nil {
			return err
		}
	}
	if !report.WouldSend {
		return fmt.Errorf("the request would not be sent: status %d", report.Status)
	}
	return nil
}

// explanation gets the explanation of what a query says, from the server or, with
// --nameserver, without one.
func (c *adminClient) explanation(query url.Values, report *explain.Report) error {
	if !c.flags.Changed("nameserver") {
		return c.request(http.MethodGet, "explain?"+query.Encode(), nil, report)
	}
	for _, flag := range []string{"site", "address", "config", "adapter"} {
		if c.flags.Changed(flag) {
			return fmt.Errorf("--%s does not go with --nameserver, which needs no server", flag)
		}
	}
	if !query.Has("url") {
		return errors.New("--nameserver needs a url")
	}
	params := make(map[string]string)
	for name := range query {
		params[name] = query.Get(name)
	}
	in, err := explain.NewInput(params, query["header"])
	if err != nil {
		return errors.New(printable(err.Error()))
	}
	site, release, err := newServerlessSite(c.flags.String("nameserver"))
	if err != nil {
		return errors.New(printable(err.Error()))
	}
	defer release()
	*report = *newExplanation(site, in).run()
	if !c.json {
		return nil
	}
	text, err := json.Marshal(report)
	if err == nil {
		_, err = fmt.Fprintf(c.out, "%s\n", asciiJSON(bytes.TrimSpace(text)))
	}
	return err
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
	return &targetSite{name: "(defaults)", handler: h, proxy: h.proxy.(*reverseproxy.Handler)}, release, nil
}
