package dnscache

import (
	"math/bits"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"caddytarget/internal/dnsname"
)

// entry is what is known of a name, as readers see it. All that a hit needs is in 64
// bytes, a line of the processor's cache; the rest of a long name follows right
// behind them. With many names, it is access to memory that takes time. An entry is
// immutable, but for used. A lookup puts another one in its place in the table.
type entry struct {
	state     *state         // what a hit does not need
	list      unsafe.Pointer // to count addresses, or count records of a service
	expires   time.Duration  // until then it is served without asking again
	used      atomic.Uint32  // when it was last used, in units of usedUnit, and how often: see touch
	size      uint16         // of the name, and serviceBit
	count     uint16
	preferred uint16   // see Answer
	name30    [30]byte // the name; a longer one goes on behind the entry
}

const (
	// serviceBit is set in the size of the name of a service, so that a host of
	// the same name has another entry.
	serviceBit = 1 << 15

	maxName = dnsname.MaxLen

	// usedUnit is the resolution of entry.used: about a second, and a power of two.
	usedUnit time.Duration = 1 << 30

	// The lowest bits of entry.used count uses: two bits for the eviction, and four
	// for the scheduler.
	maxReads  = 1<<2 - 1
	oneUse    = maxReads + 1
	maxUses   = oneUse * (1<<4 - 1)
	usedShift = 6
)

// newEntry returns an entry with a copy of the name, which may be a part of
// something large.
func newEntry(name string, size uint16, more *state) *entry {
	var e *entry
	switch n := len(name); {
	case n <= len(e.name30):
		e = new(entry)
	case n <= len(e.name30)+64:
		e = &new(struct {
			entry
			_ [64]byte
		}).entry
	default:
		e = &new(struct {
			entry
			_ [maxName - len(e.name30)]byte
		}).entry
	}
	e.state, e.size = more, size
	copy(unsafe.Slice(&e.name30[0], len(name)), name)
	return e
}

func (e *entry) name() string {
	return unsafe.String(&e.name30[0], int(e.size&^serviceBit))
}

func (e *entry) isService() bool { return e.size&serviceBit != 0 }

func (e *entry) addrs() []netip.Addr {
	if e.isService() {
		return nil
	}
	return unsafe.Slice((*netip.Addr)(e.list), int(e.count))
}

func (e *entry) records() []net.SRV {
	if !e.isService() {
		return nil
	}
	return unsafe.Slice((*net.SRV)(e.list), int(e.count))
}

// setAddrs is for new entries only, as is setRecords.
func (e *entry) setAddrs(addrs []netip.Addr, preferred int) {
	e.list = unsafe.Pointer(unsafe.SliceData(addrs))
	e.count, e.preferred = uint16(len(addrs)), uint16(preferred) // twice maxAddrs at most
}

func (e *entry) setRecords(records []net.SRV) {
	e.list, e.count = unsafe.Pointer(unsafe.SliceData(records)), uint16(len(records))
}

// touch counts a use. It seldom writes, since that invalidates the line in the
// caches of other processors.
func (e *entry) touch(now time.Duration) {
	if old, at := e.used.Load(), usedAt(now); old != at|maxReads|maxUses {
		e.addUse(old, at)
	}
}

// addUse counts a use, at a time in the form of usedAt.
func (e *entry) addUse(old, at uint32) {
	used := at | old&(maxReads|maxUses)
	if old&maxReads < maxReads {
		used++
	}
	if old&maxUses < maxUses {
		used += oneUse
	}
	if used != old {
		e.used.Store(used)
	}
}

// usedAt returns the used of an entry that was inserted at now.
func usedAt(now time.Duration) uint32 { return uint32(now/usedUnit) << usedShift }

// lastUsed returns when e was last used. The entry has only the lowest bits of that,
// which repeat after two years.
func (e *entry) lastUsed(now time.Duration) time.Duration {
	ago := int32(usedAt(now)-e.used.Load()&^(maxReads|maxUses)) >> usedShift
	return now - now%usedUnit - time.Duration(ago)*usedUnit
}

// reads returns how often e was used since the eviction last considered it, at most
// maxReads.
func (e *entry) reads() uint32 { return e.used.Load() & maxReads }

// uses returns how often e was used since the lookup that it came from, at most 15
// times.
func (e *entry) uses() uint32 { return e.used.Load() & maxUses / oneUse }

// subtractReads lowers reads, unless e is used at this very moment.
func (e *entry) subtractReads(reads uint32) {
	if old := e.used.Load(); old&maxReads >= reads {
		e.used.CompareAndSwap(old, old-reads)
	}
}

// table finds entries. It is a hash table with open addressing. Readers take no
// lock; writers hold Cache.mu. It does not grow, and an entry does not move, so that
// a reader cannot miss it.
type table []bucket

// bucket is a line of the processor's cache. An entry for which the bucket of its
// hash has no room goes to the next one that has some.
type bucket struct {
	// The lowest bytes have, for each slot, a part of the entry's hash, or 0 if the
	// slot is free. The highest byte counts the entries that went past this bucket
	// to another one.
	tags  atomic.Uint64
	slots [bucketSlots]atomic.Pointer[entry]
}

const (
	bucketSlots = 7
	lowBits     = 0x0001_0101_0101_0101 // of the tags' bytes
	highBits    = lowBits << 7
	overflow    = 1 << 56
	overflowMax = 0xff
)

// newTable returns a table for size entries: 2 to 4 in a bucket of 7.
func newTable(size int) table {
	return make(table, max(1, 1<<bits.Len(uint(size-1))/4))
}

// tag returns the part of a hash that a bucket keeps. It is not 0.
func tag(hash uint64) uint64 { return max(hash>>56, 1) }

// find returns the entry of a name, or nil. Size is entry.size.
func (t table) find(hash uint64, name string, size uint16) *entry {
	tag := tag(hash) * lowBits
	for i := range t {
		b := &t[(hash+uint64(i))&uint64(len(t)-1)]
		tags := b.tags.Load()
		// each byte of x that is 0 sets its highest bit in m, and seldom another one does
		x := tags ^ tag
		for m := (x - lowBits) &^ x & highBits; m != 0; m &= m - 1 {
			e := b.slots[bits.TrailingZeros64(m)/8].Load()
			if e != nil && e.size == size && e.name() == name {
				return e
			}
		}
		if tags < overflow {
			break
		}
	}
	return nil
}

// insert adds an entry of a name that has none.
func (t table) insert(hash uint64, e *entry) {
	for i := hash; ; i++ {
		b := &t[i&uint64(len(t)-1)]
		tags := b.tags.Load()
		if free := (tags - lowBits) &^ tags & highBits; free != 0 {
			at := bits.TrailingZeros64(free) / 8
			b.slots[at].Store(e)
			b.tags.Store(tags | tag(hash)<<(8*at))
			return
		}
		if tags>>56 < overflowMax { // else the count stays as it is, for good
			b.tags.Store(tags + overflow)
		}
	}
}

// slot returns where an entry of the table is. It calls past for each bucket that
// the entry went past.
func (t table) slot(hash uint64, e *entry, past func(*bucket)) (b *bucket, at int) {
	for i := hash; ; i++ {
		b := &t[i&uint64(len(t)-1)]
		for at := range b.slots {
			if b.slots[at].Load() == e {
				return b, at
			}
		}
		past(b)
	}
}

// replace replaces old by e, an entry of the same name.
func (t table) replace(hash uint64, old, e *entry) {
	b, at := t.slot(hash, old, func(*bucket) {})
	b.slots[at].Store(e)
}

// remove removes an entry.
func (t table) remove(hash uint64, e *entry) {
	b, at := t.slot(hash, e, func(b *bucket) {
		if tags := b.tags.Load(); tags>>56 < overflowMax {
			b.tags.Store(tags - overflow)
		}
	})
	b.tags.Store(b.tags.Load() &^ (0xff << (8 * at)))
	b.slots[at].Store(nil)
}
