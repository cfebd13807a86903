package dnscache

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// The table against a map, with hashes that have few buckets and tags.
func TestTable(t *testing.T) {
	for _, size := range []int{1, 2, 4, 7, 8, 100, 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			table := newTable(size)
			if room := len(table) * bucketSlots; room < size*7/4 {
				t.Fatalf("room for %d entries, want at least %d", room, size*7/4)
			}
			seed := maphash.MakeSeed()
			hash := func(name string) uint64 {
				h := maphash.String(seed, name)
				return h>>56%3<<56 | h%uint64(size/10+2)*3
			}
			model := make(map[string]*entry)
			list := names(2 * size)
			for range 100 * size {
				name := list[rand.N(len(list))]
				in := model[name]
				switch {
				case in == nil && len(model) < size:
					model[name] = newEntry(name, uint16(len(name)), nil)
					table.insert(hash(name), model[name])
				case in != nil && rand.N(3) == 0:
					model[name] = newEntry(name, uint16(len(name)), nil)
					table.replace(hash(name), in, model[name])
				case in != nil:
					table.remove(hash(name), in)
					delete(model, name)
				}
				name = list[rand.N(len(list))]
				if e := table.find(hash(name), name, uint16(len(name))); e != model[name] {
					t.Fatalf("%s: %v, want %v", name, e, model[name])
				}
			}
			for name, e := range model {
				table.remove(hash(name), e)
			}
			for i := range table {
				if tags := table[i].tags.Load(); tags != 0 && tags != overflowMax<<56 {
					t.Errorf("bucket %d of the empty table: tags %x, want none", i, tags)
				}
			}
		})
	}
}

// Whatever writers do, a reader finds what is in all the time.
func TestTableReaders(t *testing.T) {
	const size = 64
	table := newTable(size)
	collide := func(i int) uint64 { return uint64(i%2)<<56 | uint64(i%3) }
	list := names(size)
	for i, name := range list[:size/2] {
		table.insert(collide(i), newEntry(name, uint16(len(name)), nil))
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				k := i % (size / 2)
				if e := table.find(collide(k), list[k], uint16(len(list[k]))); e == nil || e.name() != list[k] {
					t.Errorf("%s: got %v, want its entry", list[k], e)
					return
				}
			}
		})
	}
	in := make(map[int]*entry)
	for range 100_000 {
		i := size/2 + rand.N(size/2)
		if in[i] == nil {
			in[i] = newEntry(list[i], uint16(len(list[i])), nil)
			table.insert(collide(i), in[i])
		} else {
			table.remove(collide(i), in[i])
			delete(in, i)
		}
		k := rand.N(size / 2)
		old := table.find(collide(k), list[k], uint16(len(list[k])))
		table.replace(collide(k), old, newEntry(list[k], uint16(len(list[k])), nil))
	}
	stop.Store(true)
	wg.Wait()
}

// A count of those that went past stays where it is once it is at its end.
func TestTableOverflow(t *testing.T) {
	table := newTable(2000)
	var in []*entry
	for _, name := range names(7 + 300) {
		e := newEntry(name, uint16(len(name)), nil)
		table.insert(0, e)
		in = append(in, e)
	}
	for _, e := range in[1:] {
		table.remove(0, e)
	}
	if got := table[0].tags.Load() >> 56; got != overflowMax {
		t.Errorf("%d entries went past, want a count of %d", got, overflowMax)
	}
	for _, e := range in {
		if got := table.find(0, e.name(), e.size); got != nil && e != in[0] || got == nil && e == in[0] {
			t.Errorf("%s: got %v, want its entry if it is in, else none", e.name(), got)
		}
	}
}

func TestNamesOfAllLengths(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.set("A", script{addrs: ips(a)})
		long := strings.Repeat("0123456789abcde.", 20)
		for n := range maxName + 1 {
			w.want(long[:n], "miss "+a)
			w.want(long[:n], "hit "+a)
		}
		if err := w.check(); err != nil {
			t.Errorf("the table is broken: %v", err)
		}
		for _, n := range []int{maxName + 1, 300} {
			w.want(long[:n], "miss "+errNameTooLong.Error())
		}
		w.want(strings.Repeat("x", serviceBit+1), "miss "+errNameTooLong.Error())
		w.want(strings.Repeat("x", 1<<16+1), "miss "+errNameTooLong.Error())
		if n := w.Len(); n != maxName+1 {
			t.Errorf("%d names, want %d", n, maxName+1)
		}
	})
}

// What is offered in one list can be taken apart again.
func TestAddrsOf(t *testing.T) {
	list := func(f family, n int) (addrs []netip.Addr) {
		for i := range n {
			addrs = append(addrs, netip.AddrFrom4([4]byte{byte(f), 0, 0, byte(i)})) // the bytes must not matter
		}
		return addrs
	}
	for _, order := range []Family{Interleaved, PreferIPv4, PreferIPv6, IPv4, IPv6} {
		for _, n := range [][2]int{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {3, 1}, {1, 3}, {2, 3}, {maxAddrs, maxAddrs}, {maxAddrs, 1}} {
			var lists [2][]netip.Addr
			s := &state{order: order}
			for _, f := range families(order) {
				lists[f] = list(f, n[f])
				s.count[f] = uint16(n[f])
			}
			e := newEntry("x", 1, s)
			e.setAddrs(offer(order, lists))
			for f := range lists {
				if got := e.addrsOf(family(f)); !slices.Equal(got, lists[f]) {
					t.Errorf("order %d, %v: family %d: got %v, want %v", order, n, f, got, lists[f])
				}
			}
		}
	}
}
