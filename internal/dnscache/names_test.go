package dnscache

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// nameOf returns the only entry of a name.
func (w world) nameOf(name string) Name {
	w.Helper()
	list := w.Name(name)
	if len(list) != 1 {
		w.Fatalf("%s: got %d entries, want 1", name, len(list))
	}
	return list[0]
}

// allNames returns the names that q chooses, page by page, and how many pages there were.
func allNames(t testing.TB, c *Cache, q Query) (list []string, pages int) {
	t.Helper()
	for {
		page, err := c.Names(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, n := range page.Names {
			list = append(list, n.Name)
		}
		if page.Next == "" {
			return list, pages
		}
		if len(page.Names) != q.Limit {
			t.Fatalf("a page with %d names has a next one, want %d names", len(page.Names), q.Limit)
		}
		q.After = page.Next
	}
}

// TestNameStates checks what is said of a name in each state.
// It is long because its table is.
func TestNameStates(t *testing.T) {
	const ttl = 10 * time.Second
	for _, tc := range []struct {
		name  string
		setUp func(w world)
		want  Name
	}{
		{
			name:  "pending",
			setUp: func(w world) { w.fake.set("A", script{hang: true}); go w.get("x"); w.sleep(time.Second) },
			want:  Name{State: NamePending, InFlight: true},
		},
		{
			name:  "fresh",
			setUp: func(w world) { w.fake.a("x", ttl, a, b); w.get("x"); w.sleep(time.Second) },
			want: Name{
				State: NameFresh, Addrs: ips(a, b), Preferred: 2, TTL: 9 * time.Second, StaleFor: time.Minute + 9*time.Second,
				Types: []NameType{{Type: TypeAAAA}, {Type: TypeA, Count: 2, TTL: 9 * time.Second}},
			},
		},
		{
			name: "fresh, and the NODATA of the other family holds",
			setUp: func(w world) {
				w.fake.set("x A", script{addrs: ips(a), ttl: ttl})
				w.fake.set("x AAAA", script{err: nodata(2 * ttl)})
				w.get("x")
			},
			want: Name{
				State: NameFresh, Addrs: ips(a), Preferred: 1, TTL: ttl, StaleFor: time.Minute + ttl,
				Types: []NameType{{Type: TypeAAAA, TTL: 2 * ttl}, {Type: TypeA, Count: 1, TTL: ttl}},
			},
		},
		{
			name: "fresh, but one family fails",
			setUp: func(w world) {
				w.fake.set("x A", script{addrs: ips(a), ttl: ttl})
				w.fake.set("x AAAA", script{err: errServfail})
				w.get("x")
			},
			want: Name{
				State: NameFresh, Addrs: ips(a), Preferred: 1, TTL: ttl, StaleFor: time.Minute + ttl, Err: errServfail,
				Types: []NameType{{Type: TypeAAAA, Failures: 1, Retry: time.Second}, {Type: TypeA, Count: 1, TTL: ttl}},
			},
		},
		{
			name: "fresh, while one family is not asked for after a failure",
			setUp: func(w world) {
				w.sleep(time.Minute)
				w.fake.set("x A", script{addrs: ips(a), ttl: time.Second})
				w.fake.set("x AAAA", script{err: errServfail})
				w.get("x")
				w.sleep(time.Second)
				w.get("x")
				w.sleep(0)
			},
			want: Name{
				State: NameFresh, Addrs: ips(a), Preferred: 1, TTL: time.Second, StaleFor: time.Minute + time.Second, Err: errServfail, ErrAge: time.Second,
				Types: []NameType{{Type: TypeAAAA, Failures: 1}, {Type: TypeA, Count: 1, TTL: time.Second}},
			},
		},
		{
			name: "stale, while the other family fails",
			setUp: func(w world) {
				w.fake.set("x A", script{addrs: ips(a), ttl: ttl})
				w.fake.set("x AAAA", script{err: errServfail})
				w.get("x")
				w.sleep(2 * ttl)
			},
			want: Name{
				State: NameStale, Addrs: ips(a), Preferred: 1, TTL: -ttl, StaleFor: time.Minute - ttl, Err: errServfail, ErrAge: 2 * ttl,
				Types: []NameType{{Type: TypeAAAA, Failures: 1}, {Type: TypeA, Count: 1, TTL: -ttl}},
			},
		},
		{
			name:  "too stale to serve",
			setUp: func(w world) { w.fake.a("x", ttl, a); w.get("x"); w.sleep(ttl + time.Hour) },
			want: Name{
				State: NameStale, Addrs: ips(a), Preferred: 1, TTL: -time.Hour,
				Types: []NameType{{Type: TypeAAAA}, {Type: TypeA, Count: 1, TTL: -time.Hour}},
			},
		},
		{
			name: "negative",
			setUp: func(w world) {
				w.fake.fail("x", nxdomain(ttl))
				w.get("x")
				w.sleep(time.Second)
			},
			want: Name{
				State: NameNegative, TTL: 9 * time.Second, Err: nxdomain(ttl), ErrAge: time.Second,
				Types: []NameType{{Type: TypeAAAA}, {Type: TypeA}},
			},
		},
		{
			name:  "failing",
			setUp: func(w world) { w.fake.fail("x", errServfail); w.get("x") },
			want: Name{
				State: NameFailing, TTL: time.Second, Err: errServfail,
				Types: []NameType{{Type: TypeAAAA, Failures: 1, Retry: time.Second}, {Type: TypeA, Failures: 1, Retry: time.Second}},
			},
		},
		{
			name: "failing, while expired addresses serve",
			setUp: func(w world) {
				w.fake.a("x", ttl, a)
				w.get("x")
				w.sleep(2 * ttl)
				w.fake.fail("x", errServfail)
				w.get("x")
				w.sleep(0)
			},
			want: Name{
				State: NameFailing, Addrs: ips(a), Preferred: 1, TTL: -ttl, StaleFor: time.Minute - ttl, Err: errServfail,
				Types: []NameType{{Type: TypeAAAA, Failures: 1, Retry: time.Second}, {Type: TypeA, Count: 1, TTL: -ttl, Failures: 1, Retry: time.Second}},
			},
		},
		{
			name: "failing in an outage",
			setUp: func(w world) {
				w.fake.a("x", ttl, a)
				w.get("x")
				w.sleep(2 * ttl)
				w.fake.fail("x", errOutage)
				w.get("x")
				w.sleep(0)
			},
			want: Name{
				State: NameFailing, Addrs: ips(a), Preferred: 1, TTL: -ttl, StaleFor: time.Minute - ttl, Err: errOutage,
				Types: []NameType{{Type: TypeAAAA}, {Type: TypeA, Count: 1, TTL: -ttl}},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run(t, Config{Refresh: -1, Stale: time.Minute}, func(w world) {
				tc.setUp(w)
				got := w.nameOf("x")
				want := tc.want
				want.Name = "x"
				for i := range got.Types { // the pauses are random, from 1s to 1.25s
					got.Types[i].Retry = got.Types[i].Retry.Truncate(time.Second)
				}
				if tc.name == "failing" && got.TTL <= time.Second*5/4 {
					got.TTL = min(got.TTL, time.Second)
				}
				got.Used = 0 // see TestNameUse
				got.Addrs = slices.SortedFunc(slices.Values(got.Addrs), func(x, y netip.Addr) int { return x.Compare(y) })
				if got, want := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				if page, err := w.Names(w.Context(), Query{States: []NameState{tc.want.State}, Limit: 2}); err != nil || len(page.Names) != 1 {
					t.Errorf("got %+v, %v for the state %s, want one name", page, err, tc.want.State)
				}
				if s := w.Stats().Names; s[tc.want.State] != 1 {
					t.Errorf("got the counts %v, want one name that is %s", s, tc.want.State)
				}
				w.fake.set("A", script{})
			})
		})
	}
}

// TestNameService checks that a service and the host of the same name are told apart.
func TestNameService(t *testing.T) {
	run(t, Config{Refresh: -1}, func(w world) {
		w.fake.a("x", time.Minute, a)
		w.fake.srv("x", 30*time.Second, here)
		w.get("x")
		if _, err := w.LookupSRV(w.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		list := w.Name("x")
		if len(list) != 2 || list[0].Service || !list[1].Service {
			t.Fatalf("got %+v, want the host and the service", list)
		}
		if n := list[1]; len(n.Records) != 1 || n.Addrs != nil || n.TTL != 30*time.Second || n.Types[0].Type != TypeSRV || n.Types[0].Count != 1 {
			t.Errorf("got %+v, want the service for 30s", n)
		}
		if got := w.Name("y"); got != nil {
			t.Errorf("got %+v for a name that is not known, want none", got)
		}
		if got := w.Name(strings.Repeat("a", 1<<16)); got != nil {
			t.Errorf("got %+v for a name that is too long, want none", got)
		}
	})
}

// TestNameUse checks when a name was used and is refreshed next, and that asking for it
// is no use.
func TestNameUse(t *testing.T) {
	run(t, Config{Preload: []string{"p"}}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Minute})
		w.Start()
		w.sleep(time.Second)
		w.get("x")
		for range 20 {
			w.sleep(time.Second)
			if _, err := w.Names(w.Context(), Query{Limit: 10}); err != nil {
				t.Fatal(err)
			}
		}
		for name, preload := range map[string]bool{"x": false, "p": true} {
			n := w.nameOf(name)
			if n.Preload != preload || n.Used < 18*time.Second || n.Used > 22*time.Second {
				t.Errorf("%s: preload %t, used %s ago, want %t and about 20s", name, n.Preload, n.Used, preload)
			}
			// after 75 to 90 % of the TTL, and up to a tick later
			if from, to := 23*time.Second, 36*time.Second; !n.Scheduled || n.NextRefresh < from || n.NextRefresh > to {
				t.Errorf("%s: refresh %t in %s, want one in %s to %s", name, n.Scheduled, n.NextRefresh, from, to)
			}
		}
		w.fake.set("A", script{hang: true})
		w.fake.set("AAAA", script{hang: true})
		w.Purge(Purge{Name: "x", AskAgain: true})
		w.sleep(0)
		if n := w.nameOf("x"); !n.InFlight || n.State != NameFresh {
			t.Errorf("got %+v, want it in flight and fresh", n)
		}
	})
}

func TestParseNameState(t *testing.T) {
	for s := range nameStates {
		if got, err := ParseNameState(s.String()); got != s || err != nil {
			t.Errorf("got %v, %v, want %s", got, err, s)
		}
	}
	if _, err := ParseNameState("old"); err == nil {
		t.Error("got no error for an unknown state, want one")
	}
}

// TestPages checks that each name is on one page, with every filter and limit.
func TestPages(t *testing.T) {
	run(t, Config{Size: 1000, Refresh: -1}, func(w world) {
		w.fake.set("A", script{addrs: ips(a), ttl: time.Hour})
		var all, cats []string
		for i := range 300 {
			name := fmt.Sprintf("dog-%d.example", i)
			if i%3 == 0 {
				name = fmt.Sprintf("cat-%d.example", i)
				cats = append(cats, name)
				w.fake.fail(name, errServfail)
			}
			all = append(all, name)
			w.get(name)
		}
		for _, tc := range []struct {
			name  string
			query Query
			want  []string
			pages int
		}{
			{"all", Query{Limit: 1000}, all, 1},
			{"as many as there are", Query{Limit: 300}, all, 1},
			{"two pages", Query{Limit: 299}, all, 2},
			{"many pages", Query{Limit: 7}, all, 43},
			{"one each", Query{Limit: 1}, all, 300},
			{"prefix", Query{Prefix: "cat-", Limit: 10}, cats, 10},
			{"one name", Query{Prefix: "cat-3.example", Limit: 1}, []string{"cat-3.example"}, 1},
			{"state", Query{States: []NameState{NameFailing}, Limit: 30}, cats, 4},
			{"states", Query{States: []NameState{NameFailing, NameFresh}, Limit: 300}, all, 1},
			{"prefix and state", Query{Prefix: "cat", States: []NameState{NameFresh}, Limit: 10}, nil, 1},
		} {
			got, pages := allNames(w.T, w.Cache, tc.query)
			slices.Sort(got)
			slices.Sort(tc.want)
			if !slices.Equal(got, tc.want) || pages != tc.pages {
				t.Errorf("%s: got %d names on %d pages, want %d on %d", tc.name, len(got), pages, len(tc.want), tc.pages)
			}
		}
		for prefix, more := range map[string]bool{"cat": true, "cow": false} {
			page, err := w.Names(w.Context(), Query{Prefix: prefix})
			if err != nil || len(page.Names) != 0 || (page.Next != "") != more {
				t.Errorf("%s: without a limit got %+v, %v; want no names, and a next page: %t", prefix, page, err, more)
			}
		}
	})
}

// TestPagesWhileNamesComeAndGo checks that names which stay are each on one page while
// others are added, evicted and looked up again.
func TestPagesWhileNamesComeAndGo(t *testing.T) {
	const stay = 500
	c := filled(t, names(stay), fixedAnswers{a: 1})
	defer c.Close()
	want := slices.Sorted(slices.Values(names(stay)))
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for writer := range 2 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("new-%d-%d.example", writer, i%1000)
				c.Lookup(context.Background(), name)
				c.Purge(Purge{Name: name})
				c.Purge(Purge{Name: want[i%stay], AskAgain: true})
			}
		})
	}
	for range 20 {
		got, _ := allNames(t, c, Query{Prefix: "name-", Limit: 17})
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("got %d names, want %d, each once", len(got), stay)
		}
	}
	close(stop)
	writers.Wait()
}

// TestCursors checks that cursors of others are refused.
func TestCursors(t *testing.T) {
	run(t, Config{Size: 100}, func(w world) {
		w.putNew("x")
		w.putNew("y")
		other := New(w.fake, Config{Size: 100})
		defer other.Close()
		own := w.cursor(0)
		for name, cursor := range map[string]string{
			"another cache": other.cursor(0), "text": "zzz", "not base64": "%", "short": own[:8],
			"long": own + own, "beyond the table": w.cursor(w.slotCount()), "other spare bits": own[:len(own)-1] + "B",
		} {
			if _, err := w.Names(w.Context(), Query{After: cursor, Limit: 1}); !errors.Is(err, ErrCursor) {
				t.Errorf("%s: got %v, want ErrCursor", name, err)
			}
		}
		ctx, cancel := context.WithCancelCause(w.Context())
		errGone := errors.New("gone")
		cancel(errGone)
		if _, err := w.Names(ctx, Query{Limit: 1}); err != errGone {
			t.Errorf("got %v, want the error of the context", err)
		}
	})
}

// TestListingHoldsUpNothing checks that names are listed while the lock of the cache is
// held, and that names are read while a page waits for the lock of the scheduler.
func TestListingHoldsUpNothing(t *testing.T) {
	c := filled(t, []string{"x"}, fixedAnswers{a: 1})
	defer c.Close()
	list := func() error {
		page, err := c.Names(context.Background(), Query{Limit: 1})
		if err == nil && len(page.Names) != 1 {
			err = fmt.Errorf("got %+v, want x", page)
		}
		return err
	}
	c.mu.Lock()
	if err := list(); err != nil {
		t.Error(err)
	}
	if got := c.Stats().Names; got[NameFresh] != 1 {
		t.Errorf("got %v, want one name that is fresh", got)
	}
	c.mu.Unlock()
	c.sched.mu.Lock()
	listed := make(chan error)
	go func() { listed <- list() }()
	if a, err := c.Lookup(t.Context(), "x"); err != nil || a.State != Hit {
		t.Errorf("got %+v, %v, want a hit", a, err)
	}
	c.sched.mu.Unlock()
	if err := <-listed; err != nil {
		t.Error(err)
	}
}

// BenchmarkNames is a walk through 100 000 names in pages of 1000.
func BenchmarkNames(b *testing.B) {
	c := filled(b, names(100_000), fixedAnswers{a: 1})
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if list, _ := allNames(b, c, Query{Limit: 1000}); len(list) != 100_000 {
			b.Fatalf("got %d names, want 100000", len(list))
		}
	}
}

// BenchmarkStats counts 100 000 names.
func BenchmarkStats(b *testing.B) {
	c := filled(b, names(100_000), fixedAnswers{a: 1})
	defer c.Close()
	for b.Loop() {
		if s := c.Stats(); s.Names[NameFresh] != 100_000 {
			b.Fatalf("got %v, want 100000 fresh names", s.Names)
		}
	}
}
