package caddytarget

import (
	"fmt"
	"testing"

	"caddytarget/internal/health"
)

// BenchmarkManyAddresses is what a source does for a request where a name has more
// addresses than a request is offered.
func BenchmarkManyAddresses(b *testing.B) {
	u := &Upstreams{MaxUpstreams: defaultMaxUpstreams, MaxFails: 1, failDuration: defaultFailDuration, health: health.New()}
	for _, n := range []int{4, 10, 64, 200, 1000} {
		b.Run(fmt.Sprintf("addresses=%d", n), func(b *testing.B) {
			c := &call{host: "a.example", port: 80, repeats: true}
			c.Addrs = manyAddrs(n)
			c.Preferred = n
			b.ReportAllocs()
			for b.Loop() {
				if list := u.offer(b.Context(), c); len(list) != defaultMaxUpstreams {
					b.Fatal(list)
				}
			}
		})
	}
}
