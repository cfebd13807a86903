package command

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"caddytarget/internal/admin"
)

// addPageFlags adds the flags of a command that shows pages.
func addPageFlags(cmd *cobra.Command) {
	cmd.Flags().String("after", "", "Where the page before ended")
	cmd.Flags().Int("limit", admin.DefaultPage, "How many there are on a page, at most "+strconv.Itoa(admin.MaxPage))
	cmd.Flags().Bool("all", false, "All pages, one after the other")
}

// showPages shows a page of a list, or all of them. Flags are passed on to the endpoint as
// the parameters of the same name, ip as address. table returns the table of a page, and
// where the next one begins.
func showPages[Page any](c *client, path string, flags []string, table func(*Page) (rows [][]string, next string)) error {
	query := url.Values{"limit": {c.flag("limit")}}
	for _, flag := range append(flags, "after") {
		if c.flags.Changed(flag) {
			query.Set(paramOf(flag), c.flag(flag))
		}
	}
	for {
		var page Page
		if err := c.get(path+"?"+query.Encode(), &page); err != nil {
			return err
		}
		rows, next := table(&page)
		if !c.json {
			if err := c.table(rows); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		if !c.isSet("all") {
			if !c.json {
				_, _ = fmt.Fprintf(c.err, "There are more: --after %s, or --all\n", admin.Printable(next))
			}
			return nil
		}
		query.Set("after", next)
	}
}

// paramOf returns the parameter that a flag stands for. --address is the admin API's.
func paramOf(flag string) string {
	if flag == "ip" {
		return "address"
	}
	return flag
}
