package exchange

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"caddytarget/internal/failure"
	"caddytarget/internal/gate"
	"caddytarget/internal/guard"
	"caddytarget/internal/localnet"
	"caddytarget/internal/metrics"
	"caddytarget/internal/resolver"
	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// newPolicy returns the policy of a server that listens nowhere.
func newPolicy(t testing.TB, config guard.Config) *Policy {
	t.Helper()
	rules, err := config.Compile()
	if err != nil {
		t.Fatal(err)
	}
	nowhere := localnet.NewListeners(localnet.Config{
		Addresses: func() ([]netip.Prefix, error) { return nil, nil },
		Account:   func(netip.AddrPort) localnet.Owner { return localnet.NotOwn },
	})
	return &Policy{Gate: gate.Gate{Rules: rules, Listeners: nowhere}, Metrics: metrics.New(nil, nil).Requests, Log: zap.NewNop()}
}

// newResolver returns a resolver of a configuration that was changed, until the test ends.
func newResolver(t testing.TB, config resolver.Config, change func(*resolver.Config)) *resolver.Resolver {
	t.Helper()
	config.Hosts, config.Family = "off", "ipv4"
	change(&config)
	compiled, err := config.Compile()
	if err != nil {
		t.Fatal(err)
	}
	r := resolver.New(compiled)
	t.Cleanup(r.Close)
	return r
}

// mustLookup returns the addresses of a name and where they came from.
func mustLookup(t testing.TB, r *resolver.Resolver, name string) string {
	t.Helper()
	a, err := r.Lookup(t.Context(), name)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(a.From, " ", a.Addrs)
}

// writeFile returns the path of a file with this text.
func writeFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestServiceStaleFails: where the second lookup of a stale target of a service
// finds nothing, the targets that are not known yet get all the time, as if there
// were no other.
func TestServiceStaleFails(t *testing.T) {
	leaktest.Check(t)
	for name, gone := range map[string]testlab.Reply{"NXDOMAIN": {Rcode: 3}, "no data": {}} {
		s := testlab.NewNameserver(t)
		s.Set("old.example", testlab.Reply{Addrs: []string{"192.0.2.1"}, TTL: 1})
		var skipped atomic.Int64
		start := time.Now()
		r := newResolver(t, resolver.Config{
			Nameservers: []string{s.Addr}, StaleWait: testlab.Timeout, Deadline: testlab.Timeout, Timeout: testlab.Timeout, Tries: 1,
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

		sc := &Service{name: "_http._tcp.example", Calls: make([]Call, 2), end: time.Now().Add(testlab.Timeout)}
		u := &Source{Resolver: r}
		for i, host := range []string{"old.example", "new.example"} {
			record := net.SRV{Target: host, Port: 80, Priority: 1}
			if err := u.callRecord(&sc.Calls[i], httptest.NewRequest(http.MethodGet, "/", nil), record, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(4*serviceGrace, func() { close(hold) })
		sc.Resolve(t.Context(), 0, 2, true)
		if got := fmt.Sprint(sc.Calls[0].Addrs, sc.Calls[1].Addrs); got != "[] [192.0.2.2]" {
			t.Errorf("%s: got addresses %s, %v, want none and 192.0.2.2", name, got, sc.err)
		}
	}
}

// TestNewRecord has the records that cannot be called.
func TestNewRecord(t *testing.T) {
	policy := newPolicy(t, guard.Config{Ports: []string{"80"}, AllowIPs: []string{"10.0.0.1"}})
	for _, test := range []struct {
		record  net.SRV
		checked bool
		host    string
		reason  string
	}{
		{record: net.SRV{Target: "A.example", Port: 1}, host: "a.example"},
		{record: net.SRV{Target: "a.example", Port: 80}, checked: true, host: "a.example"},
		{record: net.SRV{Target: "10.0.0.1", Port: 80}, checked: true, host: "10.0.0.1"},
		{record: net.SRV{Target: "10.0.0.2", Port: 80}, checked: true, reason: "10.0.0.2 is refused"},
		{record: net.SRV{Target: "a.example", Port: 81}, checked: true, reason: "port 81 is refused"},
		{record: net.SRV{Target: "a.example", Port: 0}, reason: "port 0"},
		{record: net.SRV{Target: "a..example", Port: 1}, reason: "empty label"},
		{record: net.SRV{Target: "", Port: 1}, reason: "no host"},
	} {
		c, u := new(Call), &Source{Dynamic: test.checked, Policy: policy}
		err := u.callRecord(c, httptest.NewRequest(http.MethodGet, "/", nil), test.record, nil, nil)
		if c.Host != test.host || (err != nil) != (test.reason != "") || err != nil && !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%v: host %q, %v, want %q", test.record, c.Host, err, test.host)
		}
	}
}

// TestServiceResolver: services have zones, their targets are complete names,
// and what never is in the DNS has no services.
func TestServiceResolver(t *testing.T) {
	leaktest.Check(t)
	main, zone := testlab.NewNameserver(t), testlab.NewNameserver(t)
	zone.Set("_http._tcp.web.zone", testlab.Reply{SRV: []string{"1 2 3 a.example."}, TTL: 60})
	main.Has("a.example", "192.0.2.1")
	main.Has("a.example.b.test", "192.0.2.2")
	r := newResolver(t, resolver.Config{
		Nameservers: []string{main.Addr}, Zones: map[string][]string{"zone": {zone.Addr}}, Search: true,
	}, func(c *resolver.Config) { c.ResolvConf = writeFile(t, "search b.test\noptions ndots:5\n") })
	records, err := r.LookupService(t.Context(), "_http._tcp.web.zone")
	if err != nil || fmt.Sprint(records) != "[{a.example 3 1 2}]" {
		t.Errorf("got %v, %v, want one record of a.example", records, err)
	}
	if main.Total() > 0 {
		t.Error("the wrong nameserver was asked")
	}
	c := &Call{Resolver: r, Complete: true}
	c.Host = "a.example"
	if err := c.Resolve(t.Context(), netip.Addr{}); err != nil || fmt.Sprint(c.Addrs) != "[192.0.2.1]" {
		t.Errorf("%v, %v, want 192.0.2.1", c.Addrs, err)
	}
	for _, name := range []string{"_http._tcp.localhost", "_http._tcp.a.onion", "_http._tcp.invalid"} {
		before := main.Total()
		if _, err := r.LookupService(t.Context(), name); err == nil || !strings.Contains(err.Error(), "RFC 6761") || main.Total() != before {
			t.Errorf("%s: got %v, want an error of RFC 6761 and no query", name, err)
		}
	}
	_, err = r.LookupService(t.Context(), "_none._tcp.example")
	if err == nil || failure.StatusOf(err) != http.StatusBadGateway || errors.Is(err, errNotYet) {
		t.Error(err)
	}
}

// TestRenewSearched: the first renewal of a name that was searched for asks, and says
// that there are other addresses only if there are.
func TestRenewSearched(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	s.Has("web.b.test", "192.0.2.1")
	r := newResolver(t, resolver.Config{Nameservers: []string{s.Addr}, StaleWait: testlab.Timeout, Search: true}, func(c *resolver.Config) {
		c.ResolvConf = writeFile(t, "search a.test b.test\n")
	})
	c := &Call{Resolver: r}
	c.Host, c.Port = "web", 80
	if err := c.Resolve(t.Context(), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if c.renew(t.Context()) || s.Asked("web.b.test") != 2 {
		t.Errorf("the same addresses, and %d queries", s.Asked("web.b.test"))
	}
	s.Has("web.b.test", "192.0.2.2")
	testlab.Eventually(t, "it is renewed", func() bool { return c.renew(t.Context()) })
	if !slices.Equal(c.Addrs, []netip.Addr{netip.MustParseAddr("192.0.2.2")}) || c.Answer.Found != "web.b.test" {
		t.Errorf("got %v of %s, want [192.0.2.2] of web.b.test", c.Addrs, c.Answer.Found)
	}
}
