package caddytarget

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/guard"
)

// The limits of a page of a list.
const defaultPage, maxPage = 100, 1000

// pageLimit returns how many elements there may be on a page.
func pageLimit(params map[string]string) (int, error) {
	text, ok := params["limit"]
	if !ok {
		return defaultPage, nil
	}
	limit, err := strconv.Atoi(text)
	if err != nil || limit < 1 || limit > maxPage {
		return 0, adminErrorf(http.StatusBadRequest, "limit %q is not in 1 to %d", text, maxPage)
	}
	return limit, nil
}

// cursor is a place in a list at which a page ends.
type cursor struct {
	list uint64 // which one
	at   uint64 // 0: its beginning
}

// String returns the cursor for a request; that of the beginning is empty.
func (c cursor) String() string {
	if c.at == 0 {
		return ""
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], c.list)
	binary.BigEndian.PutUint64(b[8:], c.at)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// cursorOf returns the cursor of a request.
func cursorOf(params map[string]string) (c cursor, err error) {
	text := params["after"]
	if text == "" {
		return cursor{}, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != 16 {
		return cursor{}, errCursor()
	}
	return cursor{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, nil
}

func errCursor() error {
	return adminErrorf(http.StatusBadRequest, "after: %v", dnscache.ErrCursor)
}

// targetFilter chooses what belongs to a target and to an address. The zero value chooses
// all.
type targetFilter struct {
	target string         // empty: any
	addr   netip.AddrPort // not valid: any; with the port 0: any port
}

// targetFilterOf returns the filter of a request.
func targetFilterOf(params map[string]string) (f targetFilter, err error) {
	if text, ok := params["target"]; ok {
		if f.target, err = guard.NormalizeHost(text); err != nil {
			return f, adminErrorf(http.StatusBadRequest, "target %q: %v", text, err)
		}
	}
	if text, ok := params["address"]; ok {
		if f.addr, err = netip.ParseAddrPort(text); err != nil || f.addr.Port() == 0 {
			var addr netip.Addr
			addr, err = netip.ParseAddr(text)
			f.addr = netip.AddrPortFrom(addr, 0)
		}
		if err != nil || f.addr.Addr().Zone() != "" {
			return f, adminErrorf(http.StatusBadRequest, "address %q is neither an IP address nor one with a port", text)
		}
		f.addr = netip.AddrPortFrom(f.addr.Addr().Unmap(), f.addr.Port())
	}
	return f, nil
}

// matches reports whether the filter chooses something of a target and an address.
func (f *targetFilter) matches(target string, addr netip.AddrPort) bool {
	return (f.target == "" || f.target == target) &&
		(!f.addr.IsValid() || f.addr.Addr() == addr.Addr() && (f.addr.Port() == 0 || f.addr.Port() == addr.Port()))
}

// addPageFlags adds the flags of a command that shows pages.
func addPageFlags(cmd *cobra.Command) {
	cmd.Flags().String("after", "", "Where the page before ended")
	cmd.Flags().Int("limit", defaultPage, "How many there are on a page, at most "+strconv.Itoa(maxPage))
	cmd.Flags().Bool("all", false, "All pages, one after the other")
}

// showPages shows a page of a list, or all of them. Flags are passed on to the endpoint as
// the parameters of the same name, ip as address. table returns the table of a page, and
// where the next one begins.
func showPages[Page any](c *adminClient, path string, flags []string, table func(*Page) (rows [][]string, next string)) error {
	query := url.Values{"limit": {strconv.Itoa(c.flags.Int("limit"))}}
	for _, flag := range append(flags, "after") {
		if c.flags.Changed(flag) {
			query.Set(paramOf(flag), c.flags.String(flag))
		}
	}
	for {
		var page Page
		if err := c.request(http.MethodGet, path+"?"+query.Encode(), nil, &page); err != nil {
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
		if !c.flags.Bool("all") {
			if !c.json {
				_, _ = fmt.Fprintf(c.err, "There are more: --after %s, or --all\n", printable(next))
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
