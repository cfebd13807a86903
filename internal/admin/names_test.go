package admin

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"caddytarget/internal/resolver"
	"caddytarget/internal/testlab"
)

// newResolver returns a resolver that asks a nameserver. Of the same nameserver, those with
// other sizes are others.
func newResolver(t *testing.T, dns *testlab.Nameserver, size int) *resolver.Resolver {
	t.Helper()
	config, err := resolver.Config{Nameservers: []string{dns.Addr}, Hosts: "off", Family: "ipv4", CacheSize: size}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	r := resolver.New(config)
	r.Start()
	t.Cleanup(r.Close)
	return r
}

// TestNamePages: the names of two resolvers come one resolver after the other, each once,
// and a page is as long as it may be.
func TestNamePages(t *testing.T) {
	dns := testlab.NewNameserver(t)
	dns.Has("a.example", "192.0.2.1")
	p := newProcess()
	var want []string
	for i := range 2 {
		r := newResolver(t, dns, 1000+i)
		for n := range 7 {
			name := fmt.Sprintf("n%d.example", n)
			_, _ = r.Lookup(t.Context(), name)
			want = append(want, r.ID()+" "+name)
		}
		_, _ = r.Lookup(t.Context(), "a.example")
		p.resolvers = append(p.resolvers, r)
	}
	slices.Sort(want)
	for _, limit := range []int{1, 5, 7, 14, 100} {
		var got []string
		for after := "&"; after != ""; {
			var page Names
			get(t, p.api(), fmt.Sprintf("names?limit=%d&state=negative&prefix=N%s", limit, after), &page)
			for _, n := range page.Names {
				if len(n.Tries) != 1 || n.Error == "" || n.ErrorAge == nil {
					t.Errorf("got %+v, want an error and its try", n)
				}
				got = append(got, n.Resolver+" "+n.Name)
			}
			after = ""
			if page.Next != "" {
				after = "&after=" + page.Next
			}
			if len(page.Names) > limit || after != "" && len(page.Names) == 0 {
				t.Errorf("limit %d: got %d names on a page", limit, len(page.Names))
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("limit %d: got %s, want %s", limit, got, want)
		}
	}
	var report NameReport
	get(t, p.api(), "names/A.example.", &report)
	if report.Name != "a.example" || len(report.Resolvers) != 2 || !slices.Equal(report.Resolvers[0].Names[0].Addresses, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
		t.Errorf("got %+v, want a.example of both resolvers", report)
	}
	var servers Nameservers
	get(t, p.api(), "nameservers", &servers)
	if len(servers.Nameservers) != 2 || servers.Nameservers[0].Replies["NXDOMAIN"] != 7 || servers.Nameservers[0].Nameserver != dns.Addr {
		t.Errorf("got %+v, want the nameserver of each resolver, with its replies", servers)
	}
	var o Overview
	get(t, p.api(), "", &o)
	if len(o.Resolvers) != 2 || o.Resolvers[1].CacheSize != 1001 || o.Resolvers[0].Zones[0].Names["negative"] != 7 {
		t.Errorf("got %+v, want both resolvers", o.Resolvers)
	}
}

// TestPurge: names are counted by resolver, and ejections of their addresses end.
func TestPurge(t *testing.T) {
	dns := testlab.NewNameserver(t)
	dns.Has("a.example", "192.0.2.1")
	p := newProcess()
	defer p.shared.Health.Use(1, 1<<40)()
	p.resolvers = []*resolver.Resolver{newResolver(t, dns, 1000), newResolver(t, dns, 1001)}
	if _, err := p.resolvers[1].Lookup(t.Context(), "a.example"); err != nil {
		t.Fatal(err)
	}
	p.shared.Health.Failed("", netip.MustParseAddrPort("192.0.2.1:80"), false, nil)
	want := fmt.Sprintf(`{"names":1,"ejections":1,"connections":0,"resolvers":[{"resolver":"%s","names":0},{"resolver":"%s","names":1}]}`, p.resolvers[0].ID(), p.resolvers[1].ID())
	if status, text := ask(t, p.api(), http.MethodPost, "purge", `{"name":"a.example"}`); status != http.StatusOK || text != want {
		t.Errorf("got %d: %s, want %s", status, text, want)
	}
	for body, want := range map[string]string{
		`{"name":"a.example"} x`: "expecting one JSON object", `{"name":"a.example","suffix":"x"}`: "got 2", `{"x":1}`: "unknown field", `{"address":"x"}`: "is not an IP address",
		`{"suffix":"a b"}`: `suffix "a b": `, `{"name":"` + strings.Repeat("a", maxPurgeBody) + `"}`: "too large",
	} {
		if status, text := ask(t, p.api(), http.MethodPost, "purge", body); status != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%.30s: got %d: %s, want 400: %s", body, status, text, want)
		}
	}
}
