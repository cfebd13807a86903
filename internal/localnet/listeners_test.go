package localnet

import (
	"net/netip"
	"testing"
	"time"
)

// newTestListeners returns a Listeners of a process that listens on every port.
func newTestListeners() *Listeners {
	return NewListeners(Config{Addresses: Addresses, Account: func(netip.AddrPort) Owner { return OwnSite }})
}

// TestInterfaces checks that the addresses of this machine are read again when the owner of an
// address is asked for.
func TestInterfaces(t *testing.T) {
	l := newTestListeners()
	local := netip.MustParseAddr("127.0.0.1")
	if !l.isLocal(local) {
		t.Error("127.0.0.1 is not of this machine")
	}
	if !l.table.Load().has(local) {
		t.Errorf("the interfaces were not read: got %v, want 127.0.0.1 among them", l.table.Load().single)
	}
	gone := netip.MustParseAddrPort("192.88.98.1:80")
	l.table.Store(&addressTable{single: map[netip.Addr]struct{}{gone.Addr(): {}}})
	l.renewed = time.Now().Add(-time.Minute)
	if !l.isLocal(gone.Addr()) {
		t.Error("an address of the table is not local, want local until the table is renewed")
	}
	if o, _ := l.Find(gone); o != NotOwn || l.isLocal(gone.Addr()) {
		t.Errorf("an address that is gone: got owner %d, local %t, want %d, false", o, l.isLocal(gone.Addr()), NotOwn)
	}
}

// TestOwnersAreBounded checks that only a bounded number of owners is remembered.
func TestOwnersAreBounded(t *testing.T) {
	l := newTestListeners()
	for i := range 3 * maxOwners {
		l.Find(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(i+1)))
	}
	if n := len(*l.owners.Load()); n > maxOwners {
		t.Errorf("got %d owners, want at most %d", n, maxOwners)
	}
}

// TestSites checks that a socket that two configurations have stays until both have ended.
func TestSites(t *testing.T) {
	var s Sites
	s.Add([]uint64{1, 2})
	s.Add([]uint64{2, 3})
	s.remove([]uint64{1, 2})
	for id, want := range map[uint64]bool{0: false, 1: false, 2: true, 3: true} {
		if got := s.has(id); got != want {
			t.Errorf("socket %d: got %t, want %t", id, got, want)
		}
	}
	s.remove([]uint64{2, 3})
	if s.has(2) || len(s.counts) != 0 {
		t.Errorf("got the sockets %v, want none", s.counts)
	}
}
