package resolver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/testlab"
)

// TestPreloadFile checks that the names of a file are preloaded, each in its zone, and
// that a changed file takes effect.
// It is long because it follows one file through its changes.
func TestPreloadFile(t *testing.T) {
	s := testlab.NewNameserver(t)
	core, logs := observer.New(zap.WarnLevel)
	log := zap.New(core)
	path := filepath.Join(t.TempDir(), "names")
	stamp := time.Now()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp = stamp.Add(time.Second) // file systems differ in how fine their times are
		if err := os.Chtimes(path, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	write("b.test # a comment\r\n\n# another\nC.Zone.test.\nb.test\n_http._tcp.a.test\n192.0.2.1\n")
	r := newResolver(t, Config{
		Nameservers: []string{s.Addr}, Zones: map[string][]string{"zone.test": {s.Addr}},
		Preload: []string{"a.test", path}, CacheSize: 3, Logger: func() *zap.Logger { return log },
	})
	for z := range r.all {
		z.cache.Start() // without watchFiles, which would check the file, too
	}
	check := func(want string) {
		t.Helper()
		r.checkFiles()
		page, err := Names(context.Background(), []*Resolver{r}, dnscache.Query{Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i := range page.Names {
			if n := &page.Names[i]; n.Preload {
				got = append(got, n.Name.Name+" in "+n.Zone)
			}
		}
		slices.Sort(got)
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("preloaded %s, want %s", got, want)
		}
	}
	warned := func(want string) {
		t.Helper()
		var got []string
		for _, e := range logs.FilterMessageSnippet("to preload").AllUntimed() {
			fields := e.ContextMap()
			delete(fields, "file")
			got = append(got, fmt.Sprint(e.Message, " ", fields))
		}
		logs.TakeAll()
		if got := strings.ReplaceAll(strings.Join(got, "\n"), path, "PATH"); got != want {
			t.Errorf("warned of %s, want %s", got, want)
		}
	}
	check("a.test in ., b.test in ., c.zone.test in zone.test")
	warned("lines of a file of names to preload are ignored map[error:a service cannot be preloaded, only names of hosts first_line:6 ignored:2]")

	write("c.zone.test\nd.test\n")
	check("a.test in ., c.zone.test in zone.test, d.test in .")
	warned("")

	// one that is gone leaves all as it is
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		check("a.test in ., c.zone.test in zone.test, d.test in .")
	}
	warned("reading a file of names to preload failed map[error:open PATH: no such file or directory]")

	write("1.test\n2.test\n3.test\n4.test\n")
	check("1.test in ., 2.test in ., a.test in .")
	warned("too many names to preload: the last ones are left out map[cache_size:3 names:5 zone:.]")
	// one that is there and cannot be read leaves all as it is, and is one line
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		check("1.test in ., 2.test in ., a.test in .")
	}
	warned("reading a file of names to preload failed map[error:PATH is not a regular file]")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write("")
	check("a.test in .")
}

// TestPreloadFileOfTheStart checks that a file may come into being after the start.
func TestPreloadFileOfTheStart(t *testing.T) {
	s := testlab.NewNameserver(t)
	path := filepath.Join(t.TempDir(), "names")
	r := newResolver(t, Config{Nameservers: []string{s.Addr}, Preload: []string{path}})
	r.cache.Start()
	if err := os.WriteFile(path, []byte("a.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.checkFiles()
	if names := r.preloads()[&r.zone]; len(names) != 1 || knownNames(r) != 1 {
		t.Errorf("%v is to be preloaded, %d names are known; want a.test and 1", names, knownNames(r))
	}
}

// nameOf returns a name.
func nameOf(i int) string { return fmt.Sprintf("n%d.test", i) }
