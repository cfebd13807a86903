package command

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"caddytarget/internal/admin"
	"caddytarget/internal/explain"
)

// showNames is the command `caddy target names`.
func showNames(c *client) error {
	if name := c.flags.Arg(0); name != "" {
		for _, flag := range []string{"prefix", "state", "after", "limit", "all"} {
			if c.flags.Changed(flag) {
				return fmt.Errorf("--%s does not go with a name", flag)
			}
		}
		return showName(c, name)
	}
	return showPages(c, "names", []string{"prefix", "state"}, func(page *admin.Names) ([][]string, string) {
		return nameRows(page.Names), page.Next
	})
}

// nameRows returns the table of names.
func nameRows(names []admin.Name) [][]string {
	rows := [][]string{{"NAME", "STATE", "TTL", "USED", "ADDRESSES", "ZONE", "RESOLVER", "ERROR"}}
	for i := range names {
		n := &names[i]
		rows = append(rows, []string{n.Name, n.State, explain.Shortly(n.TTL), explain.Shortly(n.Used), addressesOf(n), n.Zone, n.Resolver, n.Error})
	}
	return rows
}

// addressesOf returns the first addresses or records of a name, and how many more there are.
func addressesOf(n *admin.Name) string {
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

// showName shows all that is known of a name.
func showName(c *client, name string) error {
	var report admin.NameReport
	if err := c.get("names/"+url.PathEscape(name), &report); err != nil || c.json {
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
			rows = append(rows, rowsOf(&r.Names[i])...)
		}
	}
	return c.table(rows)
}

// rowsOf returns all that is known of a name, a line each.
func rowsOf(n *admin.Name) (rows [][]string) {
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
			line += fmt.Sprintf(", failures in a row: %d, %s", t.Failures, retryOf(*t.Retry))
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

// retryOf describes when records are asked for again that are not for so long.
func retryOf(seconds float64) string {
	if seconds <= 0 {
		return "asked for again with the next request"
	}
	return "not asked for again for " + explain.Shortly(seconds)
}

func joinAddrs(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, " ")
}
