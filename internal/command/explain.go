package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"caddytarget/internal/admin"
	"caddytarget/internal/explain"
)

// newExplain returns the command `caddy target explain`.
func newExplain(caddy *Caddy) *cobra.Command {
	cmd := caddy.subcommand(showExplanation, "explain [<url>]", "Shows how a request for a target would be treated, and why", 1)
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

// showExplanation is the command `caddy target explain`.
func showExplanation(c *client) error {
	query := make(url.Values)
	if c.flags.NArg() > 0 {
		query.Set("url", c.flags.Arg(0))
	}
	for _, param := range []string{"site", "method", "uri"} {
		if c.flags.Changed(param) {
			query.Set(param, c.flag(param))
		}
	}
	if header, err := c.flags.GetStringArray("header"); err == nil && len(header) > 0 {
		query["header"] = header
	}
	if c.isSet("connect") {
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
func (c *client) explanation(query url.Values, report *explain.Report) error {
	if !c.flags.Changed("nameserver") {
		return c.get("explain?"+query.Encode(), report)
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
		return errors.New(admin.Printable(err.Error()))
	}
	found, err := c.caddy.Explain(c.flag("nameserver"), in)
	if err != nil {
		return errors.New(admin.Printable(err.Error()))
	}
	*report = *found
	if !c.json {
		return nil
	}
	text, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return c.printJSON(text)
}
