package caddytarget

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// TestFilesAreReadAgain checks that a changed hosts file and resolv.conf take
// effect, and that an unreadable one changes nothing.
func TestFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	hosts, conf := filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
	stamp := time.Now()
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp = stamp.Add(time.Second) // file systems differ in how fine their times are
		if err := os.Chtimes(path, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	write(hosts, "192.0.2.1 a.test # one\n\nnonsense\n192.0.2.9\n")
	write(conf, "nameserver 192.0.2.53\n")
	r, err := Resolver{Hosts: hosts}.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.release() }()
	r.resolvConf = conf

	check := func(addrs, servers string) {
		t.Helper()
		r.checkFiles()
		list, _ := r.local("a.test")
		if got := fmt.Sprint(list); got != addrs {
			t.Errorf("addresses %s, want %s", got, addrs)
		}
		if got := fmt.Sprint(r.client.Nameservers()); got != servers {
			t.Errorf("nameservers %s, want %s", got, servers)
		}
	}
	check("[192.0.2.1]", "[192.0.2.53:53]")
	write(hosts, "192.0.2.2 A.test. b.test\n::ffff:192.0.2.3 a.test\n2001:db8::1 a.test\n")
	write(conf, "nameserver 192.0.2.54\n")
	check("[192.0.2.2 192.0.2.3 2001:db8::1]", "[192.0.2.54:53]")

	// a folder can be looked at but not read
	for _, path := range []string{hosts, conf} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	check("[192.0.2.2 192.0.2.3 2001:db8::1]", "[192.0.2.54:53]")
}

// TestLocal checks the names that are never asked for.
func TestLocal(t *testing.T) {
	for family, want := range map[string]string{
		"auto": "[127.0.0.1 ::1]", "ipv4": "[127.0.0.1]", "ipv6": "[::1]", "prefer_ipv6": "[127.0.0.1 ::1]",
	} {
		r, err := Resolver{Family: family, Hosts: "off", Nameservers: []string{"192.0.2.53"}}.acquire()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"localhost", "a.b.localhost"} {
			if a, err := r.lookup(t.Context(), name); err != nil || fmt.Sprint(a.addrs) != want || a.lookup != "hosts" {
				t.Errorf("%s: %s: %v, %v", family, name, a, err)
			}
		}
		for _, name := range []string{"a.onion", "invalid", "a.invalid"} {
			if a, err := r.lookup(t.Context(), name); err == nil {
				t.Errorf("%s: %v", name, a)
			}
		}
		if err := r.release(); err != nil {
			t.Error(err)
		}
	}
}

// acquire returns a resolver that does not outlive the test.
func acquire(t testing.TB, config Resolver) *resolver {
	t.Helper()
	if config.Hosts == "" {
		config.Hosts = "off"
	}
	if config.Family == "" {
		config.Family = "ipv4"
	}
	r, err := config.acquire()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.release(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// mustLookup returns the addresses of a name and where they came from.
func mustLookup(t testing.TB, r *resolver, name string) string {
	t.Helper()
	a, err := r.lookup(t.Context(), name)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(a.lookup, " ", a.addrs)
}

// TestZones has the nameservers that are asked for a name.
func TestZones(t *testing.T) {
	checkLeaks(t)
	servers := map[string]*dnsServer{"192.0.2.1": newDNSServer(t), "192.0.2.2": newDNSServer(t), "192.0.2.3": newDNSServer(t)}
	names := map[string]string{
		"consul":             "192.0.2.2",
		"a.consul":           "192.0.2.2",
		"b.a.consul":         "192.0.2.2",
		"xdc1.consul":        "192.0.2.2",
		"dc1.consul":         "192.0.2.3",
		"a.b.dc1.consul":     "192.0.2.3",
		"notconsul":          "192.0.2.1",
		"consul.example":     "192.0.2.1",
		"example":            "192.0.2.1",
		"a.xn--bcher-kva.de": "192.0.2.3",
		"de":                 "192.0.2.1",
	}
	for addr, s := range servers {
		for name := range names {
			s.has(name, addr)
		}
	}
	servers["192.0.2.1"].set("to-zone.example", dnsName{alias: "a.dc1.consul", ttl: 60})
	servers["192.0.2.3"].has("a.dc1.consul", "192.0.2.3")
	servers["192.0.2.2"].set("from-zone.consul", dnsName{alias: "aliased.example", ttl: 60})
	servers["192.0.2.1"].has("aliased.example", "192.0.2.1")
	names["to-zone.example"], names["from-zone.consul"] = "192.0.2.3", "192.0.2.1"

	r := acquire(t, Resolver{
		Nameservers: []string{servers["192.0.2.1"].addr},
		Zones: map[string][]string{
			"Consul.":    {servers["192.0.2.2"].addr},
			"dc1.consul": {servers["192.0.2.3"].addr},
			"bücher.de":  {servers["192.0.2.3"].addr},
		},
	})
	r.start()
	for name, addr := range names {
		if got := mustLookup(t, r, name); got != "miss ["+addr+"]" {
			t.Errorf("%s: %s, want %s", name, got, addr)
		}
		if addrs, ok := r.peek(name); !ok || fmt.Sprint(addrs) != "["+addr+"]" {
			t.Errorf("%s: known is %v", name, addrs)
		}
	}
	for addr, s := range servers {
		for name, want := range names {
			n := s.asked(name)
			if strings.Contains(name, "-zone.") {
				continue
			}
			if want := want == addr; (n > 0) != want {
				t.Errorf("%s was asked %d times for %s", addr, n, name)
			}
		}
	}

	none := acquire(t, Resolver{Nameservers: []string{servers["192.0.2.1"].addr}})
	if n := testing.AllocsPerRun(100, func() { none.zoneOf("a.b.dc1.consul"); r.zoneOf("a.b.dc1.consul") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestZoneAlone: what happens in one zone disturbs no other.
func TestZoneAlone(t *testing.T) {
	checkLeaks(t)
	main, dead := newDNSServer(t), newDNSServer(t)
	main.has("a.example", "192.0.2.1")
	dead.setSilent(true)
	r := acquire(t, Resolver{
		Nameservers: []string{main.addr},
		Zones:       map[string][]string{"dead": {dead.addr}},
		Timeout:     caddy.Duration(50 * time.Millisecond),
		Deadline:    caddy.Duration(200 * time.Millisecond),
		MinTTL:      1,
		MaxLookups:  1,
	})
	r.start()
	eventually(t, "the zone is known to be down", func() bool {
		_, err := r.lookup(t.Context(), fmt.Sprintf("n%d.dead", dead.askedInAll()))
		return err != nil && strings.Contains(err.Error(), "all nameservers are down ("+dead.addr+": no reply)")
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_, _ = r.lookup(ctx, fmt.Sprintf("n%d.x%d.dead", n, i))
				time.Sleep(time.Millisecond)
			}
		})
	}
	for i := range 20 {
		name := fmt.Sprintf("a%d.example", i)
		main.has(name, "192.0.2.1")
		if got := mustLookup(t, r, name); got != "miss [192.0.2.1]" {
			t.Errorf("%s: %s", name, got)
		}
	}
	cancel()
	wg.Wait()
	if r.client.Outage() != nil {
		t.Error("the outage of the zone is everybody's")
	}
}

// TestEqualResolvers: configurations that mean the same share a resolver.
func TestEqualResolvers(t *testing.T) {
	same := []Resolver{
		{Zones: map[string][]string{"consul": {"192.0.2.1"}}, Preload: []string{"a.example", "b.example"}},
		{Zones: map[string][]string{"CONSUL.": {"192.0.2.1"}}, Preload: []string{"B.example.", "a.example", "b.example"}, Deadline: caddy.Duration(5 * time.Second)},
	}
	first := acquire(t, same[0])
	for _, config := range same {
		if acquire(t, config) != first {
			t.Errorf("%+v has another resolver", config)
		}
	}
	for _, config := range []Resolver{
		{Zones: same[0].Zones},
		{Preload: same[0].Preload},
		{Zones: map[string][]string{"consul": {"192.0.2.2"}}, Preload: same[0].Preload},
		{Zones: same[0].Zones, Preload: same[0].Preload, Search: true},
		{Zones: same[0].Zones, Preload: same[0].Preload, RefreshAlways: true},
		{Zones: same[0].Zones, Preload: same[0].Preload, Tries: 3}, // whatever resolv.conf says
	} {
		if acquire(t, config) == first {
			t.Errorf("%+v has the same resolver", config)
		}
	}
}

// TestRotatedRoots: other contents of a file make another resolver.
func TestRotatedRoots(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	write := func(a *authority) {
		t.Helper()
		data, err := os.ReadFile(a.file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := Resolver{Nameservers: []string{"tls://192.0.2.53"}, TLSTrustedCACerts: []string{file}}
	write(first)
	before := acquire(t, config)
	write(first)
	if acquire(t, config) != before {
		t.Error("the same contents make another resolver")
	}
	write(second)
	if acquire(t, config) == before {
		t.Error("other contents make the same resolver")
	}
	pool, _, err := config.roots()
	if err != nil || !pool.Equal(second.pool()) {
		t.Errorf("the authorities are not those of the file: %v", err)
	}
}

// TestPreload: names are known before anybody asks, each from its zone.
func TestPreload(t *testing.T) {
	checkLeaks(t)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.9 hosts.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	main, zone := newDNSServer(t), newDNSServer(t)
	main.has("a.example", "192.0.2.1")
	main.has("hosts.example", "192.0.2.1")
	zone.has("a.zone", "192.0.2.2")
	r := acquire(t, Resolver{
		Nameservers: []string{main.addr},
		Zones:       map[string][]string{"zone": {zone.addr}},
		Preload:     []string{"A.example.", "a.zone", "hosts.example"},
		Hosts:       hosts,
	})
	if n := main.askedInAll() + zone.askedInAll(); n > 0 {
		t.Errorf("%d queries before the start", n)
	}
	r.start()
	eventually(t, "the names are known", func() bool {
		_, a := r.peek("a.example")
		_, b := r.peek("a.zone")
		return a && b
	})
	for name, want := range map[string]string{
		"a.example": "hit [192.0.2.1]", "a.zone": "hit [192.0.2.2]", "hosts.example": "hosts [192.0.2.9]",
	} {
		if got := mustLookup(t, r, name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if n := main.askedInAll() + zone.askedInAll(); n != 2 {
		t.Errorf("%d queries", n)
	}
}

// TestRefresh has what the options say to the cache.
func TestRefresh(t *testing.T) {
	for _, test := range []struct {
		config Resolver
		want   time.Duration
	}{
		{Resolver{}, 5 * time.Minute},
		{Resolver{Refresh: caddy.Duration(time.Hour)}, time.Hour},
		{Resolver{Refresh: -1}, -1},
		{Resolver{RefreshAlways: true}, math.MaxInt64},
	} {
		if got := acquire(t, test.config).cacheConfig(nil).Refresh; got != test.want {
			t.Errorf("%+v: %s", test.config, got)
		}
	}
}

// TestAliasToOnion: what has no place in the DNS is not asked for by way of an
// alias either.
func TestAliasToOnion(t *testing.T) {
	s := newDNSServer(t)
	s.set("a.example", dnsName{alias: "secret.onion"})
	r := acquire(t, Resolver{Nameservers: []string{s.addr}})
	if _, err := r.lookup(t.Context(), "a.example"); err == nil || !strings.Contains(err.Error(), "secret.onion., which is never asked for") {
		t.Error(err)
	}
	if n := s.asked("secret.onion"); n > 0 {
		t.Errorf("%d queries", n)
	}
}

// TestTrace: lookups are logged once debug is on, also by a resolver that was
// there before.
func TestTrace(t *testing.T) {
	w := newWorld(t)
	b := newBackend(t, backendConfig{addrs: []string{"127.0.0.2"}})
	w.dns.has("a.example", "127.0.0.2")
	w.dns.has("b.example", "127.0.0.2", "127.0.0.3")
	w.dns.set("c.example", dnsName{rcode: 2})
	lines := w.logTo("INFO", "target.resolver", "lookup")
	w.run(w.proxy())
	w.mustGet("/", "http://a.example:"+b.port)
	if got := lines(); len(got) != 0 {
		t.Errorf("logged without debug: %v", got)
	}
	lines = w.logTo("DEBUG", "target.resolver", "lookup")
	w.run(w.proxy())
	w.mustGet("/", "http://a.example:"+b.port) // is known
	w.mustGet("/", "http://b.example:"+b.port)
	if res := w.get("/", "http://c.example:"+b.port); res.StatusCode != 502 {
		t.Error(res)
	}
	eventually(t, "two lookups are logged", func() bool { return len(lines()) >= 2 })
	got := lines()
	if len(got) != 2 {
		t.Fatalf("logged: %v", got)
	}
	good, failed := got[0], got[1]
	if good["name"] != "b.example" || good["type"] != "A" || fmt.Sprint(good["addresses"]) != "[127.0.0.2 127.0.0.3]" ||
		good["ttl"] != 60.0 || good["error"] != nil || good["duration"].(float64) <= 0 || len(good["tries"].([]any)) > 1 {
		t.Errorf("logged: %v", good)
	}
	if failed["name"] != "c.example" || !strings.Contains(fmt.Sprint(failed["error"]), "SERVFAIL") {
		t.Errorf("logged: %v", failed)
	}
	tries := failed["tries"].([]any)
	if len(tries) != 3 {
		t.Fatalf("tries: %v", tries)
	}
	for _, try := range tries {
		try := try.(map[string]any)
		if try["server"] != w.dns.addr || try["transport"] != "udp" || try["outcome"] != "SERVFAIL" || try["duration"].(float64) <= 0 {
			t.Errorf("try: %v", try)
		}
	}
}
