package dnscache

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// handOver imports what another cache knows.
func (w world) handOver(from *Cache, how Import) int {
	w.Helper()
	n := w.Import(from.Records(), how)
	if err := w.check(); err != nil {
		w.Error(err)
	}
	w.sleep(0)
	return n
}

// allAsked returns all questions.
func (w world) allAsked() []question {
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	return slices.Clone(w.fake.asked)
}

// TestImport: what another cache knew is as it was: it holds as long, and serves as long
// after that.
func TestImport(t *testing.T) {
	run(t, Config{}, func(w world) {
		other := New(w.fake, Config{})
		defer other.Close()
		w.fake.a("long", 100*time.Second, a, b)
		w.fake.a("short", 20*time.Second, a)
		w.fake.set("both A", script{addrs: ips(a), ttl: 300 * time.Second})
		w.fake.set("both AAAA", script{addrs: ips(c6), ttl: 50 * time.Second})
		w.fake.fail("none", nxdomain(time.Minute))
		w.fake.srv(srv, 100*time.Second, here, there)
		for _, name := range []string{"long", "short", "both", "none"} {
			_, _ = other.Lookup(w.Context(), name)
		}
		_, _ = other.LookupSRV(w.Context(), srv)
		w.sleep(30 * time.Second)
		w.fake.forget()
		if n := w.handOver(other, Import{Age: 10 * time.Second}); n != 4 {
			w.Errorf("imported %d names, want 4", n)
		}
		// as of 40 s ago
		long := w.get("long")
		if long != "hit "+a+" "+b && long != "hit "+b+" "+a {
			w.Errorf("got %q, want a hit with %s and %s", long, a, b)
		}
		w.want("both", "hit "+c6+" "+a)
		w.wantSRV(srv, 0, "hit here:80 there:81")
		if n := w.nameOf("long"); n.TTL != 60*time.Second || n.StaleFor != 60*time.Second+24*time.Hour || n.Types[0].Type != TypeAAAA {
			w.Errorf("got %+v, want a TTL of 60 s and a day more", n)
		}
		w.wantAsked("long", 0, 0)
		w.wantAsked("both", 0, 0)
		w.wantAskedSRV(srv, 0)
		if addrs, known := w.Peek("none"); known {
			w.Errorf("got %v of a name that has no address, want nothing", addrs)
		}
		w.fake.setOutage(true)
		w.sleep(60 * time.Second)
		if got := w.get("long"); got != "stale"+long[3:] {
			w.Errorf("got %q, want the same, stale", got)
		}
		w.sleep(24*time.Hour - time.Second)
		w.get("long")
		w.sleep(time.Second)
		w.want("long", "miss outage")
	})
}

// TestImportAsks: what has expired is asked for again in the background, if it was in use
// when it was exported, those used last first and at a bounded rate.
func TestImportAsks(t *testing.T) {
	for _, cfg := range []Config{{}, {Refresh: -1}, {Refresh: Always}} {
		run(t, cfg, func(w world) {
			w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
			w.Start()
			var records []Record
			for i, name := range names(1000) {
				records = append(records, Record{Name: name, Used: time.Duration(i) * time.Second, TTL: [2]time.Duration{-time.Second}, Addrs: [2][]netip.Addr{ips(b)}})
			}
			if n := w.Import(slices.Values(records), Import{Age: time.Hour}); n != 1000 {
				w.Fatalf("imported %d names, want 1000", n)
			}
			w.sleep(300 * time.Millisecond)
			first := w.allAsked()
			w.sleep(2 * time.Second)
			want, atOnce := 301, 250+300
			switch cfg.Refresh {
			case -1:
				want, atOnce = 0, 0
			case Always:
				want = 1000
			}
			if n := len(w.allAsked()) / 2; n != want || len(first)/2 > atOnce {
				w.Errorf("refresh %v: %d names are asked for, %d of them at once; want %d, and %d", cfg.Refresh, n, len(first)/2, want, atOnce)
			}
			for _, q := range first {
				if q.name > records[600].Name {
					w.Errorf("%s is among the first", q.name)
				}
			}
		})
	}
}

// TestImportAsStale: records of other nameservers serve only while asking fails.
func TestImportAsStale(t *testing.T) {
	run(t, Config{}, func(w world) {
		other := New(w.fake, Config{})
		defer other.Close()
		w.fake.a("x", time.Hour, a)
		w.fake.a("y", time.Hour, a)
		_, _ = other.Lookup(w.Context(), "x")
		_, _ = other.Lookup(w.Context(), "y")
		w.fake.a("x", time.Hour, b)
		w.fake.fail("y", errServfail)
		w.fake.forget()
		w.handOver(other, Import{AsStale: true})
		w.want("x", "hit "+b)
		w.want("y", "stale "+a)
		w.sleep(24*time.Hour - time.Minute - time.Second)
		w.get("y")
		w.sleep(2 * time.Second)
		if got := w.get("y"); got != "miss servfail" && got != "hit servfail" {
			w.Errorf("after a day: got %q, want servfail", got)
		}
	})
	run(t, Config{Stale: -1}, func(w world) {
		if n := w.Import(slices.Values([]Record{{Name: "x", TTL: [2]time.Duration{time.Hour}, Addrs: [2][]netip.Addr{ips(a)}}}), Import{AsStale: true}); n != 0 {
			w.Errorf("imported %d names that may not serve, want none", n)
		}
	})
}

// TestImportLeavesKnown: what is known here is not replaced, and nothing is evicted.
func TestImportLeavesKnown(t *testing.T) {
	run(t, Config{Size: 10}, func(w world) {
		w.fake.a("known", time.Hour, a)
		w.fake.fail("negative", nxdomain(time.Hour))
		w.fake.fail("failed", errServfail)
		for _, name := range []string{"known", "negative", "failed"} {
			w.get(name)
		}
		var records []Record
		for _, name := range slices.Concat([]string{"known", "negative", "failed", "", string(make([]byte, 254))}, names(20)) {
			records = append(records, Record{Name: name, TTL: [2]time.Duration{-time.Second}, Addrs: [2][]netip.Addr{ips(b)}})
		}
		if n := w.Import(slices.Values(records), Import{}); n != 8 || w.Len() != 10 {
			w.Errorf("imported %d names, %d are known; want 8 and 10", n, w.Len())
		}
		w.want("known", "hit "+a)
		w.want("negative", "hit nxdomain")
		w.want("failed", "stale "+b)
		if err := w.check(); err != nil {
			w.Error(err)
		}
		if _, known := w.Peek(names(20)[7]); known {
			w.Error("a name that was used earlier is there")
		}
		for i := range 100 { // it can be evicted
			w.get(fmt.Sprint("new", i))
		}
		if err := w.check(); err != nil {
			w.Error(err)
		}
	})
}

// runRestoring is run for a cache that waits for what is imported until done is closed.
func runRestoring(t *testing.T, cfg Config, f func(w world, done chan struct{})) {
	t.Helper()
	var done chan struct{}
	cfg.Restoring = func() <-chan struct{} {
		select {
		case <-done:
			return nil
		default:
			return done
		}
	}
	run(t, cfg, func(w world) {
		done = make(chan struct{})
		f(w, done)
	})
}

// TestRestoring: readers take what comes first, the lookup or what is restored.
func TestRestoring(t *testing.T) {
	record := func(name string) Record {
		return Record{Name: name, TTL: [2]time.Duration{-time.Hour}, Addrs: [2][]netip.Addr{ips(b)}}
	}
	runRestoring(t, Config{MaxLookups: 1}, func(w world, done chan struct{}) {
		w.fake.a("answered", time.Hour, a)
		w.fake.fail("negative", nxdomain(time.Hour))
		w.fake.fail("failing", errServfail)
		for _, name := range []string{"silent", "refused", "refused too"} {
			w.fake.set(name+" A", script{hang: true})
			w.fake.set(name+" AAAA", script{hang: true})
		}
		w.want("answered", "miss "+a)
		w.want("negative", "miss nxdomain")
		for _, name := range []string{"failing", "silent", "refused", "refused too"} {
			go w.wantLater(name, "stale "+b)
		}
		w.sleep(100 * time.Millisecond)
		// while one of them is published, lookups that began before end
		w.Import(slices.Values([]Record{record("failing"), record("silent"), record("refused"), record("refused too")}), Import{})
		close(done)
		w.sleep(6 * time.Second) // its lookup has failed by now
		if got := w.get("silent"); got != "stale "+b {
			w.Errorf("got %q, want stale %s", got, b)
		}
		w.want("answered", "hit "+a)
		if err := w.check(); err != nil {
			w.Error(err)
		}
	})
	runRestoring(t, Config{}, func(w world, _ chan struct{}) { // it never ends
		w.fake.set("x A", script{hang: true})
		w.fake.set("x AAAA", script{hang: true})
		ctx, cancel := context.WithTimeout(w.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := w.Lookup(ctx, "x"); err == nil || time.Since(start) != 2*time.Second {
			w.Errorf("got %v after %v, want the end of the context after 2 s", err, time.Since(start))
		}
		w.sleep(0)
		w.wantAfter("x", 3*time.Second, "miss context deadline exceeded") // the rest of the lookup
	})
}

// TestRestoringForEver: all readers together wait no longer than a second for what is never
// restored, those whose lookups fail and those that are refused.
func TestRestoringForEver(t *testing.T) {
	failing := func(w world) {
		w.Helper()
		for _, name := range names(100) {
			w.fake.fail(name, errServfail)
			w.want(name, "miss servfail")
			w.want(name, "hit servfail")
		}
	}
	runRestoring(t, Config{NewNames: 1000}, func(w world, _ chan struct{}) {
		w.fake.fail("first", errServfail)
		w.wantAfter("first", time.Second, "miss servfail")
		w.want("first", "hit servfail")
		failing(w)
	})
	runRestoring(t, Config{}, func(w world, _ chan struct{}) {
		w.Start()
		w.sleep(600 * time.Millisecond)
		w.fake.fail("first", errServfail)
		w.wantAfter("first", 400*time.Millisecond, "miss servfail")
		failing(w)
	})
	runRestoring(t, Config{NewNames: 1}, func(w world, done chan struct{}) {
		w.fake.a("first", time.Hour, a)
		w.want("first", "miss "+a)
		w.wantAfter("refused", time.Second, "miss too many new names")
		w.fake.a("second", time.Hour, a)
		w.want("second", "miss "+a)
		w.want("refused too", "miss too many new names")
		// what is restored after all serves at once
		w.Import(slices.Values([]Record{{Name: "refused", TTL: [2]time.Duration{time.Hour}, Addrs: [2][]netip.Addr{ips(b)}}}), Import{})
		close(done)
		w.want("refused", "hit "+b)
	})
}

// TestRestoredMeanwhile: what is restored while a lookup is in flight is not lost when it
// fails, of both families or of one.
func TestRestoredMeanwhile(t *testing.T) {
	runRestoring(t, Config{}, func(w world, done chan struct{}) {
		w.fake.set("x A", script{err: errServfail, delay: time.Second})
		w.fake.set("x AAAA", script{addrs: ips(c6), ttl: time.Hour, delay: 500 * time.Millisecond})
		w.fake.set("y A", script{err: errServfail, delay: time.Second})
		w.fake.set("y AAAA", script{err: errServfail, delay: time.Second})
		for _, name := range []string{"x", "y"} {
			go w.get(name)
		}
		w.sleep(100 * time.Millisecond)
		var records []Record
		for _, name := range []string{"x", "y"} {
			records = append(records, Record{Name: name, TTL: [2]time.Duration{time.Hour}, Addrs: [2][]netip.Addr{ips(a)}})
		}
		w.Import(slices.Values(records), Import{})
		close(done)
		w.sleep(10 * time.Second)
		w.want("x", "hit "+c6+" "+a)
		w.want("y", "hit "+a)
	})
}

// restoringExchanger replies to AAAA, which is asked first, after the name was restored, and
// returns from that question after the readers got the reply.
type restoringExchanger struct {
	*fake
	restore func()
}

// Ask implements Exchanger.
func (x *restoringExchanger) Ask(ctx context.Context, name string, qtype uint16, done func([]netip.Addr, time.Duration, error)) {
	if qtype != TypeAAAA {
		x.fake.Ask(ctx, name, qtype, done)
		return
	}
	go func() {
		x.restore()
		done(ips(c6), time.Minute, nil)
	}()
	time.Sleep(4 * familyGrace) // without synchronization, for the race detector
}

// TestRestoredWhileAsking: a name may be restored while its lookup asks for one family
// after the other.
func TestRestoredWhileAsking(t *testing.T) {
	x := &restoringExchanger{fake: newFake()}
	c := New(x, Config{})
	defer c.Close()
	x.restore = func() {
		c.Import(slices.Values([]Record{{Name: "x", Addrs: [2][]netip.Addr{ips(b)}, TTL: [2]time.Duration{-time.Second}}}), Import{})
	}
	x.set("x A", script{addrs: ips(a), ttl: time.Minute})
	if _, err := c.Lookup(t.Context(), "x"); err != nil {
		t.Error(err)
	}
	c.wg.Wait() // the lookup goes on
	if addrs, known := c.Peek("x"); !known || len(addrs) != 2 || slices.Contains(addrs, ips(b)[0]) {
		t.Errorf("got %v, want the two addresses of the lookup", addrs)
	}
}
