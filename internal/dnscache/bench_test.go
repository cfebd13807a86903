package dnscache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"caddytarget/internal/testlab"
)

// fixedAnswers answers everything at once, with so many A and AAAA records.
type fixedAnswers struct{ a, aaaa int }

func (fixedAnswers) AskSRV(_ context.Context, _ string, done func([]net.SRV, time.Duration, error)) {
	done(nil, 0, nil)
}

func (fixedAnswers) Outage() <-chan struct{} { return nil }

func (s fixedAnswers) Ask(_ context.Context, _ string, qtype uint16, done func([]netip.Addr, time.Duration, error)) {
	n := s.a
	if qtype == TypeAAAA {
		n = s.aaaa
	}
	addrs := make([]netip.Addr, n)
	for i := range addrs {
		if addrs[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}); qtype == TypeAAAA {
			addrs[i] = netip.AddrFrom16([16]byte{0x20, 0x01, 15: byte(i)})
		}
	}
	done(addrs, time.Hour, nil)
}

func filled(b testing.TB, list []string, ex fixedAnswers) *Cache {
	c := New(ex, Config{})
	c.Start()
	for _, name := range list {
		if _, err := c.Lookup(b.Context(), name); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// accesses returns names in random order, each a string of its own, as they
// come from requests.
func accesses(list []string) []string {
	order := make([]string, 1<<17)
	for i := range order {
		order[i] = list[rand.N(len(list))]
	}
	// their bytes stand one after the other, so that reading them is not what is measured
	all := strings.Join(order, "")
	for i, name := range order {
		order[i], all = all[:len(name)], all[len(name):]
	}
	return order
}

func BenchmarkHit(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		list := names(n)
		order := accesses(list)
		mask := len(order) - 1
		c := filled(b, list, fixedAnswers{a: 1})
		type value struct { // what the cache returns of a name
			addrs     []netip.Addr
			preferred int
			expires   time.Duration
			err       error
		}
		bare := make(map[string]*value, n)
		for e := range c.table.all() {
			bare[strings.Clone(e.name())] = &value{e.addrs(), int(e.preferred), e.expires, nil}
		}
		hit := func(i int) bool {
			answer, _ := c.Lookup(context.Background(), order[i&mask])
			return answer.State == Hit && len(answer.Addrs) == 1
		}
		bareHit := func(i int) bool { return len(bare[order[i&mask]].addrs) == 1 }
		for _, what := range []struct {
			name string
			hit  func(int) bool
		}{{"cache", hit}, {"map", bareHit}} {
			b.Run(fmt.Sprintf("%s/names=%d/serial", what.name, n), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if !what.hit(i) {
						b.Fatal("got no hit, want one with 1 address")
					}
					i++
				}
			})
			b.Run(fmt.Sprintf("%s/names=%d/parallel", what.name, n), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for i := rand.N(len(order)); pb.Next(); i++ {
						if !what.hit(i) {
							b.Error("got no hit, want one with 1 address")
							return
						}
					}
				})
			})
		}
		c.Close()
	}
}

// BenchmarkInsert is a flood of new names in a full cache.
func BenchmarkInsert(b *testing.B) {
	c := filled(b, names(100_000), fixedAnswers{a: 1})
	defer c.Close()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		name := fmt.Sprintf("%08d.example.net", i)
		c.putNew(name)
		i++
	}
}

// TestMemory measures what a name costs, everything counted, and what a full
// cache that has been scanned costs.
func TestMemory(t *testing.T) {
	const n, limit = 100_000, 500
	answers := []fixedAnswers{{1, 0}, {2, 0}, {1, 1}, {2, 2}}
	if withRace {
		answers = answers[:1]
	}
	for _, ex := range answers {
		before := testlab.Heap()
		c := filled(t, names(n), ex)
		perName := float64(testlab.Heap()-before) / n
		for i := range n {
			if _, err := c.Lookup(t.Context(), fmt.Sprintf("scan-%06d.example.com", i)); err != nil {
				t.Fatal(err)
			}
		}
		scanned := float64(testlab.Heap()-before) / n
		t.Logf("%d A, %d AAAA: %.0f B a name, %.0f after a scan", ex.a, ex.aaaa, perName, scanned)
		if perName > limit || scanned > limit {
			t.Errorf("%d A, %d AAAA: %.0f B a name, %.0f after a scan, want at most %d", ex.a, ex.aaaa, perName, scanned, limit)
		}
		if got := c.Len(); got != n {
			t.Errorf("%d names, want %d", got, n)
		}
		c.Close()
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	c := filled(t, []string{"x"}, fixedAnswers{a: 2})
	defer c.Close()
	if n := testing.AllocsPerRun(1000, func() { c.Lookup(context.Background(), "x") }); n != 0 {
		t.Errorf("a hit makes %v allocations, want 0", n)
	}
}

func TestSizes(t *testing.T) {
	for _, tc := range []struct {
		what       string
		size, want uintptr
	}{
		{"an entry", unsafe.Sizeof(entry{}), 64},
		{"a bucket", unsafe.Sizeof(bucket{}), 64},
		{"a node", unsafe.Sizeof(node{}), 80},
		{"a state", unsafe.Sizeof(state{}), 96},
	} {
		if tc.size != tc.want {
			t.Errorf("%s has %d bytes, want %d", tc.what, tc.size, tc.want)
		}
	}
}
