package localnet

import (
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go4.org/netipx"

	"caddytarget/internal/guard"
)

// Owner is whose listener accepts the connections to an address and port. If there are
// several listeners, the highest value counts.
type Owner int

// The owners.
const (
	NotOwn   Owner = iota // no listener of this process
	OwnSite               // this process, for a site
	OwnOther              // this process, for something else: the admin API or another app
)

// Config is where [Listeners] gets its knowledge from.
type Config struct {
	// Addresses returns the addresses of this machine. Usually that is [Addresses].
	Addresses func() ([]netip.Prefix, error)

	// Sockets finds the listening sockets of this process. If it is nil, or fails,
	// Account is asked instead.
	Sockets *Sockets

	// Sites has those of the sockets that are for sites.
	Sites *Sites

	// Account returns the owner of an address and port of this machine by the process's
	// own account of its listeners.
	Account func(netip.AddrPort) Owner
}

// Listeners finds out on which addresses and ports this process listens. It reports an
// address of any form that leads to this machine, also an IPv6 address that has an IPv4
// address in it, but not one that leads here by way of another machine.
//
// What it remembers is bounded, and may be out of date until [Listeners.Find] renews it.
type Listeners struct {
	config Config

	// Each of these is replaced as a whole.
	table   atomic.Pointer[addressTable]
	learned atomic.Pointer[map[netip.Addr]struct{}] // addresses of this machine that are not in the table
	owners  atomic.Pointer[map[netip.AddrPort]Owner]

	mu      sync.Mutex // held while one of them is replaced
	renewed time.Time  // when the table was; under mu
}

const (
	// tableTime is how long the table of addresses is not renewed.
	tableTime = time.Second

	// maxOwners bounds Listeners.owners, and maxLearned Listeners.learned.
	maxOwners  = 256
	maxLearned = 256
)

// addressTable has the addresses of this machine that the system lists.
type addressTable struct {
	single map[netip.Addr]struct{}
	ranges *netipx.IPSet // nil: none but loopback
}

func (t *addressTable) has(a netip.Addr) bool {
	_, ok := t.single[a]
	return ok || t.ranges != nil && t.ranges.Contains(a)
}

// NewListeners returns a Listeners that knows the addresses of this machine.
func NewListeners(config Config) *Listeners {
	l := &Listeners{config: config}
	l.table.Store(new(addressTable))
	l.learned.Store(new(map[netip.Addr]struct{}))
	l.owners.Store(new(map[netip.AddrPort]Owner))
	l.refresh()
	return l
}

// refresh renews the table unless that was done less than tableTime ago.
func (l *Listeners) refresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.renewed) < tableTime {
		return
	}
	l.renewed = time.Now()
	list, err := l.config.Addresses()
	if err != nil && len(list) == 0 {
		return // the old table is better than none
	}
	t := &addressTable{single: make(map[netip.Addr]struct{}, len(list))}
	var ranges netipx.IPSetBuilder
	hasRanges := false
	for _, p := range list {
		switch {
		case p.IsSingleIP():
			t.single[p.Addr()] = struct{}{}
		case p.Addr().IsLoopback() && p.Bits() >= 8: // needs no table
		default:
			ranges.AddPrefix(p)
			hasRanges = true
		}
	}
	if hasRanges {
		t.ranges, _ = ranges.IPSet() // the prefixes are valid
	}
	l.table.Store(t)
}

// isLocal reports whether an address, or an IPv4 address in it, is known to be one of this
// machine.
func (l *Listeners) isLocal(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if l.isListed(a) || l.isLearned(a) {
		return true
	}
	if a.Is4() {
		return false
	}
	for _, v4 := range guard.Embedded(a) {
		if l.isListed(v4) || l.isLearned(v4) {
			return true
		}
	}
	return false
}

// isListed reports whether an address is a loopback or unspecified one, or in the table.
func (l *Listeners) isListed(a netip.Addr) bool {
	return a.IsValid() && (a.IsLoopback() || a.IsUnspecified() || l.table.Load().has(a))
}

// isLearned reports whether an address was learned to be one of this machine.
func (l *Listeners) isLearned(a netip.Addr) bool {
	learned := *l.learned.Load()
	if len(learned) == 0 {
		return false
	}
	_, ok := learned[a]
	return ok
}

// askIsLocal reports whether an address is one of this machine, and asks the system if
// the table does not have it.
func (l *Listeners) askIsLocal(a netip.Addr) bool {
	switch {
	case !a.IsValid():
		return false
	case l.isListed(a):
		return true
	}
	local := isLocal(a)
	l.Learn(a, local)
	return local
}

// Learn remembers whether an address is one of this machine.
func (l *Listeners) Learn(a netip.Addr, local bool) {
	if (l.isListed(a) || l.isLearned(a)) == local {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	learned := make(map[netip.Addr]struct{})
	if before := *l.learned.Load(); len(before) < maxLearned {
		maps.Copy(learned, before)
	}
	if local {
		learned[a] = struct{}{}
	} else {
		delete(learned, a)
	}
	l.learned.Store(&learned)
}

// Known returns the owner of an address and port, without asking the system. If that takes
// asking, ok is false.
func (l *Listeners) Known(a netip.AddrPort) (o Owner, ok bool) {
	if !l.isLocal(a.Addr()) || l.config.Sockets != nil && !l.config.Sockets.mayHear(a.Port()) {
		return NotOwn, true
	}
	o, ok = (*l.owners.Load())[a]
	return o, ok
}

// Find asks the system for the owner of an address and port, and remembers it. If an IPv4
// address in an IPv6 address leads to this machine, that is returned, too.
func (l *Listeners) Find(a netip.AddrPort) (o Owner, embedded netip.Addr) {
	l.refresh()
	addr := a.Addr().Unmap().WithZone("")
	local := l.askIsLocal(addr)
	if local {
		o = l.owner(netip.AddrPortFrom(addr, a.Port()))
	}
	if addr.Is6() {
		for _, v4 := range guard.Embedded(addr) {
			if o == NotOwn && l.askIsLocal(v4) {
				local = true
				o, embedded = l.owner(netip.AddrPortFrom(v4, a.Port())), v4
			}
		}
	}
	if !local {
		return NotOwn, netip.Addr{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := *l.owners.Load()
	if known, ok := before[a]; ok && known == o {
		return o, embedded
	}
	owners := make(map[netip.AddrPort]Owner)
	if len(before) < maxOwners {
		maps.Copy(owners, before)
	}
	owners[a] = o
	l.owners.Store(&owners)
	return o, embedded
}

var loopback = [...]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// owner returns the owner of an address and port of this machine.
func (l *Listeners) owner(a netip.AddrPort) (o Owner) {
	if a.Addr().IsUnspecified() { // a connection to it goes to a loopback address
		for _, addr := range loopback {
			o = max(o, l.owner(netip.AddrPortFrom(addr, a.Port())))
		}
		return o
	}
	if l.config.Sockets == nil {
		return l.config.Account(a)
	}
	ids, err := l.config.Sockets.hearing(a)
	if err != nil {
		return l.config.Account(a)
	}
	for _, id := range ids {
		if !l.config.Sites.has(id) {
			return OwnOther
		}
		o = OwnSite
	}
	return o
}

// Sites has the sockets on which sites listen, of all configurations that are in use. The
// zero value has none.
type Sites struct {
	mu     sync.Mutex
	counts map[uint64]int // how many configurations have each socket: one that was handed over stays the same
}

// closeTime is how long after the end of a configuration its sockets may still be open.
const closeTime = 10 * time.Second

// Add adds the sockets of a configuration, by their IDs.
func (s *Sites) Add(ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = make(map[uint64]int)
	}
	for _, id := range ids {
		s.counts[id]++
	}
}

// Release removes the sockets of a configuration that has ended. It does so a while later,
// since the sockets may not be closed yet.
func (s *Sites) Release(ids []uint64) {
	if len(ids) > 0 {
		time.AfterFunc(closeTime, func() { s.remove(ids) })
	}
}

func (s *Sites) remove(ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.counts[id]--; s.counts[id] == 0 {
			delete(s.counts, id)
		}
	}
}

func (s *Sites) has(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[id] > 0
}
