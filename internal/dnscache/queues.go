package dnscache

import "math/bits"

// list is a list of nodes, the oldest first. A node stands in one list of each
// kind at most.
type list struct {
	kind       int
	head, tail *node
	len        int
}

// The kinds of lists.
const (
	evictionList = iota // guarded by Cache.mu
	refreshList         // guarded by scheduler.mu
)

// links is a node's place in a list.
type links struct {
	in         *list // nil: in none
	prev, next *node
}

func (l *list) push(n *node) {
	n.links[l.kind] = links{in: l, prev: l.tail}
	if l.tail == nil {
		l.head = n
	} else {
		l.tail.links[l.kind].next = n
	}
	l.tail = n
	l.len++
}

func (l *list) remove(n *node) {
	at := n.links[l.kind]
	if at.prev == nil {
		l.head = at.next
	} else {
		at.prev.links[l.kind].next = at.next
	}
	if at.next == nil {
		l.tail = at.prev
	} else {
		at.next.links[l.kind].prev = at.prev
	}
	n.links[l.kind] = links{}
	l.len--
}

func (l *list) pop() *node {
	n := l.head
	l.remove(n)
	return n
}

// queues hold all nodes that may be evicted and say which one to evict. This is S3-FIFO (Yang et
// al., "FIFO queues are all you need for cache eviction", SOSP 2023): names come
// in by a small queue and move to the main one only if they are read again. A
// scan of one-off names passes through the small queue and leaves the others
// alone.
type queues struct {
	small, main list

	// ghosts remember names that fell out of the small queue lately: one that
	// comes back goes to the main queue at once. Each is a part of the hash, in
	// the place that the rest of the hash says, until another one takes it.
	ghosts []uint32
}

func (q *queues) len() int { return q.small.len + q.main.len }

func (q *queues) add(n *node, hash uint64) {
	if q.ghosts != nil {
		if g := q.ghost(hash); *g == mark(hash) {
			*g = 0
			q.main.push(n)
			return
		}
	}
	q.small.push(n)
}

// evict takes out a node, given how many there may be.
func (q *queues) evict(size int, hash func(name string) uint64) *node {
	for {
		if q.small.len > size/10 || q.main.len == 0 {
			n := q.small.pop()
			e := n.entry.Load()
			if r := e.reads(); r > 1 {
				e.forgive(r)
				q.main.push(n)
				continue
			}
			if q.ghosts == nil {
				q.ghosts = make([]uint32, 2<<bits.Len(uint(size-1)))
			}
			h := hash(e.name())
			*q.ghost(h) = mark(h)
			return n
		}
		n := q.main.pop()
		if e := n.entry.Load(); e.reads() > 0 {
			e.forgive(1)
			q.main.push(n)
			continue
		}
		return n
	}
}

func (q *queues) ghost(hash uint64) *uint32 {
	return &q.ghosts[hash&uint64(len(q.ghosts)-1)]
}

// mark is the part of a hash that a ghost keeps; 0 is no ghost.
func mark(hash uint64) uint32 { return uint32(hash>>32) | 1 }
