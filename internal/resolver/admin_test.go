package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/testlab"
)

// withZones returns a resolver with the zones b.test and a.test, and the nameserver that
// is asked for all names.
func withZones(t *testing.T, config Config) (*Resolver, *testlab.Nameserver) {
	s := testlab.NewNameserver(t)
	config.Nameservers, config.Zones = []string{s.Addr}, map[string][]string{"b.test": {s.Addr}, "a.test": {s.Addr}}
	config.Tries = 1
	return newResolver(t, config), s
}

// TestNames pages through the names of all zones.
func TestNames(t *testing.T) {
	r, s := withZones(t, Config{})
	want := []string{". one.example", ". two.example", "a.test www.a.test", "a.test x.a.test", "a.test y.a.test", "b.test b.test"}
	for _, text := range want {
		_, name, _ := strings.Cut(text, " ")
		s.Has(name, "192.0.2.1")
		mustLookup(t, r, name)
	}
	for limit := 1; limit <= 7; limit++ {
		var got []string
		pages := 0
		for q := (dnscache.Query{Limit: limit}); ; {
			page, err := Names(t.Context(), []*Resolver{r}, q)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			for _, n := range page.Names {
				got = append(got, n.Zone+" "+n.Name.Name)
			}
			if q.After = page.Next; q.After == "" {
				break
			}
		}
		if !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(a[:2], b[:2]) }) {
			t.Errorf("limit %d: got %v, want the zones one after the other", limit, got)
		}
		slices.Sort(got)
		if wantPages := (len(want) + limit - 1) / limit; !slices.Equal(got, want) || pages != wantPages {
			t.Errorf("limit %d: got %v on %d pages, want %v on %d", limit, got, pages, want, wantPages)
		}
	}
	other, _ := withZones(t, Config{})
	page, err := Names(t.Context(), []*Resolver{r}, dnscache.Query{Limit: 3})
	if err != nil || page.Next == "" {
		t.Fatalf("got %+v, %v, want a page with a next one", page, err)
	}
	if _, err := Names(t.Context(), []*Resolver{other}, dnscache.Query{After: page.Next, Limit: 3}); !errors.Is(err, dnscache.ErrCursor) {
		t.Errorf("got %v for the cursor of another resolver, want ErrCursor", err)
	}
}

// TestName checks what is said of one name.
func TestName(t *testing.T) {
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.9 fixed.example\n2001:db8::9 fixed.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, s := withZones(t, Config{Hosts: hosts})
	s.Has("www.a.test", "192.0.2.1")
	s.Set("broken.example", testlab.Reply{Rcode: dns.RcodeServerFailure})
	s.Set("_s._tcp.example", testlab.Reply{SRV: []string{"0 0 80 a.example."}, TTL: 60})
	for _, name := range []string{"www.a.test", "broken.example", "none.example"} {
		mustLookup(t, r, name)
	}
	if _, err := r.LookupService(t.Context(), "_s._tcp.example"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, want string }{
		{"fixed.example", "hosts [192.0.2.9]"},
		{"localhost", "hosts [127.0.0.1]"},
		{"a.onion", "outside the DNS"},
		{"www.a.test", "a.test fresh [192.0.2.1]"},
		{"_s._tcp.example", ". fresh [{a.example 80 0 0}]"},
		{"none.example", ". negative [] [none.example. udp NXDOMAIN]"},
		{"broken.example", ". failing [] [broken.example. udp SERVFAIL]"},
		{"other.example", "unknown"},
	} {
		report, ok := r.Name(tc.name)
		got := "unknown"
		switch {
		case report.Hosts:
			got = fmt.Sprint("hosts ", report.Addrs)
		case report.OutsideDNS:
			got = "outside the DNS"
		case len(report.Names) == 1:
			got = describe(&report.Names[0])
		case ok:
			got = fmt.Sprintf("%+v", report)
		}
		if got != tc.want || ok != (tc.want != "unknown") {
			t.Errorf("%s: got %s, %t, want %s", tc.name, got, ok, tc.want)
		}
	}
}

// describe returns the zone, the state, the addresses or records and the tries of a name.
func describe(n *Name) string {
	s := fmt.Sprint(n.Zone, " ", n.State, " ", n.Addrs)
	if n.Service {
		s = fmt.Sprint(n.Zone, " ", n.State, " ", n.Records)
	}
	for _, try := range n.Tries() {
		s += fmt.Sprintf(" [%s %s %s]", try.Name, try.Transport, try.Outcome)
		if try.Duration <= 0 || try.Server.Network != "udp" {
			s += fmt.Sprintf(" of %s after %s", try.Server, try.Duration)
		}
	}
	return s
}

// TestSearchedName checks that a name which search domains complete is found, and forgotten.
func TestSearchedName(t *testing.T) {
	s := testlab.NewNameserver(t)
	s.Has("web.b.test", "192.0.2.1")
	r, _ := searching(t, Config{Nameservers: []string{s.Addr}, Tries: 1}, "search a.test b.test\n")
	wantLookup(t, r, "web", "miss [192.0.2.1]")

	report, ok := r.Name("web")
	var got []string
	for i := range report.Names {
		got = append(got, fmt.Sprint(report.Names[i].Name.Name, " ", report.Names[i].State))
	}
	if want := []string{"web.a.test negative", "web.b.test fresh"}; !ok || !slices.Equal(got, want) || report.Found != "web.b.test" {
		t.Errorf("got %v, %t, found as %q; want %v, found as web.b.test", got, ok, report.Found, want)
	}

	for _, p := range []dnscache.Purge{{Name: "web"}, {Name: "web.b.test"}, {Suffix: "b.test"}, {Suffix: "web"}, {Suffix: "."}, {Addr: netip.MustParseAddr("192.0.2.1")}} {
		wantForgotten := !p.Addr.IsValid()
		for _, again := range []bool{true, false} {
			p.AskAgain = again
			r.Purge(p)
			if _, known := r.search.Load().recall("web", time.Hour); known != (again || !wantForgotten) {
				t.Errorf("%+v: got that it is known: %t, want %t", p, known, again || !wantForgotten)
			}
		}
		mustLookup(t, r, "web")
	}
	if n := r.Purge(dnscache.Purge{Name: "web"}); n != 2 {
		t.Errorf("got %d names forgotten, want web.a.test and web.b.test", n)
	}
	if report, ok := r.Name("web"); ok {
		t.Errorf("got %+v of a name that was forgotten, want nothing", report)
	}
}

// TestPurge purges names of several zones.
func TestPurge(t *testing.T) {
	for _, tc := range []struct {
		purge dnscache.Purge
		want  []string
	}{
		{dnscache.Purge{Name: "x.a.test"}, []string{"x.a.test"}},
		{dnscache.Purge{Suffix: "test"}, []string{"x.a.test", "x.b.test", "x.test"}},
		{dnscache.Purge{Suffix: "."}, []string{"x.a.test", "x.b.test", "x.example", "x.test"}},
		{dnscache.Purge{Addr: netip.MustParseAddr("192.0.2.1")}, []string{"x.a.test", "x.b.test"}},
		{dnscache.Purge{Name: "y.a.test"}, nil},
		{dnscache.Purge{}, nil},
	} {
		r, s := withZones(t, Config{})
		names := []string{"x.a.test", "x.b.test", "x.example", "x.test"}
		for _, name := range names {
			s.Has(name, "192.0.2.2")
			if slices.Contains(names[:2], name) {
				s.Has(name, "192.0.2.1")
			}
			mustLookup(t, r, name)
		}
		if n := r.Purge(tc.purge); n != len(tc.want) {
			t.Errorf("%+v: got %d names, want %d", tc.purge, n, len(tc.want))
		}
		for _, name := range names {
			s.Has(name, "192.0.2.3")
			got, _, _ := strings.Cut(mustLookup(t, r, name), " ")
			want := "hit"
			if slices.Contains(tc.want, name) {
				want = "miss"
			}
			if got != want {
				t.Errorf("%+v: %s: got a %s, want a %s", tc.purge, name, got, want)
			}
		}
	}
}

// TestStatsByZone checks that lookups, names and queries are counted for their zone.
func TestStatsByZone(t *testing.T) {
	r, s := withZones(t, Config{})
	s.Has("x.a.test", "192.0.2.1")
	mustLookup(t, r, "x.a.test")
	mustLookup(t, r, "x.a.test")
	mustLookup(t, r, "none.example")
	stats, servers := r.Stats(), r.Nameservers()
	if len(stats) != 3 || len(servers) != 3 {
		t.Fatalf("got %d zones and %d, want 3", len(stats), len(servers))
	}
	for i, want := range []struct {
		zone, lookups, names, rcodes string
	}{
		{".", "negative 1", "negative 1", "map[NXDOMAIN:1]"},
		{"a.test", "hit 1, miss 1", "fresh 1", "map[NOERROR:1]"},
		{"b.test", "", "", "map[]"},
	} {
		var lookups, names []string
		for result, n := range stats[i].Lookups {
			if n > 0 {
				lookups = append(lookups, fmt.Sprint(dnscache.Result(result), " ", n))
			}
		}
		for state, n := range stats[i].Names {
			if n > 0 {
				names = append(names, fmt.Sprint(dnscache.NameState(state), " ", n))
			}
		}
		if got := strings.Join(lookups, ", "); stats[i].Zone != want.zone || got != want.lookups {
			t.Errorf("zone %s: got the lookups %s, want %s: %s", stats[i].Zone, got, want.zone, want.lookups)
		}
		if got := strings.Join(names, ", "); got != want.names {
			t.Errorf("zone %s: got the names %s, want %s", want.zone, got, want.names)
		}
		z := servers[i]
		if z.Zone != want.zone || z.Outage || len(z.Nameservers) != 1 || z.Nameservers[0].Nameserver.String() != s.Addr {
			t.Errorf("zone %s: got %+v, want the nameserver %s and no outage", want.zone, z, s.Addr)
		}
		if got := fmt.Sprint(z.Nameservers[0].Queries.Rcodes); got != want.rcodes {
			t.Errorf("zone %s: got %s, want %s", want.zone, got, want.rcodes)
		}
	}
	s.SetSilent(true)
	other := newResolver(t, Config{Nameservers: []string{s.Addr}, Tries: 1, Timeout: 50 * time.Millisecond})
	for !other.Nameservers()[0].Outage {
		mustLookup(t, other, fmt.Sprint(time.Now().UnixNano(), ".example"))
	}
}
