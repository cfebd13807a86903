package caddytarget

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"caddytarget/internal/admin"
	"caddytarget/internal/testlab"
)

// pools returns all that /target/pools shows for a query, page by page.
func (w *world) pools(query string) (all []admin.Usage) {
	w.Helper()
	for after := ""; ; {
		var page admin.Pools
		w.mustAdmin(http.MethodGet, "/target/pools?"+query+after, "", &page)
		if all = append(all, page.Pools...); page.Next == "" {
			return all
		}
		after = "&after=" + page.Next
	}
}

// TestAdminPools checks what is shown of connections: over HTTP/1.1 and HTTP/2, idle, in
// use and being opened, and after a reload that no longer has their pool.
// It is long because all of it is about the same connections.
func TestAdminPools(t *testing.T) {
	w := newAdminWorld(t)
	hold := make(chan struct{})
	var release sync.Once
	defer release.Do(func() { close(hold) })
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			_ = http.NewResponseController(rw).Flush()
			<-hold
		}
	})
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: handler})
	secure := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, CA: w.ca, HTTP2: true, Handler: handler})
	silent := testlab.SilentBackend(t, "", "127.0.0.4")
	for name, addr := range map[string]string{"plain.example": "127.0.0.2", "slow.example": "127.0.0.2", "secure.example": "127.0.0.3", "silent.example": "127.0.0.4"} {
		w.dns.Has(name, addr)
	}
	w.run("metrics /metrics\n" + w.proxy())
	if got := w.pools(""); len(got) != 0 {
		t.Errorf("got %+v before the first request, want nothing", got)
	}
	w.mustGet("/", "http://plain.example:"+plain.Port)
	w.mustGet("/", "https://secure.example:"+secure.Port)
	var slow sync.WaitGroup
	for range 2 {
		slow.Go(func() { w.mustGet("/slow", "http://slow.example:"+plain.Port) })
	}
	slow.Go(func() { w.get("/", "https://silent.example:"+silent.Port) })

	var got map[string]admin.Usage
	testlab.Eventually(t, "the requests are under way", func() bool {
		got = make(map[string]admin.Usage)
		for _, u := range w.pools("limit=1") {
			got[u.Target] = u
		}
		return got["slow.example"].InUse == 2 && got["silent.example"].Dial != nil && got["silent.example"].Dial.Phase == "tls" &&
			got["plain.example"].Idle == 1 && got["secure.example"].Idle == 1
	})
	id := got["plain.example"].Pool
	for target, want := range map[string]admin.Usage{
		"plain.example":  {Address: "127.0.0.2:" + plain.Port, Protocol: "http/1.1", Idle: 1},
		"slow.example":   {Address: "127.0.0.2:" + plain.Port, Protocol: "http/1.1", InUse: 2, Requests: 2},
		"secure.example": {Address: "127.0.0.3:" + secure.Port, Protocol: "h2", ServerName: "secure.example", Idle: 1},
		"silent.example": {Address: "127.0.0.4:" + silent.Port, ServerName: "silent.example", Waiting: 1, Dialling: 1},
	} {
		u := got[target]
		if open := u.Idle+u.InUse > 0; (u.Newest > 0) != open || u.Oldest < u.Newest || (u.Unused > 0) != (u.Idle > 0) || len(id) != 8 {
			t.Errorf("got the times %+v, want those of its connections", u)
		}
		want.Pool, want.Target, want.Oldest, want.Newest, want.Unused, want.Dial = id, target, u.Oldest, u.Newest, u.Unused, u.Dial
		if u != want {
			t.Errorf("got %+v, want %+v", u, want)
		}
	}
	for query, want := range map[string]string{
		"target=Plain.Example.":                            "plain.example",
		"address=127.0.0.2":                                "plain.example slow.example",
		"address=::ffff:127.0.0.3":                         "secure.example",
		"address=127.0.0.2:1":                              "",
		"address=127.0.0.2:" + plain.Port + "&state=idle":  "plain.example",
		"state=dialling,in_use":                            "silent.example slow.example",
		"state=waiting":                                    "silent.example",
		"target=slow.example&address=127.0.0.3&state=idle": "",
	} {
		var names []string
		for _, u := range w.pools(query) {
			names = append(names, u.Target)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: got %q, want %q", query, got, want)
		}
	}
	if got, want := notZero(w.dnsSeries("connections", "dials")), map[string]float64{
		`connections{protocol="http/1.1",state="idle"}`: 1, `connections{protocol="http/2",state="idle"}`: 1,
		`connections{protocol="http/1.1",state="in_use"}`: 2, `dials{phase="tls"}`: 1,
	}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	_, stdout, _ := caddyTarget(t, "pools", "--target", "plain.example", "--address", w.admin)
	if lines := strings.Split(strings.TrimSpace(stdout), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], "plain.example  127.0.0.2:") {
		t.Errorf("got %q, want a header and the target", stdout)
	}

	// a reload with another pool: what is idle is closed, and what is in use is shown
	var page admin.Pools
	w.mustAdmin(http.MethodGet, "/target/pools?limit=1", "", &page)
	silent.CloseConns()
	w.run("metrics /metrics\n" + w.proxy("dial_timeout 9s"))
	testlab.Eventually(t, "two connections of the pool before are left", func() bool {
		all := w.pools("")
		return len(all) == 1 && all[0].Draining && all[0].Target == "slow.example" && all[0].InUse == 2 && all[0].Idle == 0
	})
	release.Do(func() { close(hold) })
	slow.Wait()
	testlab.Eventually(t, "nothing is left of it", func() bool { return len(w.pools("")) == 0 })
	if status, text := w.askAdmin("GET", "/target/pools?after="+page.Next, ""); status != http.StatusBadRequest || !strings.Contains(text, "cursor") {
		t.Errorf("a cursor of a pool that is gone: got status %d: %s, want 400", status, text)
	}
}

// TestConnectionMetrics checks what is counted of requests and dials, and that a reload
// keeps it.
func TestConnectionMetrics(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca})
	w.dns.Has("a.example", "127.0.0.2")
	w.run("metrics /metrics\n" + w.proxy())
	counters := []string{"requests_total", "dial_seconds_count", "tls_handshake_seconds_count", "tls_sessions_resumed_total"}
	check := func(when string, fresh, reused, resumed float64) {
		t.Helper()
		want := map[string]float64{
			`requests_total{connection="new"}`: fresh, `requests_total{connection="reused"}`: reused,
			"dial_seconds_count": fresh, "tls_handshake_seconds_count": fresh, "tls_sessions_resumed_total": resumed,
		}
		if got := w.dnsSeries(counters...); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	check("at the start", 0, 0, 0)
	get := func() { w.mustGet("/", "https://a.example:"+b.Port) }
	get()
	get()
	check("after two requests", 1, 1, 0)
	var purged admin.Purged
	w.mustAdmin("POST", "/target/purge", `{"name": "a.example"}`, &purged)
	if purged.Connections != 1 || purged.Ejections != 0 {
		t.Errorf("got %+v, want one closed connection", purged)
	}
	get()
	check("after a purge", 2, 1, 1)
	w.run("metrics /metrics\n" + w.proxy("dial_timeout 9s"))
	check("after a reload", 2, 1, 1)
	get()
	check("with another pool", 3, 1, 1)
}

// TestAdminListsBadInput checks what is said of requests to /target/pools and
// /target/addresses that are refused, and that none of their text can control a terminal.
func TestAdminListsBadInput(t *testing.T) {
	w := newAdminWorld(t)
	w.run(w.proxy())
	const escapes = "%1b%5b2J%c2%9b31m%7f%e2%80%ae%00%ff"
	for _, tc := range []struct{ query, want string }{
		{"taget=a.example", `unknown parameter "taget": expecting target, address, state, after, limit`},
		{"target=", `target "": `},
		{"target=a%20b", `target "a b": `},
		{"target=" + escapes, "target "},
		{"address=", `address "" is neither an IP address nor one with a port`},
		{"address=10.0.0.0/8", "is neither"},
		{"address=10.0.0.1:x", "is neither"},
		{"address=10.0.0.1:0", "is neither"},
		{"address=fe80::1%25eth0", "is neither"},
		{"address=[fe80::1%25eth0]:80", "is neither"},
		{"address=" + escapes, "is neither"},
		{"state=rotten", `unknown state "rotten": expecting `},
		{"state=", `unknown state ""`},
		{"state=idle,", `unknown state "`},
		{"state=" + escapes, "unknown state"},
		{"limit=0", `limit "0" is not a number from 1 to 1000`},
		{"limit=1001", "is not a number from 1 to 1000"},
		{"limit=x", "is not a number from 1 to 1000"},
		{"after=x", "after: the cursor is not one of this run"},
		{"after=" + escapes, "after: the cursor"},
		{"after=AAAAAAAAAAEAAAAAAAAAAQ", "after: the cursor"},
		{"after=AAAAAAAAAAEAAAAAAAAAAQ%3d%3d", "after: the cursor"},
		{"limit=1&limit=2", "parameter limit already specified"},
	} {
		for _, path := range []string{"/target/pools?", "/target/addresses?"} {
			status, text := w.askAdmin("GET", path+tc.query, "")
			var got struct{ Error string }
			if err := json.Unmarshal([]byte(text), &got); err != nil || status != 400 || !strings.Contains(got.Error, tc.want) {
				t.Errorf("%s%s: got %d: %s, want 400: %s", path, tc.query, status, text, tc.want)
			}
			if status, _ := w.askAdmin("POST", path, ""); status != http.StatusMethodNotAllowed {
				t.Errorf("POST %s: got status %d, want 405", path, status)
			}
		}
	}
	for _, args := range []string{"pools --state rotten", "addresses --state idle", "pools --ip x", "addresses --target a..b", "pools --limit 0", "addresses --after x", "pools x"} {
		status, stdout, stderr := caddyTarget(t, append(strings.Fields(args), "--address", w.admin)...)
		if status != 1 || stdout != "" || stderr == "" {
			t.Errorf("%s: got status %d, %q, %q, want 1 and an error", args, status, stdout, stderr)
		}
	}
	for _, command := range []string{"pools", "addresses"} {
		if status, _, _ := caddyTarget(t, command, "--address", "127.0.0.1:"+testlab.FreePort(t)); status != 2 {
			t.Errorf("%s without a server: got status %d, want 2", command, status)
		}
	}
}

// TestAdminManyPools pages through many keys while requests come.
func TestAdminManyPools(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.run(w.proxy())
	const many = 300
	want := make(map[string]bool)
	for i := range many {
		name := "n" + strconv.Itoa(i) + ".example"
		w.dns.Has(name, "127.0.0.2")
		w.mustGet("/", "http://"+name+":"+b.Port)
		want[name] = true
	}
	w.dns.Has("other.example", "127.0.0.2")
	for _, limit := range []int{7, 100, 1000} {
		got := make(map[string]bool)
		for _, u := range w.pools(fmt.Sprint("limit=", limit)) {
			if want[u.Target] && got[u.Target] {
				t.Fatalf("limit %d: got %s twice", limit, u.Target)
			}
			got[u.Target] = true
		}
		delete(got, "other.example")
		if len(got) != many {
			t.Errorf("limit %d: got %d targets, want %d", limit, len(got), many)
		}
		w.mustGet("/", "http://other.example:"+b.Port)
	}
}
