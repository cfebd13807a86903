package dnscache

import (
	"fmt"
	"testing"
	"time"
)

// simulation is a cache whose names are looked up at once, and its own time. It
// has a tenth of the default size, and of the names a second that an attacker
// asks for.
type simulation struct {
	*Cache
	now time.Duration
}

const perSecond = 200

func newSimulation(size int) *simulation {
	s := &simulation{now: time.Hour}
	s.Cache = New(newFake(), Config{Size: size, Now: func() time.Duration { return s.now }})
	return s
}

// read reads a name, which has an address or none, and reports whether it was known.
func (s *simulation) read(name string, resolves bool) bool {
	e := s.table.find(s.hash(name), name, uint16(len(name)))
	known := e != nil
	if !known {
		e = s.putNew(name)
		if resolves {
			e.count = 1
		}
	}
	e.touch(s.now)
	return known
}

// readSome reads a part of the names, so that each is read once in so many seconds,
// and returns how many were not known.
func (s *simulation) readSome(list []string, every int) (unknown int) {
	at := int(s.now/time.Second) % every
	for _, name := range list[at*len(list)/every : (at+1)*len(list)/every] {
		if !s.read(name, true) {
			unknown++
		}
	}
	return unknown
}

// flood reads a second's names, each so many times.
func (s *simulation) flood(second, reads int, resolves bool) {
	for i := range perSecond {
		name := fmt.Sprintf("%d-%d.attack.example", second, i)
		for range reads {
			s.read(name, resolves)
		}
	}
}

// Names in use survive, whatever else is read.
func TestFloods(t *testing.T) {
	times := func(reads int, resolves bool) func(*simulation, int) {
		return func(s *simulation, second int) { s.flood(second, reads, resolves) }
	}
	again := func(after int, resolves bool) func(*simulation, int) {
		return func(s *simulation, second int) {
			s.flood(second, 1, resolves)
			if second >= after {
				s.flood(second-after, 1, resolves)
			}
		}
	}
	cycle := func(seconds int) func(*simulation, int) {
		return func(s *simulation, second int) { s.flood(second%seconds, 1, true) }
	}
	inUse := []int{2000, 5000, 8000}
	if withRace {
		inUse = inUse[1:2]
	}
	for _, tc := range []struct {
		name  string
		flood func(s *simulation, second int)
	}{
		{"one-off names", times(1, true)},
		{"read twice", times(2, true)},
		{"read five times", times(5, true)},
		{"read again after 3s", again(3, true)},
		{"back after 10s", again(10, true)},
		{"back after 30s", again(30, true)},
		{"back after 60s", again(60, true)},
		{"the same each 15s", cycle(15)},
		{"the same each 40s", cycle(40)},
		{"the same each 60s", cycle(60)},
		{"the same each 100s", cycle(100)},
		{"no address", times(1, false)},
		{"no address, read five times", times(5, false)},
		{"no address, read again after 3s", again(3, false)},
		{"no address, back after 10s", again(10, false)},
	} {
		for _, n := range inUse {
			s := newSimulation(10_000)
			list, newcomers := names(n), below("newcomers.example", 250)
			for range 180 {
				s.readSome(list, 60)
				s.now += time.Second
			}
			lost, lostNew := 0, 0
			for second := range 300 {
				lost += s.readSome(list, 60)
				tc.flood(s, second)
				if missed := s.readSome(newcomers, 10); second >= 120 {
					lostNew += missed
				}
				s.now += time.Second
			}
			t.Logf("%s, %d names in use: of their reads %d of %d missed; of newcomers' %d of %d", tc.name, n, lost, 5*n, lostNew, 18*len(newcomers))
			if lost > 0 {
				t.Errorf("%s, %d names in use: %d of %d reads missed, want none", tc.name, n, lost, 5*n)
			}
			if lostNew > 0 && n <= 5000 { // those read each 10s become known even now
				t.Errorf("%s, %d names in use: %d of %d reads of newcomers missed, want none", tc.name, n, lostNew, 18*len(newcomers))
			}
			if err := s.checkMain(); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			if err := s.check(); err != nil {
				t.Error(err)
			}
			s.Close()
		}
	}
}

// Where more names are in use than there is room for, those stay that were first,
// and a part of the room is left to the others.
func TestMoreInUseThanRoom(t *testing.T) {
	for _, size := range []int{1, 2, 3, 9, 10, 11, 1000} {
		s := newSimulation(size)
		for range 300 {
			s.readSome(names(size), 20)
			s.now += time.Second
		}
		list := append(names(size), below("others.example", size)...)
		for second := range 300 {
			s.readSome(list, 20)
			if size >= 10 {
				s.flood(second, 2, true)
			}
			s.now += time.Second
			if err := s.check(); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.known(names(size)); n < size*9/10-1 {
			t.Errorf("of %d names %d are known, want nine tenths", size, n)
		}
		s.Close()
	}
}

// What was in use and is not any more makes room, even if it all came together.
func TestUseEnds(t *testing.T) {
	s := newSimulation(10_000)
	defer s.Close()
	list, others := names(9000), below("others.example", 5000)
	for range 300 {
		s.readSome(list, 60)
		s.now += time.Second
	}
	for second := range 600 {
		s.flood(second, 2, true)
		missed := s.readSome(others, 20)
		switch {
		case second < 55 && s.known(list) != len(list):
			t.Fatalf("after %ds %d of %d names are known", second, s.known(list), len(list))
		case second > 300 && missed > 50: // of 250; ghosts that share a place cost some
			t.Fatalf("after %ds %d names of others missed", second, missed)
		}
		s.now += time.Second
	}
	if n := s.known(list); n > 0 {
		t.Errorf("%d names are still known, want none", n)
	}
}

// known returns how many of the names are known, without reading them.
func (s *simulation) known(list []string) (n int) {
	for _, name := range list {
		if s.table.find(s.hash(name), name, uint16(len(name))) != nil {
			n++
		}
	}
	return n
}

// Names that have no address any more leave the main queue, however much they
// are in use.
func TestGoneLeaveMain(t *testing.T) {
	s := newSimulation(10_000)
	defer s.Close()
	list, gone := names(4000), below("gone.example", 4000)
	for second := range 400 {
		s.readSome(list, 60)
		s.readSome(gone, 20)
		if second >= 130 {
			s.flood(second, 2, true)
		}
		s.now += time.Second
		if second == 200 {
			if n := s.known(gone); n != len(gone) {
				t.Fatalf("%d of %d names are known", n, len(gone))
			}
			for _, name := range gone {
				s.table.find(s.hash(name), name, uint16(len(name))).count = 0
			}
			gone = gone[:2000] // the others are not read any more, and no lookup of these has ended
		}
	}
	if err := s.checkMain(); err != nil {
		t.Error(err)
	}
	if n := s.known(list); n != len(list) {
		t.Errorf("%d of %d names are known, want all", n, len(list))
	}
}

// checkMain reports a name without address outside of the small queue.
func (s *simulation) checkMain() error {
	for n := range s.nodes() {
		if in := n.links[evictionList].in; in != &s.queues.small && n.entry.Load().count == 0 {
			return fmt.Errorf("%s has no address and is in the main queue", n.name())
		}
	}
	return nil
}

// A search for a name to evict goes through few names, and begins where the last
// one stopped.
func TestEvictionIsShort(t *testing.T) {
	s := newSimulation(10_000)
	defer s.Close()
	if n := s.queues.evictMain(s.now); n != nil {
		t.Errorf("evicted %s from an empty queue, want none", n.name())
	}
	list := names(maxScanned + 1)
	for _, name := range list {
		s.read(name, true)
		s.queues.main.push(s.queues.small.pop())
	}
	last := s.queues.main.tail
	last.entry.Load().subtractReads(1)
	if n := s.queues.evictMain(s.now); n != nil {
		t.Errorf("evicted %s among the first %d, want none", n.name(), maxScanned)
	}
	if n := s.queues.evictMain(s.now); n != last {
		t.Errorf("evicted %v, want the last one, %v", n, last)
	}
}
