// Package command is the command line `caddy target`: it asks the admin API of a running
// server, whose answers have the types of package admin, and prints tables for people or,
// with --output json, the answers themselves.
//
// SetUp adds the subcommands to a command. For each run of one there is a client, which has
// its flags; the functions show… and purgeNames are what the subcommands do with it. What
// this needs of Caddy is in Caddy. All that is printed is printable ASCII, whatever a server
// sends.
package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"caddytarget/internal/admin"
	"caddytarget/internal/explain"
)

// The exit statuses of the command, but for 0.
const (
	ExitFailed   = 1
	ExitNoServer = 2
)

// Caddy is what the commands need of Caddy.
type Caddy struct {
	// Address returns the address of the admin API: the first value, if it is not empty;
	// or else that of a configuration file with an adapter; or else the default.
	Address func(address, config, adapter string) (string, error)

	// Request sends a request to the admin API at an address. A response with a status of
	// 400 or more is an error, too.
	Request func(address, method, uri string, header http.Header, body io.Reader) (*http.Response, error)

	// Explain explains a request by the default rules and a nameserver, without a server.
	Explain func(nameserver string, in *explain.Input) (*explain.Report, error)

	// Exit logs an error, unless it is nil, and returns one that makes cmd end with a status.
	Exit func(cmd *cobra.Command, status int, err error) error
}

// SetUp adds flags and subcommands to the command `caddy target`.
func SetUp(cmd *cobra.Command, caddy *Caddy) {
	// with RunE and Args, an unknown command is an error and not a request for help
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }

	flags := cmd.PersistentFlags()
	flags.String("address", "", "Address of the administration listener, if different from config")
	flags.StringP("config", "c", "", "Configuration file, to read the address of the administration listener from")
	flags.StringP("adapter", "a", "", "Name of config adapter to apply")
	flags.StringP("output", "o", "table", "Form of the output: table or json")

	names := caddy.subcommand(showNames, "names [<name>]", "Shows the names that are known, or all that is known of one name", 1)
	names.Flags().String("prefix", "", "Only names that begin with this")
	names.Flags().String("state", "", "Only names in these states, with commas: pending, fresh, stale, negative, failing")
	addPageFlags(names)

	purge := caddy.subcommand(purgeNames, "purge <name> | --suffix <suffix> | --ip <address>",
		"Forgets names, or asks for them again; ends ejections, closes idle connections", 1)
	purge.Flags().String("suffix", "", "This name and all names below it; a dot: all names")
	purge.Flags().String("ip", "", "The names that have this IP address")
	purge.Flags().Bool("ask-again", false, "Ask for the names again in the background, while what is known goes on to serve")

	nameservers := caddy.subcommand(showNameservers, "nameservers", "Shows the nameservers: whether they are down, and how they replied", 0)

	pools := caddy.subcommand(showPools, "pools", "Shows the connections to each target and address", 0)
	pools.Flags().String("state", "", "Only those with some of this, with commas: idle, in_use, waiting, dialling")
	addresses := caddy.subcommand(showAddresses, "addresses", "Shows the addresses that failed, and which of them are ejected", 0)
	addresses.Flags().String("state", "", "Only addresses in these states, with commas: healthy, needs_probe, needs_trial, ejected")
	for _, cmd := range []*cobra.Command{pools, addresses} {
		cmd.Flags().String("target", "", "Only those of this target")
		cmd.Flags().String("ip", "", "Only this IP address, or address and port")
		addPageFlags(cmd)
	}

	top := caddy.subcommand(showTop, "top", "Shows the targets with the most requests, failures, latency or new connections", 0)
	top.Flags().String("by", "requests", "The order: requests, failures, latency or connections")
	top.Flags().IntP("limit", "n", admin.DefaultTop, "How many targets, at most "+strconv.Itoa(admin.MaxTop))

	trace := caddy.subcommand(showTrace, "trace", "Shows requests as they end, a line each, until it is interrupted", 0)
	trace.Flags().String("target", "", "Only requests to this host, or to those below it: .example.com")
	trace.Flags().IntP("limit", "n", 0, "How many requests, at most "+strconv.Itoa(admin.MaxTraceEvents)+" (default all)")
	trace.Flags().Int("seconds", admin.MaxTraceSeconds, "How long, at most "+strconv.Itoa(admin.MaxTraceSeconds))
	ready := caddy.subcommand(showReady, "ready", "Exits with 0 if the server is ready: what was saved was read, and warm connections are open", 0)
	cmd.AddCommand(ready, names, purge, nameservers, pools, addresses, top, trace, newExplain(caddy))
}

// subcommand returns a command that speaks to the admin API.
func (caddy *Caddy) subcommand(run func(*client) error, use, short string, maxArgs int) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.MaximumNArgs(maxArgs)}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := newClient(caddy, cmd)
		if err == nil {
			err = run(c)
		}
		return caddy.Exit(cmd, statusOf(err), err)
	}
	return cmd
}

// statusOf returns the exit status for an error, which may be nil.
func statusOf(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNoServer):
		return ExitNoServer
	}
	return ExitFailed
}

// client is a command that speaks to the admin API.
type client struct {
	caddy    *Caddy
	flags    *pflag.FlagSet
	address  string
	json     bool
	out, err io.Writer
}

func newClient(caddy *Caddy, cmd *cobra.Command) (*client, error) {
	c := &client{caddy: caddy, flags: cmd.Flags(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
	switch output := c.flag("output"); output {
	case "table":
	case "json":
		c.json = true
	default:
		return nil, fmt.Errorf("unknown output %s: expecting table or json", admin.Printable(output))
	}
	var err error
	if c.address, err = caddy.Address(c.flag("address"), c.flag("config"), c.flag("adapter")); err != nil {
		return nil, fmt.Errorf("couldn't determine admin API address: %w", err)
	}
	return c, nil
}

// flag returns the value of a flag that the command has, as it may be given.
func (c *client) flag(name string) string { return c.flags.Lookup(name).Value.String() }

// isSet reports whether a flag without a value is given.
func (c *client) isSet(name string) bool { return c.flag(name) == "true" }

var errNoServer = errors.New("no server answered")

// get gets the answer of an endpoint and its parameters, and reads it. With the output json
// it prints that, too.
func (c *client) get(endpoint string, answer any) error {
	return c.request(http.MethodGet, endpoint, nil, answer)
}

// request is get for any method, with a body that is sent as JSON, unless it is nil.
func (c *client) request(method, endpoint string, body, answer any) error {
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(text)
	}
	res, err := c.send(method, endpoint, sent)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("reading the response: %w", err)
	}
	if err := decode(text, answer); err != nil {
		return err
	}
	if c.json {
		var line bytes.Buffer
		_ = json.Compact(&line, text) // it is valid
		err = c.printJSON(line.Bytes())
	}
	return err
}

// send sends a request to an endpoint.
func (c *client) send(method, endpoint string, body io.Reader) (*http.Response, error) {
	res, err := c.caddy.Request(c.address, method, admin.Path+endpoint, nil, body)
	if err != nil {
		return nil, requestError(err)
	}
	return res, nil
}

// decode reads JSON of a response.
func decode(text []byte, to any) error {
	if err := json.Unmarshal(text, to); err != nil {
		return fmt.Errorf("reading the response: %w", err)
	}
	return nil
}

// printJSON prints a line of valid JSON.
func (c *client) printJSON(text []byte) error {
	_, err := fmt.Fprintf(c.out, "%s\n", admin.ASCIIJSON(text))
	return err
}

// requestError returns what an error of Caddy.Request means, which has no types.
func requestError(err error) error {
	text := err.Error()
	if reason, ok := strings.CutPrefix(text, "performing request: "); ok {
		return fmt.Errorf("%w: %s", errNoServer, admin.Printable(reason))
	}
	if response, ok := strings.CutPrefix(text, "caddy responded with error: "); ok {
		status, body, _ := strings.Cut(response, ": ")
		var of struct {
			Error string `json:"error"`
		}
		if json.Unmarshal([]byte(body), &of) == nil && of.Error != "" {
			return fmt.Errorf("%s (%s)", admin.Printable(of.Error), admin.Printable(status))
		}
	}
	return errors.New(admin.Printable(strings.TrimSpace(text)))
}

// table prints rows in columns, the first of them as the header. Cells are escaped so
// that they cannot control the terminal.
func (c *client) table(rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				_, _ = fmt.Fprint(w, "\t")
			}
			_, _ = fmt.Fprint(w, admin.Printable(cell))
		}
		_, _ = fmt.Fprintln(w)
	}
	return w.Flush()
}

// age returns a time in seconds for people; a dash if there is none.
func age(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return explain.Shortly(seconds)
}
