package caddytarget

import (
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"caddytarget/internal/resolver"
	"caddytarget/internal/testlab"
)

// instance is a gateway in a process of its own, one of several.
type instance struct {
	*world
	process *gatewayProcess
	targets []string // that it is the first to be asked for
	slowest time.Duration
}

// ask sends requests to targets, which have to be answered by the backend.
func (i *instance) ask(targets ...string) {
	i.Helper()
	var failed []string
	for _, target := range targets {
		began := time.Now()
		res, err := i.try(http.MethodGet, "/", target, nil)
		if i.slowest = max(i.slowest, time.Since(began)); err != nil || res.StatusCode != http.StatusOK {
			failed = append(failed, fmt.Sprintf("%s: %v, %v", target, res, err))
		}
	}
	if len(failed) > 0 {
		i.Errorf("%d of %d targets failed; the first one: %s", len(failed), len(targets), failed[0])
	}
}

// each does something for all instances at once.
func each(instances []*instance, f func(*instance)) {
	var running sync.WaitGroup
	for _, i := range instances {
		running.Go(func() { f(i) })
	}
	running.Wait()
}

// stopAll stops all at the same time, in good order.
func stopAll(t *testing.T, instances []*instance) {
	t.Helper()
	all := time.Now()
	defer func() { t.Logf("the end of %d instances took %v", len(instances), time.Since(all)) }()
	each(instances, func(i *instance) {
		began := time.Now()
		if err := i.process.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := i.process.Wait(); err != nil {
			t.Errorf("the end of an instance: %v", err)
		}
		if took := time.Since(began); took > 2*finalSave {
			t.Errorf("an instance took %v to end", took)
		}
		i.client.CloseIdleConnections()
	})
}

// TestInstances: several instances share a storage. They save at the same time, also when
// all are stopped at once, and none holds up another one. After that each of them knows
// what one of them has learned, be all nameservers silent.
func TestInstances(t *testing.T) {
	for _, test := range []struct {
		storage string
		n       int
	}{{"file", 2}, {"file", 5}, {"redis", 2}, {"redis", 5}} {
		t.Run(fmt.Sprintf("%d on one %s", test.n, test.storage), func(t *testing.T) {
			w := newWorld(t)
			w.resolver = "persist 1s"
			if test.storage == "redis" {
				w.store = fmt.Sprintf("test_redis %q", startRedis(t))
			}
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			const early, late = 20, 10
			targets := w.names(test.n*(early+late), 600, b)
			var instances []*instance
			for own := range slices.Chunk(targets, early+late) {
				here := *w
				here.port = testlab.FreePort(t)
				instances = append(instances, &instance{world: &here, targets: own})
			}
			start := func(i *instance) {
				i.process = i.spawn(i.proxy())
				i.firstGet(i.targets[0])
			}
			each(instances, start)
			if t.Failed() {
				t.FailNow()
			}
			each(instances, func(i *instance) {
				for began := time.Now(); time.Since(began) < 4*time.Second; time.Sleep(20 * time.Millisecond) {
					i.ask(i.targets[:early]...) // so that there is something new each time
				}
				i.ask(i.targets[early:]...)
			})
			stopAll(t, instances)
			w.dns.SetSilent(true)
			each(instances, start)
			each(instances, func(i *instance) { i.ask(targets...) })
			var slowest time.Duration
			for _, i := range instances {
				slowest = max(slowest, i.slowest)
			}
			t.Logf("the slowest request took %v", slowest)
			stopAll(t, instances)
		})
	}
}

// TestDeletedFiles: what no instance has saved for 30 days is deleted, and nothing else.
func TestDeletedFiles(t *testing.T) {
	const (
		used    = "0123456789abcdef0123456789abcdef"
		unused  = "f123456789abcdef0123456789abcdef"
		ofSite  = unused + "-0123abcd"
		partial = "1234567890"
		foreign = "notes.txt"
	)
	for _, kind := range []string{"file", "redis"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			var storage certmagic.Storage = &certmagic.FileStorage{Path: w.storage()}
			age := func(key string, at time.Time) error { return os.Chtimes(filepath.Join(w.storage(), key), at, at) }
			if kind == "redis" {
				socket := startRedis(t)
				w.store = fmt.Sprintf("test_redis %q", socket)
				redis := &redisStorage{Socket: socket}
				t.Cleanup(func() { _ = redis.Cleanup() })
				age = func(key string, at time.Time) error {
					_, err := redis.do(t.Context(), "HSET", key, "modified", fmt.Sprint(at.UnixNano()))
					return err
				}
				storage = redis
			}
			for name, days := range map[string]int{used: 29, unused: 31, ofSite: 31, partial: 31, foreign: 31, "x/" + unused: 31} {
				key := resolver.StoragePrefix + "/" + name
				if err := storage.Store(t.Context(), key, []byte("x")); err != nil {
					t.Fatal(err)
				}
				if err := age(key, time.Now().AddDate(0, 0, -days)); err != nil {
					t.Fatal(err)
				}
			}
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			w.resolver = "persist 1s"
			lines := w.logTo("INFO", "target.resolver", "files of names were deleted that nothing has saved for 30 days")
			w.run(w.proxy())
			w.mustGet("/", w.names(1, 600, b)[0])
			testlab.Eventually(t, "files are deleted", func() bool { return len(lines()) > 0 })
			w.stop()
			if got := lines(); len(got) != 1 || got[0]["files"] != 3.0 {
				t.Errorf("logged %v, want three files", got)
			}
			keys, err := storage.List(t.Context(), resolver.StoragePrefix, true)
			if err != nil {
				t.Fatal(err)
			}
			own := 0
			for _, key := range keys {
				switch name := strings.TrimPrefix(key, resolver.StoragePrefix+"/"); name {
				case unused, ofSite, partial:
					t.Errorf("%s was not deleted", key)
				case used, foreign, "x", "x/" + unused:
				default:
					own++
				}
			}
			if want := own + 3; own != 1 || len(slices.DeleteFunc(keys, func(key string) bool { return path.Base(key) == "x" })) != want {
				t.Errorf("left are %v", keys)
			}
		})
	}
}
