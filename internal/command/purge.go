package command

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"caddytarget/internal/admin"
)

// purgeNames is the command `caddy target purge`.
func purgeNames(c *client) error {
	request := admin.PurgeRequest{
		Name: c.flags.Arg(0), Suffix: c.flag("suffix"), Address: c.flag("ip"), AskAgain: c.isSet("ask-again"),
	}
	if _, err := request.Scope(); err != nil {
		return errors.New(admin.Printable(err.Error()))
	}
	var purged admin.Purged
	if err := c.request(http.MethodPost, "purge", request, &purged); err != nil || c.json {
		return err
	}
	what := "forgotten"
	if request.AskAgain {
		what = "asked for again"
	}
	rows := [][]string{{"RESOLVER", "NAMES " + strings.ToUpper(what)}}
	for _, r := range purged.Resolvers {
		rows = append(rows, []string{r.Resolver, strconv.Itoa(r.Names)})
	}
	if err := c.table(rows); err != nil {
		return err
	}
	return c.table([][]string{{"EJECTIONS ENDED", "CONNECTIONS CLOSED"}, {strconv.Itoa(purged.Ejections), strconv.Itoa(purged.Connections)}})
}
