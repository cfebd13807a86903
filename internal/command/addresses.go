package command

import (
	"cmp"
	"strconv"

	"caddytarget/internal/admin"
)

// showAddresses is the command `caddy target addresses`.
func showAddresses(c *client) error {
	return showPages(c, "addresses", []string{"target", "ip", "state"}, func(page *admin.Addresses) ([][]string, string) {
		rows := [][]string{{"ADDRESS", "TARGET", "STATE", "LEFT", "SINCE", "FAILURES", "LAST", "LIMIT", "FAILURE", "ERROR"}}
		for _, f := range page.Families {
			rows = append(rows, []string{
				"(all " + f.Family + ")", "(any)", f.State, age(f.Left), "-", strconv.Itoa(f.Networks), age(f.Last), "-", "-",
				"networks that could not be reached: " + strconv.Itoa(f.Networks),
			})
		}
		for i := range page.Addresses {
			a := &page.Addresses[i]
			rows = append(rows, []string{
				a.Address, cmp.Or(a.Target, "(any)"), stateOf(a), age(a.Left), age(a.Since), strconv.Itoa(a.Failures), age(a.Last),
				cmp.Or(a.Limit, "-"), cmp.Or(a.Failure, "-"), cmp.Or(a.Error, "-"),
			})
		}
		return rows, page.Next
	})
}

// stateOf returns the state of an address, and whether a request is finding out more.
func stateOf(a *admin.Address) string {
	switch {
	case a.Dialling > 0:
		return a.State + " (dialling)"
	case a.Claimed:
		return a.State + " (claimed)"
	}
	return a.State
}
