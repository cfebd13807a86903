package caddytarget

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"caddytarget/internal/explain"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
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

// The exit statuses of the command.
const (
	exitFailed   = 1
	exitNoServer = 2
)

func setUpCommand(cmd *cobra.Command) {
	// with RunE and Args, an unknown command is an error and not a request for help
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }

	flags := cmd.PersistentFlags()
	flags.String("address", "", "Address of the administration listener, if different from config")
	flags.StringP("config", "c", "", "Configuration file, to read the address of the administration listener from")
	flags.StringP("adapter", "a", "", "Name of config adapter to apply")
	flags.StringP("output", "o", "table", "Form of the output: table or json")

	names := subcommand(showNames, "names [<name>]", "Shows the names that are known, or all that is known of one name", 1)
	names.Flags().String("prefix", "", "Only names that begin with this")
	names.Flags().String("state", "", "Only names in these states, with commas: pending, fresh, stale, negative, failing")
	addPageFlags(names)

	purge := subcommand(purgeNames, "purge <name> | --suffix <suffix> | --ip <address>",
		"Forgets names, or asks for them again; ends ejections, closes idle connections", 1)
	purge.Flags().String("suffix", "", "This name and all names below it; a dot: all names")
	purge.Flags().String("ip", "", "The names that have this IP address")
	purge.Flags().Bool("ask-again", false, "Ask for the names again in the background, while what is known goes on to serve")

	nameservers := subcommand(showNameservers, "nameservers", "Shows the nameservers: whether they are down, and how they replied", 0)

	pools := subcommand(showPools, "pools", "Shows the connections to each target and address", 0)
	pools.Flags().String("state", "", "Only those with some of this, with commas: "+strings.Join(usageStates, ", "))
	addresses := subcommand(showAddresses, "addresses", "Shows the addresses that failed, and which of them are ejected", 0)
	addresses.Flags().String("state", "", "Only addresses in these states, with commas: healthy, needs_probe, needs_trial, ejected")
	for _, cmd := range []*cobra.Command{pools, addresses} {
		cmd.Flags().String("target", "", "Only those of this target")
		cmd.Flags().String("ip", "", "Only this IP address, or address and port")
		addPageFlags(cmd)
	}

	top := subcommand(showTop, "top", "Shows the targets with the most requests, failures, latency or new connections", 0)
	top.Flags().String("by", "requests", "The order: requests, failures, latency or connections")
	top.Flags().IntP("limit", "n", defaultTop, "How many targets, at most "+strconv.Itoa(maxTop))

	trace := subcommand(showTrace, "trace", "Shows requests as they end, a line each, until it is interrupted", 0)
	trace.Flags().String("target", "", "Only requests to this host, or to those below it: .example.com")
	trace.Flags().IntP("limit", "n", 0, "How many requests, at most "+strconv.Itoa(maxTraceEvents)+" (default all)")
	trace.Flags().Int("seconds", maxTraceSeconds, "How long, at most "+strconv.Itoa(maxTraceSeconds))
	cmd.AddCommand(names, purge, nameservers, pools, addresses, top, trace, newExplainCommand())
}

// subcommand returns a command that speaks to the admin API.
func subcommand(run func(*adminClient) error, use, short string, maxArgs int) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.MaximumNArgs(maxArgs)}
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(flags caddycmd.Flags) (int, error) {
		c, err := newAdminClient(flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
		if err == nil {
			err = run(c)
		}
		switch {
		case err == nil:
			return caddy.ExitCodeSuccess, nil
		case errors.Is(err, errNoServer):
			return exitNoServer, err
		default:
			return exitFailed, err
		}
	})
	return cmd
}

// adminClient is a command that speaks to the admin API.
type adminClient struct {
	flags    caddycmd.Flags
	address  string
	json     bool
	out, err io.Writer
}

func newAdminClient(flags caddycmd.Flags, out, errOut io.Writer) (*adminClient, error) {
	c := &adminClient{flags: flags, out: out, err: errOut}
	switch output := flags.String("output"); output {
	case "table":
	case "json":
		c.json = true
	default:
		return nil, fmt.Errorf("unknown output %s: expecting table or json", printable(output))
	}
	var err error
	c.address, err = caddycmd.DetermineAdminAPIAddress(flags.String("address"), nil, flags.String("config"), flags.String("adapter"))
	if err != nil {
		return nil, fmt.Errorf("couldn't determine admin API address: %w", err)
	}
	return c, nil
}

var errNoServer = errors.New("no server answered")

// request sends a request to the admin API and reads the response. With the output
// json it prints that, too.
func (c *adminClient) request(method, uri string, body, response any) error {
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(text)
	}
	res, err := caddycmd.AdminAPIRequest(c.address, method, adminPath+uri, nil, sent)
	if err != nil {
		return requestError(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("reading the response: %w", err)
	}
	if err := json.Unmarshal(text, response); err != nil {
		return fmt.Errorf("reading the response: %w", err)
	}
	if c.json {
		var line bytes.Buffer
		_ = json.Compact(&line, text) // it is valid
		_, err = fmt.Fprintf(c.out, "%s\n", asciiJSON(line.Bytes()))
	}
	return err
}

// requestError returns what an error of AdminAPIRequest means, which has no types.
func requestError(err error) error {
	text := err.Error()
	if reason, ok := strings.CutPrefix(text, "performing request: "); ok {
		return fmt.Errorf("%w: %s", errNoServer, printable(reason))
	}
	if response, ok := strings.CutPrefix(text, "caddy responded with error: "); ok {
		status, body, _ := strings.Cut(response, ": ")
		var of struct {
			Error string `json:"error"`
		}
		if json.Unmarshal([]byte(body), &of) == nil && of.Error != "" {
			return fmt.Errorf("%s (%s)", printable(of.Error), printable(status))
		}
	}
	return errors.New(printable(strings.TrimSpace(text)))
}

// table prints rows in columns, the first of them as the header. Cells are escaped so
// that they cannot control the terminal.
func (c *adminClient) table(rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				_, _ = fmt.Fprint(w, "\t")
			}
			_, _ = fmt.Fprint(w, printable(cell))
		}
		_, _ = fmt.Fprintln(w)
	}
	return w.Flush()
}

func showNames(c *adminClient) error {
	if name := c.flags.Arg(0); name != "" {
		for _, flag := range []string{"prefix", "state", "after", "limit", "all"} {
			if c.flags.Changed(flag) {
				return fmt.Errorf("--%s does not go with a name", flag)
			}
		}
		return showName(c, name)
	}
	return showPages(c, "names", []string{"prefix", "state"}, func(page *adminNames) ([][]string, string) {
		return nameRows(page.Names), page.Next
	})
}

// nameRows returns the table of names.
func nameRows(names []adminName) [][]string {
	rows := [][]string{{"NAME", "STATE", "TTL", "USED", "ADDRESSES", "ZONE", "RESOLVER", "ERROR"}}
	for i := range names {
		n := &names[i]
		rows = append(rows, []string{n.Name, n.State, explain.Shortly(n.TTL), explain.Shortly(n.Used), n.what(), n.Zone, n.Resolver, n.Error})
	}
	return rows
}

// what returns the first addresses or records of a name, and how many more there are.
func (n *adminName) what() string {
	var all []string
	for _, a := range n.Addresses {
		all = append(all, a.String())
	}
	for _, r := range n.Records {
		all = append(all, r.Target+":"+strconv.Itoa(int(r.Port)))
	}
	const shown = 2
	if more := len(all) - shown; more > 0 {
		all = append(all[:shown], fmt.Sprintf("+%d", more))
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, ",")
}

func showName(c *adminClient, name string) error {
	var report adminNameReport
	if err := c.request(http.MethodGet, "names/"+url.PathEscape(name), nil, &report); err != nil || c.json {
		return err
	}
	var rows [][]string
	for _, r := range report.Resolvers {
		rows = append(rows, []string{"resolver", r.Resolver})
		if r.Hosts {
			rows = append(rows, []string{"hosts file", joinAddrs(r.Addresses)})
		}
		if r.OutsideDNS {
			rows = append(rows, []string{"outside the DNS", "never asked for (RFC 6761, RFC 7686)"})
		}
		if r.Found != "" {
			rows = append(rows, []string{"short for", r.Found})
		}
		for i := range r.Names {
			rows = append(rows, r.Names[i].rows()...)
		}
	}
	return c.table(rows)
}

// rows returns all that is known of a name, a line each.
func (n *adminName) rows() (rows [][]string) {
	add := func(key, format string, args ...any) {
		rows = append(rows, []string{"  " + key, fmt.Sprintf(format, args...)})
	}
	rows = append(rows, []string{"name", n.Name})
	add("zone", "%s", n.Zone)
	add("state", "%s%s", n.State, map[bool]string{true: ", a lookup is in flight"}[n.InFlight])
	if len(n.Addresses) > 0 {
		add("addresses", "%s", joinAddrs(n.Addresses))
	}
	for _, r := range n.Records {
		add("record", "%s:%d, priority %d, weight %d", r.Target, r.Port, r.Priority, r.Weight)
	}
	for _, t := range n.Types {
		line := fmt.Sprintf("records: %d", t.Count)
		if t.TTL != 0 {
			line += ", TTL " + explain.Shortly(t.TTL)
		}
		if t.Failures > 0 && t.Retry != nil {
			line += fmt.Sprintf(", failures in a row: %d, not asked for again for %s", t.Failures, explain.Shortly(*t.Retry))
		}
		add("type "+t.Type, "%s", line)
	}
	add("TTL", "%s", explain.Shortly(n.TTL))
	if n.StaleFor > 0 {
		add("stale for", "%s", explain.Shortly(n.StaleFor))
	}
	add("used", "%s ago", explain.Shortly(n.Used))
	if n.Preload {
		add("preload", "yes")
	}
	if n.NextRefresh != nil {
		add("refresh", "in %s", explain.Shortly(*n.NextRefresh))
	}
	if n.Error != "" && n.ErrorAge != nil {
		add("error", "%s (%s ago)", n.Error, explain.Shortly(*n.ErrorAge))
	}
	for _, t := range n.Tries {
		line := ""
		if name := strings.TrimSuffix(t.Name, "."); name != n.Name {
			line = name + ", "
		}
		line += fmt.Sprintf("%s %s: %s after %s", t.Nameserver, t.Transport, t.Outcome, explain.Shortly(t.Seconds))
		if t.Ignored > 0 {
			line += fmt.Sprintf(", %d messages ignored", t.Ignored)
		}
		add("try", "%s", line)
	}
	return rows
}

func joinAddrs(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, " ")
}

func showNameservers(c *adminClient) error {
	var all adminNameservers
	if err := c.request(http.MethodGet, "nameservers", nil, &all); err != nil || c.json {
		return err
	}
	rows := [][]string{{"NAMESERVER", "STATE", "FOR", "RTT", "REPLIES", "NO REPLY", "FAILURES", "IN FLIGHT", "ZONE", "RESOLVER", "REASON"}}
	for i := range all.Nameservers {
		s := &all.Nameservers[i]
		state, since := "up", "-"
		if s.Down {
			state = "down"
		}
		if s.Changed != nil {
			since = explain.Shortly(*s.Changed)
		}
		rows = append(rows, []string{
			s.Nameserver, state, since, explain.Shortly(s.RTT), s.replies(),
			strconv.FormatUint(s.Timeouts+s.Refused+s.Network, 10), strconv.Itoa(s.Failures), strconv.Itoa(s.InFlight), s.Zone, s.Resolver, s.Reason,
		})
	}
	return c.table(rows)
}

// replies returns how many replies there were by rcode.
func (s *adminNameserver) replies() string {
	var all []string
	for _, rcode := range slices.Sorted(maps.Keys(s.Replies)) {
		all = append(all, fmt.Sprintf("%s:%d", rcode, s.Replies[rcode]))
	}
	if s.Malformed > 0 {
		all = append(all, fmt.Sprintf("malformed:%d", s.Malformed))
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, ",")
}
