package dnscache

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func TestEviction(t *testing.T) {
	for _, size := range []int{1, 2, 3, 10, 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			run(t, Config{Size: size}, func(w world) {
				w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
				used := names(size * 8 / 10)
				for range 3 {
					for _, name := range used {
						w.get(name)
					}
				}
				for i := range 20 * size { // one-off names, and the used ones now and then
					w.get(fmt.Sprint("scan-", i))
					if i%10 == 0 && len(used) > 0 {
						w.get(used[rand.N(len(used))])
					}
					if w.Len() > size {
						t.Fatalf("%d names, want at most %d", w.Len(), size)
					}
				}
				for _, name := range used {
					if got := w.get(name); got != "hit "+a {
						t.Errorf("%s: got %q, want %q", name, got, "hit "+a)
					}
				}
				w.sleep(0)
				if err := w.check(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The read that a name came in by is one of the two that it takes to stay.
func TestReadTwice(t *testing.T) {
	run(t, Config{Size: 10}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		w.fake.srv(srv, time.Hour, here)
		w.get("once")
		w.getSRV(srv)
		for range 2 {
			w.get("twice")
		}
		w.getSRV(srv)
		for i := range 100 {
			w.get(fmt.Sprint("scan-", i))
		}
		w.want("twice", "hit "+a)
		w.wantSRV(srv, 0, "hit here:80")
		w.want("once", "miss "+a)
	})
}

// What was used once and is not any more makes room.
func TestEvictionForgets(t *testing.T) {
	run(t, Config{Size: 100}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		for range 5 {
			for _, name := range names(100) {
				w.get(name)
			}
		}
		for range 20 {
			for i := range 100 {
				w.get(fmt.Sprint("new-", i))
			}
		}
		hits := 0
		for i := range 100 {
			if _, known := w.Peek(fmt.Sprint("new-", i)); known {
				hits++
			}
		}
		if hits < 70 { // ghosts that share a place cost some
			t.Errorf("%d of 100 names that are in use are known, want 70", hits)
		}
	})
}

// A name that comes back soon after it was evicted is taken for one that is
// used, and survives the scan that evicted it.
func TestGhosts(t *testing.T) {
	run(t, Config{Size: 100}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		scan := 0
		next := func(n int) {
			for range n {
				w.get(fmt.Sprint("scan-", scan))
				scan++
			}
		}
		next(200)
		back := names(20)
		read := func() {
			for _, name := range back {
				w.get(name)
			}
		}
		known := func() (n int) {
			for _, name := range back {
				if _, known := w.Peek(name); known {
					n++
				}
			}
			return n
		}
		read()
		next(100)
		if n := known(); n != 0 {
			t.Fatalf("%d names were read once, and not evicted", n)
		}
		read()
		next(1000)
		if n := known(); n < 12 { // some may share the place of a ghost
			t.Errorf("%d of 20 names survived, want 12", n)
		}
	})
}

// Names that are in use all the time stay, though others are read often enough
// for a while to come into the main queue.
func TestUsedOutliveFashions(t *testing.T) {
	run(t, Config{Size: 100}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		used := names(20)
		for i := range 1000 {
			for range 3 {
				w.get(fmt.Sprint("fashion-", i))
			}
			if i%5 > 0 {
				continue
			}
			for _, name := range used {
				if got := w.get(name); i > 0 && got != "hit "+a {
					t.Fatalf("after %d others: got %q, want %q", i, got, "hit "+a)
				}
			}
		}
	})
}
