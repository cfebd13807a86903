package caddytarget

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"caddytarget/internal/admin"
	"caddytarget/internal/pool"
	"caddytarget/internal/testlab"
)

// addresses returns what /target/addresses shows for a query.
func (w *world) addresses(query string) (list admin.Addresses) {
	w.Helper()
	w.mustAdmin(http.MethodGet, "/target/addresses?"+query, "", &list)
	return list
}

// TestAdminAddresses follows the ejection of addresses: in the list, in the log, in metrics,
// and to its end, by itself and by a purge.
// It is long because all of it is about the same addresses.
func TestAdminAddresses(t *testing.T) {
	w := newAdminWorld(t)
	w.dns.Has("refused.example", "127.0.0.2", "127.0.0.3")
	w.dns.Has("reset.example", "127.0.0.4", "127.0.0.3")
	w.dns.Has("status.example", "127.0.0.3")
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Host, "status") && r.URL.Path == "/503" {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	})})
	testlab.ResettingBackend(t, b.Port, "127.0.0.4")
	lines := w.logTo("INFO", "http.reverse_proxy.transport.target", "address ejected", "ejection ended")
	site := "metrics /metrics\n" + w.proxy("fail_duration 1h", "unhealthy_status 503")
	w.run(site)
	if list := w.addresses(""); len(list.Addresses)+len(list.Families) != 0 {
		t.Errorf("got %+v before the first request, want nothing", list)
	}
	each := func(name string) {
		testlab.Eventually(t, name+" meets its bad address", func() bool {
			w.mustGet("/", "http://"+name+".example:"+b.Port)
			return len(w.addresses("target="+name+".example").Addresses)+len(w.addresses("address=127.0.0.2").Addresses) > 0
		})
	}
	each("refused")
	each("reset")
	testlab.Eventually(t, "reset meets its bad address", func() bool {
		w.mustGet("/", "http://reset.example:"+b.Port)
		return len(w.addresses("target=reset.example").Addresses) > 0
	})
	if res := w.get("/503", "http://status.example:"+b.Port); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %v, want the backend's 503", res)
	}
	list := w.addresses("state=ejected")
	slices.SortFunc(list.Addresses, func(a, b admin.Address) int { return strings.Compare(a.Address, b.Address) })
	want := []admin.Address{
		{Address: "127.0.0.2:" + b.Port, Phase: "connect", Failure: "connection_refused"},
		{Address: "127.0.0.3:" + b.Port, Target: "status.example", Limit: "unhealthy_status [503]", Phase: "response", Failure: "unhealthy_status", Error: "response: status 503"},
		{Address: "127.0.0.4:" + b.Port, Target: "reset.example", Phase: "response", Failure: "connection_terminated"},
	}
	if len(list.Addresses) != len(want) {
		t.Fatalf("got %+v, want %d addresses", list.Addresses, len(want))
	}
	for i, a := range list.Addresses {
		if a.Left <= 0 || a.Left > 3600 || a.Since <= 0 || a.Last <= 0 || a.Error == "" {
			t.Errorf("got %+v, want times and an error", a)
		}
		w := want[i]
		w.State, w.Failures, w.Left, w.Since, w.Last = "ejected", 1, a.Left, a.Since, a.Last
		if w.Error == "" {
			w.Error = a.Error
		}
		if a != w {
			t.Errorf("got %+v, want %+v", a, w)
		}
	}
	for query, n := range map[string]int{
		"state=healthy,needs_probe,needs_trial": 0, "target=reset.example": 1, "target=other.example": 0,
		"address=127.0.0.2": 1, "address=127.0.0.2:1": 0, "address=127.0.0.2:" + b.Port + "&state=ejected": 1,
	} {
		if got := w.addresses(query); len(got.Addresses) != n {
			t.Errorf("%s: got %+v, want %d addresses", query, got.Addresses, n)
		}
	}
	var paged []string
	for after := ""; ; {
		page := w.addresses("limit=1" + after)
		for _, a := range page.Addresses {
			paged = append(paged, a.Address)
		}
		if after = "&after=" + page.Next; page.Next == "" {
			break
		}
	}
	if slices.Sort(paged); len(paged) != 3 || len(slices.Compact(paged)) != 3 {
		t.Errorf("got %v page by page, want three addresses", paged)
	}
	_, stdout, _ := caddyTarget(t, "addresses", "--ip", "127.0.0.2", "--address", w.admin)
	if rows := strings.Split(strings.TrimSpace(stdout), "\n"); len(rows) != 2 || !strings.HasPrefix(rows[1], "127.0.0.2:"+b.Port+"  (any)   ejected  ") || !strings.Contains(rows[1], "connection_refused") {
		t.Errorf("got %s, want a header and the address", stdout)
	}

	ejected := func(when string, total, now float64) {
		t.Helper()
		want := map[string]float64{
			`ejections_total{error="connection_refused",phase="connect"}`:     1,
			`ejections_total{error="connection_terminated",phase="response"}`: 1,
			`ejections_total{error="unhealthy_status",phase="response"}`:      1,
			`ejected_addresses{state="ejected"}`:                              now,
		}
		if got := notZero(w.dnsSeries("eject")); fmt.Sprint(got) != fmt.Sprint(notZero(want)) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	ejected("at first", 3, 3)
	w.run(site + "\n# a reload")
	ejected("after a reload", 3, 3)

	// the ends: by a purge of a name, which has the address that is ejected for all, by one
	// of an address, and because the address works
	var purged admin.Purged
	w.mustAdmin("POST", "/target/purge", `{"name": "refused.example"}`, &purged)
	if purged.Ejections != 1 || purged.Names != 1 {
		t.Errorf("got %+v, want one name and its ejection", purged)
	}
	w.mustAdmin("POST", "/target/purge", `{"address": "127.0.0.4"}`, &purged)
	if purged.Ejections != 1 {
		t.Errorf("got %+v, want the ejection of the address", purged)
	}
	ejected("after purges", 3, 1)
	w.mustGet("/", "http://status.example:"+b.Port) // all of its addresses are ejected
	ejected("in the end", 3, 0)
	var log []string
	for _, l := range lines() {
		if _, ok := l["for"].(float64); ok != (l["msg"] == "address ejected") {
			t.Errorf("got %v, want for how long, of one that begins", l)
		}
		log = append(log, strings.Join(strings.Fields(fmt.Sprint(
			l["level"], " ", l["msg"], " ", l["address"], " ", l["name"], " ", l["phase"], " ", l["failure"], " ", l["end"],
		)), " "))
	}
	slices.Sort(log)
	wantLog := []string{
		"info address ejected 127.0.0.2:" + b.Port + " <nil> connect connection_refused <nil>",
		"info address ejected 127.0.0.3:" + b.Port + " status.example response unhealthy_status <nil>",
		"info address ejected 127.0.0.4:" + b.Port + " reset.example response connection_terminated <nil>",
		"info ejection ended 127.0.0.2:" + b.Port + " <nil> <nil> <nil> lifted",
		"info ejection ended 127.0.0.3:" + b.Port + " status.example <nil> <nil> worked",
		"info ejection ended 127.0.0.4:" + b.Port + " reset.example <nil> <nil> lifted",
	}
	if !slices.Equal(log, wantLog) {
		t.Errorf("got the lines\n%s\nwant\n%s", strings.Join(log, "\n"), strings.Join(wantLog, "\n"))
	}
}

// TestEjectionLogFlood: a flood of ejections is counted, and not all of it is logged.
func TestEjectionLogFlood(t *testing.T) {
	w := newAdminWorld(t)
	lines := w.logTo("INFO", "http.reverse_proxy.transport.target", "address ejected", "ejection ended")
	w.run("metrics /metrics\n" + w.proxy("max_fails 1"))
	const flood = 5000
	for s := range usedShared() {
		for i := range flood {
			addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
			s.health.Failed("", addr, false, &pool.Error{Phase: pool.Connect, Err: http.ErrHandlerTimeout})
		}
		for i := range 4 {
			s.health.Reached(netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), false)
		}
	}
	const series = `ejections_total{error="connection_terminated",phase="connect"}`
	if got := w.dnsSeries("ejections_total"); got[series] != flood || got[`ejections_total{error="destination_ip_unroutable",phase="connect"}`] != 1 {
		t.Errorf("got %v, want %d ejections of addresses and one of a family", notZero(got), flood)
	}
	begun := lines()
	if len(begun) < 101 || len(begun) > flood/2 {
		t.Errorf("got %d lines, want a hundred or a few more", len(begun))
	}
	families := 0
	for _, l := range begun {
		if l["family"] == "ipv4" && l["failure"] == "destination_ip_unroutable" {
			families++
		}
	}
	if list := w.addresses(""); families != 1 || len(list.Families) != 1 || list.Families[0].Family != "ipv4" || list.Families[0].State != "ejected" || list.Families[0].Networks != 3 {
		t.Errorf("got %d lines of a family and %+v, want one, and IPv4", families, list.Families)
	}
	if list := w.addresses("state=healthy"); len(list.Families) != 0 {
		t.Errorf("got %+v of those that are healthy, want none", list.Families)
	}
	_, stdout, stderr := caddyTarget(t, "addresses", "--limit", "1", "--address", w.admin)
	if !strings.Contains(stdout, "(all ipv4)") || !strings.Contains(stderr, "There are more") {
		t.Errorf("got %s, %s, want the family and that there are more", stdout, stderr)
	}
	_, stdout, _ = caddyTarget(t, "addresses", "--all", "--limit", "1000", "--address", w.admin)
	if pages, families := strings.Count(stdout, "ADDRESS "), strings.Count(stdout, "(all ipv4)"); pages < 5 || families != 1 {
		t.Errorf("got the family %d times on %d pages, want once on 5 or more", families, pages)
	}
	var purged admin.Purged
	w.mustAdmin("POST", "/target/purge", `{"suffix": "."}`, &purged)
	if purged.Ejections != flood+1 {
		t.Errorf("got %+v, want all ejections", purged)
	}
	if list := w.addresses(""); len(list.Addresses)+len(list.Families) != 0 {
		t.Errorf("got %+v after a purge of all, want nothing", list)
	}
	if all := lines(); len(all) == len(begun) || len(all) > len(begun)+flood/2 {
		t.Errorf("got %d lines of ends, want a hundred or a few more", len(all)-len(begun))
	}
}

// TestEjectionLogger: the lines go to the log of the configuration that runs, also if
// others were tried meanwhile that could not start, and the policies of those do not count.
func TestEjectionLogger(t *testing.T) {
	w := newAdminWorld(t)
	used := testlab.Listen(t, "", "127.0.0.1")[0]
	defer func() { _ = used.Close() }()
	_, port, _ := net.SplitHostPort(used.Addr().String())
	newLog := func() func() []map[string]any {
		return w.logTo("INFO", "http.reverse_proxy.transport.target", "address ejected")
	}
	lines := newLog()
	refused := func(times int) {
		target := "http://127.0.0.2:" + testlab.FreePort(t)
		for range times {
			w.get("/", target)
		}
	}
	check := func(when string, want int) {
		t.Helper()
		if got := lines(); len(got) != want {
			t.Errorf("%s: got %v, want %d lines", when, got, want)
		}
	}
	w.run(w.proxy("fail_duration 1h", "max_fails 3"))
	running := w.log
	newLog()
	for range 5 { // apps start in any order
		if err := w.tryRun(w.proxy("max_fails 1") + "\n---\nhttp://127.0.0.1:" + port + " {\nbind 127.0.0.1\n}"); err == nil {
			t.Fatal("got no error of a site on a port that is in use")
		}
	}
	if err := w.tryRun(w.proxy("max_fails 1", "tls_client_auth /nonexistent /nonexistent")); err == nil {
		t.Fatal("got no error of a certificate that is not there")
	}
	w.log = running
	refused(1)
	check("one failure of three", 0)
	refused(3)
	check("three failures", 1)
	w.run(w.proxy("fail_duration 1h"))
	refused(1)
	check("after a reload", 2)
	w.run(w.proxy("fail_duration 0"))
	refused(1)
	check("without ejections", 2)
}

// TestCommandHostileLists checks that the commands show nothing of what a server sends in
// a form that could control a terminal; caddyTarget looks at it.
func TestCommandHostileLists(t *testing.T) {
	text, err := json.Marshal("a\x1b[2J\u009b31m\x7f\u202eb")
	if err != nil {
		t.Fatal(err)
	}
	body := strings.ReplaceAll(`{"pools": [{"target": EVIL, "address": EVIL, "protocol": EVIL, "server_name": EVIL, "pool": EVIL, "dialling": 1, "dial": {"phase": EVIL}}],
		"families": [{"family": EVIL, "state": EVIL}], "addresses": [{"address": EVIL, "target": EVIL, "limit": EVIL, "state": EVIL, "failure": EVIL, "error": EVIL}],
		"next": EVIL}`, "EVIL", string(text))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(body)) }))
	defer server.Close()
	for _, command := range []string{"pools", "addresses", "pools -o json", "addresses -o json"} {
		status, stdout, stderr := caddyTarget(t, append(strings.Fields(command), "--address", strings.TrimPrefix(server.URL, "http://"))...)
		if status != 0 || !strings.Contains(stdout, "2J") {
			t.Errorf("%s: got status %d, %q, %q, want 0 and the text", command, status, stdout, stderr)
		}
	}
}
