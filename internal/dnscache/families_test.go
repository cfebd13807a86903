package dnscache

import (
	"testing"
	"time"
)

// TestOneFamilyDoesNotDecide: a reply for one family, even that the name does not
// exist, does not remove the addresses of the other one, which failed.
func TestOneFamilyDoesNotDecide(t *testing.T) {
	const ttl = time.Second
	addr := map[string]string{"A": a, "AAAA": c6}
	for _, failure := range []script{{err: errServfail}, {hang: true}, {err: errOutage}} {
		for _, negative := range []error{nxdomain(time.Minute), nodata(time.Minute), nil} {
			for _, has := range []string{"A", "AAAA"} {
				other := map[string]string{"A": "AAAA", "AAAA": "A"}[has]
				run(t, Config{Deadline: time.Second, Refresh: -1}, func(w world) {
					w.fake.set("x "+has, script{addrs: ips(addr[has]), ttl: ttl})
					w.fake.set("x "+other, script{err: negative})
					w.want("x", "miss "+addr[has])
					w.sleep(ttl)
					w.fake.set("x "+has, failure)
					w.want("x", "stale "+addr[has])
					w.sleep(time.Second)
					w.want("x", "stale "+addr[has]) // the lookup has failed
					w.fake.set("x "+has, script{addrs: ips(b), ttl: time.Minute})
					w.sleep(time.Second * 5 / 4)
					w.get("x")
					w.sleep(0)
					w.want("x", "hit "+b)
				})
			}
		}
	}
}

// TestFirstLookupFails: a name of which one family failed is not known to be
// absent. It is asked for again as soon as after any failure.
func TestFirstLookupFails(t *testing.T) {
	for _, has := range []string{"A", "AAAA"} {
		other := map[string]string{"A": "AAAA", "AAAA": "A"}[has]
		run(t, Config{}, func(w world) {
			w.fake.set("x "+has, script{err: errServfail})
			w.fake.set("x "+other, script{err: nxdomain(time.Minute)})
			w.want("x", "miss servfail")
			w.want("x", "hit servfail")
			w.wantAsked("x", 1, 1)
			w.fake.set("x "+has, script{addrs: ips(b), ttl: time.Minute})
			w.sleep(time.Second * 5 / 4)
			w.want("x", "miss "+b)
		})
	}
}

// TestDeadFamilyHoldsNothingUp: while one family fails and is left alone for a
// while, the other one, which has expired, is asked for.
func TestDeadFamilyHoldsNothingUp(t *testing.T) {
	run(t, Config{Refresh: -1}, func(w world) {
		w.fake.set("x AAAA", script{err: errServfail})
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Second})
		w.want("x", "miss "+a)
		for range 58 { // AAAA after 1, 2, 4, 8, 16 seconds; the next pause may end a second later
			w.sleep(time.Second)
			w.get("x")
			w.sleep(0)
		}
		w.wantAsked("x", 59, 6)

		w.fake.set("x A", script{addrs: ips(b), ttl: time.Minute})
		w.sleep(time.Second)
		w.want("x", "stale "+a)
		w.want("x", "hit "+b)

		// nor does it keep addresses that are of no use from being renewed
		w.sleep(renewGap)
		w.fake.set("x A", script{addrs: ips(a), ttl: time.Minute})
		if got := text(w.Renew(w.Context(), "x", ips(b))); got != "hit "+a {
			t.Errorf("renewed: got %q, want %q", got, "hit "+a)
		}
	})
}
