package admin

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/explain"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
	"caddytarget/internal/topk"
	"caddytarget/internal/trace"
	"caddytarget/internal/warm"
)

// process is what an API shows in tests.
type process struct {
	resolvers []*resolver.Resolver
	sites     []*Site
	shared    *Shared
	running   bool
}

func (p *process) api() *API {
	return &API{
		lists:        newPace(),
		CaddyVersion: func() string { return "v0" },
		Resolvers:    func() []*resolver.Resolver { return p.resolvers },
		Sites:        func() []*Site { return p.sites },
		Shared:       func() *Shared { return p.shared },
		Running:      func() bool { return p.running },
	}
}

// newProcess returns a process without sites, in which nothing has happened.
func newProcess() *process {
	return &process{shared: &Shared{ID: 1, Health: health.New(), Pools: new(pool.Set), Top: topk.New(topk.Config{}), Trace: new(trace.Hub), Warm: warm.New()}}
}

// ask sends a request to an API, with a body unless that is empty. It returns the status
// and the text of the response or the error.
func ask(t *testing.T, a *API, method, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, Path+path, strings.NewReader(body))
	if err := a.Serve(w, r); err != nil {
		refused, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("%s: got the error %v, want one with a status", path, err)
		}
		return refused.Status, refused.Error()
	}
	return w.Code, strings.TrimSuffix(w.Body.String(), "\n")
}

// get reads the answer to a request that has to succeed.
func get(t *testing.T, a *API, path string, answer any) {
	t.Helper()
	status, text := ask(t, a, http.MethodGet, path, "")
	if err := json.Unmarshal([]byte(text), answer); err != nil || status != http.StatusOK {
		t.Fatalf("%s: got %d: %s, want 200", path, status, text)
	}
}

// TestNothing: without a configuration, lists are empty, and nothing else is missing.
func TestNothing(t *testing.T) {
	none := new(process).api()
	for _, test := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "ready", "", 503, "not ready: no configuration with targets runs"},
		{"GET", "names", "", 200, `{"names":[]}`},
		{"GET", "names/a.example", "", 404, "unknown name a.example: no resolver has been asked for it, or it was evicted"},
		{"GET", "nameservers", "", 200, `{"nameservers":[]}`},
		{"GET", "pools", "", 200, `{"pools":[]}`},
		{"GET", "addresses", "", 200, `{"families":[],"addresses":[]}`},
		{"GET", "top", "", 200, `{"by":"requests","targets":[],"other":{"requests":0,"failures":0,"seconds":0,"connections":0}}`},
		{"GET", "trace", "", 503, "no site has a target handler"},
		{"GET", "explain?url=x", "", 404, "no site has a target handler"},
		{"POST", "purge", `{"suffix":"."}`, 200, `{"names":0,"ejections":0,"connections":0,"resolvers":[]}`},
		{"GET", "names?after=x", "", 400, "after: " + dnscache.ErrCursor.Error()},
		{"GET", "pools?after=AAAAAAAAAAEAAAAAAAAAAQ", "", 400, "after: " + dnscache.ErrCursor.Error()},
		{"HEAD", "pools", "", 200, `{"pools":[]}`}, // net/http sends no body
		{"PUT", "pools", "", 405, "method PUT is not allowed: expecting GET"},
		{"GET", "purge", "", 405, "method GET is not allowed: expecting POST"},
		{"GET", "x%1b", "", 404, `unknown endpoint /target/x\x1b`},
	} {
		if status, text := ask(t, none, test.method, test.path, test.body); status != test.status || text != test.want {
			t.Errorf("%s %s: got %d: %s, want %d: %s", test.method, test.path, status, text, test.status, test.want)
		}
	}
	_, text := ask(t, none, "GET", "", "")
	if !strings.HasSuffix(text, `,"sites":[],"resolvers":[],"pools":[],"addresses":{}}`) || !strings.Contains(text, `"caddy":"v0","go":"go`) {
		t.Errorf("got %s, want versions and nothing else", text)
	}
	_, text = ask(t, none, "GET", strings.Repeat("a", 600), "")
	if len(text) != MaxErrorLength+len("...") {
		t.Errorf("got an error of %d octets, want one that is cut at %d", len(text), MaxErrorLength)
	}
}

// TestAddressPages: each address is on one page, and families that failed are on the first
// one. A filter and another process's cursor count on each page.
func TestAddressPages(t *testing.T) {
	p := newProcess()
	for i := range byte(5) {
		p.shared.Health.Failed("a.example", netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, i}), 80), true, nil)
	}
	for i := range byte(4) {
		p.shared.Health.Reached(netip.AddrFrom4([4]byte{10, i, 0, 1}), false)
	}
	for _, limit := range []int{2, 5, 100} {
		seen, families := make(map[string]bool), 0
		for after, first := "", true; first || after != ""; first = false {
			var page Addresses
			get(t, p.api(), fmt.Sprintf("addresses?limit=%d&target=a.example&after=%s", limit, after), &page)
			if families += len(page.Families); len(page.Families) > 0 && !first {
				t.Errorf("limit %d: got %+v on a later page, want no families", limit, page.Families)
			}
			for _, a := range page.Addresses {
				if seen[a.Address] {
					t.Errorf("limit %d: got %s twice", limit, a.Address)
				}
				seen[a.Address] = true
			}
			after = page.Next
		}
		if len(seen) != 5 || families != 1 {
			t.Errorf("limit %d: got %d addresses and %d families, want 5 and 1", limit, len(seen), families)
		}
	}
	var page Addresses
	get(t, p.api(), "addresses?limit=1", &page)
	p.shared.ID++
	if status, text := ask(t, p.api(), "GET", "addresses?after="+page.Next, ""); status != http.StatusBadRequest {
		t.Errorf("another process: got %d: %s, want 400", status, text)
	}
}

// TestCursor: what String returns is read, and nothing else is.
func TestCursor(t *testing.T) {
	for _, c := range []cursor{{}, {1, 1}, {1 << 63, 1<<64 - 1}} {
		if got, err := (params{"after": c.String()}).cursor(); got != c || err != nil {
			t.Errorf("%+v: got %+v, %v, want the same", c, got, err)
		}
	}
	for _, text := range []string{"x", cursor{1, 1}.String() + "=", cursor{1, 1}.String() + "A", "AAAAAAAAAAEAAAAAAAAAAR"} {
		if got, err := (params{"after": text}).cursor(); err == nil {
			t.Errorf("%s: got %+v, want an error", text, got)
		}
	}
}

// TestPoolUsage: what there is for a key, as JSON.
func TestPoolUsage(t *testing.T) {
	settings := pool.NewSettings([]byte("{}"), new(tls.Config), nil)
	p := new(pool.Set).Acquire(settings, pool.Config{}, func(c pool.Config) *pool.Pool {
		return pool.New(c, health.New(), pool.NewLimits(10, dnscache.DomainOf))
	})
	defer p.Close()
	u := pool.Usage{Key: pool.Key{Host: "a.example", Dial: "10.0.0.1:80", Client: netip.MustParseAddrPort("10.0.0.9:1")}, Dialling: 1, Phase: pool.Handshake, DialPast: 1}
	text, err := json.Marshal(newUsage(p, &u))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"pool":"` + p.Name() + `","target":"a.example","address":"10.0.0.1:80","protocol":"http/1.1","client":"10.0.0.9:1","idle":0,"in_use":0,"requests":0,"waiting":0,"dialling":1,"dial":{"phase":"tls","seconds":0.001}}`
	if string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
}

// TestSelectSite: a site is explained for each of its names, unless that is the name of
// several.
func TestSelectSite(t *testing.T) {
	p := newProcess()
	for _, s := range []*Site{
		{Name: "a.example", Place: "srv0/0", Hosts: []string{"a.example", "both.example"}, Listen: []string{":80"}},
		{Name: "srv0/1", Place: "srv0/1", Hosts: []string{"both.example"}, Listen: []string{":80"}},
	} {
		s.Explain = func(in *explain.Input) *explain.Report {
			return &explain.Report{Site: s.Name, Method: in.Request.Method + in.Request.RemoteAddr}
		}
		p.sites = append(p.sites, s)
	}
	for name, want := range map[string]string{
		"A.example": `"site":"a.example","method":"GET192.0.2.1:1234"`, "srv0/0": `"site":"a.example"`, "srv0/1": `"site":"srv0/1"`,
		"both.example": `site "both.example" is several: expecting a.example, srv0/1`, ":80": "is several", "x": `unknown site "x": expecting a.example, srv0/1`,
	} {
		if _, text := ask(t, p.api(), "GET", "explain?url=x&site="+name, ""); !strings.Contains(text, want) {
			t.Errorf("%s: got %s, want %s", name, text, want)
		}
	}
	if status, text := ask(t, p.api(), "GET", "explain?url=x", ""); status != 400 || !strings.HasPrefix(text, "which site? ") {
		t.Errorf("got %d: %s, want to be asked which site", status, text)
	}
	for i := range 10 {
		p.sites = append(p.sites, &Site{Name: fmt.Sprint(i)})
	}
	if status, text := ask(t, p.api(), "GET", "explain?url=x&site=x", ""); status != 404 || !strings.HasSuffix(text, "4, 5 (and 4 more, which /target/ shows)") {
		t.Errorf("got %d: %s, want the first eight sites", status, text)
	}
	var o Overview
	if get(t, p.api(), "", &o); len(o.Sites) != 12 || o.Sites[0].Name != "a.example" {
		t.Errorf("got the sites %+v, want all", o.Sites)
	}
}

// TestTop: what does not fit into the list is with all others.
func TestTop(t *testing.T) {
	p := newProcess()
	for i := range 4 {
		for range i + 1 {
			p.shared.Top.Observe(fmt.Sprint(i), topk.Observation{Failed: i == 0})
		}
	}
	for path, want := range map[string]string{"top?limit=1": "3 4 6", "top?limit=1&by=failures": "0 1 9", "top": "3 4 0"} {
		var top Top
		if get(t, p.api(), path, &top); fmt.Sprint(top.Targets[0].Host, " ", top.Targets[0].Requests, " ", top.Other.Requests) != want {
			t.Errorf("%s: got %+v, want %s", path, top, want)
		}
	}
}

// TestReady: a process is ready once its configuration runs and what was saved was read, or
// some time after its start.
func TestReady(t *testing.T) {
	compiled, err := resolver.Config{Nameservers: []string{"127.0.0.1:1"}, Persist: time.Hour}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	r := resolver.New(compiled)
	defer r.Close()
	p := newProcess()
	p.resolvers = []*resolver.Resolver{r}
	p.shared.Began = time.Now().Add(time.Hour)
	check := func(about string, status int, want string) {
		t.Helper()
		if got, text := ask(t, p.api(), http.MethodGet, "ready", ""); got != status || text != want {
			t.Errorf("%s: got %d: %s, want %d: %s", about, got, text, status, want)
		}
	}
	check("provisioned", 503, "not ready: no configuration with targets runs")
	p.running = true
	check("before it was read what was saved", 503, "not ready: what was saved of names is being read")
	p.shared.Began = time.Now().Add(-readyWithin)
	check("too long after the start", 200, `{"ready":true}`)
	p.shared.Began = time.Now().Add(time.Hour)
	r.Start()
	check("started", 200, `{"ready":true}`)
}
