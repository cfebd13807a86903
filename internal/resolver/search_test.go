package resolver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// TestParseSearch has what is read from resolv.conf, as glibc reads it.
func TestParseSearch(t *testing.T) {
	many := make([]string, 40)
	for i := range many {
		many[i] = fmt.Sprintf("d%d.test", i)
	}
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "none"},
		{"no domains", "nameserver 192.0.2.1\noptions ndots:5\n", "none"},
		{"search", "search a.test b.test\n", "[a.test b.test] 1"},
		{"tabs, no newline", "search\ta.test\t b.test", "[a.test b.test] 1"},
		{"domain", "domain a.test\n", "[a.test] 1"},
		{"domain takes one", "domain a.test b.test\n", "[a.test] 1"},
		{"the last one wins", "search a.test\nsearch b.test c.test\n", "[b.test c.test] 1"},
		{"domain after search", "search a.test b.test\ndomain c.test\n", "[c.test] 1"},
		{"search after domain", "domain c.test\nsearch a.test b.test\n", "[a.test b.test] 1"},
		{"nothing after search", "search a.test\nsearch\n", "none"},
		{"nothing after domain", "search a.test\ndomain\n", "[a.test] 1"},
		{"comments", "# search x.test\n;search y.test\nsearch a.test\n#search z.test\n", "[a.test] 1"},
		{"normal form", "search A.Test. bücher.test\n", "[a.test xn--bcher-kva.test] 1"},
		{"twice the same", "search a.test A.test b.test\n", "[a.test b.test] 1"},
		{"no names", "search . a..test 192.0.2.1 b.test x.onion localhost\n", "[b.test] 1"},
		{"ndots", "options timeout:1 ndots:5 rotate\nsearch a.test\n", "[a.test] 5"},
		{"ndots 0", "search a.test\noptions ndots:0\n", "[a.test] 0"},
		{"ndots capped", "search a.test\noptions ndots:99\n", "[a.test] 15"},
		{"the last ndots wins", "search a.test\noptions ndots:3\noptions ndots:2 attempts:1\n", "[a.test] 2"},
		{"ndots that is none", "search a.test\noptions ndots:3 ndots:x ndots: ndots:-1\n", "[a.test] 3"},
		{"many", "search " + strings.Join(many, " "), fmt.Sprint(many[:maxSearch]) + " 1"},
	} {
		got := "none"
		if s := newSearchList(parseResolvConf(test.text)); s != nil {
			got = fmt.Sprint(s.domains, " ", s.ndots)
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// TestCandidates has the order in which names are tried.
func TestCandidates(t *testing.T) {
	s := &searchList{domains: []string{"a.test", "b.test"}}
	long := strings.Repeat("x.", 124) + "xx" // 250 octets
	for _, test := range []struct {
		ndots      int
		name, want string
	}{
		{1, "web", "[web.a.test web.b.test web]"},
		{1, "web.dc", "[web.dc web.dc.a.test web.dc.b.test]"},
		{2, "web.dc", "[web.dc.a.test web.dc.b.test web.dc]"},
		{0, "web", "[web web.a.test web.b.test]"},
		{5, "a.b.c.d.e.f", "[a.b.c.d.e.f a.b.c.d.e.f.a.test a.b.c.d.e.f.b.test]"},
		{1, long, "[" + long + "]"},
	} {
		s.ndots = test.ndots
		if got := fmt.Sprint(slices.Collect(s.candidates(test.name))); got != test.want {
			t.Errorf("ndots %d: %s: %s, want %s", test.ndots, test.name, got, test.want)
		}
	}
}

// searching returns a resolver whose resolv.conf has this text, and what
// changes it.
func searching(t *testing.T, config Config, text string) (r *Resolver, change func(string)) {
	t.Helper()
	config.Search = true
	return withResolvConf(t, config, text)
}

// withResolvConf returns a resolver whose resolv.conf has this text, and what
// changes it.
func withResolvConf(t *testing.T, config Config, text string) (r *Resolver, change func(string)) {
	t.Helper()
	config.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	at := time.Now()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config.ResolvConf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		at = at.Add(time.Second)
		if err := os.Chtimes(config.ResolvConf, at, at); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	r = newResolver(t, config)
	return r, func(text string) {
		t.Helper()
		write(text)
		r.checkFiles()
	}
}

// TestSearch has all of searchTests.
func TestSearch(t *testing.T) {
	leaktest.Check(t)
	for _, test := range searchTests {
		t.Run(test.name, func(t *testing.T) {
			s := testlab.NewNameserver(t)
			test.set(s)
			test.config.Nameservers = []string{s.Addr}
			test.config.Timeout = 100 * time.Millisecond
			test.config.Tries = 1
			if test.config.Hosts == "HOSTS" {
				test.config.Hosts = filepath.Join(t.TempDir(), "hosts")
				if err := os.WriteFile(test.config.Hosts, []byte("192.0.2.9 web\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if test.text == "" {
				test.text = "search a.test b.test\noptions ndots:2\nnameserver 192.0.2.99\n"
			}
			r, _ := searching(t, test.config, test.text)
			if got := strings.ReplaceAll(mustLookup(t, r, test.lookup), s.Addr, "SERVER"); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
			asked := s.Queries()
			for name := range strings.FieldsSeq(strings.Trim(test.asked, "[]")) {
				if asked[name] != 1 {
					t.Errorf("got %d queries for %s, want 1", asked[name], name)
				}
				delete(asked, name)
			}
			if len(asked) > 0 {
				t.Errorf("got queries for other names, too: %v", asked)
			}
			// what is known is known by the same name
			addrs, known := r.peek(test.lookup)
			again := strings.Replace(mustLookup(t, r, test.lookup), "miss", "hit", 1)
			if _, list, ok := strings.Cut(test.want, "["); ok && !strings.Contains(list, "domains") {
				if want := "[" + list; !known || fmt.Sprint(addrs) != want || !strings.HasSuffix(again, want) || strings.HasPrefix(again, "miss") {
					t.Errorf("known: got %v, %v; again: %s; want %s", addrs, known, again, want)
				}
			} else if len(addrs) > 0 {
				t.Errorf("known: got %v, want none", addrs)
			}
		})
	}
}

// TestSearchDeadline: the deadline is for all that is tried, and each has its part of
// it; but a complete name has all.
func TestSearchDeadline(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	for _, name := range []string{"web.a.test", "web.b.test", "web", "web.example"} {
		s.Set(name, testlab.Reply{Silent: true})
	}
	r, _ := searching(t, Config{Nameservers: []string{s.Addr}, Deadline: time.Second}, "search a.test b.test\n")
	for _, test := range []struct{ lookup, asked, not string }{
		{"web", "web.a.test web.b.test web", ""},
		{"web.example", "web.example", "web.example.a.test web.example.b.test"},
	} {
		a, err := r.Lookup(t.Context(), test.lookup)
		// what passes between the lookups is not counted
		if err == nil || !isTimeout(err) || a.Waited < time.Second-10*time.Millisecond {
			t.Errorf("%s: got %v, %v after %s, want a timeout after 1s", test.lookup, a.Addrs, err, a.Waited)
		}
		for name := range strings.FieldsSeq(test.asked) {
			if s.Asked(name) == 0 {
				t.Errorf("%s was not tried", name)
			}
		}
		for name := range strings.FieldsSeq(test.not) {
			if s.Asked(name) > 0 {
				t.Errorf("%s was still tried", name)
			}
		}
	}
}

// isTimeout reports whether an error makes status 504.
func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// TestSearchZones: what a name is short for may be in a zone.
func TestSearchZones(t *testing.T) {
	leaktest.Check(t)
	main, zone := testlab.NewNameserver(t), testlab.NewNameserver(t)
	zone.Has("web.a.test", "192.0.2.2")
	r, _ := searching(t, Config{
		Nameservers: []string{main.Addr}, Zones: map[string][]string{"a.test": {zone.Addr}},
	}, "search b.test a.test\n")
	wantLookup(t, r, "web", "miss [192.0.2.2]")
	if main.Asked("web.b.test") != 1 || main.Asked("web.a.test") != 0 {
		t.Errorf("got %v, want one query for web.b.test and none for web.a.test", main.Queries())
	}
}

// TestSearchRemembers: a name stays what it was found to be while that cannot
// be found out again.
func TestSearchRemembers(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	s.Set("web.b.test", testlab.Reply{Addrs: []string{"192.0.2.2"}, TTL: 60})
	config := Config{
		Nameservers: []string{s.Addr}, Tries: 1,
		MinTTL: 1, NegativeTTL: 20 * time.Millisecond,
	}
	r, change := searching(t, config, "search a.test b.test\n")
	wantLookup(t, r, "web", "miss [192.0.2.2]")
	s.Set("web.a.test", testlab.Reply{Rcode: 2})
	testlab.Eventually(t, "the first domain is asked again", func() bool {
		got := mustLookup(t, r, "web")
		if !strings.HasSuffix(got, " [192.0.2.2]") {
			t.Fatalf("got %s, want [192.0.2.2]", got)
		}
		return strings.HasPrefix(got, "stale")
	})
	change("# written again\nsearch a.test b.test\noptions ndots:1\n")
	if got := mustLookup(t, r, "web"); got != "stale [192.0.2.2]" {
		t.Errorf("with the same list: got %s, want stale [192.0.2.2]", got)
	}
	change("search a.test b.test\noptions ndots:2\n")
	if got := mustLookup(t, r, "web"); strings.HasPrefix(got, "stale") || !strings.HasSuffix(got, " [192.0.2.2]") {
		t.Errorf("with another list: got %s, want [192.0.2.2], found anew", got)
	}
	config.Stale = -1
	r, _ = searching(t, config, "search a.test b.test\n")
	s.Set("web.a.test", testlab.Reply{Rcode: 3})
	wantLookup(t, r, "web", "miss [192.0.2.2]")
	s.Set("web.a.test", testlab.Reply{Rcode: 2})
	for range 50 {
		if got := mustLookup(t, r, "web"); strings.HasPrefix(got, "stale") {
			t.Errorf("got %s, want nothing stale", got)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestSearchReadAgain: a changed resolv.conf takes effect, also where
// nameservers are configured.
func TestSearchReadAgain(t *testing.T) {
	s := testlab.NewNameserver(t)
	s.Has("web.a.test", "192.0.2.1")
	s.Has("web.b.test", "192.0.2.2")
	r, change := searching(t, Config{Nameservers: []string{s.Addr}}, "search a.test\nnameserver 192.0.2.53\n")
	wantLookup(t, r, "web", "miss [192.0.2.1]")
	change("search b.test\nnameserver 192.0.2.53\n")
	wantLookup(t, r, "web", "miss [192.0.2.2]")
	if got := fmt.Sprint(r.client.Nameservers()); got != "["+s.Addr+"]" {
		t.Errorf("got nameservers %s, want [%s]", got, s.Addr)
	}
	// it cannot be read
	if err := os.Remove(r.config.ResolvConf); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.config.ResolvConf, 0o700); err != nil {
		t.Fatal(err)
	}
	r.checkFiles()
	wantLookup(t, r, "web", "hit [192.0.2.2]")

	long := strings.Builder{}
	for i := range 40 {
		fmt.Fprintf(&long, " d%d.test", i)
	}
	if err := os.Remove(r.config.ResolvConf); err != nil {
		t.Fatal(err)
	}
	change("search" + long.String() + "\n")
	if n := len(r.search.Load().domains); n != maxSearch {
		t.Errorf("got %d domains, want %d", n, maxSearch)
	}
}

// TestSearchRemembersLittle: the memory is bounded.
func TestSearchRemembersLittle(t *testing.T) {
	s := newSearchList(parseResolvConf("search a.test"))
	for i := range 3 * maxFound {
		s.remember(fmt.Sprint(i), "x")
	}
	if n := len(s.found); n > maxFound {
		t.Errorf("got %d names, want %d at most", n, maxFound)
	}
}
