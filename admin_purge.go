package caddytarget

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/guard"
	"caddytarget/internal/purge"
)

const maxPurgeBody = 4096 // octets

// adminPurgeRequest is the body of a request to /target/purge: one of the names, and
// whether to ask again.
type adminPurgeRequest struct {
	Name     string `json:"name,omitempty"`
	Suffix   string `json:"suffix,omitempty"`
	Address  string `json:"address,omitempty"`
	AskAgain bool   `json:"ask_again,omitempty"`
}

// adminPurged is the answer of /target/purge.
type adminPurged struct {
	Names       int                   `json:"names"`
	Ejections   int                   `json:"ejections"`   // that were ended
	Connections int                   `json:"connections"` // that were closed
	Resolvers   []adminResolverPurged `json:"resolvers"`
}

// adminResolverPurged is how many names of one resolver were purged.
type adminResolverPurged struct {
	Resolver string `json:"resolver"`
	Names    int    `json:"names"`
}

func adminPurge(r *http.Request, _ map[string]string) (any, error) {
	var request adminPurgeRequest
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxPurgeBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&request); err != nil {
		return nil, adminErrorf(http.StatusBadRequest, "reading the request: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, adminErrorf(http.StatusBadRequest, "reading the request: expecting one JSON object and nothing after it")
	}
	p, err := request.purge()
	if err != nil {
		return nil, adminErrorf(http.StatusBadRequest, "%v", err)
	}
	purged := adminPurged{Resolvers: []adminResolverPurged{}}
	scope := purge.New(p)
	for _, r := range usedResolvers() {
		n := scope.Names(r.Resolver)
		purged.Names += n
		purged.Resolvers = append(purged.Resolvers, adminResolverPurged{r.id, n})
	}
	for s := range usedShared() {
		purged.Ejections += scope.Ejections(s.health)
		for _, p := range s.usedPools() {
			purged.Connections += scope.Connections(p.Pool)
		}
	}
	return purged, nil
}

// purge returns which names the request means.
func (r *adminPurgeRequest) purge() (p dnscache.Purge, err error) {
	p.AskAgain = r.AskAgain
	given := 0
	for _, text := range []string{r.Name, r.Suffix, r.Address} {
		if text != "" {
			given++
		}
	}
	switch {
	case given != 1:
		err = fmt.Errorf("expecting one of name, suffix and address, got %d", given)
	case r.Name != "":
		if p.Name, err = guard.NormalizeHost(r.Name); err != nil {
			err = fmt.Errorf("name %q: %w", r.Name, err)
		}
	case r.Suffix == ".":
		p.Suffix = r.Suffix
	case r.Suffix != "":
		if p.Suffix, err = guard.NormalizeHost(r.Suffix); err != nil {
			err = fmt.Errorf("suffix %q: %w", r.Suffix, err)
		}
	default:
		if p.Addr, err = netip.ParseAddr(r.Address); err != nil || p.Addr.Zone() != "" {
			err = fmt.Errorf("address %q is not an IP address", r.Address)
		}
		p.Addr = p.Addr.Unmap()
	}
	return p, err
}

// purgeNames is the command `caddy target purge`.
func purgeNames(c *adminClient) error {
	request := adminPurgeRequest{
		Name: c.flags.Arg(0), Suffix: c.flags.String("suffix"), Address: c.flags.String("ip"), AskAgain: c.flags.Bool("ask-again"),
	}
	if _, err := request.purge(); err != nil {
		return errors.New(printable(err.Error()))
	}
	var purged adminPurged
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
