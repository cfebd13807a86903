package dnscache

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestSequential: one question at a time for a name, where the nameserver answers no
// two.
func TestSequential(t *testing.T) {
	ms := time.Millisecond
	answer := func(addr string, delay time.Duration) script {
		return script{addrs: ips(addr), ttl: time.Hour, delay: delay}
	}
	for _, test := range []struct {
		name    string
		family  Family
		a, aaaa script
		wait    time.Duration
		want    string
		second  time.Duration // when AAAA is asked for; -1: never
	}{
		{"both", Interleaved, answer(a, 20*ms), answer(c6, 30*ms), 50 * ms, "miss " + c6 + " " + a, 20 * ms},
		{"AAAA preferred", PreferIPv6, answer(a, 20*ms), answer(c6, 30*ms), 50 * ms, "miss " + c6 + " " + a, 20 * ms},
		{"the second late", Interleaved, answer(a, 20*ms), answer(c6, time.Second), 20*ms + familyGrace, "miss " + a, 20 * ms},
		{"the first fails", Interleaved, script{err: errServfail, delay: 20 * ms}, answer(c6, 30*ms), 50 * ms, "miss " + c6, 20 * ms},
		{"the first does not exist", Interleaved, script{err: nxdomain(-1), delay: 20 * ms}, script{err: nodata(-1)}, 20 * ms, "miss nxdomain", 20 * ms},
		{"the first silent", Interleaved, script{hang: true}, answer(c6, 30*ms), 2530*ms + familyGrace, "miss " + c6, 2500 * ms},
		{"both silent", Interleaved, script{hang: true}, script{hang: true}, 5 * time.Second, "miss context deadline exceeded", 2500 * ms},
		{"one family", IPv4, answer(a, 20*ms), answer(c6, 0), 20 * ms, "miss " + a, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := Config{Family: func() Family { return test.family }, Sequential: func() bool { return true }}
			run(t, cfg, func(w world) {
				w.fake.set("x A", test.a)
				w.fake.set("x AAAA", test.aaaa)
				w.wantAfter("x", test.wait, test.want)
				w.sleep(10 * time.Second)
				second := w.fake.questions("x", TypeAAAA)
				if first := w.fake.questions("x", TypeA); len(first) != 1 || first[0] != 0 {
					t.Errorf("A was asked for at %v, want once, at 0", first)
				}
				if test.second < 0 && len(second) != 0 || test.second >= 0 && (len(second) != 1 || second[0] != test.second) {
					t.Errorf("AAAA was asked for at %v, want %v", second, test.second)
				}
			})
		})
	}
	run(t, Config{Sequential: func() bool { return true }}, func(w world) {
		w.fake.set("x A", script{hang: true})
		go w.wantLater("x", "miss "+ErrClosed.Error())
		w.sleep(time.Second)
		w.Close()
		w.wantAsked("x", 1, 1)
	})
}

// atOnce answers before Ask returns.
type atOnce struct{}

func (atOnce) Ask(_ context.Context, _ string, qtype uint16, done func([]netip.Addr, time.Duration, error)) {
	done(ips(map[uint16]string{TypeA: a, TypeAAAA: c6}[qtype]), time.Minute, nil)
}

func (atOnce) AskSRV(context.Context, string, func([]net.SRV, time.Duration, error)) {}

func (atOnce) Outage() <-chan struct{} { return nil }

// TestSequentialAtOnce: replies may come while questions are being asked.
func TestSequentialAtOnce(t *testing.T) {
	c := New(atOnce{}, Config{Sequential: func() bool { return true }})
	defer c.Close()
	if got := text(c.Lookup(t.Context(), "x")); got != "miss "+c6+" "+a {
		t.Errorf("got %q, want AAAA and A", got)
	}
}
