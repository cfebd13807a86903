package caddytarget

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failure"
	"caddytarget/internal/gate"
	"caddytarget/internal/guard"
	"caddytarget/internal/localnet"
	"caddytarget/internal/outgoing"
	"caddytarget/internal/testlab"
)

// newTestPolicy returns the policy of a server that has no site.
func newTestPolicy(t testing.TB, g Guard) *exchange.Policy {
	t.Helper()
	s := newShared()
	app := &App{listeners: newListeners(caddy.Context{}, s), shared: s}
	p, err := app.policy(&g, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// refusals returns the counters of refusals that are not 0, of a gateway that
// has its metrics at /metrics.
func (w *world) refusals() map[string]int {
	w.Helper()
	counters := make(map[string]int)
	for line := range strings.Lines(w.mustGet("/metrics", "").body) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name, ok := strings.CutPrefix(name, "caddy_target_"); ok && value != "0" && (strings.HasPrefix(name, "refused") || strings.HasPrefix(name, "left_out")) {
			counters[name], _ = strconv.Atoi(value)
		}
	}
	return counters
}

// checkRefusal checks what has to come of one refusal: one more on one counter,
// if there is a rule, and one line in the log.
func (w *world) checkRefusal(name string, lines func() []map[string]any, counter string, want map[string]any, act func()) {
	w.Helper()
	counters, seen := w.refusals(), len(lines())
	act()
	if counter != "" {
		counters[counter]++
	}
	if got := w.refusals(); !maps.Equal(got, counters) {
		w.Errorf("%s: the counters are %v, want %v", name, got, counters)
	}
	testlab.Eventually(w, name+": a line in the log", func() bool { return len(lines()) > seen })
	got := lines()[seen:]
	if len(got) != 1 {
		w.Errorf("%s: logged %v, want one line", name, got)
	}
	for key, value := range want {
		if got[0][key] != value {
			w.Errorf("%s: logged %v, want %s to be %v", name, got[0], key, value)
		}
	}
	if text := fmt.Sprint(got[0]); strings.Contains(text, "token") {
		w.Errorf("%s: a secret in the log: %s", name, text)
	}
}

func counterOf(what, mode, rule string) string {
	return fmt.Sprintf(`%s_total{mode=%q,rule=%q}`, what, mode, rule)
}

// TestRefusals checks that every refusal has a status, a reason, a counter by
// its rule, and a line in the log.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("half.example", "10.0.0.1", "127.0.0.2")
	w.dns.Has("mixed.example", "127.0.0.2", "169.254.169.254")
	w.dns.Has("none.example", "10.0.0.1", "10.0.0.2")
	lines := w.logTo("DEBUG", "http.handlers.target", "target refused", "target not resolved", "address left out")
	w.run(`metrics /metrics
	target_proxy {header.X-Target} {
		allow_ips 127.0.0.2
		deny_ips 127.0.0.66
		deny *.denied.example
		ports 80 ` + b.Port + `
	}
	handle_errors {
		respond "{err.status_code} {http.target.error}"
	}`)
	for _, test := range []struct {
		target string
		status int
		reason string
		rule   string // "": not refused
		log    map[string]any
	}{
		{"", 400, "no target", failure.RuleNoTarget, nil},
		{"http://a b/?token", 400, "space", failure.RuleMalformed, nil},
		{"http://0x7f.1/", 400, "ends in a number", failure.RuleMalformed, nil},
		{"ftp://a.example/", 403, `scheme 'ftp' is refused`, guard.RuleSchemes, map[string]any{"scheme": "ftp", "name": "a.example"}},
		{"h2c://a.example/", 403, `scheme 'h2c' is refused`, guard.RuleSchemes, nil},
		{"http://sub.denied.example/token?token", 403, "in the deny list", guard.RuleDeny, map[string]any{"scheme": "http", "name": "sub.denied.example", "port": 80.0}},
		{"http://metadata.google.internal/", 403, "a metadata service", guard.RuleMetadata, map[string]any{"name": "metadata.google.internal"}},
		{"http://a.example:81/", 403, "port 81 is refused", guard.RulePorts, map[string]any{"port": 81.0}},
		{"http://[::1]/", 403, "a loopback address", guard.RuleLoopback, map[string]any{"name": "::1", "address": "::1"}},
		{"http://127.0.0.66/", 403, "in the list of denied addresses", guard.RuleDenyIPs, nil},
		{"http://[64:ff9b::a00:1]/", 403, "it embeds 10.0.0.1, which is a private address", guard.RulePrivate, nil},
		{"http://none.example/", 403, "none.example: address 10.0.0.1 is refused: it is a private address", guard.RulePrivate, map[string]any{"name": "none.example", "address": "10.0.0.1"}},
		{"http://nobody.example/", 502, "nobody.example", "", map[string]any{"msg": "target not resolved", "name": "nobody.example", "rule": nil}},
	} {
		want := map[string]any{"level": "info", "msg": "target refused", "status": float64(test.status)}
		counter := ""
		if test.rule != "" {
			counter, want["rule"] = counterOf("refused", "enforce", test.rule), test.rule
		}
		maps.Copy(want, test.log)
		w.checkRefusal(cmp.Or(test.target, "none"), lines, counter, want, func() {
			res := w.get("/", test.target)
			if res.StatusCode != test.status || !strings.Contains(res.body, test.reason) {
				t.Errorf("%s: %v, want %d %s", test.target, res, test.status, test.reason)
			}
		})
	}
	for name, rule := range map[string]string{"half.example": guard.RulePrivate, "mixed.example": guard.RuleMetadata} {
		want := map[string]any{"level": "debug", "msg": "address left out", "name": name, "rule": rule}
		w.checkRefusal(name, lines, counterOf("left_out", "enforce", rule), want, func() {
			w.mustGet("/", "http://"+name+":"+b.Port)
		})
	}
	want := map[string]any{"msg": "target refused", "rule": failure.RuleLoop, "status": 508.0}
	w.checkRefusal("loop", lines, counterOf("refused", "enforce", failure.RuleLoop), want, func() {
		if res := w.get("/", "http://half.example/", header("CDN-Loop", "other, "+outgoing.LoopID)); res.StatusCode != 508 {
			t.Errorf("got %v, want status 508", res)
		}
	})
}

// TestLimitsAreRefusals checks the same of the limits.
func TestLimitsAreRefusals(t *testing.T) {
	for _, test := range []struct {
		rule, site, resolver string
		name                 func(i int) string
		reason               string
	}{
		{failure.RuleMaxRequests, "max_requests 2", "", func(int) string { return "slow.example" }, "slow.example: too many requests in flight: 2"},
		{failure.RuleNewNames, "", "new_names 1", func(i int) string { return fmt.Sprintf("slow.example%d", i) }, "too many new names"},
		{failure.RuleMaxLookups, "", "max_lookups 1", func(i int) string { return fmt.Sprintf("slow.example%d", i) }, "too many lookups in flight"},
	} {
		t.Run(test.rule, func(t *testing.T) {
			w := newWorld(t)
			released := make(chan struct{})
			lines := w.logTo("DEBUG", "http.handlers.target", "target refused")
			w.resolver = "timeout 1m\ndeadline 1m\n" + test.resolver
			w.run("metrics /metrics\n" + w.proxy(test.site))
			var wg sync.WaitGroup
			defer wg.Wait()
			defer close(released)
			// requests that wait, until there are too many
			i, statuses := 0, make(chan int, 100)
			testlab.Eventually(t, "the limit is reached", func() bool {
				name := test.name(i)
				w.dns.Set(name, testlab.Reply{Hold: released})
				i++
				wg.Go(func() {
					if res, err := w.try("GET", "/", "http://"+name, nil); err == nil {
						statuses <- res.StatusCode
					}
				})
				select {
				case status := <-statuses:
					return status == 503
				case <-time.After(100 * time.Millisecond):
					return false
				}
			})
			want := map[string]any{"level": "info", "rule": test.rule, "status": 503.0}
			w.checkRefusal(test.rule, lines, counterOf("refused", "enforce", test.rule), want, func() {
				res := w.get("/", "http://"+test.name(i))
				if res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" || !strings.Contains(res.body, test.reason) {
					t.Errorf("%v, want %s", res, test.reason)
				}
			})
		})
	}
}

// TestReport checks that rules on trial refuse nothing, but count it and warn.
func TestReport(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2", "127.0.0.3"}})
	w.dns.Has("two.example", "127.0.0.2", "127.0.0.3")
	w.dns.Has("sub.denied.example", "127.0.0.2")
	w.dns.Has("ok.example", "127.0.0.2")
	lines := w.logTo("WARN", "http.handlers.target", "target would be refused", "address would be left out")
	site := `metrics /metrics
	handle /static* {
		target {header.X-Target} {
			guard report
		}
		reverse_proxy 127.0.0.3:` + b.Port + ` {
			transport target
		}
	}
	target_proxy {header.X-Target} {
		guard %s
		allow_ips 127.0.0.2
		deny *.denied.example
		ports ` + b.Port + `
	}
	handle_errors {
		respond "{err.status_code} {http.target.error}"
	}`
	w.run(fmt.Sprintf(site, "report"))
	for _, test := range []struct {
		path, target string
		counter      string
		log          map[string]any
	}{
		{"/", "http://127.0.0.3:" + b.Port, counterOf("refused", "report", guard.RuleLoopback),
			map[string]any{"msg": "target would be refused", "name": "127.0.0.3", "address": "127.0.0.3", "host": "127.0.0.1:" + w.port}},
		{"/", "http://sub.denied.example:" + b.Port, counterOf("refused", "report", guard.RuleDeny),
			map[string]any{"msg": "target would be refused", "name": "sub.denied.example", "rule": "deny"}},
		{"/", "http://two.example:" + b.Port, counterOf("left_out", "report", guard.RuleLoopback),
			map[string]any{"msg": "address would be left out", "name": "two.example", "address": "127.0.0.3", "rule": "loopback"}},
		{"/static", "http://8.8.8.8:" + b.Port, counterOf("refused", "report", guard.RuleLoopback),
			map[string]any{"msg": "target would be refused", "name": "8.8.8.8", "address": "127.0.0.3"}},
	} {
		test.log["level"] = "warn"
		w.checkRefusal(test.target, lines, test.counter, test.log, func() { w.mustGet(test.path, test.target) })
	}
	counters := w.refusals()
	w.mustGet("/", "http://ok.example:"+b.Port)
	if got := w.refusals(); !maps.Equal(got, counters) || len(lines()) != 4 {
		t.Errorf("what is allowed counts: %v, %v", got, lines())
	}
	for target, status := range map[string]int{"http://0x7f.1": 400, "": 400, "gopher://ok.example": 403} {
		if res := w.get("/", target); res.StatusCode != status {
			t.Errorf("%s: %v, which no mode lets pass", target, res)
		}
	}

	w.run(fmt.Sprintf(site, "enforce"))
	if got := w.refusals(); got[counterOf("refused", "report", guard.RuleLoopback)] != 2 {
		t.Errorf("a reload has changed the counters: %v", got)
	}
	for _, target := range []string{"http://127.0.0.3:", "http://sub.denied.example:"} {
		if res := w.get("/", target+b.Port); res.StatusCode != 403 {
			t.Errorf("%s: got %v, want status 403", target, res)
		}
	}
}

// TestNamedRefusals checks that a source with a name of its own, which has no
// status to give, counts and logs what it refuses, too.
func TestNamedRefusals(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Set("_http._tcp.a.example", testlab.Reply{TTL: 60, SRV: []string{"1 1 " + b.Port + " a.example."}})
	site := func(name, mode string) string {
		return `metrics /metrics
		reverse_proxy /named {
			dynamic target ` + name + ` {
				guard ` + mode + `
				deny denied.example
			}
			transport target
		}
		handle_errors {
			respond "{err.status_code} {http.target.error}"
		}`
	}
	for _, name := range []string{"{header.X-Target} " + b.Port, "_http._tcp.{header.X-Target}"} {
		lines := w.logTo("DEBUG", "http.reverse_proxy.upstreams.target", "target refused", "target would be refused", "no upstreams")
		w.run(site(name, "enforce"))
		want := map[string]any{"level": "debug", "rule": "loopback"}
		w.checkRefusal(name, lines, counterOf("refused", "enforce", guard.RuleLoopback), want, func() {
			if res := w.get("/named", "a.example"); res.StatusCode != 503 || !strings.Contains(res.body, "127.0.0.2 is refused: it is a loopback address") {
				t.Errorf("got %v, want status 503 and the reason", res)
			}
		})
		malformed := map[string]any{"level": "debug", "rule": "malformed"}
		w.checkRefusal(name, lines, counterOf("refused", "enforce", guard.RuleMalformed), malformed, func() {
			if res := w.get("/named", "a..example"); res.StatusCode != 503 || !strings.Contains(res.body, "empty label") {
				t.Errorf("got %v, want status 503 and the reason", res)
			}
		})
		lines = w.logTo("DEBUG", "http.reverse_proxy.upstreams.target", "target refused", "target would be refused", "no upstreams")
		w.run(site(name, "report"))
		want["level"] = "warn"
		w.checkRefusal(name, lines, counterOf("refused", "report", guard.RuleLoopback), want, func() { w.mustGet("/named", "a.example") })
	}
}

// TestListeners checks the owners of addresses, and that listeners of sites may be opened
// and others not.
func TestListeners(t *testing.T) {
	free := func() uint16 {
		port, _ := strconv.Atoi(testlab.FreePort(t))
		return uint16(port)
	}
	account := &localnet.Account{Usage: caddy.ListenerUsage}
	site := func(host string) uint16 {
		port := free()
		account.AddSite(listenAt(t, host, port))
		return port
	}
	any4, anyAddr, one, localhost := site("0.0.0.0"), site(""), site("127.0.0.1"), site("localhost")
	other := free()
	listenAt(t, "127.0.0.1", other)
	beside, over := site("127.0.0.2"), site("")
	listenAt(t, "127.0.0.1", beside)
	listenAt(t, "localhost", over)
	unused := free()

	const own, foreign = "192.88.98.1", "192.88.98.2"
	own6 := "2600::1"
	l := localnet.NewListeners(localnet.Config{
		Addresses: func() ([]netip.Prefix, error) {
			return []netip.Prefix{netip.MustParsePrefix(own + "/32"), netip.MustParsePrefix(own6 + "/128")}, nil
		},
		Sites:   new(localnet.Sites),
		Account: account.Owner,
	})

	for _, test := range []struct {
		addr  string
		port  uint16
		owner localnet.Owner
	}{
		{own, any4, localnet.OwnSite},
		{own, anyAddr, localnet.OwnSite},
		{own6, anyAddr, localnet.OwnSite},
		{own6 + "%eth0", anyAddr, localnet.OwnSite},
		{own6, any4, localnet.OwnSite}, // 0.0.0.0 with the network tcp is for both families
		{"127.0.0.1", any4, localnet.OwnSite},
		{"127.8.9.10", anyAddr, localnet.OwnSite},
		{"::1", anyAddr, localnet.OwnSite},
		{"::ffff:" + own, anyAddr, localnet.OwnSite},
		{"64:ff9b::c058:6201", anyAddr, localnet.OwnSite},          // NAT64 of own
		{"2002:c058:6201::1", anyAddr, localnet.OwnSite},           // 6to4
		{"2600:1:2:3:0:5efe:c058:6201", anyAddr, localnet.OwnSite}, // ISATAP
		{"2600:1:2:3:0:5efe:c058:6202", anyAddr, localnet.NotOwn},
		{"127.0.0.1", one, localnet.OwnSite},
		{"127.0.0.2", one, localnet.NotOwn},
		{own, one, localnet.NotOwn},
		{"127.0.0.1", localhost, localnet.OwnSite},
		{own, localhost, localnet.NotOwn},
		{"127.0.0.1", other, localnet.OwnOther},
		{"0.0.0.0", other, localnet.OwnOther},
		{"::", anyAddr, localnet.OwnSite},
		{"127.0.0.2", beside, localnet.OwnSite},
		{"127.0.0.1", beside, localnet.OwnOther},
		{"0.0.0.0", beside, localnet.OwnOther},
		{own, over, localnet.OwnSite},
		{"127.0.0.1", over, localnet.OwnOther},
		{"::1", over, localnet.OwnOther},
		{"0.0.0.0", unused, localnet.NotOwn},
		{own, unused, localnet.NotOwn},
		{foreign, anyAddr, localnet.NotOwn},
		{"8.8.8.8", any4, localnet.NotOwn},
	} {
		a := netip.AddrPortFrom(netip.MustParseAddr(test.addr), test.port)
		for range 2 { // asked for the first time, and known
			if o, _ := l.Find(a); o != test.owner {
				t.Errorf("%s: owner %d, want %d", a, o, test.owner)
			}
			if o, ok := l.Known(a); !ok || o != test.owner {
				t.Errorf("%s: known owner %d, %t, want %d", a, o, ok, test.owner)
			}
		}
		checkRules(t, l, a, test.owner)
	}
}

// checkRules checks that an address is refused by the rule that is right for its owner.
func checkRules(t *testing.T, l *localnet.Listeners, a netip.AddrPort, owner localnet.Owner) {
	t.Helper()
	loopback := a.Addr().IsLoopback() || a.Addr().IsUnspecified()
	for name, config := range map[string]Guard{
		"default": {},
		"range":   {AllowIPs: []string{"127.0.0.0/8", "::1", "192.88.98.1", "2600::1", "64:ff9b::/96", "2002::/16", "2600::/16"}},
	} {
		rule := "" // by which it is refused
		switch {
		case owner == localnet.OwnOther:
			rule = guard.RuleAdmin
		case a.Addr().Zone() != "":
			rule = guard.RuleZone
		case a.Addr().IsUnspecified():
			rule = guard.RuleUnspecified
		case name == "default" && loopback:
			rule = guard.RuleLoopback
		case name == "default" && owner == localnet.OwnSite:
			rule = guard.RuleOwnListener
		}
		p := newTestPolicy(t, config)
		p.Listeners = l
		if err := p.Check(a); (err == nil) != (rule == "") || err != nil && err.Rule != rule {
			t.Errorf("%s with %s: %v, want %s", a, name, err, rule)
		}
		if got := p.Allows(a); got != (rule == "") {
			t.Errorf("%s with %s: allowed: got %t, want %t", a, name, got, rule == "")
		}
		p.Report = true
		if err := p.Permit("", a); (err == nil) != (owner != localnet.OwnOther) {
			t.Errorf("%s with %s, only reported: got %v, want an error: %t", a, name, err, owner == localnet.OwnOther)
		}
	}
}

// listenAt opens a listener as Caddy does, until the test ends.
func listenAt(t *testing.T, host string, port uint16) (network, hostport string) {
	t.Helper()
	na := caddy.NetworkAddress{Network: "tcp", Host: host, StartPort: uint(port), EndPort: uint(port)}
	l, err := na.Listen(t.Context(), 0, net.ListenConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.(net.Listener).Close() })
	return na.Network, na.JoinHostPort(0)
}

// TestReportedAddresses checks which addresses of an answer remain when refusals
// are only reported, in whatever order they come.
func TestReportedAddresses(t *testing.T) {
	port, _ := strconv.Atoi(testlab.FreePort(t))
	na := caddy.NetworkAddress{Network: "tcp", Host: "127.0.0.1", StartPort: uint(port), EndPort: uint(port)}
	admin, err := na.Listen(t.Context(), 0, net.ListenConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.(net.Listener).Close()
	p := newTestPolicy(t, Guard{Mode: gate.ModeReport})
	for _, test := range [][2]string{
		{"127.0.0.1", ""},
		{"127.0.0.1 10.0.0.1", "10.0.0.1"},
		{"10.0.0.1 127.0.0.1", "10.0.0.1"},
		{"127.0.0.1 8.8.8.8", "8.8.8.8"},
		{"127.0.0.1 10.0.0.1 8.8.8.8", "10.0.0.1 8.8.8.8"},
		{"10.0.0.1 10.0.0.2", "10.0.0.1 10.0.0.2"},
	} {
		c := &exchange.Call{Policy: p}
		c.Host, c.Port = "a.example", uint16(port)
		var addrs []netip.Addr
		for text := range strings.FieldsSeq(test[0]) {
			addrs = append(addrs, netip.MustParseAddr(text))
		}
		kept, preferred, err := p.Filter(c.Host, c.Port, addrs, len(addrs), c)
		if got := strings.Trim(fmt.Sprint(kept), "[]"); got != test[1] || (err == nil) != (got != "") || preferred != len(kept) {
			t.Errorf("%s: got %s of which %d are preferred, %v, want %s", test[0], got, preferred, err, test[1])
		}
	}

	// neither a name nor a socket has been checked
	if err := p.Permit("", netip.AddrPort{}); failure.RuleOf(err) != guard.RuleInvalid {
		t.Errorf("no address: got %v, want a refusal by the rule %s", err, guard.RuleInvalid)
	}
}

// TestListenersOf checks what is taken from the configuration of sites.
func TestListenersOf(t *testing.T) {
	got := accountOf(&caddyhttp.App{Servers: map[string]*caddyhttp.Server{
		"a": {Listen: []string{":443", "192.0.2.1:8000-8002", "tcp6/[2001:DB8::1]:81", "unix//run/a.sock"}},
		"b": {Listen: []string{"gateway.example:80", ":443", "[2001:db8::1]:81"}},
	}})
	got.Usage = nil
	want := new(localnet.Account)
	for _, at := range [][2]string{
		{"tcp", ":443"}, {"tcp", "gateway.example:80"},
		{"tcp", "192.0.2.1:8000"}, {"tcp", "192.0.2.1:8001"}, {"tcp", "192.0.2.1:8002"},
		{"tcp6", "[2001:DB8::1]:81"}, {"tcp", "[2001:db8::1]:81"}, {"unix", "/run/a.sock"},
	} {
		want.AddSite(at[0], at[1])
	}
	for _, host := range []string{"", "/run/a.sock", "2001:DB8::1", "gateway.example"} {
		want.AddHost(host)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// BenchmarkPolicy measures the guard for a request: scheme, name, port and one
// address, with a thousand rules of each kind.
func BenchmarkPolicy(b *testing.B) {
	var thousand Guard
	for i := range 1000 {
		thousand.Allow = append(thousand.Allow, fmt.Sprintf("*.customer%d.example", i))
		thousand.AllowIPs = append(thousand.AllowIPs, fmt.Sprintf("10.%d.%d.0/25", i/256, i%256))
		thousand.Ports = append(thousand.Ports, strconv.Itoa(1000+2*i))
	}
	thousand.Ports = append(thousand.Ports, "443")
	for _, test := range []struct {
		name string
		Guard
	}{{"default", Guard{}}, {"3000 rules", thousand}} {
		for _, addr := range []string{"8.8.8.8", "2606:4700::1111"} {
			b.Run(test.name+"/"+addr, func(b *testing.B) {
				p := newTestPolicy(b, test.Guard)
				c := &exchange.Call{Scheme: "https", Policy: p}
				c.Host, c.Port = "api.customer400.example", 443
				addrs := []netip.Addr{netip.MustParseAddr(addr)}
				b.ReportAllocs()
				for b.Loop() {
					_, _, err := p.Filter(c.Host, c.Port, addrs, 1, c)
					if c.Check() != nil || err != nil {
						b.Fatal("refused, want it allowed")
					}
				}
			})
		}
	}
}
