package pool

import "iter"

// slots is a list of destinations of which each stays at its place for as long as it is
// there, so that the list can be read in parts.
type slots struct {
	list []*destination // nil where a slot is free
	free []int
}

func (s *slots) add(d *destination) {
	if last := len(s.free) - 1; last >= 0 {
		d.slot = s.free[last]
		s.free = s.free[:last]
		s.list[d.slot] = d
		return
	}
	d.slot = len(s.list)
	s.list = append(s.list, d)
}

func (s *slots) remove(d *destination) {
	s.list[d.slot] = nil
	s.free = append(s.free, d.slot)
	if len(s.free) == len(s.list) {
		*s = slots{}
	}
}

const (
	// slotBits is how many bits of a position have the slot; the others have the shard.
	slotBits = 48

	// scanned is how many slots and connections scan reads before it gives the lock of
	// their shard back for a moment.
	scanned = 256
)

// scan yields the destinations from a position on, with their positions. The lock of their
// shard is held meanwhile. Now and then scan gives the lock back and yields nil.
func (p *Pool) scan(from uint64) iter.Seq2[uint64, *destination] {
	return func(yield func(uint64, *destination) bool) {
		slot := int(from & (1<<slotBits - 1))
		for i := from >> slotBits; i < uint64(len(p.shards)); i++ {
			for before := -1; before != slot; { // else the end was reached
				before = slot
				var ok bool
				slot, ok = p.shards[i].scan(slot, func(slot int, d *destination) bool {
					return yield(i<<slotBits|uint64(slot), d)
				})
				if !ok || !yield(0, nil) {
					return
				}
			}
			slot = 0
		}
	}
}

// scan yields the destinations of the next slots. It returns the slot to go on from, and
// reports whether yield always returned true.
func (s *shard) scan(slot int, yield func(int, *destination) bool) (next int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for read := 0; read < scanned && slot < len(s.slots.list); slot++ {
		read++
		if d := s.slots.list[slot]; d != nil {
			read += len(d.conns)
			if !yield(slot, d) {
				return slot, false
			}
		}
	}
	return slot, true
}
