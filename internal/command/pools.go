package command

import (
	"cmp"
	"strconv"

	"caddytarget/internal/admin"
	"caddytarget/internal/explain"
)

// showPools is the command `caddy target pools`.
func showPools(c *client) error {
	return showPages(c, "pools", []string{"target", "ip", "state"}, func(page *admin.Pools) ([][]string, string) {
		rows := [][]string{{"TARGET", "ADDRESS", "PROTOCOL", "SERVER NAME", "IDLE", "IN USE", "REQUESTS", "WAITING", "DIALLING", "OLDEST", "NEWEST", "UNUSED", "POOL"}}
		for i := range page.Pools {
			u := &page.Pools[i]
			dialling, name := strconv.Itoa(u.Dialling), u.Pool
			if u.Dial != nil {
				dialling += " (" + u.Dial.Phase + " for " + explain.Shortly(u.Dial.Seconds) + ")"
			}
			if u.Draining {
				name += " (draining)"
			}
			rows = append(rows, []string{
				cmp.Or(u.Target, "(any)"), u.Address, cmp.Or(u.Protocol, "-"), cmp.Or(u.ServerName, "-"), strconv.Itoa(u.Idle), strconv.Itoa(u.InUse),
				strconv.Itoa(u.Requests), strconv.Itoa(u.Waiting), dialling, age(u.Oldest), age(u.Newest), age(u.Unused), name,
			})
		}
		return rows, page.Next
	})
}
