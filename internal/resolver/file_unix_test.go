//go:build unix

package resolver

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"caddytarget/internal/testlab"
)

// TestNoFile: a named pipe, a device or a folder is refused as a file of hosts or of names.
// If it takes the place of one, nothing waits for it, and what was read stays.
func TestNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, "/dev/zero", t.TempDir()} {
		for option, config := range map[string]Config{"hosts": {Hosts: path}, "preload": {Preload: []string{path}}} {
			want := option + ": " + path + " is not a regular file"
			if err := config.Validate(); err == nil || err.Error() != want {
				t.Errorf("got %v, want %q", err, want)
			}
		}
	}
	for _, config := range []Config{{Hosts: os.DevNull, Preload: []string{os.DevNull}}, {Hosts: pipe + ".none", Preload: []string{pipe + ".none"}}} {
		if err := config.Validate(); err != nil {
			t.Error(err)
		}
	}

	s := testlab.NewNameserver(t)
	core, logs := observer.New(zap.WarnLevel)
	log := zap.New(core)
	dir := t.TempDir()
	hosts, names := filepath.Join(dir, "hosts"), filepath.Join(dir, "names")
	for path, text := range map[string]string{hosts: "192.0.2.1 a.test\n", names: "b.test\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := newResolver(t, Config{Nameservers: []string{s.Addr}, Hosts: hosts, Preload: []string{names}, Logger: func() *zap.Logger { return log }})
	for _, path := range []string{hosts, names} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			r.checkFiles()
		}
	}()
	select {
	case <-done:
	case <-time.After(testlab.Timeout):
		t.Fatal("a pipe is waited for")
	}
	if all := logs.TakeAll(); len(all) != 2 {
		t.Errorf("logged %v, want a warning for each of the two files", all)
	}
	wantLookup(t, r, "a.test", "hosts [192.0.2.1]")
	if got := r.preloadFiles[0].names; len(got) != 1 || got[0] != "b.test" {
		t.Errorf("the names are %v, want b.test", got)
	}
	// what a race may let through does not wait either
	f := file{path: names}
	if opened, err := os.OpenFile(f.path, os.O_RDONLY|openFlags, 0); err != nil {
		t.Error(err)
	} else {
		_ = opened.Close()
	}
}

// TestPreloadFileMemory: of a large file no more is kept than the names that there is room
// for.
func TestPreloadFileMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names")
	var text strings.Builder
	for text.Len() < 24<<20 {
		text.WriteString("# ")
		text.WriteString(strings.Repeat("x", 10_000))
		text.WriteString("\n")
	}
	for i := range 200_000 {
		text.WriteString(nameOf(i))
		text.WriteString(" # ")
		text.WriteString(strings.Repeat("x", 40))
		text.WriteString("\n")
	}
	text.WriteString(strings.Repeat("y", 2*maxLine) + "\n")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	text.Reset()
	core, logs := observer.New(zap.WarnLevel)
	log := zap.New(core)
	config := Config{Nameservers: []string{"192.0.2.53"}, CacheSize: 1000, Logger: func() *zap.Logger { return log }}
	without := newResolver(t, config)
	config.Preload = []string{path}
	before := testlab.Heap()
	r := newResolver(t, config)
	kept := testlab.Heap() - before
	if n := len(r.preloadFiles[0].names); n != 1000 || r.preloadFiles[0].names[999] != nameOf(999) {
		t.Errorf("%d names are kept, want 1000", n)
	}
	if kept > 4<<20 {
		t.Errorf("%d octets are kept", kept)
	}
	said := map[string]bool{}
	for _, line := range logs.TakeAll() {
		said[line.Message] = true
		fields := line.ContextMap()
		if n, ok := fields["names"]; ok && n != int64(200_000) {
			t.Errorf("%v names, want 200000", n)
		}
		if n, ok := fields["ignored"]; ok && (n != int64(1) || fields["error"] != "the line is too long") {
			t.Errorf("got %v, want one line that is ignored since it is too long", fields)
		}
	}
	if len(said) != 2 {
		t.Errorf("logged %v, want two warnings", said)
	}
	runtime.KeepAlive(without)
}
