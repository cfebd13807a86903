package resolver

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
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
	r := newResolver(t, Config{Hosts: hosts, ResolvConf: conf, Family: "auto"})

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
		r := newResolver(t, Config{Family: family, Hosts: "off", Nameservers: []string{"192.0.2.53"}})
		for _, name := range []string{"localhost", "a.b.localhost"} {
			if a, err := r.Lookup(t.Context(), name); err != nil || fmt.Sprint(a.Addrs) != want || a.From != "hosts" {
				t.Errorf("%s: %s: got %v, %v, want %s of the hosts file", family, name, a, err, want)
			}
		}
		for _, name := range []string{"a.onion", "invalid", "a.invalid"} {
			if a, err := r.Lookup(t.Context(), name); err == nil {
				t.Errorf("%s: %s: got %v, want an error", family, name, a)
			}
		}
	}
}

// newResolver returns a resolver that is closed when the test ends.
func newResolver(t testing.TB, config Config) *Resolver {
	t.Helper()
	if config.Hosts == "" {
		config.Hosts = "off"
	}
	if config.Family == "" {
		config.Family = "ipv4"
	}
	c, err := config.Compile()
	if err != nil {
		t.Fatal(err)
	}
	r := New(c)
	t.Cleanup(r.Close)
	return r
}

// mustLookup returns the addresses of a name and where they came from.
func mustLookup(t testing.TB, r *Resolver, name string) string {
	t.Helper()
	a, err := r.Lookup(t.Context(), name)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(a.From, " ", a.Addrs)
}

// knownNames returns how many names the cache of the zone of all other names has.
func knownNames(r *Resolver) (n int) {
	for _, inState := range r.cache.Stats().Names {
		n += inState
	}
	return n
}

// wantLookup checks the addresses of a name and where they came from.
func wantLookup(t testing.TB, r *Resolver, name, want string) {
	t.Helper()
	if got := mustLookup(t, r, name); got != want {
		t.Errorf("%s: got %s, want %s", name, got, want)
	}
}

// TestZones has the nameservers that are asked for a name.
func TestZones(t *testing.T) {
	leaktest.Check(t)
	servers := map[string]*testlab.Nameserver{"192.0.2.1": testlab.NewNameserver(t), "192.0.2.2": testlab.NewNameserver(t), "192.0.2.3": testlab.NewNameserver(t)}
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
			s.Has(name, addr)
		}
	}
	servers["192.0.2.1"].Set("to-zone.example", testlab.Reply{Alias: "a.dc1.consul", TTL: 60})
	servers["192.0.2.3"].Has("a.dc1.consul", "192.0.2.3")
	servers["192.0.2.2"].Set("from-zone.consul", testlab.Reply{Alias: "aliased.example", TTL: 60})
	servers["192.0.2.1"].Has("aliased.example", "192.0.2.1")
	names["to-zone.example"], names["from-zone.consul"] = "192.0.2.3", "192.0.2.1"

	r := newResolver(t, Config{
		Nameservers: []string{servers["192.0.2.1"].Addr},
		Zones: map[string][]string{
			"Consul.":    {servers["192.0.2.2"].Addr},
			"dc1.consul": {servers["192.0.2.3"].Addr},
			"bücher.de":  {servers["192.0.2.3"].Addr},
		},
	})
	r.Start()
	for name, addr := range names {
		if got := mustLookup(t, r, name); got != "miss ["+addr+"]" {
			t.Errorf("%s: %s, want %s", name, got, addr)
		}
		if addrs, ok := r.peek(name); !ok || fmt.Sprint(addrs) != "["+addr+"]" {
			t.Errorf("%s: got %v, %t, want [%s] to be known", name, addrs, ok, addr)
		}
	}
	for addr, s := range servers {
		for name, want := range names {
			n := s.Asked(name)
			if strings.Contains(name, "-zone.") {
				continue
			}
			if want := want == addr; (n > 0) != want {
				t.Errorf("%s was asked %d times for %s, which is in the zone of %s", addr, n, name, names[name])
			}
		}
	}

	none := newResolver(t, Config{Nameservers: []string{servers["192.0.2.1"].Addr}})
	if n := testing.AllocsPerRun(100, func() { none.zoneOf("a.b.dc1.consul"); r.zoneOf("a.b.dc1.consul") }); n > 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

// TestZoneAlone: what happens in one zone disturbs no other.
func TestZoneAlone(t *testing.T) {
	leaktest.Check(t)
	main, dead := testlab.NewNameserver(t), testlab.NewNameserver(t)
	main.Has("a.example", "192.0.2.1")
	dead.SetSilent(true)
	r := newResolver(t, Config{
		Nameservers: []string{main.Addr},
		Zones:       map[string][]string{"dead": {dead.Addr}},
		Timeout:     50 * time.Millisecond,
		Deadline:    200 * time.Millisecond,
		MinTTL:      1,
		MaxLookups:  1,
	})
	r.Start()
	testlab.Eventually(t, "the zone is known to be down", func() bool {
		_, err := r.Lookup(t.Context(), fmt.Sprintf("n%d.dead", dead.Total()))
		return err != nil && strings.Contains(err.Error(), "all nameservers are down ("+dead.Addr+": no reply)")
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_, _ = r.Lookup(ctx, fmt.Sprintf("n%d.x%d.dead", n, i))
				time.Sleep(time.Millisecond)
			}
		})
	}
	for i := range 20 {
		name := fmt.Sprintf("a%d.example", i)
		main.Has(name, "192.0.2.1")
		if got := mustLookup(t, r, name); got != "miss [192.0.2.1]" {
			t.Errorf("%s: got %s, want miss [192.0.2.1]", name, got)
		}
	}
	cancel()
	wg.Wait()
	if r.client.Outage() != nil {
		t.Error("the outage of the zone is one of all names, too")
	}
}

// TestKeys: configurations that mean the same have the same key.
func TestKeys(t *testing.T) {
	key := func(c Config) string {
		compiled, err := c.Compile()
		if err != nil {
			t.Fatal(err)
		}
		return compiled.Key()
	}
	for _, same := range [][2]Config{
		{{}, {Deadline: 5 * time.Second, Family: "auto", Hosts: "/etc/hosts", MaxLookups: 1024}},
		{{Nameservers: []string{"192.0.2.1", "udp://192.0.2.1:53"}}, {Nameservers: []string{"192.0.2.1"}, Timeout: 2 * time.Second, Tries: 3}},
		{{Preload: []string{"b.example", "a.example"}}, {Preload: []string{"A.example.", "a.example", "b.example"}}},
	} {
		if a, b := key(same[0]), key(same[1]); a != b {
			t.Errorf("%+v has the key %s, %+v has %s, want the same", same[0], a, same[1], b)
		}
	}
}

// TestRoots: the certificate authorities are those of the file, and its contents
// make a part of the key.
func TestRoots(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	server.Close()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	file := filepath.Join(t.TempDir(), "ca.pem")
	compile := func(contents []byte) *Compiled {
		t.Helper()
		if err := os.WriteFile(file, contents, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Config{Nameservers: []string{"tls://192.0.2.53"}, TLSTrustedCACerts: []string{file}}.Compile()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	once, twice := compile(cert), compile(append(cert, '\n'))
	want := x509.NewCertPool()
	want.AddCert(server.Certificate())
	if !once.roots.Equal(want) || !twice.roots.Equal(want) {
		t.Error("the authorities are not those of the file")
	}
	if once.Key() == twice.Key() {
		t.Errorf("other contents make the same key %s", once.Key())
	}
}

// TestPreload: names are known before they are looked up, each from its zone.
func TestPreload(t *testing.T) {
	leaktest.Check(t)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.9 hosts.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	main, zone := testlab.NewNameserver(t), testlab.NewNameserver(t)
	main.Has("a.example", "192.0.2.1")
	main.Has("hosts.example", "192.0.2.1")
	zone.Has("a.zone", "192.0.2.2")
	r := newResolver(t, Config{
		Nameservers: []string{main.Addr},
		Zones:       map[string][]string{"zone": {zone.Addr}},
		Preload:     []string{"A.example.", "a.zone", "hosts.example"},
		Hosts:       hosts,
	})
	if n := main.Total() + zone.Total(); n > 0 {
		t.Errorf("got %d queries before the start, want none", n)
	}
	r.Start()
	testlab.Eventually(t, "the names are known", func() bool {
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
	if n := main.Total() + zone.Total(); n != 2 {
		t.Errorf("got %d queries, want none", n)
	}
}

// TestRefresh has what the options say to the cache.
func TestRefresh(t *testing.T) {
	for _, test := range []struct {
		config Config
		want   time.Duration
	}{
		{Config{}, 5 * time.Minute},
		{Config{Refresh: time.Hour}, time.Hour},
		{Config{Refresh: -1}, -1},
		{Config{RefreshAlways: true}, math.MaxInt64},
	} {
		if got := newResolver(t, test.config).cacheConfig(nil, nil).Refresh; got != test.want {
			t.Errorf("%+v: got %s, want %s", test.config, got, test.want)
		}
	}
}

// TestAliasToOnion: what has no place in the DNS is not asked for by way of an
// alias either.
func TestAliasToOnion(t *testing.T) {
	s := testlab.NewNameserver(t)
	s.Set("a.example", testlab.Reply{Alias: "secret.onion"})
	r := newResolver(t, Config{Nameservers: []string{s.Addr}})
	if _, err := r.Lookup(t.Context(), "a.example"); err == nil || !strings.Contains(err.Error(), "secret.onion., which is never asked for") {
		t.Errorf("got %v, want that secret.onion. is never asked for", err)
	}
	if n := s.Asked("secret.onion"); n > 0 {
		t.Errorf("got %d queries, want none", n)
	}
}

// TestReopen: lookups of a closed resolver are those of another one, if there is one.
func TestReopen(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	s.Has("known.example", "192.0.2.1")
	s.Has("new.example", "192.0.2.2")
	s.Set("_http._tcp.example", testlab.Reply{SRV: []string{"1 2 3 new.example."}, TTL: 60})
	config := Config{Nameservers: []string{s.Addr}}
	opened, released := 0, 0
	reopening := config
	reopening.Reopen = func() (*Resolver, func(), error) {
		opened++
		return newResolver(t, config), func() { released++ }, nil
	}
	r, alone := closedResolver(t, reopening), closedResolver(t, config)

	for name, want := range map[string]string{"known.example": "hit [192.0.2.1]", "new.example": "miss [192.0.2.2]"} {
		if got := mustLookup(t, r, name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	if records, err := r.LookupService(t.Context(), "_http._tcp.example"); err != nil || fmt.Sprint(records) != "[{new.example 3 1 2}]" {
		t.Errorf("service: got %v, %v, want its record", records, err)
	}
	if opened != 2 || released != 2 {
		t.Errorf("opened %d and released %d times, want 2 and 2", opened, released)
	}
	if _, err := alone.Lookup(t.Context(), "new.example"); !errors.Is(err, dnscache.ErrClosed) {
		t.Errorf("without another one: got %v, want %v", err, dnscache.ErrClosed)
	}
}

// closedResolver returns a resolver that knows known.example and is closed.
func closedResolver(t *testing.T, config Config) *Resolver {
	t.Helper()
	config.Hosts, config.Family = "off", "ipv4"
	c, err := config.Compile()
	if err != nil {
		t.Fatal(err)
	}
	r := New(c)
	wantLookup(t, r, "known.example", "miss [192.0.2.1]")
	r.Close()
	return r
}
