package dnscache

import (
	"math/bits"
	"time"
)

// list is a list of nodes, the oldest first. A node is in at most one list of each
// kind.
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

func (l *list) pushFront(n *node) {
	n.links[l.kind] = links{in: l, next: l.head}
	if l.head == nil {
		l.tail = n
	} else {
		l.head.links[l.kind].prev = n
	}
	l.head = n
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

// queues hold all nodes that may be evicted and choose which one to evict. This is
// S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP
// 2023): names come in by a small queue and move to the main one only if they are
// read again. A scan of one-off names passes through the small queue and does not
// affect the others.
//
// An attacker can make names look used, by reading them several times, or again
// after they were evicted. So two rules are added: a name in use, see node.inUse,
// is not evicted from the main queue, and a name that has no address stays in the
// small one.
type queues struct {
	small, main list

	// ghosts remember names that were evicted from the small queue lately: one that
	// comes back goes to the main queue at once. Each is a part of a hash, at an
	// index made from the rest of the hash, until another one overwrites it.
	ghosts []uint32
}

const (
	// A name is in use if it has been read for minUseSpan, the last time within
	// maxUseGap.
	minUseSpan = 30 * time.Second
	maxUseGap  = 2 * time.Minute

	// maxScanned is how many names of the main queue one search for a name to evict
	// goes through.
	maxScanned = 16
)

// inUse reports whether a name has been read for some time, until lately. Names of a
// flood, which evict each other, are not in the cache for long enough.
func (n *node) inUse(now time.Duration) bool {
	last := n.entry.Load().lastUsed(now)
	return last-time.Duration(n.insertedAt)*usedUnit >= minUseSpan && now-last <= maxUseGap
}

func (q *queues) len() int { return q.small.len + q.main.len }

// mainFull reports whether the main queue has no room for another name. A tenth of
// the room, for at least one name, is left to the small queue.
func (q *queues) mainFull(size int) bool { return q.main.len >= size-max(1, size/10) }

func (q *queues) add(n *node, hash uint64, size int) {
	if q.ghosts != nil {
		if g := q.ghost(hash); *g == mark(hash) {
			*g = 0
			if !q.mainFull(size) {
				q.main.push(n)
				return
			}
		}
	}
	q.small.push(n)
}

// addOldest adds a node that is older than all others. If it was in use, it goes to the
// main queue.
func (q *queues) addOldest(n *node, inUse bool, size int) {
	if inUse && !q.mainFull(size) {
		q.main.pushFront(n)
		return
	}
	q.small.pushFront(n)
}

// evict removes and returns a node. The queues hold size nodes.
func (q *queues) evict(size int, now time.Duration, hash func(name string) uint64) *node {
	for {
		if q.small.len <= size/10 {
			if n := q.evictMain(now); n != nil {
				return n
			}
		}
		n := q.small.pop()
		e := n.entry.Load()
		if e.count == 0 {
			return n // without a ghost
		}
		if r := e.reads(); r > 1 {
			var other *node
			if q.mainFull(size) {
				other = q.evictMain(now)
			}
			if !q.mainFull(size) {
				e.subtractReads(r)
				q.main.push(n)
				if other != nil {
					return other
				}
				continue
			}
		}
		if q.ghosts == nil {
			q.ghosts = make([]uint32, 2<<bits.Len(uint(size-1)))
		}
		h := hash(e.name())
		*q.ghost(h) = mark(h)
		return n
	}
}

// evictMain removes a node from the main queue and returns it. It returns nil if
// none of the first maxScanned may be evicted.
func (q *queues) evictMain(now time.Duration) *node {
	for range min(q.main.len, maxScanned) {
		n := q.main.pop()
		switch e := n.entry.Load(); {
		case e.count == 0:
			q.small.push(n)
		case n.inUse(now):
			q.main.push(n)
		case e.reads() > 0:
			e.subtractReads(1)
			q.main.push(n)
		default:
			return n
		}
	}
	return nil
}

func (q *queues) ghost(hash uint64) *uint32 {
	return &q.ghosts[hash&uint64(len(q.ghosts)-1)]
}

// mark is the part of a hash that a ghost keeps; 0 is no ghost.
func mark(hash uint64) uint32 { return uint32(hash>>32) | 1 }
