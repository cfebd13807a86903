package caddytarget

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"caddytarget/internal/testlab"
)

// mountStorage makes the storage a disk of 64 kB of its own.
func (w *world) mountStorage(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(w.storage(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", w.storage(), "tmpfs", 0, "size=64k"); err != nil {
		needed(t, "no disk can be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(w.storage(), syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// remount changes how it is mounted.
func (w *world) remount(flags uintptr) error {
	return syscall.Mount("", w.storage(), "", syscall.MS_REMOUNT|flags, "size=64k")
}

// filler is a file that fills the disk.
func (w *world) filler() string { return filepath.Join(w.storage(), "filler") }

// fill fills the disk.
func (w *world) fill() error {
	f, err := os.Create(w.filler())
	if err != nil {
		return err
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	if errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return err
}

// lock makes locks of a storage look as if an instance held them that has died just now:
// that of each file, and those of all of them.
func (w *world) lock() error {
	storage := &certmagic.FileStorage{Path: w.storage()}
	keys := []string{"caddytarget", "caddytarget/dns"}
	for _, file := range w.savedFiles() {
		key, err := filepath.Rel(w.storage(), file)
		if err != nil {
			return err
		}
		keys = append(keys, filepath.ToSlash(key))
	}
	for _, key := range keys {
		file := filepath.Join(storage.Path, "locks", certmagic.StorageKeys.Safe(key)+".lock")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		data, err := json.Marshal(map[string]time.Time{"created": time.Now(), "updated": time.Now()})
		if err == nil {
			err = os.WriteFile(file, data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestFailingStorage: a storage that cannot be written any more, from some time on, is
// warned of once and disturbs no request. Once it works again, all is saved.
func TestFailingStorage(t *testing.T) {
	away := func(w *world) string { return w.storage() + ".away" }
	for _, test := range []struct {
		name        string
		mount       bool
		spoil, mend func(w *world) error
		want        string // in the warning; empty: there is none
	}{
		{"full", true, (*world).fill, func(w *world) error { return os.Remove(w.filler()) }, "no space left"},
		{"read-only", true, func(w *world) error { return w.remount(syscall.MS_RDONLY) }, func(w *world) error { return w.remount(0) }, "read-only"},
		{"removed", false, func(w *world) error { return os.RemoveAll(w.storage()) }, nil, ""},
		{"a file in its place", false, func(w *world) error {
			if err := os.Rename(w.storage(), away(w)); err != nil {
				return err
			}
			return os.WriteFile(w.storage(), nil, 0o600)
		}, func(w *world) error {
			if err := os.Remove(w.storage()); err != nil {
				return err
			}
			return os.Rename(away(w), w.storage())
		}, "not a directory"},
		{"locked", false, (*world).lock, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if test.mount {
				w.mountStorage(t)
				t.Cleanup(w.stop) // before it is unmounted
			}
			b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
			w.resolver = "persist 1s"
			lines := w.storageLines()
			w.run(w.proxy())
			const limit = 5 * time.Second
			last, _ := w.requestsBeside(time.Second, limit, b)
			testlab.Eventually(t, "it is saved", func() bool { return w.isSaved(last) })
			if err := test.spoil(w); err != nil {
				t.Fatal(err)
			}
			last, _ = w.requestsBeside(4*time.Second, limit, b)
			if test.want != "" {
				testlab.Eventually(t, "it is warned", func() bool { return len(lines()) > 0 })
			}
			if test.mend != nil {
				if err := test.mend(w); err != nil {
					t.Fatal(err)
				}
				last, _ = w.requestsBeside(time.Second, limit, b)
			}
			testlab.Eventually(t, "it is saved again", func() bool { return w.isSaved(last) })
			// as after a start while it is locked
			w.stop()
			w.dns.SetSilent(true)
			w.run(w.proxy())
			w.mustGet("/", "http://"+last+":"+b.Port)
			switch got := lines(); {
			case test.want == "" && len(got) > 0:
				t.Errorf("logged %v, want nothing", got)
			case test.want != "" && (len(got) != 1 || got[0]["level"] != "warn" || !strings.Contains(fmt.Sprint(got[0]), test.want)):
				t.Errorf("logged %v, want one warning with %q", got, test.want)
			}
			if left, err := filepath.Glob(filepath.Join(w.storage(), "caddytarget", "dns", "*")); err != nil || len(left) != 1 {
				t.Errorf("in the storage are %v, %v; want one file", left, err)
			}
		})
	}
}
