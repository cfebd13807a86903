package caddytarget

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/explain"
	"caddytarget/internal/testlab"
)

// attackCapture keeps the last request that a site got.
type attackCapture struct{}

var captured atomic.Pointer[http.Request]

// CaddyModule returns the Caddy module information.
func (attackCapture) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.attack_capture", New: func() caddy.Module { return new(attackCapture) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (attackCapture) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	captured.Store(r.Clone(r.Context()))
	return next.ServeHTTP(w, r)
}

// attackOutcome is what became of an attack.
type attackOutcome struct {
	status                      int
	phase, failure, rule, error string
	testlab.Request             // what would be called, with the status 200
}

// explainedArena explains each attack that a site has seen, and compares that with what
// became of it.
type explainedArena struct {
	*arena
	inOrder   []func(t *testing.T) // explain those attacks that build on others
	explained int
	unseen    int // by a target handler
}

func newExplainedArena(a *arena) *explainedArena {
	x := &explainedArena{arena: a}
	a.answered = x.answered
	captured.Store(nil)
	return x
}

// answered explains an attack that was just answered. For those that build on others that
// is done later, on a new server, so that each has one lookup.
func (x *explainedArena) answered(t *testing.T, at attack, res *http.Response, body []byte) {
	t.Helper()
	r := captured.Swap(nil)
	if r == nil { // no handler has seen the request, or only its Host
		x.unseen++
		if res.Header.Get("Failure") != "" {
			t.Errorf("%s: the target handler has answered, and got no request", at.name)
		}
		return
	}
	live := outcomeOf(t, res, body)
	if !at.inOrder {
		x.compare(t, at, r, live, true)
		return
	}
	x.inOrder = append(x.inOrder, func(t *testing.T) {
		t.Helper()
		if at.set != "" {
			record := parseDNSName(at.set)
			x.dns.Set(record.name, record.Reply)
		}
		time.Sleep(at.wait)
		x.compare(t, at, r, live, false)
	})
}

// outcomeOf reads the response to an attack.
func outcomeOf(t *testing.T, res *http.Response, body []byte) (o attackOutcome) {
	t.Helper()
	o.status = res.StatusCode
	if o.status == http.StatusOK {
		if err := json.Unmarshal(body, &o.Request); err != nil {
			t.Errorf("reading %s: %v", body, err)
		}
		return o
	}
	parts := strings.Split(res.Header.Get("Failure")+"  ", " ")
	o.phase, o.failure, o.rule = parts[0], parts[1], parts[2]
	o.error = strings.TrimPrefix(string(body), strconv.Itoa(o.status)+" ")
	return o
}

// playAgain explains the attacks that build on others, on a new server that knows
// nothing.
func (x *explainedArena) playAgain(t *testing.T) {
	x.arena.answered = nil
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	x.start()
	t.Run("explained in order", func(t *testing.T) {
		for _, f := range x.inOrder {
			f(t)
		}
	})
	const least = 700
	if x.explained < least {
		t.Errorf("%d attacks were explained, want at least %d", x.explained, least)
	}
	t.Logf("%d attacks explained; no target handler has seen %d others", x.explained, x.unseen)
}

// compare explains a request as a site has got it and, where its target is one value of
// it, the same with that value alone.
func (x *explainedArena) compare(t *testing.T, at attack, r *http.Request, live attackOutcome, byURL bool) {
	t.Helper()
	x.explained++
	i := max(0, slices.IndexFunc(x.sites, func(s attackSite) bool { return s.name == at.site }))
	query := url.Values{"method": {r.Method}, "uri": {r.RequestURI}, "site": {x.sites[i].name + ".site"}, "header": {"Host: " + r.Host}}
	if i == 0 {
		query.Set("site", x.defaultSite(t))
	}
	for name, values := range r.Header {
		for _, value := range values {
			query["header"] = append(query["header"], name+": "+value)
		}
	}
	x.check(t, at, query, live)
	values := r.Header["X-Target"]
	switch {
	case x.sites[i].template() == "{query.to}":
		values = r.URL.Query()["to"]
	case x.sites[i].url != "":
		return
	}
	if byURL && len(values) == 1 {
		query.Set("url", values[0])
		query["header"] = slices.DeleteFunc(query["header"], func(line string) bool { return strings.HasPrefix(line, "X-Target:") })
		x.check(t, at, query, live)
	}
}

// defaultSite returns the place of the site that has all hosts.
func (x *explainedArena) defaultSite(t *testing.T) string {
	t.Helper()
	for _, s := range targetSites() {
		if len(s.Hosts) == 0 {
			return s.Name
		}
	}
	t.Fatal("there is no site for all hosts")
	return ""
}

// check compares an explanation with what became of the request.
func (x *explainedArena) check(t *testing.T, at attack, query url.Values, live attackOutcome) {
	t.Helper()
	got := mustExplain(t, query)
	if got == nil {
		return
	}
	if live.status == http.StatusOK {
		var allowed []string
		for _, a := range got.Found {
			if a.Allowed() {
				allowed = append(allowed, a.Address.Addr().String())
			}
		}
		want := strings.Split(live.Address, "|")
		slices.Sort(allowed)
		slices.Sort(want)
		if !got.WouldSend || !slices.Equal(allowed, want) || got.Target.HostHeader != live.Host || got.Target.URI != live.URI {
			t.Errorf("%s: %.200q: explained as %+v with the target %+v and the addresses %s, want that it is sent, as %+v", at.name, at.text(), got.Outcome, got.Target, allowed, live.Request)
		}
		return
	}
	want := explain.Outcome{Status: live.status, Phase: live.phase, Failure: live.failure, Rule: live.rule, Error: live.error}
	if got.Outcome != want {
		t.Errorf("%s: %.200q: explained as %+v, want %+v", at.name, at.text(), got.Outcome, want)
	}
	// the steps have to say the same
	if got.Rule == "" || got.Phase != "policy" {
		return
	}
	var rules []string
	for _, r := range got.Rules {
		rules = append(rules, r.Rule)
	}
	for _, a := range got.Found {
		rules = append(rules, a.Rule)
	}
	if !slices.Contains(rules, got.Outcome.Rule) {
		t.Errorf("%s: %.200q: refused by the rule %s, but the steps have only %s", at.name, at.text(), got.Outcome.Rule, rules)
	}
}

// adminGet returns the answer of the admin API to a request in this process.
func adminGet(uri string) (string, error) {
	w := httptest.NewRecorder()
	err := adminAPI{newAdminAPI()}.serve(w, httptest.NewRequest(http.MethodGet, uri, nil))
	return w.Body.String(), err
}

// mustExplain is explainAt for a query that has to be answered; nil if it is not.
func mustExplain(t *testing.T, query url.Values) *explain.Report {
	t.Helper()
	report, err := explainAt(t, query)
	if err != nil {
		t.Errorf("explain %s: %v", query, err)
		return nil
	}
	return report
}
