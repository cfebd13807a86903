package caddytarget

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/resolver"
	"caddytarget/internal/testlab"
)

// acquire returns the shared resolver of a configuration, until the test ends.
func acquire(t testing.TB, config Resolver) *resolver.Resolver {
	t.Helper()
	r, err := acquireResolver(testConfig(config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.release(); err != nil {
			t.Error(err)
		}
	})
	return r.Resolver
}

func testConfig(config Resolver) resolver.Config {
	if config.Hosts == "" {
		config.Hosts = "off"
	}
	if config.Family == "" {
		config.Family = "ipv4"
	}
	return config.config()
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
		{Zones: same[0].Zones, Preload: same[0].Preload, Tries: 3}, // resolv.conf may say another number
	} {
		if acquire(t, config) == first {
			t.Errorf("%+v has the same resolver", config)
		}
	}
}

// TestRotatedRoots: other contents of a file make another resolver.
func TestRotatedRoots(t *testing.T) {
	first, second := testlab.NewAuthority(t), testlab.NewAuthority(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	write := func(a *testlab.Authority) {
		t.Helper()
		data, err := os.ReadFile(a.File)
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
}

// TestTrace: lookups are logged once debug is on, also by a resolver that was
// there before.
func TestTrace(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.2", "127.0.0.3")
	w.dns.Set("c.example", testlab.Reply{Rcode: 2})
	lines := w.logTo("INFO", "target.resolver", "lookup")
	w.run(w.proxy())
	w.mustGet("/", "http://a.example:"+b.Port)
	if got := lines(); len(got) != 0 {
		t.Errorf("logged without debug: %v", got)
	}
	lines = w.logTo("DEBUG", "target.resolver", "lookup")
	w.run(w.proxy())
	w.mustGet("/", "http://a.example:"+b.Port) // is known
	w.mustGet("/", "http://b.example:"+b.Port)
	if res := w.get("/", "http://c.example:"+b.Port); res.StatusCode != 502 {
		t.Errorf("got %v, want status 502", res)
	}
	testlab.Eventually(t, "two lookups are logged", func() bool { return len(lines()) >= 2 })
	got := lines()
	if len(got) != 2 {
		t.Fatalf("logged: %v, want 2 lines", got)
	}
	good, failed := got[0], got[1]
	if good["name"] != "b.example" || good["type"] != "A" || fmt.Sprint(good["addresses"]) != "[127.0.0.2 127.0.0.3]" ||
		good["ttl"] != 60.0 || good["error"] != nil || good["duration"].(float64) <= 0 || len(good["tries"].([]any)) > 1 {
		t.Errorf("logged: %v, want the addresses of b.example and no error", good)
	}
	if failed["name"] != "c.example" || !strings.Contains(fmt.Sprint(failed["error"]), "SERVFAIL") {
		t.Errorf("logged: %v, want c.example and SERVFAIL", failed)
	}
	tries := failed["tries"].([]any)
	if len(tries) != 3 {
		t.Fatalf("tries: %v, want 3", tries)
	}
	for _, try := range tries {
		try := try.(map[string]any)
		if try["server"] != w.dns.Addr || try["transport"] != "udp" || try["outcome"] != "SERVFAIL" || try["duration"].(float64) <= 0 {
			t.Errorf("try: %v, want SERVFAIL over udp from the nameserver", try)
		}
	}
}
