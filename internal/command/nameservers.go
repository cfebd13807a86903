package command

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"caddytarget/internal/admin"
	"caddytarget/internal/explain"
)

// showNameservers is the command `caddy target nameservers`.
func showNameservers(c *client) error {
	var all admin.Nameservers
	if err := c.get("nameservers", &all); err != nil || c.json {
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
			s.Nameserver, state, since, explain.Shortly(s.RTT), repliesOf(s),
			strconv.FormatUint(s.Timeouts+s.Refused+s.Network, 10), strconv.Itoa(s.Failures), strconv.Itoa(s.InFlight), s.Zone, s.Resolver, s.Reason,
		})
	}
	return c.table(rows)
}

// repliesOf returns how many replies there were by rcode.
func repliesOf(s *admin.Nameserver) string {
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
