package caddytarget

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/resolver"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/testlab"
)

// TestServiceStaleFails: where the second lookup of a stale target of a service
// finds nothing, the targets that are not known yet get all the time, as if there
// were no other.
func TestServiceStaleFails(t *testing.T) {
	checkLeaks(t)
	for name, gone := range map[string]testlab.Reply{"NXDOMAIN": {Rcode: 3}, "no data": {}} {
		s := testlab.NewNameserver(t)
		s.Set("old.example", testlab.Reply{Addrs: []string{"192.0.2.1"}, TTL: 1})
		var skipped atomic.Int64
		start := time.Now()
		r := newResolver(t, Resolver{
			Nameservers: []string{s.Addr}, StaleWait: caddy.Duration(testlab.Timeout), Deadline: caddy.Duration(testlab.Timeout), Timeout: caddy.Duration(testlab.Timeout), Tries: 1,
		}, func(c *resolver.Config) {
			c.Now = func() time.Duration { return time.Since(start) + time.Duration(skipped.Load()) }
		})
		if got := mustLookup(t, r, "old.example"); got != "miss [192.0.2.1]" {
			t.Fatalf("got %s, want miss [192.0.2.1]", got)
		}
		s.Set("old.example", gone)
		hold := make(chan struct{})
		s.Set("new.example", testlab.Reply{Addrs: []string{"192.0.2.2"}, TTL: 60, Hold: hold})
		skipped.Store(int64(5 * time.Minute)) // so that it is waited for

		sc := &service{name: "_http._tcp.example", calls: make([]call, 2), end: time.Now().Add(testlab.Timeout)}
		u := &Upstreams{resolver: r}
		for i, host := range []string{"old.example", "new.example"} {
			record := net.SRV{Target: host, Port: 80, Priority: 1}
			if err := u.newRecord(&sc.calls[i], httptest.NewRequest(http.MethodGet, "/", nil), record, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(4*serviceGrace, func() { close(hold) })
		sc.Resolve(t.Context(), 0, 2, true)
		if got := fmt.Sprint(sc.calls[0].Addrs, sc.calls[1].Addrs); got != "[] [192.0.2.2]" {
			t.Errorf("%s: got addresses %s, %v, want none and 192.0.2.2", name, got, sc.err)
		}
	}
}
