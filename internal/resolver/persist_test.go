package resolver

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/snapshot"
	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// memoryStore is a store in memory.
type memoryStore struct {
	mu     sync.Mutex
	data   []byte
	saved  time.Time
	looked int // how often at whether there is another file
}

func (s *memoryStore) Stat(context.Context) (snapshot.Stamp, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looked++
	if s.data == nil {
		return snapshot.Stamp{}, fs.ErrNotExist
	}
	return snapshot.Stamp{Size: int64(len(s.data)), Modified: s.saved}, nil
}

func (s *memoryStore) Load(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data, nil
}

func (s *memoryStore) Save(_ context.Context, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data, s.saved = data, time.Now()
	return nil
}

func (s *memoryStore) DeleteOld(context.Context, time.Duration) (int, error) { return 0, nil }

// savedResolver returns a resolver that has loaded what is in a store.
func savedResolver(t testing.TB, config Config, store snapshot.Store) *Resolver {
	t.Helper()
	r := newResolver(t, config)
	r.UseStore(store)
	r.Start()
	<-r.memory.saver.Loaded()
	return r
}

// TestSaved: zones, services and what names are short for are as they were before.
func TestSaved(t *testing.T) {
	leaktest.Check(t)
	root, zone := testlab.NewNameserver(t), testlab.NewNameserver(t)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search a.test b.test\noptions timeout:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := Config{
		Nameservers: []string{root.Addr}, Zones: map[string][]string{"corp.test": {zone.Addr}},
		Search: true, ResolvConf: conf, Family: "prefer_ipv6", Deadline: 2 * time.Second, Refresh: -1,
	}
	root.Set("both.example", testlab.Reply{Addrs: []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}, TTL: 600})
	root.Set("web.b.test", testlab.Reply{Addrs: []string{"192.0.2.3"}, TTL: 600})
	root.Set("_http._tcp.example", testlab.Reply{SRV: []string{"1 2 80 both.example."}, TTL: 600})
	zone.Set("db.corp.test", testlab.Reply{Addrs: []string{"192.0.2.4"}, TTL: 1})
	store := new(memoryStore)
	lookups := func(r *Resolver) (all []string) {
		for _, name := range []string{"both.example", "web", "db.corp.test"} {
			all = append(all, strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(mustLookup(t, r, name), "miss "), "hit "), "stale "))
		}
		services, err := r.LookupService(t.Context(), "_http._tcp.example")
		return append(all, fmt.Sprint(services, err))
	}
	first := savedResolver(t, config, store)
	want := lookups(first)
	first.save(t.Context())
	root.SetSilent(true)
	zone.SetSilent(true)
	second := savedResolver(t, config, store)
	if got := lookups(second); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if as, ok := second.search.Load().recall("web", time.Hour); !ok || as != "web.b.test" {
		t.Errorf("web is known to be short for %q, want web.b.test", as)
	}
	if text := string(store.data); strings.Contains(text, root.Addr) || strings.Contains(text, zone.Addr) {
		t.Error("the file has the address of a nameserver")
	}
	// other nameservers have another file, and another way to ask has the same one
	same, other := config, config
	same.Tries, same.Timeout = 1, time.Second
	other.Zones = nil
	if first.identity() != newResolver(t, same).identity() || first.identity() == newResolver(t, other).identity() {
		t.Error("the identity depends on how nameservers are asked, or not on which ones are")
	}
}

// TestSavedByOthers: what another process saves is not lost.
func TestSavedByOthers(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	config := Config{Nameservers: []string{s.Addr}, Refresh: -1}
	store := new(memoryStore)
	var all []*Resolver
	for i := range 3 {
		name := fmt.Sprintf("n%d.example", i)
		s.Has(name, "192.0.2.1")
		r := savedResolver(t, config, store)
		mustLookup(t, r, name)
		all = append(all, r)
	}
	for _, r := range all {
		r.save(t.Context())
	}
	s.SetSilent(true)
	r := savedResolver(t, config, store)
	for i := range 3 {
		wantLookup(t, r, fmt.Sprintf("n%d.example", i), "hit [192.0.2.1]")
	}
}

// TestSavedByOneThatEnded: names, services and what names are short for stay in the file
// while another process goes on to save, until they are purged there.
func TestSavedByOneThatEnded(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search a.test b.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := Config{Nameservers: []string{s.Addr}, Search: true, ResolvConf: conf, Family: "ipv4", Refresh: -1}
	s.Has("web.b.test", "192.0.2.3")
	s.Has("a.example", "192.0.2.1")
	s.Has("b.example", "192.0.2.2")
	s.Has("c.example", "192.0.2.3")
	s.Set("_http._tcp.example", testlab.Reply{SRV: []string{"1 2 80 a.example."}, TTL: 600})
	store := new(memoryStore)
	ended, other := savedResolver(t, config, store), savedResolver(t, config, store)
	mustLookup(t, ended, "web")
	mustLookup(t, ended, "a.example")
	mustLookup(t, ended, "b.example")
	if _, err := ended.LookupService(t.Context(), "_http._tcp.example"); err != nil {
		t.Fatal(err)
	}
	ended.save(t.Context())
	mustLookup(t, other, "c.example")
	asked := func(names ...string) (n int) {
		t.Helper()
		for _, name := range names {
			before := s.Asked(name)
			if name[0] == '_' {
				_, _ = savedResolver(t, config, store).LookupService(t.Context(), name)
			} else {
				mustLookup(t, savedResolver(t, config, store), name)
			}
			n += s.Asked(name) - before
		}
		return n
	}
	for range 3 {
		mustLookup(t, other, "c.example") // something new
		other.save(t.Context())
		if n := asked("web.b.test", "a.example", "b.example", "c.example", "_http._tcp.example"); n > 0 {
			t.Fatalf("%d names are not in the file", n)
		}
		if as, ok := savedResolver(t, config, store).search.Load().recall("web", time.Hour); !ok || as != "web.b.test" {
			t.Fatalf("web is known to be short for %q, want web.b.test", as)
		}
	}
	third := savedResolver(t, config, store) // saves later what it has read, and is purged too late
	mustLookup(t, third, "c.example")
	other.Purge(dnscache.Purge{Name: "a.example"})
	other.Purge(dnscache.Purge{Addr: netip.MustParseAddr("192.0.2.2")})
	other.Purge(dnscache.Purge{Name: "web"})
	third.save(t.Context())
	for _, p := range []dnscache.Purge{{Name: "a.example"}, {Name: "b.example"}, {Name: "web"}} {
		third.Purge(p)
	}
	other.save(t.Context())
	if _, ok := savedResolver(t, config, store).search.Load().recall("web", time.Hour); ok {
		t.Error("what web was short for was purged, but is in the file")
	}
	for name, want := range map[string]int{"a.example": 1, "b.example": 1, "web.b.test": 1, "c.example": 0, "_http._tcp.example": 0} {
		if n := asked(name); n != want {
			t.Errorf("after the purges %s is asked for %d times, want %d", name, n, want)
		}
	}
}

// TestAgeOfOthers: names of others get older as time passes, however often they are saved.
func TestAgeOfOthers(t *testing.T) {
	r := newResolver(t, Config{Nameservers: []string{"192.0.2.53"}})
	now := time.Now()
	for _, age := range []time.Duration{0, 200 * time.Millisecond, 1700 * time.Millisecond} {
		const n = 10_000
		var sum time.Duration
		for range n {
			o := r.others(&snapshot.File{SavedAt: now.Add(-age)}, now)
			if sum += o.age; o.age%time.Second != 0 {
				t.Fatalf("the age is %v, want whole seconds", o.age)
			}
		}
		if mean := sum / n; (mean - age).Abs() > 30*time.Millisecond {
			t.Errorf("after %v they are %v older on average", age, mean)
		}
	}
}

// TestPersistence: it is known how many names were saved and loaded, and when.
func TestPersistence(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	s.Has("a.example", "192.0.2.1")
	s.Set("_http._tcp.example", testlab.Reply{SRV: []string{"1 2 80 a.example."}, TTL: 600})
	config := Config{Nameservers: []string{s.Addr}, Persist: 7 * time.Minute}
	store := new(memoryStore)
	r := savedResolver(t, config, store)
	if got := r.Persistence(); got != (Persistence{Interval: 7 * time.Minute}) {
		t.Errorf("at the start: %+v", got)
	}
	mustLookup(t, r, "a.example")
	if _, err := r.LookupService(t.Context(), "_http._tcp.example"); err != nil {
		t.Fatal(err)
	}
	r.save(t.Context())
	saved := r.Persistence().Saved
	if saved.N != 2 || saved.Size != len(store.data) || time.Since(saved.At) > testlab.Timeout {
		t.Errorf("saved %+v", saved)
	}
	loaded := savedResolver(t, config, store).Persistence().Loaded
	if loaded.N != 2 || loaded.Size != saved.Size || loaded.From.Sub(saved.From).Abs() > time.Second {
		t.Errorf("loaded %+v after %+v", loaded, saved)
	}
	config.Persist = -1
	if got := newResolver(t, config).Persistence(); got != (Persistence{}) {
		t.Errorf("without: %+v", got)
	}
}

// exampleFile returns what a resolver saves that knows names of each kind.
func exampleFile(t testing.TB) (file []byte, r *Resolver) {
	s := testlab.NewNameserver(t)
	s.Set("a.example", testlab.Reply{Addrs: []string{"192.0.2.1", "2001:db8::1"}, TTL: 600})
	s.Set("b.example", testlab.Reply{Addrs: []string{"192.0.2.2"}, TTL: 1})
	s.Set("_http._tcp.example", testlab.Reply{SRV: []string{"1 2 80 a.example."}, TTL: 600})
	config := Config{Nameservers: []string{s.Addr}, Family: "prefer_ipv4", Search: true, Refresh: -1}
	config.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(config.ResolvConf, []byte("search example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r = newResolver(t, config)
	for _, name := range []string{"a", "b"} {
		mustLookup(t, r, name)
	}
	if _, err := r.LookupService(t.Context(), "_http._tcp.example"); err != nil {
		t.Fatal(err)
	}
	file, _ = saved{r}.Snapshot(nil)
	return file, newResolver(t, config)
}

// TestDamagedSnapshot: a part of a file, and one with another octet, is not used.
func TestDamagedSnapshot(t *testing.T) {
	data, r := exampleFile(t)
	restore := func(data []byte) error {
		f, err := snapshot.Parse(data, time.Now())
		if err != nil {
			return err
		}
		_, err = saved{r}.Restore(f)
		return err
	}
	for i := range data {
		damaged := slices.Clone(data)
		damaged[i] ^= 1 << (i % 8)
		if restore(damaged) == nil || restore(data[:i]) == nil {
			t.Errorf("octet %d of %d: got no error", i, len(data))
		}
	}
	if page, err := Names(t.Context(), []*Resolver{r}, dnscache.Query{Limit: 10}); err != nil || len(page.Names) > 0 {
		t.Errorf("known: %v, %v; want nothing", page.Names, err)
	}
	if err := restore(data); err != nil {
		t.Error(err)
	}
	wantLookup(t, r, "a.example", "hit [192.0.2.1 2001:db8::1]")
}

// FuzzRestore: whatever is in the sections of a file, names that are then known have
// addresses that are in it.
func FuzzRestore(f *testing.F) {
	data, r := exampleFile(f)
	file, err := snapshot.Parse(data, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range file.Sections {
		f.Add(s.Name, s.Content)
	}
	config := r.config
	config.CacheSize = 100
	fresh, empty := newResolver(f, config), newResolver(f, config)
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		if len(name) != 4 {
			name = zoneSection
		}
		w := snapshot.NewWriter(time.Now(), 0)
		w.Begin(name)
		w.Octets(content)
		parsed, err := snapshot.Parse(w.Finish(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		fresh.Purge(dnscache.Purge{Suffix: "."})
		if _, err := (saved{fresh}).Restore(parsed); err != nil {
			if page, _ := Names(t.Context(), []*Resolver{fresh}, dnscache.Query{Limit: 10}); len(page.Names) > 0 {
				t.Errorf("names %v of a section that cannot be read", page.Names)
			}
			return
		}
		page, err := Names(t.Context(), []*Resolver{fresh}, dnscache.Query{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range page.Names {
			if !bytes.Contains(content, []byte(n.Name.Name)) {
				t.Errorf("the name %q is not in the file", n.Name.Name)
			}
			for _, addr := range n.Addrs {
				if !bytes.Contains(content, addr.AsSlice()) {
					t.Errorf("the address %v is not in the file", addr)
				}
			}
		}
		// what is kept of it, since another process may have saved it, can be read
		if (saved{empty}).Lacks(parsed) {
			t.Error("something is missing for one that knows nothing")
		}
		kept, n := saved{empty}.Snapshot(parsed)
		again, err := snapshot.Parse(kept, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if zones, _, err := empty.read(again); err != nil || n > 0 && len(zones) == 0 {
			t.Errorf("of %d names that are kept: %v, %v", n, zones, err)
		}
	})
}

// TestInheritBounds: a resolver takes over as much as it has room for.
func TestInheritBounds(t *testing.T) {
	config := Config{Nameservers: []string{"192.0.2.53"}, Refresh: -1}
	old := newResolver(t, config)
	var records []dnscache.Record
	for i := range 50 {
		records = append(records, dnscache.Record{
			Name: fmt.Sprintf("n%d.example", i), Used: time.Duration(i) * time.Minute,
			TTL: [2]time.Duration{time.Hour}, Addrs: [2][]netip.Addr{{netip.MustParseAddr("192.0.2.1")}},
		})
	}
	old.take(nil, slices.Values(records), 0)
	config.CacheSize = 20
	config.Predecessor = func(*Resolver) *Resolver { return old }
	r := newResolver(t, config)
	wantLookup(t, r, "n19.example", "hit [192.0.2.1]") // the first reader waits
	if n := knownNames(r); n != 20 {
		t.Errorf("%d names are known, want 20", n)
	}
}

// BenchmarkSnapshot has what saving and loading 100 000 names cost.
func BenchmarkSnapshot(b *testing.B) {
	const names = 100_000
	config := Config{Nameservers: []string{"192.0.2.53"}, Refresh: -1}
	r := newResolver(b, config)
	records := func(yield func(dnscache.Record) bool) {
		for i := range names {
			addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			if !yield(dnscache.Record{
				Name: fmt.Sprintf("host-%d.customer-domain.example", i), Used: time.Duration(i) * time.Millisecond,
				TTL: [2]time.Duration{time.Hour}, Addrs: [2][]netip.Addr{{addr}},
			}) {
				return
			}
		}
	}
	r.take(nil, records, 0)
	data, _ := saved{r}.Snapshot(nil)
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			_, _ = saved{r}.Snapshot(nil)
		}
		b.ReportMetric(float64(len(data))/names, "octets/name")
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			other := newResolver(b, config)
			b.StartTimer()
			f, err := snapshot.Parse(data, time.Now())
			if err != nil {
				b.Fatal(err)
			}
			if n, err := (saved{other}).Restore(f); err != nil || n != names {
				b.Fatal(err, n)
			}
		}
	})
	b.Run("take over", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			other := newResolver(b, config)
			b.StartTimer()
			other.inherit(r)
		}
	})
}
