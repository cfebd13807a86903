package caddytarget

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/certmagic"

	"caddytarget/internal/admin"
	"caddytarget/internal/testlab"
)

// withStorage runs the tests with a default storage of their own.
func withStorage(run func() int) int {
	dir, err := os.MkdirTemp("", "caddytarget-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	caddy.DefaultStorage.Path = dir
	return run()
}

// savedFiles returns the files in the storage of the gateway with what resolvers know,
// without those that are still being written.
func (w *world) savedFiles() (files []string) {
	w.Helper()
	files, err := filepath.Glob(filepath.Join(w.storage(), "caddytarget", "dns", strings.Repeat("[0-9a-f]", 32)))
	if err != nil {
		w.Fatal(err)
	}
	return files
}

// isSaved reports whether a name is in one of the files.
func (w *world) isSaved(name string) bool {
	for _, file := range w.savedFiles() {
		if data, err := os.ReadFile(file); err == nil && bytes.Contains(data, []byte(name)) {
			return true
		}
	}
	return false
}

// stop stops the gateway as the end of its process does.
func (w *world) stop() {
	w.Helper()
	if err := caddy.Stop(); err != nil {
		w.Fatal(err)
	}
}

// names gives some names an address and returns their targets.
func (w *world) names(n int, ttl uint32, b *testlab.Backend) (targets []string) {
	for i := range n {
		name := fmt.Sprintf("n%d.example", i)
		w.dns.Set(name, testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: ttl})
		targets = append(targets, "http://"+name+":"+b.Port)
	}
	return targets
}

// process is a gateway in a process of its own.
type gatewayProcess struct {
	*exec.Cmd
	output bytes.Buffer
}

// spawn starts a gateway in a process of its own and waits until it answers.
func (w *world) spawn(site string) *gatewayProcess {
	w.Helper()
	w.runs++
	config := filepath.Join(w.TempDir(), "Caddyfile")
	if err := os.WriteFile(config, []byte(w.caddyfile(site)), 0o600); err != nil {
		w.Fatal(err)
	}
	p := &gatewayProcess{Cmd: exec.Command(os.Args[0], "run", "--config", config, "--adapter", "caddyfile")}
	p.Env = append(os.Environ(), asCaddy+"=1")
	p.Stdout, p.Stderr = &p.output, &p.output
	if err := p.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if w.Failed() {
			w.Logf("the gateway said:\n%s", p.output.String())
		}
	})
	return p
}

// firstGet sends a request until the gateway listens.
func (w *world) firstGet(target string) (res response) {
	w.Helper()
	testlab.Eventually(w, "the gateway listens", func() bool {
		var err error
		res, err = w.try(http.MethodGet, "/", target, nil)
		return err == nil
	})
	return res
}

// TestKilled: a gateway that was killed serves the names that it knew, from the first
// request on, while all nameservers are silent.
func TestKilled(t *testing.T) {
	for _, test := range []struct {
		name string
		ttl  uint32
	}{{"names that hold", 60}, {"names that have expired", 1}} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			targets := w.names(50, test.ttl, b)
			w.resolver = "persist 1s"
			p := w.spawn(w.proxy())
			for _, target := range targets {
				if res := w.firstGet(target); res.StatusCode != http.StatusOK {
					t.Fatalf("%s: got %v, want status 200", target, res)
				}
			}
			testlab.Eventually(t, "the last name is saved", func() bool { return w.isSaved("n49.example") })
			w.dns.SetSilent(true)
			if err := p.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = p.Wait()
			if test.ttl == 1 {
				time.Sleep(1100 * time.Millisecond)
			}
			w.client.CloseIdleConnections()
			w.spawn(w.proxy())
			for _, target := range targets {
				if res := w.firstGet(target); res.StatusCode != http.StatusOK {
					t.Errorf("%s: got %v, want status 200", target, res)
				}
			}
		})
	}
}

// TestStopped: what a gateway knows is saved when it stops. After that expired answers
// serve if they may.
func TestStopped(t *testing.T) {
	for _, test := range []struct {
		options string
		want    int
	}{{"", 200}, {"stale off", 504}, {"persist off", 504}, {"persist 1h", 200}, {"refresh off", 200}} {
		t.Run(test.options, func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			target := w.names(1, 1, b)[0]
			w.resolver = "deadline 1s\n" + test.options
			w.run(w.proxy())
			w.mustGet("/", target)
			w.stop()
			w.dns.SetSilent(true)
			time.Sleep(1100 * time.Millisecond)
			w.run(w.proxy())
			if res := w.get("/", target); res.StatusCode != test.want {
				t.Errorf("got %v, want status %d", res, test.want)
			}
			for _, file := range w.savedFiles() {
				info, err := os.Stat(file)
				if err != nil {
					t.Fatal(err)
				}
				if mode := info.Mode().Perm(); mode&(syscall.S_IRWXG|syscall.S_IRWXO) != 0 {
					t.Errorf("the file has mode %v, want one for its owner only", mode)
				}
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(file+string(data), w.dns.Addr) || strings.Contains(string(data), "X-Target") {
					t.Error("there is more in the file than names, addresses and times")
				}
			}
		})
	}
}

// TestStorageAfterFailedStart: what a resolver knows is saved in the storage of the
// configuration that runs, also if others were tried meanwhile that use the same resolver
// and could not start.
func TestStorageAfterFailedStart(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	used := testlab.Listen(t, "", "127.0.0.1")[0]
	defer func() { _ = used.Close() }()
	_, port, _ := net.SplitHostPort(used.Addr().String())
	w.resolver = "persist 1h"
	w.run(w.proxy())
	w.store = fmt.Sprintf("file_system %q", t.TempDir())
	for range 8 { // apps start in any order
		if err := w.tryRun(w.proxy() + "\n---\nhttp://127.0.0.1:" + port + " {\nbind 127.0.0.1\n}"); err == nil {
			t.Fatal("got no error of a site on a port that is in use")
		}
	}
	w.mustGet("/", w.names(1, 600, b)[0])
	w.stop()
	if !w.isSaved("n0.example") {
		t.Error("the name is not saved in the storage of the configuration that ran to the end")
	}
}

// TestReloadInOutage: changes of a resolver over the admin API lose no known name, be all
// nameservers silent.
func TestReloadInOutage(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	other := testlab.NewNameserver(t)
	other.SetSilent(true)
	for name, ttl := range map[string]uint32{"holds.example": 600, "expired.example": 1, "a.corp.example": 600} {
		w.dns.Set(name, testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: ttl})
	}
	targets := []string{"http://holds.example:" + b.Port, "http://expired.example:" + b.Port, "http://a.corp.example:" + b.Port}
	w.resolver = "deadline 2s\npersist off"
	w.run(w.proxy())
	for _, target := range targets {
		w.mustGet("/", target)
	}
	w.dns.SetSilent(true)
	time.Sleep(1100 * time.Millisecond)
	const path = "/config/apps/target/resolver"
	for _, change := range []struct{ method, path, body string }{
		{http.MethodPost, "/timeout", `"1s"`},
		{http.MethodPost, "/family", `"prefer_ipv4"`},
		{http.MethodPatch, "/nameservers", fmt.Sprintf(`[%q]`, other.Addr)},
		{http.MethodPut, "/zones", fmt.Sprintf(`{"corp.example": [%q]}`, w.dns.Addr)},
		{http.MethodDelete, "/zones", ""},
		{http.MethodPatch, "/nameservers", fmt.Sprintf(`[%q, %q]`, w.dns.Addr, other.Addr)},
		{http.MethodPost, "/cache_size", `50`},
	} {
		req, err := http.NewRequestWithContext(t.Context(), change.method, "http://"+w.admin+path+change.path, strings.NewReader(change.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if res, err := do(w.client, req); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: got %v, %v", change.method, change.path, res, err)
		}
		w.settle()
		for _, target := range targets {
			if res := w.get("/", target); res.StatusCode != http.StatusOK {
				t.Errorf("after %s %s %s: %s: got %v, want status 200", change.method, change.path, change.body, target, res)
			}
		}
	}
}

// TestTakenOver: of a resolver that has changed, names serve as before where the same
// nameservers are asked; otherwise only while asking fails.
func TestTakenOver(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	other := testlab.NewNameserver(t)
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 600})
	other.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.3"}, TTL: 600})
	target := "http://a.example:" + b.Port
	asked := func() string { return fmt.Sprint(w.dns.Asked("a.example"), " ", other.Asked("a.example")) }
	for _, test := range []struct{ options, address, asked string }{
		{"", "127.0.0.2", "1 0"},
		{"timeout 1s", "127.0.0.2", "1 0"},                               // the same nameserver
		{"nameservers " + other.Addr, "127.0.0.2", "1 0"},                // it is still one of them
		{"zone example " + other.Addr, "127.0.0.3", "1 1"},               // another one
		{"zone example " + other.Addr + "\ntries 2", "127.0.0.3", "1 1"}, // the same zone
		{"zone a.example " + other.Addr, "127.0.0.3", "1 1"},             // the same nameserver
	} {
		w.resolver = test.options
		w.run(w.proxy())
		if res := w.mustGet("/", target); res.seen.Address != test.address || asked() != test.asked {
			t.Errorf("%q: got %s and %s queries, want %s and %s", test.options, res.seen.Address, asked(), test.address, test.asked)
		}
	}
}

// TestTakenOverBySite: what the resolver of a site knew goes to the one that takes its
// place, and to no other.
func TestTakenOverBySite(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	of := func(nameservers ...string) string {
		return w.proxy("resolver " + strings.Join(nameservers, " ") + " {\nhosts off\nfamily ipv4\ndeadline 1s\n}")
	}
	mine, silent := testlab.NewNameserver(t), testlab.NewNameserver(t)
	silent.SetSilent(true)
	w.dns.Has("a.example", "127.0.0.2")
	mine.Has("a.example", "127.0.0.3")
	target := "http://a.example:" + b.Port
	w.run(w.proxy())
	w.mustGet("/", target)
	w.run(of(silent.Addr)) // instead of the default one, which stays
	if res := w.get("/", target); res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("a new resolver of a site: got %v, want status 504", res)
	}
	w.run(of(mine.Addr))
	if res := w.mustGet("/", target); res.seen.Address != "127.0.0.3" {
		t.Errorf("got %s, want 127.0.0.3", res.seen.Address)
	}
	w.run(of(silent.Addr, silent.Addr))
	if res := w.mustGet("/", target); res.seen.Address != "127.0.0.3" {
		t.Errorf("after a change: got %s, want 127.0.0.3", res.seen.Address)
	}
}

// TestHealthIsTakenOver: a nameserver that is known to be down is not asked anew, and is
// found to be up again.
func TestHealthIsTakenOver(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.resolver = "timeout 300ms\ndeadline 1s"
	w.run(w.proxy())
	w.names(2, 600, b)
	w.dns.SetSilent(true)
	down := func() bool {
		_, text := w.askAdmin(http.MethodGet, "/target/nameservers", "")
		return strings.Contains(text, `"down":true`)
	}
	testlab.Eventually(t, "the nameserver is down", func() bool {
		w.get("/", "http://unknown.example:"+b.Port)
		return down()
	})
	w.resolver = "timeout 300ms\ndeadline 1s\ntries 2"
	w.run(w.proxy())
	if !down() {
		t.Error("after a reload the nameserver is not known to be down")
	}
	w.dns.SetSilent(false)
	testlab.Eventually(t, "the nameserver is up", func() bool { return !down() })
	w.mustGet("/", "http://n1.example:"+b.Port)
}

// TestUnusableStorage: a file or a storage that cannot be used is warned of once, and
// disturbs nothing.
func TestUnusableStorage(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, w *world, file string)
		want  string
		saved bool // again
	}{
		{"foreign", func(t *testing.T, _ *world, file string) {
			write(t, file, "not a snapshot, but long enough to be one, if only it were; and more of it")
		}, "it is no snapshot", true},
		{"empty", func(t *testing.T, _ *world, file string) { write(t, file, "") }, "it is truncated", true},
		{"truncated", func(t *testing.T, _ *world, file string) {
			data := read(t, file)
			write(t, file, data[:len(data)-1])
		}, "octets instead of", true},
		{"damaged", func(t *testing.T, _ *world, file string) {
			data := []byte(read(t, file))
			data[len(data)/2] ^= 1
			write(t, file, string(data))
		}, "damaged", true},
		{"newer", func(t *testing.T, _ *world, file string) {
			data := []byte(read(t, file))
			data[9]++
			write(t, file, string(data))
		}, "a newer one", true},
		{"oversized", func(t *testing.T, _ *world, file string) {
			if err := os.Truncate(file, 65<<20); err != nil {
				t.Fatal(err)
			}
		}, "more than", true},
		{"a folder", func(t *testing.T, _ *world, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "cannot be read", false},
		{"no place", func(t *testing.T, w *world, _ string) {
			if err := os.RemoveAll(w.storage()); err != nil {
				t.Fatal(err)
			}
			write(t, w.storage(), "")
		}, "not a directory", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			w.resolver = "persist 1s"
			target := w.names(1, 600, b)[0]
			w.run(w.proxy())
			w.mustGet("/", target)
			w.stop()
			file := w.savedFiles()[0]
			test.spoil(t, w, file)
			lines := w.storageLines()
			w.run(w.proxy())
			w.mustGet("/", target)
			testlab.Eventually(t, "it is warned", func() bool { return len(lines()) > 0 })
			if test.saved {
				testlab.Eventually(t, "it is saved again", func() bool { return w.isSaved("n0.example") })
			}
			w.stop()
			if got := lines(); len(got) != 1 || got[0]["level"] != "warn" || !strings.Contains(fmt.Sprint(got[0]), test.want) {
				t.Errorf("logged %v, want one warning with %q", got, test.want)
			}
			if test.saved && w.dns.Asked("n0.example") != 2 {
				t.Errorf("asked %d times, want 2", w.dns.Asked("n0.example"))
			}
		})
	}
}

// TestPersistIsShown: the admin API shows what was saved and loaded, and why it cannot be.
func TestPersistIsShown(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.resolver = "persist 1s"
	target := w.names(1, 600, b)[0]
	shown := func() (persist admin.Persist) {
		var o admin.Overview
		w.mustAdmin(http.MethodGet, "/target/", "", &o)
		return o.Resolvers[0].Persist
	}
	w.run(w.proxy())
	if got := shown(); got.Interval != 1 || got.Saved != nil || got.Loaded != nil || got.Error != "" {
		t.Errorf("at first got %+v, want the interval alone", got)
	}
	w.mustGet("/", target)
	testlab.Eventually(t, "it was saved", func() bool {
		got := shown()
		return got.Saved != nil && got.Saved.Names == 1 && got.Saved.Octets > 0 && got.Loaded == nil
	})
	w.stop()
	w.run(w.proxy())
	w.mustGet("/", target)
	if got := shown(); got.Loaded == nil || got.Loaded.Names != 1 || got.Loaded.FileAge < got.Loaded.Age || got.Error != "" {
		t.Errorf("after a restart got %+v, want that one name was loaded", got)
	}
	if err := os.RemoveAll(w.storage()); err != nil {
		t.Fatal(err)
	}
	write(t, w.storage(), "")
	testlab.Eventually(t, "an error", func() bool {
		w.dns.Has("more.example", "127.0.0.2")
		w.get("/", "http://more.example:"+b.Port)
		got := shown()
		return strings.Contains(got.Error, "not a directory") && got.ErrorAge != nil
	})
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// heldStorage is a storage whose calls wait.
type heldStorage struct {
	certmagic.FileStorage
	hold func(call string)
}

// theHeldStorage is that of the test that runs.
var theHeldStorage *heldStorage

func init() { caddy.RegisterModule(new(heldStorage)) }

func (*heldStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.test_held", New: func() caddy.Module { return theHeldStorage }}
}

func (s *heldStorage) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (s *heldStorage) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

func (s *heldStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	s.hold("stat")
	return s.FileStorage.Stat(ctx, key)
}

func (s *heldStorage) Load(ctx context.Context, key string) ([]byte, error) {
	s.hold("load")
	return s.FileStorage.Load(ctx, key)
}

func (s *heldStorage) Store(ctx context.Context, key string, value []byte) error {
	s.hold("store")
	return s.FileStorage.Store(ctx, key, value)
}

// useHeldStorage makes the gateway use a storage whose calls wait, until the test ends at
// most.
func (w *world) useHeldStorage(hold func(call string, end <-chan struct{})) {
	end := make(chan struct{})
	theHeldStorage = &heldStorage{certmagic.FileStorage{Path: w.storage()}, func(call string) { hold(call, end) }}
	w.Cleanup(func() { close(end) })
	w.store = "test_held"
}

// requestsBeside sends requests for a while to a name that is known, to new ones and to one
// that fails. All have to be answered as without a storage, and in less than a time.
// It returns the last new name, and how often it asked for all.
func (w *world) requestsBeside(d, limit time.Duration, b *testlab.Backend) (last string, n int) {
	w.Helper()
	w.dns.Set("known.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 600})
	w.dns.Set("refused.example", testlab.Reply{Rcode: 5})
	var slowest time.Duration
	for began := time.Now(); time.Since(began) < d; time.Sleep(10 * time.Millisecond) {
		n++
		last = fmt.Sprintf("new%d.example", n)
		w.dns.Set(last, testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 600})
		for name, status := range map[string]int{"known.example": 200, last: 200, "refused.example": 502} {
			sent := time.Now()
			if res := w.get("/", "http://"+name+":"+b.Port); res.StatusCode != status {
				w.Errorf("%s: got %v, want status %d", name, res, status)
			}
			slowest = max(slowest, time.Since(sent))
		}
	}
	w.Logf("%d requests, the slowest one took %v", 3*n, slowest)
	if slowest > limit {
		w.Errorf("a request took %v, want %v at most", slowest, limit)
	}
	return last, n
}

// storageLines returns a function that returns what is logged of the storage. The next
// configuration logs it.
func (w *world) storageLines() func() []map[string]any {
	return w.logTo("INFO", "target.resolver", "what was saved of names is ignored", "what was saved of names cannot be read",
		"what is known of names cannot be saved", "what is known of names was not saved at the end")
}

// TestSilentStorage: a storage that does not answer holds up neither the start nor the end,
// and of the requests none but those that fail in the first second.
func TestSilentStorage(t *testing.T) {
	w := newWorld(t)
	w.useHeldStorage(func(_ string, end <-chan struct{}) { <-end })
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.resolver = "persist 1s"
	w.run(w.proxy())
	w.requestsBeside(time.Second, testlab.Timeout, b)
	if _, n := w.requestsBeside(3*time.Second, testlab.Timeout, b); n <= 3 {
		t.Errorf("in 3 s there were %d failing requests: each of them waits for the storage", n)
	}
	w.stop()
}

// TestSlowStorage: each call of a storage takes 10 s, which holds up no request, and the end
// no longer than it may. That it was not saved then is one warning.
func TestSlowStorage(t *testing.T) {
	w := newWorld(t)
	const slow = 10 * time.Second
	w.useHeldStorage(func(_ string, end <-chan struct{}) {
		select {
		case <-time.After(slow):
		case <-end:
		}
	})
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.resolver = "persist 1s"
	lines := w.storageLines()
	began := time.Now()
	w.run(w.proxy())
	if took := time.Since(began); took > slow/2 {
		t.Errorf("the start took %v", took)
	}
	w.requestsBeside(3*time.Second, slow/2, b)
	began = time.Now()
	w.stop()
	if took := time.Since(began); took < finalSave || took > finalSave+slow/2 {
		t.Errorf("the end took %v, want about %v", took, finalSave)
	}
	if got := lines(); len(got) != 1 || got[0]["level"] != "warn" {
		t.Errorf("logged %v, want one warning", got)
	}
}

// TestSavedApart: resolvers of one configuration with the same nameservers have files of
// their own.
func TestSavedApart(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	targets := w.names(2, 600, b)
	other := w.proxy("resolver " + w.dns.Addr + " {\nhosts off\nfamily ipv4\nnew_names 9\n}")
	site := "handle /other {\n" + other + "\n}\n" + w.proxy()
	site = strings.Replace(site, "handle_errors {\n\t\trespond \"{err.status_code} {http.target.error}\"\n\t}", "", 2)
	w.run(site)
	w.mustGet("/", targets[0])
	w.mustGet("/other", targets[1])
	w.stop()
	files, err := filepath.Glob(filepath.Join(w.storage(), "caddytarget", "dns", "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("got the files %v, %v; want two", files, err)
	}
	for i, file := range files { // that of the default resolver is the first one
		data := read(t, file)
		if !strings.Contains(data, fmt.Sprintf("n%d.example", i)) || strings.Contains(data, fmt.Sprintf("n%d.example", 1-i)) {
			t.Errorf("%s does not have the name n%d.example alone", file, i)
		}
	}
	w.run(site)
	w.mustGet("/", targets[1])
	w.mustGet("/other", targets[1])
	if n, m := w.dns.Asked("n0.example"), w.dns.Asked("n1.example"); n != 1 || m != 2 {
		t.Errorf("asked %d and %d times, want 1 and 2", n, m)
	}
}

// TestSavedApartAtTheEnd: a resolver has a file of its own also where its first lookup comes
// when its configuration has ended, as one of a configuration that could not start.
func TestSavedApartAtTheEnd(t *testing.T) {
	w := newWorld(t)
	of := func(deadline string) string {
		return "handle /" + deadline + " {\n" + strings.Replace(w.proxy("resolver "+w.dns.Addr+" {\nhosts off\nfamily ipv4\ndeadline "+deadline+"\n}"),
			"handle_errors {\n\t\trespond \"{err.status_code} {http.target.error}\"\n\t}", "", 1) + "\n}\n"
	}
	w.run(of("1s") + of("2s"))
	loaded, err := caddy.ActiveContext().AppIfConfigured("target")
	if err != nil {
		t.Fatal(err)
	}
	app := loaded.(*App)
	ofSite := app.acquired[1].Resolver
	key := app.resolvers.StorageKey(ofSite)
	if !strings.HasSuffix(key, "-"+ofSite.ID()) {
		t.Errorf("got the key %s, want one of its own", key)
	}
	w.run("respond ok")
	if app.acquired != nil {
		t.Fatal("the app was not cleaned up")
	}
	if got := app.resolvers.StorageKey(ofSite); got != key {
		t.Errorf("got the key %s at the end, want %s", got, key)
	}
	app.warms = true
	app.resolvers.UseStore(ofSite) // as the first lookup does
}
