package dnscache

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// All addresses of a large answer are kept, and all records; but of a flood of
// names with large answers only a small number each.
func TestLargeAnswers(t *testing.T) {
	var addrs, addrs6 []netip.Addr
	var records []net.SRV
	for i := range maxAddrs {
		addrs = append(addrs, netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}))
		addrs6 = append(addrs6, netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 14: byte(i >> 8), 15: byte(i)}))
		records = append(records, net.SRV{Target: fmt.Sprintf("t%d.example", i), Port: 80, Priority: 1})
	}
	for _, family := range []Family{Interleaved, PreferIPv4, IPv4} {
		run(t, Config{Size: 200, Family: func() Family { return family }}, func(w world) {
			w.fake.set("A", script{addrs: addrs, ttl: time.Hour})
			w.fake.set("AAAA", script{addrs: addrs6[:100], ttl: time.Hour})
			w.fake.set("SRV", script{srv: records, ttl: time.Hour})
			whole, small := maxAddrs+100, 2*smallAddrs
			if family == IPv4 {
				whole, small = maxAddrs, smallAddrs
			}
			list := names(500)
			cut := 0
			for i, name := range list {
				w.get(name)
				w.sleep(0)
				answer, err := w.Lookup(w.Context(), name)
				switch n := len(answer.Addrs); {
				case err != nil || n != whole && n != small || cap(answer.Addrs) != n || i == 0 && n != whole:
					t.Fatalf("name %d: %d addresses, room for %d, %v; want %d, or %d after the first name, and no more room", i, n, cap(answer.Addrs), err, whole, small)
				case n == small:
					cut++
					if four := len(slices.DeleteFunc(slices.Clone(answer.Addrs), netip.Addr.Is6)); four != smallAddrs {
						t.Fatalf("%d IPv4 addresses, want %d", four, smallAddrs)
					}
				}
				if n := w.excess.Load(); n > excessPerName*200 {
					t.Fatalf("%d addresses more than the small number, want at most %d", n, excessPerName*200)
				}
			}
			if cut == 0 {
				t.Error("no answer was cut, want some to be")
			}
			count := func() {
				t.Helper()
				sum := int64(0)
				for e := range w.table.all() {
					sum += e.excess()
				}
				if n := w.excess.Load(); n != sum {
					t.Errorf("%d addresses are counted, want %d", n, sum)
				}
			}
			count()
			w.fake.set("A", script{addrs: addrs[:1], ttl: time.Hour})
			w.fake.set("AAAA", script{addrs: addrs6[:1], ttl: time.Hour})
			for _, name := range names(1000)[500:] {
				w.get(name)
			}
			count()
			service, err := w.LookupSRV(w.Context(), "_http._tcp.example")
			if n := len(service.Records); err != nil || n != smallRecords { // 968 times 8 is too much
				t.Errorf("%d records, error %v; want %d", n, err, smallRecords)
			}
		})
	}
	run(t, Config{}, func(w world) {
		w.fake.set("SRV", script{srv: records, ttl: time.Hour})
		service, err := w.LookupSRV(w.Context(), "_http._tcp.example")
		if n := len(service.Records); err != nil || n != maxRecords {
			t.Errorf("%d records, error %v; want %d", n, err, maxRecords)
		}
	})
}
