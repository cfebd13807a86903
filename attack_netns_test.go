//go:build linux

package caddytarget

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/outgoing"
	"caddytarget/internal/testlab"
)

// inArena is in the environment of the process that is alone in its network.
const inArena = "CADDYTARGET_ATTACKS_IN_NAMESPACE"

// Addresses of backends that answer in ways of their own, all globally routable.
const (
	resetAddr = "93.184.215.101" // port 8081: resets
	deadAddr  = "93.184.215.102" // port 8081: refuses, as do the other two
	deadAddrs = deadAddr + " 93.184.215.103 93.184.215.105"
	aliveAddr = "93.184.215.104" // port 8081: answers; the others come before it
	ownAddr   = "93.184.216.34"  // of an interface, as are the other two
	ownAddr2  = "93.184.216.35"
	ownAddr6  = "2606:2800:21f:cb07::34"
)

// TestAttacks makes the attacks for real. It runs itself again, in a network
// namespace that has the loopback interface alone, and where every address is
// that machine. There, a hole is seen as an address that was reached; and no
// packet of it goes anywhere.
func TestAttacks(t *testing.T) {
	if os.Getenv(inArena) != "" {
		everywhereIsHere(t)
		t.Run("table", attackForReal)
		t.Run("redirects", attackRedirects)
		t.Run("own listeners", attackOwnListeners)
		t.Run("admin addresses", attackAdminAddresses)
		t.Run("report", attackReporting)
		return
	}
	inNamespace(t, inArena)
}

// inNamespace runs the test again, in a process of its own that is alone in its
// network. That is where variable is in the environment.
func inNamespace(t *testing.T, variable string) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		needed(t, "no ip (of iproute2): %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := "^" + t.Name() + "$"
	if pattern := flag.Lookup("test.run").Value.String(); strings.Contains(pattern, "/") {
		run = pattern
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run="+run, "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err = cmd.Start()
	if err != nil {
		needed(t, "no network namespace: %v", err)
	}
	err = cmd.Wait()
	text := output.String()
	switch {
	case err != nil:
		if !testing.Verbose() {
			text = withoutPasses(text)
		}
		t.Errorf("in the namespace: %v\n%s", err, text)
	case strings.Contains(text, "--- SKIP: "+t.Name()+" "):
		t.Skip(text)
	case !strings.Contains(text, "--- PASS: "+t.Name()+" "):
		t.Errorf("in the namespace nothing was tested:\n%s", text)
	case testing.Verbose():
		t.Log(text)
	}
}

// needed skips a test for want of something that CI has to have.
func needed(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format+", and CI is set", args...)
	}
	t.Skipf(format, args...)
}

// withoutPasses leaves out of the output of a test what says that all is well.
func withoutPasses(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimSpace(line); !strings.HasPrefix(trimmed, "=== ") && !strings.HasPrefix(trimmed, "--- PASS") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// checkIsolated checks that no other interface than the loopback one is up.
func checkIsolated(t *testing.T) {
	t.Helper()
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		// those that a kernel puts into every namespace, such as ifb0, are down
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			t.Fatalf("this is no namespace of its own: it has %s", i.Name)
		}
	}
}

// ip runs commands of ip.
func ip(t *testing.T, commands ...string) {
	t.Helper()
	for _, args := range commands {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			needed(t, "ip %s: %v: %s", args, err, out)
		}
	}
}

// everywhereIsHere makes all addresses those of the loopback interface, which is the
// only one.
func everywhereIsHere(t *testing.T) {
	checkIsolated(t)
	ip(t,
		"link set lo up",
		"route add local 0.0.0.0/0 dev lo",
		"-6 route add local ::/0 dev lo",
		"addr add "+ownAddr+"/32 dev lo",
		"addr add "+ownAddr2+"/32 dev lo",
		"addr add "+ownAddr6+"/128 dev lo",
	)
	// what would be a hole can be seen
	probe, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		needed(t, "listening on every address: %v", err)
	}
	defer probe.Close()
	_, port, _ := net.SplitHostPort(probe.Addr().String())
	for _, addr := range []string{"127.0.0.1", "127.255.255.254", "10.0.0.1", "169.254.169.254", "240.0.0.1", goodAddr, "::1", "fd00:ec2::254", "64:ff9b::7f00:1", goodAddr6} {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(addr, port), testlab.Timeout)
		if err != nil {
			t.Fatalf("%s is not this machine: %v", addr, err)
		}
		conn.Close()
	}
}

// attackForReal makes the attacks with backends at every address.
func attackForReal(t *testing.T) {
	registerRecorder()
	registerPause()
	a := newArena(t, slices.Concat(attackSites, proxySites), slices.Concat(attackGroups, proxyGroups))
	a.global = "admin off"
	a.everywhere(t)
	a.socket(t)
	a.start()
	a.play(t)
	t.Run("a replayed loop mark", a.replay)
}

// everywhere starts backends at every address.
func (a *arena) everywhere(t *testing.T) {
	a.proxied = true
	everywhere := []string{"::"}
	for _, port := range []string{"80", "8080", "22", "2019", "2375", "6379", "10250", "32526"} {
		a.backends = append(a.backends, testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: port}))
	}
	a.backends = append(a.backends,
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: "443", CA: a.ca, HTTP2: true}),
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: "8088", HTTP2: true, HTTP2Only: true}),
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: "8082", Handler: http.HandlerFunc(sendRedirect)}),
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: "8083", Handler: http.HandlerFunc(echo)}),
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{aliveAddr, "10.0.0.1", "169.254.169.254", "127.0.0.1", "::1"}, Port: "8081"}))
	testlab.ResettingBackend(t, "8081", resetAddr)
}

// socket makes a Unix socket that no target may lead to.
func (a *arena) socket(t *testing.T) {
	l, err := net.Listen("unix", a.fill("<SOCKET>"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("the Unix socket was reached")
	}))
	server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
}

// sendRedirect sends clients, or the gateway, elsewhere.
func sendRedirect(w http.ResponseWriter, r *http.Request) {
	if to := r.FormValue("accel"); to != "" {
		w.Header().Set("X-Accel-Redirect", to)
		w.Header().Set("X-Sendfile", to)
		echo(w, r)
		return
	}
	w.Header().Set("Location", r.FormValue("to"))
	w.WriteHeader(http.StatusFound)
}

// echo tells what was sent, and how the body was framed.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	local := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
	addr, _, _ := net.SplitHostPort(local)
	r.Header["Content-Length-Seen"] = []string{fmt.Sprint(r.ContentLength)}
	r.Header["Transfer-Encoding-Seen"] = r.TransferEncoding
	for name := range r.Trailer {
		r.Header["Trailer-Seen"] = append(r.Header["Trailer-Seen"], name)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(testlab.Request{Address: addr, Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header, Body: string(body)})
}

// proxySites mean nothing without a proxy.
var proxySites = []attackSite{
	{name: "auto", rules: "resolver <DNS> {\nhosts <HOSTS>\nfamily auto\n}"},
	{name: "service", whole: `reverse_proxy {
		dynamic target _http._tcp.{header.X-Target} {
			ports 80 8080
		}
		transport target
		lb_retries 3
	}`},
	{name: "service-any-port", whole: `reverse_proxy {
		dynamic target _http._tcp.{header.X-Target} {
			deny evil.example
		}
		transport target
		lb_retries 3
	}`},
	{name: "named", whole: `reverse_proxy {
		dynamic target {header.X-Target} 80 {
			deny evil.example *.evil.example
		}
		transport target
	}`},
	{name: "named-port", whole: `reverse_proxy {
		dynamic target {header.X-Target} {header.X-Port} {
			ports 80 8080
		}
		transport target
	}`},
	{name: "static", whole: "target {header.X-Target}\nreverse_proxy 127.0.0.1:80 {\ntransport target\n}"},
	{name: "static-name", whole: "target {header.X-Target}\nreverse_proxy localhost:80 {\ntransport target\n}"},
	{name: "static-template", whole: "target {header.X-Target}\nreverse_proxy {header.X-Upstream} {\ntransport target\n}"},
	{name: "static-socket", whole: "target {header.X-Target}\nreverse_proxy unix/<SOCKET> {\ntransport target\n}"},
	{name: "static-shared", whole: `route {
		@trusted header X-Trusted yes
		target @trusted {header.X-Target} {
			allow_ips 127.0.0.0/8
		}
		@others not header X-Trusted yes
		target @others {header.X-Target}
		reverse_proxy 127.0.0.1:80 {
			transport target
		}
	}`},
	{name: "static-optional", whole: `route {
		@targeted header X-Target *
		target @targeted {header.X-Target}
		reverse_proxy 127.0.0.1:80 {
			transport target
		}
	}`},
	{name: "dynamic-shared", whole: `route {
		@trusted header X-Trusted yes
		target @trusted {header.X-Target} {
			allow_ips 10.0.0.0/8
		}
		@others not header X-Trusted yes
		target @others {header.X-Target}
		reverse_proxy {
			dynamic target
			transport target {
				tls_trust_pool file <CA>
			}
		}
	}`},
	{name: "two-handlers", whole: `route {
		target {header.X-Target} {
			allow_ips any
		}
		target {header.X-Second}
		reverse_proxy {
			dynamic target
			transport target
		}
	}`},
	{name: "redirects", whole: `target_proxy {header.X-Target} {
		@redirect status 302
		handle_response @redirect {
			target_proxy {rp.header.Location}
		}
		@accel header X-Accel-Redirect *
		handle_response @accel {
			target_proxy {rp.header.X-Accel-Redirect}
		}
	}`},
	{name: "pause", whole: `route {
		target {header.X-Target} {
			resolver <DNS> {
				hosts off
				family ipv4
				min_ttl 20ms
				refresh always
				stale off
			}
		}
		attack_pause
		reverse_proxy {
			dynamic target {
				fail_duration 0
			}
			transport target
			lb_policy first
			lb_retries 3
		}
	}`},
	{name: "retry", whole: "target_proxy {header.X-Target} {\nlb_policy first\nfail_duration 0\n}"},
	{name: "loop", rules: "allow_ips 127.0.0.1"},
	{name: "fallback", whole: `target_proxy {header.X-Target}
	handle_errors {
		target_proxy http://good.example/fallback
	}`},
	{name: "trailers", rules: "header_up X-User nobody\nheader_up -X-Internal-*\nheader_up +X-Added 1"},
	{name: "rewritten", whole: "route {\ntarget {header.X-Target}\nrewrite * /rewritten\nreverse_proxy {\ndynamic target\ntransport target\nheader_up X-Seen {http.target.url}\n}\n}"},
}

var proxyGroups = []attackGroup{
	{kind: "both families", site: "auto", proxied: true, plain: [][3]string{
		{"both", "http://both.example/", "200 93.184.215.14|2606:2800:21f:cb07::14 both.example"},
		{"A good, AAAA refused", "http://good-and-refused6.example/", "200 93.184.215.14 good-and-refused6.example"},
		{"A refused, AAAA good", "http://refused-and-good6.example/", "200 2606:2800:21f:cb07::14 refused-and-good6.example"},
		{"both refused", "http://refused.example/", "403"},
		{"mapped", "http://mapped.example/", "403 10.0.0.1"},
		{"mixed", "http://mixed.example/", "200 93.184.215.14 mixed.example"},
		{"hosts file", "http://hosts-both.example/", "200 93.184.215.14 hosts-both.example"},
	}},

	{kind: "services", site: "service", proxied: true, dns: []string{
		"_http._tcp.s-good.example =_http._tcp.s-good.example. 60 IN SRV 0 0 80 good.example.",
		"_http._tcp.s-private.example =_http._tcp.s-private.example. 60 IN SRV 0 0 80 private.example.",
		"_http._tcp.s-localhost.example =_http._tcp.s-localhost.example. 60 IN SRV 0 0 80 localhost.",
		"_http._tcp.s-literal.example =_http._tcp.s-literal.example. 60 IN SRV 0 0 80 169.254.169.254.",
		"_http._tcp.s-8080.example =_http._tcp.s-8080.example. 60 IN SRV 0 0 8080 good.example.",
		"_http._tcp.s-port.example =_http._tcp.s-port.example. 60 IN SRV 0 0 22 good.example.",
		"_http._tcp.s-mixed.example =_http._tcp.s-mixed.example. 60 IN SRV 0 0 80 private.example. =_http._tcp.s-mixed.example. 60 IN SRV 0 0 80 good.example.",
		"_http._tcp.s-next.example =_http._tcp.s-next.example. 60 IN SRV 0 0 80 loopback.example. =_http._tcp.s-next.example. 60 IN SRV 1 0 8080 good.example.",
		"_http._tcp.s-hosts.example =_http._tcp.s-hosts.example. 60 IN SRV 0 0 80 hosts-loopback.example.",
		"_http._tcp.s-none.example =_http._tcp.s-none.example. 60 IN SRV 0 0 80 .",
		"_http._tcp.s-zero.example =_http._tcp.s-zero.example. 60 IN SRV 0 0 0 good.example.",
	}, plain: [][3]string{
		{"good", "s-good.example", "200 93.184.215.14 service.site"},
		{"private", "s-private.example", "503 10.1.1.1"},
		{"localhost", "s-localhost.example", "503 127.0.0.1"},
		{"a literal for a target", "s-literal.example", "503 metadata"},
		{"another port", "s-port.example", "503 port 22"},
		{"mixed", "s-mixed.example", "200 93.184.215.14 service.site"},
		{"mixed priorities", "s-next.example", "200 93.184.215.14 service.site"},
		{"hosts file", "s-hosts.example", "503 127.0.0.1"},
		{"the root for a target", "s-none.example", "503"},
		{"port 0", "s-zero.example", "503 port"},
		{"no such service", "s-nowhere.example", "503 NXDOMAIN"},
		{"a slash", "s-good.example/", "503 character"},
		{"a space", "s-good.example x", "503 character"},
		{"nothing", "", "503"},
	}, attacks: []attack{
		{name: "any port is any port", site: "service-any-port", target: "s-8080.example", want: "200 93.184.215.14 service-any-port.site"},
		{name: "but not one of another protocol", site: "service-any-port", target: "s-port.example", want: "503 port 22"},
		{name: "but not any address", site: "service-any-port", target: "s-private.example", want: "503 10.1.1.1"},
	}},
	{kind: "names without a handler", site: "named", proxied: true, plain: [][3]string{
		{"good", "good.example", "200 93.184.215.14 named.site"},
		{"denied", "EVIL.example.", "503 deny"},
		{"private", "private.example", "503 10.1.1.1"},
		{"mixed", "mixed.example", "200 93.184.215.14 named.site"},
		{"literal", "127.0.0.1", "503 loopback"},
		{"IPv6 literal", "[::1]", "503 loopback"},
		{"mapped literal", "[::ffff:a9fe:a9fe]", "503 metadata"},
		{"decimal", "2130706433", "503 IPv4"},
		{"localhost", "localhost", "503 127.0.0.1"},
		{"a port too many", "good.example:22", "503"},
		{"a URL", "http://good.example", "503"},
		{"a service where none was meant", "_http._tcp.s-good.example", "503"},
		{"a placeholder", "{env.HOME}", "503 character"},
	}, attacks: []attack{
		{name: "port", site: "named-port", raw: get("/", "X-Target: good.example", "X-Port: 8080"), want: "200 93.184.215.14 named-port.site"},
		{name: "refused port", site: "named-port", raw: get("/", "X-Target: good.example", "X-Port: 22"), want: "503 port 22"},
		{name: "two ports", site: "named-port", raw: get("/", "X-Target: good.example", "X-Port: 80:22"), want: "503 port"},
		{name: "a range of ports", site: "named-port", raw: get("/", "X-Target: good.example", "X-Port: 80-8080"), want: "503 port"},
		{name: "port and path", site: "named-port", raw: get("/", "X-Target: good.example", "X-Port: 80/"), want: "503 port"},
		{name: "the mark against loops", raw: get("/", "X-Target: good.example", "CDN-Loop: "+outgoing.LoopID), want: "503|508 already"},
		{name: "CONNECT", raw: req("CONNECT SITE:80 HTTP/1.1", "Host: SITE:80", "Connection: close", "X-Target: good.example"), want: "400|403|405|501|503"},
	}},

	{kind: "static upstreams behind a handler", site: "static", proxied: true, attacks: []attack{
		{name: "an address", target: "http://good.example/", want: "403 127.0.0.1"},
		{name: "a name", site: "static-name", target: "http://good.example/", want: "403"},
		{name: "a template", site: "static-template", raw: get("/", toGood, "X-Upstream: 127.0.0.1:80"), want: "403 127.0.0.1"},
		{name: "a template, mapped", site: "static-template", raw: get("/", toGood, "X-Upstream: [::ffff:127.0.0.1]:80"), want: "403"},
		{name: "a template, a name", site: "static-template", raw: get("/", toGood, "X-Upstream: localhost:80"), want: "403"},
		{name: "a template, decimal", site: "static-template", raw: get("/", toGood, "X-Upstream: 2130706433:80"), want: "403"},
		{name: "a template, a socket", site: "static-template", raw: get("/", toGood, "X-Upstream: unix/<SOCKET>"), want: "403|502|500"},
		{name: "a socket", site: "static-socket", target: "http://good.example/", want: "403"},
	}},
	{kind: "a static upstream behind two handlers", site: "static-shared", proxied: true, inOrder: true, attacks: []attack{
		{name: "permissive, which leaves a connection open", raw: get("/", "X-Trusted: yes", toGood+"/"), want: "200 127.0.0.1 good.example"},
		{name: "strict, which must not use it", raw: get("/", toGood+"/"), want: "403 127.0.0.1"},
	}},
	{kind: "a static upstream for some", site: "static-optional", proxied: true, inOrder: true, attacks: []attack{
		{name: "without a target", raw: get("/x"), want: "200 127.0.0.1 static-optional.site /x"},
		{name: "with a target, which must not use its connection", raw: get("/", toGood+"/"), want: "403 127.0.0.1"},
	}},
	{kind: "one proxy, two handlers", site: "dynamic-shared", proxied: true, inOrder: true, attacks: []attack{
		{name: "permissive", raw: get("/", "X-Trusted: yes", "X-Target: http://10.0.0.1/"), want: "200 10.0.0.1 10.0.0.1"},
		{name: "strict", raw: get("/", "X-Target: http://10.0.0.1/"), want: "403 private"},
		{name: "permissive, a name", raw: get("/", "X-Trusted: yes", "X-Target: https://private.example/"), want: "200 10.1.1.1 private.example"},
		{name: "strict, a name", raw: get("/", "X-Target: https://private.example/"), want: "403 private"},
		{name: "the last handler decides", site: "two-handlers", raw: get("/", "X-Target: http://10.0.0.1/", "X-Second: http://good.example/"), want: "200 93.184.215.14 good.example"},
		{name: "the last handler decides, refused", site: "two-handlers", raw: get("/", "X-Target: http://good.example/", "X-Second: http://10.0.0.1/"), want: "403 private"},
		{name: "the last handler decides, nothing", site: "two-handlers", raw: get("/", "X-Target: http://10.0.0.1/"), want: "400 no target"},
	}},

	{kind: "redirects", proxied: true, attacks: []attack{
		{name: "to an internal address", target: "http://good.example:8082/?to=http://169.254.169.254/", via: goodAddr, want: "302 http://169.254.169.254/"},
		{name: "to localhost", target: "http://good.example:8082/?to=http://localhost/", via: goodAddr, want: "302 http://localhost/"},
		{name: "X-Accel-Redirect is the client's", target: "http://good.example:8082/?accel=/etc/passwd", want: "200 93.184.215.14 good.example:8082"},
		{name: "followed to a good one", site: "redirects", target: "http://good.example:8082/?to=http://good6.example/x", via: goodAddr, want: "200 2606:2800:21f:cb07::14 good6.example /x"},
		{name: "followed to an internal address", site: "redirects", target: "http://good.example:8082/?to=http://169.254.169.254/", via: goodAddr, want: "403 metadata"},
		{name: "followed to an internal name", site: "redirects", target: "http://good.example:8082/?to=http://private.example/", via: goodAddr, want: "403 10.1.1.1"},
		{name: "followed to localhost", site: "redirects", target: "http://good.example:8082/?to=http://localhost:2019/config/", via: goodAddr, want: "403 127.0.0.1"},
		{name: "followed to a path alone", site: "redirects", target: "http://good.example:8082/?to=/x", via: goodAddr, want: "302"},
		{name: "followed to nothing", site: "redirects", target: "http://good.example:8082/", via: goodAddr, want: "400 no target"},
		{name: "followed to a file", site: "redirects", target: "http://good.example:8082/?to=file:///etc/passwd", via: goodAddr, want: "400 no host"},
		{name: "X-Accel-Redirect, good", site: "redirects", target: "http://good.example:8082/?accel=http://good.example/x", want: "200 93.184.215.14 good.example /x"},
		{name: "X-Accel-Redirect, internal", site: "redirects", target: "http://good.example:8082/?accel=http://127.0.0.1/", via: goodAddr, want: "403 loopback"},
	}},

	{kind: "loops", proxied: true, attacks: []attack{
		{name: "itself", site: "loop", target: "http://127.0.0.1:<GATEWAY>/", want: "508 already"},
		{name: "itself by another name", site: "loop", target: "http://localhost:<GATEWAY>/", want: "508 already"},
		{name: "itself, although the Connection names the mark", site: "loop", raw: get("/", "X-Target: http://127.0.0.1:<GATEWAY>/", "Connection: CDN-Loop"), want: "508 already"},
		{name: "itself, with another mark", site: "loop", raw: get("/", "X-Target: http://127.0.0.1:<GATEWAY>/", "CDN-Loop: other.example", "CDN-Loop: x; id=1"), want: "508 already"},
		{name: "itself, a mark that is empty", site: "loop", raw: get("/", "X-Target: http://127.0.0.1:<GATEWAY>/", "CDN-Loop:"), want: "508 already"},
		{name: "itself, an upgrade", site: "loop", raw: req("GET / HTTP/1.1", "Host: SITE", "X-Target: http://127.0.0.1:<GATEWAY>/", "Connection: Upgrade, CDN-Loop", "Upgrade: websocket"), want: "508 already"},
		{name: "itself by default", target: "http://127.0.0.1:<GATEWAY>/", want: "403 loopback"},
		{name: "the mark of another server", raw: get("/", toGood+"/", "CDN-Loop: caddytarget; id=0000000000000000"), want: "200 93.184.215.14 good.example /"},
		{name: "handle_errors is no loop", site: "fallback", target: "http://10.0.0.1/", want: "200 93.184.215.14 good.example /fallback"},
		{name: "nor after 400", site: "fallback", target: "not a url", want: "200 93.184.215.14 good.example /fallback"},
	}},

	{kind: "retries", site: "retry", proxied: true, dns: []string{
		"retry-dead.example " + deadAddrs + " " + aliveAddr + " 10.0.0.1", "retry-reset.example " + resetAddr + " " + aliveAddr + " 169.254.169.254",
		"retry-all.example " + deadAddr + " 93.184.215.103 " + resetAddr + " " + aliveAddr + " 127.0.0.1 ::1", "retry-none.example " + deadAddr + " 10.0.0.1",
		"retry-reset-none.example " + resetAddr + " 10.0.0.1 127.0.0.1",
	}, plain: [][3]string{
		{"refused, then good", "http://retry-dead.example:8081/", "200 93.184.215.104 retry-dead.example:8081"},
		{"refused, then good, again", "http://retry-dead.example:8081/", "200 93.184.215.104 retry-dead.example:8081"},
		{"reset, then good", "http://retry-reset.example:8081/", "200 93.184.215.104 retry-reset.example:8081"},
		{"reset, then good, again", "http://retry-reset.example:8081/", "200 93.184.215.104 retry-reset.example:8081"},
		{"all there is", "http://retry-all.example:8081/", "200 93.184.215.104 retry-all.example:8081"},
		{"all there is, again", "http://retry-all.example:8081/", "200 93.184.215.104 retry-all.example:8081"},
		{"only what refuses", "http://retry-none.example:8081/", "502 refused"},
		{"only what refuses, again", "http://retry-none.example:8081/", "502 refused"},
		{"only what resets", "http://retry-reset-none.example:8081/", "502"},
	}, attacks: []attack{
		{name: "a POST", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://retry-reset-none.example:8081/", "Content-Length: 1") + "x", want: "502"},
	}},
	{kind: "between the lookup and the connection", site: "pause", proxied: true, inOrder: true, attacks: []attack{
		{
			name: "the address that was checked", set: "toctou.example ttl=0 " + goodAddr + " then toctou.example ttl=0 127.0.0.1",
			target: "http://toctou.example/", want: "200 93.184.215.14 toctou.example",
		},
		{name: "the next request", wait: 60 * time.Millisecond, target: "http://toctou.example/", want: "403 loopback"},
		{
			name: "also for the next attempt", set: "toctou-retry.example ttl=0 " + deadAddrs + " " + aliveAddr + " then toctou-retry.example ttl=0 10.0.0.1",
			target: "http://toctou-retry.example:8081/", want: "200 93.184.215.104 toctou-retry.example:8081",
		},
		{
			name: "and if it fails", set: "toctou-none.example ttl=0 " + deadAddr + " then toctou-none.example ttl=0 10.0.0.1",
			target: "http://toctou-none.example:8081/", want: "502 refused",
		},
	}},

	{kind: "what the backend gets", proxied: true, attacks: []attack{
		{name: "not the field that had the target", raw: get("/", toGood+"/"), want: "200 93.184.215.14 good.example /", check: without("X-Target")},
		{name: "X-Forwarded-Host is the client's Host", raw: get("/", toGood+"/", "X-Forwarded-Host: 169.254.169.254", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: gopher"), want: "200 93.184.215.14 good.example /", check: func(s testlab.Request) error {
			if s.Header.Get("X-Forwarded-Host") != "client.example" || s.Header.Get("X-Forwarded-For") != "127.0.0.1" || s.Header.Get("X-Forwarded-Proto") != "http" {
				return errors.New("what the client said was believed")
			}
			return nil
		}},
		{name: "what Connection names is left out", raw: get("/", toGood+"/", "X-Secret: 1", "Connection: X-Secret, X-Target", "Keep-Alive: 1", "Proxy-Authorization: Basic x", "Proxy-Connection: close", "TE: gzip"), want: "200 93.184.215.14 good.example /", check: without("X-Secret", "X-Target", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Te", "Connection")},
		{name: "what Connection names cannot be the mark against loops", raw: get("/", toGood+"/", "Connection: CDN-Loop"), want: "200 93.184.215.14 good.example /", check: func(s testlab.Request) error {
			if !strings.Contains(s.Header.Get(outgoing.LoopHeader), outgoing.LoopID) {
				return errors.New("no mark")
			}
			return nil
		}},
		{name: "a length and a coding", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://good.example:8083/", "Content-Length: 4", "Transfer-Encoding: chunked") + "1\r\nx\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", want: "200|400 93.184.215.14 good.example:8083 /", check: func(s testlab.Request) error {
			if s.Body != "x" || s.Header.Get("Content-Length-Seen") != "-1" {
				return errors.New("another body")
			}
			return nil
		}},
		{name: "a body of a GET", raw: req("GET / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://good.example:8083/", "Content-Length: 37") + "GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n", want: "200 93.184.215.14 good.example:8083 /", check: func(s testlab.Request) error {
			if !strings.HasPrefix(s.Body, "GET /smuggled") || s.Header.Get("Content-Length-Seen") != "37" {
				return errors.New("another body")
			}
			return nil
		}},
		{name: "a chunk with an extension", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://good.example:8083/", "Transfer-Encoding: chunked") + "1;a=b\r\nx\r\n0\r\n\r\n", want: "200 93.184.215.14 good.example:8083 /", check: func(s testlab.Request) error {
			if s.Body != "x" {
				return errors.New("another body")
			}
			return nil
		}},
		{name: "a chunk whose line ends in LF", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://good.example:8083/", "Transfer-Encoding: chunked") + "1;\nx\r\n0\r\n\r\n", via: goodAddr, want: "502|400"},
		{name: "a trailer for the target", raw: "POST / HTTP/1.1\r\nHost: SITE\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Target\r\nX-Target: http://good.example:8083/\r\n\r\n0\r\nX-Target: http://10.0.0.1\r\n\r\n", want: "200 93.184.215.14 good.example:8083 /", check: without("Trailer-Seen")},
		{name: "trailers that a gateway sets", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://good.example:8083/", "Transfer-Encoding: chunked", "Trailer: X-Forwarded-For, Via, X-Fine") + forgedTrailers, want: "200 93.184.215.14 good.example:8083 /", check: onlyTrailer("X-Fine")},
		{name: "trailers that a gateway sets, not announced", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://good.example:8083/", "Transfer-Encoding: chunked", "Trailer: X-Fine") + forgedTrailers, want: "200 93.184.215.14 good.example:8083 /", check: onlyTrailer("X-Fine")},
		{name: "trailers that header_up changes", site: "trailers", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://good.example:8083/", "Transfer-Encoding: chunked", "Trailer: X-Fine, X-User") + "1\r\nx\r\n0\r\nX-Fine: 1\r\nX-User: root\r\nX-Internal-Role: root\r\nX-Added: 1\r\n\r\n", want: "200 93.184.215.14 good.example:8083 /", check: onlyTrailer("X-Fine")},
		{name: "the target's own path, whatever follows", site: "rewritten", raw: get("/x?q", toGood+"/y"), want: "200 93.184.215.14 good.example /rewritten"},
		{name: "WebSocket", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade", "Upgrade: websocket"), want: "200 93.184.215.14 good.example /"},
		{name: "WebSocket, refused", raw: req("GET / HTTP/1.1", "Host: SITE", "X-Target: http://10.0.0.1/", "Connection: Upgrade", "Upgrade: websocket"), want: "403 private"},
	}},
	{kind: "upgrades to h2c", proxied: true, attacks: []attack{
		{
			name: "as clients do", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "upper case", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: H2C", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "Connection names Upgrade alone", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "among others", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade", "Upgrade: websocket, h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "in a field of its own", raw: req("GET / HTTP/1.1", "Host: SITE", toGood+"/", "Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "over TLS", raw: req("GET / HTTP/1.1", "Host: SITE", "X-Target: https://good.example/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
		{
			name: "HTTP2-Settings without an upgrade", raw: get("/", toGood+"/", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			want: "200|400 93.184.215.14 good.example /", check: withoutH2C,
		},
	}},
}

// forgedTrailers is a body with trailers that a backend may take for what the gateway
// says.
const forgedTrailers = "1\r\nx\r\n0\r\nX-Fine: 1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: internal\r\nX-Forwarded-Proto: https\r\n" +
	"X-Forwarded-Port: 443\r\nForwarded: for=127.0.0.1\r\nVia: 1.1 internal\r\nCDN-Loop: other\r\nAuthorization: Basic x\r\nConnection: X-Fine\r\nUpgrade: h2c\r\n" +
	"Proxy-Authorization: Basic x\r\nHost: internal\r\n\r\n"

// onlyTrailer checks that the backend got one trailer and no other.
func onlyTrailer(name string) func(testlab.Request) error {
	return func(s testlab.Request) error {
		if got := s.Header["Trailer-Seen"]; !slices.Equal(got, []string{name}) {
			return fmt.Errorf("it got the trailers %q, want %s", got, name)
		}
		return nil
	}
}

// withoutH2C checks that the backend was not asked to go on in HTTP/2.
func withoutH2C(s testlab.Request) error {
	if upgrade := strings.Join(s.Header["Upgrade"], ", "); strings.Contains(strings.ToLower(upgrade), "h2c") {
		return fmt.Errorf("it got Upgrade: %s", upgrade)
	}
	return without("Http2-Settings")(s)
}

// replay checks that a client which replays the mark against loops does no harm to
// others.
func (a *arena) replay(t *testing.T) {
	send := func(lines ...string) (*http.Response, testlab.Request) {
		t.Helper()
		conn, err := net.Dial("tcp", "127.0.0.1:"+a.port)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, a.request(attack{raw: get("/", append(lines, toGood+"/")...)}))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var s testlab.Request
		_ = json.NewDecoder(res.Body).Decode(&s)
		return res, s
	}
	_, s := send()
	mark := s.Header.Get(outgoing.LoopHeader)
	if mark == "" {
		t.Fatalf("no mark, want one in %s: %+v", outgoing.LoopHeader, s)
	}
	for range 3 {
		if res, _ := send(outgoing.LoopHeader + ": " + mark); res.StatusCode != http.StatusLoopDetected {
			t.Errorf("status %d of a replayed mark", res.StatusCode)
		}
		if res, _ := send(); res.StatusCode != http.StatusOK {
			t.Errorf("status %d of an honest request", res.StatusCode)
		}
	}
}

// attackPause waits, between the lookup and the connection.
type attackPause struct{}

// CaddyModule returns the Caddy module information.
func (attackPause) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.attack_pause", New: func() caddy.Module { return new(attackPause) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (attackPause) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	time.Sleep(100 * time.Millisecond)
	return next.ServeHTTP(w, r)
}

var registerPause = sync.OnceFunc(func() {
	caddy.RegisterModule(attackPause{})
	httpcaddyfile.RegisterHandlerDirective("attack_pause", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return attackPause{}, nil
	})
})

// ownSites listen on every address and on one of this machine; the latter is
// not for the proxy.
var ownSites = []attackSite{
	{name: "wildcard", bind: "[::]"},
	{name: "one", bind: ownAddr2 + " 8090", whole: `respond "418 the site on one address" 418`},
	{name: "zeros", bind: "0.0.0.0 8091", whole: `respond "418 the site on all addresses" 418`},
	{name: "own-allowed", bind: "[::]", rules: "allow_ips " + ownAddr + " " + ownAddr2},
	{name: "own-range", bind: "[::]", rules: "allow_ips 93.184.216.0/24"},
	{name: "own-any", bind: "[::]", rules: "allow_ips any"},
	{name: "own-report", bind: "[::]", rules: "guard report"},
	{name: "own-denied", bind: "[::]", rules: "allow_ips " + ownAddr2 + "\ndeny_ips " + ownAddr2},
}

var ownGroups = []attackGroup{
	{kind: "own listeners", proxied: true, dns: []string{
		"own.example " + ownAddr, "own6.example " + ownAddr6, "own2.example " + ownAddr2,
		"own2-and-good.example " + ownAddr2 + " " + goodAddr, "alias-own.example >own.example",
	}, plain: [][3]string{
		{"a listener on every address", "http://" + ownAddr + ":<GATEWAY>/", "403"},
		{"another address of this machine", "http://" + ownAddr2 + ":<GATEWAY>/", "403"},
		{"IPv6", "http://[" + ownAddr6 + "]:<GATEWAY>/", "403"},
		{"IPv6, a listener on 0.0.0.0, which Go opens for both families", "http://[" + ownAddr6 + "]:8091/", "403 itself listens"},
		{"IPv4, a listener on 0.0.0.0", "http://" + ownAddr + ":8091/", "403 itself listens"},
		{"mapped", "http://[::ffff:" + ownAddr + "]:<GATEWAY>/", "403"},
		{"https", "https://" + ownAddr + ":<GATEWAY>/", "403"},
		{"full-width", "http://９３.184.216.34:<GATEWAY>/", "403"},
		{"a name", "http://own.example:<GATEWAY>/", "403"},
		{"an alias", "http://alias-own.example:<GATEWAY>/", "403"},
		{"a name, IPv6", "http://own6.example:<GATEWAY>/", "403"},
		{"loopback", "http://127.0.0.1:<GATEWAY>/", "403 loopback"},
		{"NAT64, which would come back", "http://[64:ff9b::5db8:d822]:<GATEWAY>/", "403|508"},
		{"a backend on the same address", "http://" + ownAddr + ":8080/", "200 93.184.216.34 93.184.216.34:8080"},
		{"a backend on the same address, by name", "http://own.example/", "200 93.184.216.34 own.example"},
		{"a listener on one address", "http://" + ownAddr2 + ":8090/", "403"},
		{"a listener on one address, by name", "http://own2.example:8090/", "403"},
		{"a listener on one address, and a backend elsewhere", "http://own2-and-good.example:8090/", "200 93.184.215.14 own2-and-good.example:8090"},
		{"a backend on the listener's port of another address", "http://" + ownAddr + ":8090/", "200 93.184.216.34 93.184.216.34:8090"},
		{"the admin endpoint", "http://" + ownAddr + ":2020/config/", "403"},
		{"the admin endpoint by name", "http://own.example:2020/stop", "403"},
	}, attacks: []attack{
		{name: "opened", site: "own-allowed", target: "http://" + ownAddr2 + ":8090/", want: "418"},
		{name: "opened, by name", site: "own-allowed", target: "http://own2.example:8090/", want: "418"},
		{name: "opened, itself", site: "own-allowed", target: "http://" + ownAddr + ":<GATEWAY>/", want: "508 already"},
		{name: "opened by a range", site: "own-range", target: "http://" + ownAddr2 + ":8090/", want: "418"},
		{name: "the admin endpoint, opened", site: "own-allowed", target: "http://" + ownAddr + ":2020/config/", want: "403 admin API"},
		{name: "the admin endpoint, opened with all else", site: "own-any", target: "http://own.example:2020/config/", want: "403 admin API"},
		{name: "the admin endpoint, only reported", site: "own-report", target: "http://" + ownAddr + ":2020/config/", want: "403 admin API"},
		{name: "a site, only reported", site: "own-report", target: "http://" + ownAddr2 + ":8090/", want: "418"},
		{name: "opened and denied", site: "own-denied", target: "http://" + ownAddr2 + ":8090/", want: "403 denied"},
		{name: "not opened by the other address", site: "own-allowed", target: "http://[" + ownAddr6 + "]:<GATEWAY>/", want: "403"},
	}},
}

// attackOwnListeners: what this process listens on is not for targets, even if
// it is globally routable.
func attackOwnListeners(t *testing.T) {
	a := newArena(t, ownSites, ownGroups)
	a.global = "admin " + ownAddr + ":2020"
	a.everywhere(t)
	a.backends = append(a.backends, testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{ownAddr, goodAddr}, Port: "8090"}))
	a.start()
	t.Cleanup(func() { // which ends the admin endpoint
		a.global = "admin off"
		a.start()
	})
	a.play(t)
}

// adminSites try to reach the admin API, however its address is written.
var adminSites = []attackSite{
	{name: "admin-default", bind: "[::]"},
	{name: "admin-any", bind: "[::]", rules: "allow_ips any"},
	{name: "admin-report", bind: "[::]", rules: "guard report"},
	{name: "admin-upstream", bind: "[::]", whole: `target http://good.example {
		guard report
	}
	reverse_proxy {header.X-Upstream} {
		transport target
	}`},
	{name: "admin-beside", bind: ownAddr2 + " 2021", whole: "respond SITE"},
}

// adminAddresses are addresses of the admin API, and targets that lead there.
var adminAddresses = []struct {
	admin   string
	targets []string
}{
	{"localhost:2020", []string{"127.0.0.1:2020", "[::ffff:127.0.0.1]:2020", "localhost:2020", "0.0.0.0:2020"}},
	{"LOCALHOST:2020", []string{"127.0.0.1:2020"}},
	{":2020", []string{"127.0.0.1:2020", "[::1]:2020", ownAddr + ":2020", "[" + ownAddr6 + "]:2020"}},
	{"0.0.0.0:2020", []string{"127.0.0.1:2020", "[::1]:2020", ownAddr + ":2020", "[" + ownAddr6 + "]:2020"}},
	{"[::0]:2020", []string{"127.0.0.1:2020", "[::1]:2020", ownAddr + ":2020", "[" + ownAddr6 + "]:2020"}},
	{"[0:0:0:0:0:0:0:1]:2020", []string{"[::1]:2020"}},
	{"[::ffff:127.0.0.1]:2020", []string{"127.0.0.1:2020"}},
	{"[::ffff:0.0.0.0]:2020", []string{"127.0.0.1:2020", ownAddr + ":2020"}},
	{"127.0.0.1:2021", []string{"127.0.0.1:2021"}}, // a site listens on that port of another address
}

// attackAdminAddresses: the admin API is refused whatever is configured, its own
// address included.
func attackAdminAddresses(t *testing.T) {
	a := newArena(t, adminSites, []attackGroup{{dns: []string{"good.example " + goodAddr}}})
	a.proxied = true
	t.Cleanup(func() { // which ends the admin endpoint
		a.global = "admin off"
		a.start()
	})
	for _, at := range adminAddresses {
		t.Run(at.admin, func(t *testing.T) {
			a.global = "admin " + at.admin
			a.start()
			for _, target := range at.targets {
				for _, site := range adminSites[:3] {
					a.attack(t, attack{name: site.name, site: site.name, target: "http://" + target + "/config/", want: "403"})
				}
				a.attack(t, attack{
					name: "admin-upstream", site: "admin-upstream",
					raw: get("/config/", "X-Upstream: "+target), want: "403",
				})
			}
		})
	}
	t.Run("unix", func(t *testing.T) {
		a.global = "admin unix/<SOCKET>"
		a.start()
		a.attack(t, attack{
			name: "a socket", site: "admin-upstream",
			raw: get("/config/", "X-Upstream: unix/<SOCKET>"), want: "403",
		})
	})
}

// attackReporting: with `guard report` all targets are called.
func attackReporting(t *testing.T) {
	a := newArena(t, reportSites, reportGroups)
	a.global = "admin off"
	a.everywhere(t)
	a.start()
	a.play(t)
}
