package dnscache

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"
)

// NameState is what is known of a name, in a word.
type NameState uint8

// The states of names. Each name has one of them.
const (
	NamePending  NameState = iota // no lookup of it has ended
	NameFresh                     // its addresses hold
	NameStale                     // its addresses have expired; the last lookup of them did not fail
	NameNegative                  // there is no such name, or no record of the types asked for
	NameFailing                   // the last lookup failed and no address holds; one that has expired may serve
	nameStates
)

var nameStateNames = [nameStates]string{"pending", "fresh", "stale", "negative", "failing"}

// String returns a lower-case word, such as "fresh".
func (s NameState) String() string { return nameStateNames[s] }

// ParseNameState returns the state with the name s, as String returns it.
func ParseNameState(s string) (NameState, error) {
	if i := slices.Index(nameStateNames[:], s); i >= 0 {
		return NameState(i), nil
	}
	return 0, fmt.Errorf("unknown state %q: expecting %s", s, strings.Join(nameStateNames[:], ", "))
}

// Name is what is known of a name of the cache. Times are from now on.
type Name struct {
	Name    string
	Service bool // Records are asked for, not addresses
	Preload bool // it is one of Config.Preload
	State   NameState

	// Addrs and Preferred are as in Answer, and Records as in ServiceAnswer. They may
	// have expired.
	Addrs     []netip.Addr
	Preferred int
	Records   []net.SRV

	// Types has an element for each type that is asked for, in the order in which the
	// addresses are offered; none before the first lookup has ended.
	Types []NameType

	// TTL is how long the answer still holds. It is below zero if it has expired: then
	// it did so that long ago. The answer of a failing name without addresses is the
	// failure. 0 before the first lookup has ended.
	TTL time.Duration

	// StaleFor is how long the addresses may still serve while lookups fail; 0 if there
	// are none, or no longer.
	StaleFor time.Duration

	// Used is how long ago it was last looked up by a reader or, if it never was, came
	// into the cache; to about a second.
	Used time.Duration

	// Err is why there are no addresses, or why the last lookup of a type failed, and
	// ErrAge how long ago that came back. It is that of the exchanger, for one of the
	// types. Err is nil if nothing failed.
	Err    error
	ErrAge time.Duration

	// InFlight is whether a lookup is in flight, or waits for a slot.
	InFlight bool

	// Scheduled is whether a refresh is planned, in the time NextRefresh. A name that is
	// used too seldom is not refreshed then, but later or not at all.
	Scheduled   bool
	NextRefresh time.Duration
}

// NameType is what is known of the records of one type of a name.
type NameType struct {
	Type     uint16        // TypeA, TypeAAAA or TypeSRV
	Count    int           // how many addresses or records there are
	TTL      time.Duration // as Name.TTL, of this type alone; 0 if nothing is held, be it that there is none
	Failures int           // failed lookups in a row, up to 11
	Retry    time.Duration // how long it is not asked for after a failure; 0: no longer
}

// Query chooses names of a cache. The zero value of a field but Limit chooses all.
type Query struct {
	Prefix string      // what the names begin with
	States []NameState // one of them
	After  string      // Page.Next of the page before

	// Limit is how many names there are on a page. With 0 there are none, but Page.Next
	// shows whether there would be any.
	Limit int
}

// Page is some of the names that a query chooses.
type Page struct {
	Names []Name

	// Next is the Query.After of the next page; empty if there is none.
	Next string
}

// ErrCursor is returned for a Query.After that no page of this cache had as its Next.
var ErrCursor = errors.New("the cursor is not one of this run and this configuration")

// Names returns names in no particular order, page by page. A name that is in the cache
// from the first page to the last one is on one page, even if others come and go
// meanwhile. It holds up no lookup, and does not count as a use of a name. The error is
// ErrCursor, or that of ctx.
func (c *Cache) Names(ctx context.Context, q Query) (Page, error) {
	at, err := c.parseCursor(q.After)
	if err != nil {
		return Page{}, err
	}
	page := Page{Names: make([]Name, 0, min(max(q.Limit, 0), 1000))}
	now := c.cfg.Now()
	for e := range c.scan(at) {
		if at%scanned == 0 && ctx.Err() != nil {
			return Page{}, context.Cause(ctx)
		}
		switch {
		case e == nil || !q.matches(e, now):
		case len(page.Names) >= q.Limit:
			page.Next = c.cursor(at)
			return page, nil
		default:
			page.Names = append(page.Names, c.describe(e, now))
		}
		at++
	}
	return page, nil
}

// Name returns what is known of a name: of the host, of the service or of both.
func (c *Cache) Name(name string) (list []Name) {
	now := c.cfg.Now()
	for e := range c.entriesOf(name) {
		list = append(list, c.describe(e, now))
	}
	return list
}

// entriesOf returns the entries of a name.
func (c *Cache) entriesOf(name string) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		if len(name) > maxName {
			return
		}
		hash, size := c.hash(name), uint16(len(name))
		if e := c.table.find(hash, name, size); e != nil && !yield(e) {
			return
		}
		if e := c.table.find(hash, name, size|serviceBit); e != nil {
			yield(e)
		}
	}
}

// scanned is after how many slots a scan lets other goroutines run.
const scanned = 32 * bucketSlots

// scan returns what is in each slot of the table from one on, nil if it is free. It takes
// no lock, and lets others run now and then.
func (c *Cache) scan(from uint64) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for at := from; at < c.slotCount(); at++ {
			if at%scanned == scanned-1 {
				runtime.Gosched()
			}
			if !yield(c.table[at/bucketSlots].slots[at%bucketSlots].Load()) {
				return
			}
		}
	}
}

func (c *Cache) slotCount() uint64 { return uint64(len(c.table)) * bucketSlots }

// cursor returns the text for a slot. An entry does not move, so that its slot is a
// place to go on from.
func (c *Cache) cursor(slot uint64) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], c.id)
	binary.BigEndian.PutUint64(b[8:], slot)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// parseCursor returns the slot of a cursor.
func (c *Cache) parseCursor(s string) (slot uint64, err error) {
	if s == "" {
		return 0, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 16 || binary.BigEndian.Uint64(b) != c.id {
		return 0, ErrCursor
	}
	if slot = binary.BigEndian.Uint64(b[8:]); slot >= c.slotCount() {
		return 0, ErrCursor
	}
	return slot, nil
}

func (q *Query) matches(e *entry, now time.Duration) bool {
	return strings.HasPrefix(e.name(), q.Prefix) &&
		(len(q.States) == 0 || slices.Contains(q.States, e.nameState(now)))
}

func (e *entry) nameState(now time.Duration) NameState {
	s := e.state
	switch {
	case !s.known:
		return NamePending
	case e.count > 0 && now < e.expires:
		return NameFresh
	case e.count > 0 && !s.addressesFailed():
		return NameStale
	case e.count == 0 && s.negative:
		return NameNegative
	default:
		return NameFailing
	}
}

// addressesFailed reports whether the last lookup of the addresses failed, and not just
// that of the family that has none.
func (s *state) addressesFailed() bool {
	for f, n := range s.count {
		if n > 0 && s.failures[f] > 0 {
			return true
		}
	}
	return s.err != nil && (s.err == ErrOverloaded || isOutage(s.err))
}

// describe returns what is known of the name of e.
func (c *Cache) describe(e *entry, now time.Duration) Name {
	s := e.state
	n := Name{
		Name: e.name(), Service: e.isService(), Preload: s.node.pinned.Load(), State: e.nameState(now),
		Addrs: e.addrs(), Preferred: int(e.preferred), Records: e.records(),
		Used: max(0, now-e.lastUsed(now)),
	}
	if cl := s.node.call.Load(); cl != nil {
		n.InFlight = cl.started.Load()
	}
	n.NextRefresh, n.Scheduled = c.sched.next(s.node, now)
	if !s.known {
		return n
	}
	n.TTL = e.expires - now
	if e.count > 0 {
		n.StaleFor = max(0, e.staleUntil(&c.cfg)-now)
	}
	if s.err != nil {
		n.Err, n.ErrAge = s.err, now-s.errAt
	}
	types := families(s.order)
	n.Types = make([]NameType, 0, len(types))
	for _, f := range types {
		t := NameType{Type: f.qtype(), Count: int(s.count[f]), Failures: int(s.failures[f]), Retry: max(0, s.retryAfter[f]-now)}
		if n.Service {
			t.Type = TypeSRV
		}
		if s.expires[f] != 0 {
			t.TTL = s.expires[f] - now
		}
		n.Types = append(n.Types, t)
	}
	return n
}

// next returns in how long the scheduler considers a node; false if it does not.
func (s *scheduler) next(n *node, now time.Duration) (in time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case n.links[refreshList].in == nil:
		return 0, false
	case s.isWaiting(n):
		return 0, n.call.Load() != nil // else a reader did the lookup
	default:
		return max(0, time.Duration(n.due)*wheelTick-now), true
	}
}
