package admin

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/netip"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/guard"
)

// The limits of a page of a list.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// pageLimit returns how many elements there may be on a page.
func (p params) pageLimit() (int, error) {
	return p.number("limit", DefaultPage, MaxPage)
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

// cursor returns the cursor of a request.
func (p params) cursor() (cursor, error) {
	text := p["after"]
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
	return errorf(http.StatusBadRequest, "after: %v", dnscache.ErrCursor)
}

// listQuery chooses a page of a list of what belongs to targets and addresses.
type listQuery struct {
	limit  int
	from   cursor
	filter targetFilter
}

// listQuery returns the query of a request.
func (p params) listQuery() (q listQuery, err error) {
	if q.limit, err = p.pageLimit(); err != nil {
		return q, err
	}
	if q.from, err = p.cursor(); err != nil {
		return q, err
	}
	q.filter, err = p.filter()
	return q, err
}

// targetFilter chooses what belongs to a target and to an address. The zero value chooses
// all.
type targetFilter struct {
	target string         // empty: any
	addr   netip.AddrPort // not valid: any; with the port 0: any port
}

// filter returns the filter of a request.
func (p params) filter() (f targetFilter, err error) {
	if text, ok := p["target"]; ok {
		if f.target, err = guard.NormalizeHost(text); err != nil {
			return f, errorf(http.StatusBadRequest, "target %q: %v", text, err)
		}
	}
	if text, ok := p["address"]; ok {
		if f.addr, err = netip.ParseAddrPort(text); err != nil || f.addr.Port() == 0 {
			var addr netip.Addr
			addr, err = netip.ParseAddr(text)
			f.addr = netip.AddrPortFrom(addr, 0)
		}
		if err != nil || f.addr.Addr().Zone() != "" {
			return f, errorf(http.StatusBadRequest, "address %q is neither an IP address nor one with a port", text)
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
