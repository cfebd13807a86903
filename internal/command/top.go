package command

import (
	"fmt"
	"net/url"
	"strconv"

	"caddytarget/internal/admin"
)

// showTop is the command `caddy target top`.
func showTop(c *client) error {
	query := url.Values{"limit": {c.flag("limit")}}
	if by := c.flag("by"); by != "" {
		query.Set("by", by)
	}
	var top admin.Top
	if err := c.get("top?"+query.Encode(), &top); err != nil || c.json {
		return err
	}
	rows := [][]string{{"TARGET", "REQUESTS", "FAILURES", "SECONDS EACH", "NEW CONNECTIONS"}}
	for _, t := range append(top.Targets, top.Other) {
		if t.Host == "" {
			t.Host = "(all others)"
		}
		each := "-"
		if t.Requests > 0 {
			each = fmt.Sprintf("%.4f", t.Seconds/float64(t.Requests))
		}
		rows = append(rows, []string{
			t.Host, strconv.FormatUint(t.Requests, 10), strconv.FormatUint(t.Failures, 10), each, strconv.FormatUint(t.Connections, 10),
		})
	}
	return c.table(rows)
}
