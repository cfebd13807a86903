package dnscache

import (
	"testing"
	"time"
)

// TestRenew: a reader may have a name looked up before its answer expires, but not
// all the time.
func TestRenew(t *testing.T) {
	renewed := func(w world, want string, after time.Duration) {
		w.Helper()
		start := time.Now()
		useless, _ := w.Peek("x")
		got := text(w.Renew(w.Context(), "x", useless))
		if took := time.Since(start); got != want || took != after {
			w.Errorf("renewed: %s after %s, want %s after %s", got, took, want, after)
		}
	}
	run(t, Config{}, func(w world) {
		w.fake.a("x", time.Minute, a)
		renewed(w, "miss "+a, 0) // not known before
		w.fake.a("x", time.Minute, b)
		w.sleep(renewGap / 4)
		renewed(w, "hit "+b, renewGap*3/4) // known since just now
		w.wantAsked("x", 2, 2)

		// ever less often, as long as nothing changes
		w.sleep(renewGap)
		renewed(w, "hit "+b, 0)
		w.wantAsked("x", 1, 1)
		for n := 1; n < maxRenewals+2; n++ {
			gap := renewGap << min(n, maxRenewals)
			w.sleep(gap - 1)
			renewed(w, "hit "+b, 0)
			w.wantAsked("x", 0, 0)
			w.sleep(1)
			renewed(w, "hit "+b, 0)
			w.wantAsked("x", 1, 1)
		}
		w.sleep(renewGap << maxRenewals)
		w.fake.a("x", time.Minute, a)
		renewed(w, "hit "+a, 0)
		w.wantAsked("x", 1, 1)
		w.sleep(renewGap)
		w.fake.a("x", time.Minute, b)
		renewed(w, "hit "+b, 0)
		w.wantAsked("x", 1, 1)
		w.sleep(renewGap)

		// a failure is no reason to forget, and not asked for again at once
		w.fake.fail("x", errServfail)
		renewed(w, "hit "+b, 0)
		w.wantAsked("x", 1, 1)
		w.sleep(time.Second / 2)
		renewed(w, "hit "+b, 0)
		w.wantAsked("x", 0, 0)
		w.sleep(time.Minute)

		// no reader waits for long
		w.fake.set("x A", script{hang: true})
		w.fake.set("x AAAA", script{hang: true})
		renewed(w, "stale "+b, 500*time.Millisecond)

		// nor in an outage
		w.sleep(time.Minute)
		w.fake.setOutage(true)
		w.fake.a("x", time.Minute, a)
		renewed(w, "stale "+b, 0)
	})
}

// TestRenewTogether: many readers ask once.
func TestRenewTogether(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.a("x", time.Minute, a)
		w.want("x", "miss "+a)
		w.sleep(renewGap)
		w.fake.set("x A", script{addrs: ips(b), ttl: time.Minute, delay: 10 * time.Millisecond})
		results := make(chan string)
		for range 100 {
			go func() { results <- text(w.Renew(w.Context(), "x", ips(a))) }()
		}
		for range 100 {
			if got := <-results; got != "hit "+b {
				t.Errorf("got %q, want %q", got, "hit "+b)
			}
		}
		w.wantAsked("x", 2, 2)
	})
}

// TestRenewed: a reader for whom addresses did not work that are replaced by now
// gets the new ones.
func TestRenewed(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.fake.a("x", time.Minute, b)
		w.want("x", "miss "+b)
		start := time.Now()
		if got := text(w.Renew(w.Context(), "x", ips(a))); got != "hit "+b || time.Since(start) != 0 {
			t.Errorf("got %q after %s, want %q at once", got, time.Since(start), "hit "+b)
		}
		w.wantAsked("x", 1, 1)
	})
}
