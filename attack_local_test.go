//go:build linux

package caddytarget

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/testlab"
)

// TestLocalAddresses calls every address of this machine, those that no interface
// lists included, on every port on which the process listens, however its listeners
// are configured. It runs itself again in a network namespace, where nothing listens
// but one gateway.
func TestLocalAddresses(t *testing.T) {
	if os.Getenv(inOwnProcess) == "" {
		inNamespace(t, inOwnProcess)
		return
	}
	checkIsolated(t)
	ip(t, "link set lo up",
		"addr add "+ownAddr+"/32 dev lo",
		"addr add "+ownAddr2+"/32 dev lo",
		"addr add "+ownAddr6+"/128 dev lo",
		// a range is local, of which the interface has one address
		"addr add 45.0.0.1/8 dev lo",
		// no interface lists these
		"route add local 46.1.2.3/32 dev lo",
		"route add local 47.1.0.0/16 dev lo src "+ownAddr,
		"-6 route add local 2600:7::/48 dev lo",
		"-6 route add local 64:ff9b::/96 dev lo",
		// nor does the table of local routes
		"-6 route add local 2600:8::1/128 dev lo table 77",
		"-6 rule add to 2600:8::1 lookup 77",
	)
	w := newLocalWorld(t)
	t.Run("all listeners", w.allListeners)
	t.Run("admin addresses", w.adminAddresses)
	t.Run("added later", w.addedLater)
	t.Run("pooled", w.pooled)
}

// localWorld is a gateway whose sites and admin API are all that listens.
type localWorld struct {
	port   string
	admin  *os.File // handed over as a descriptor
	site   *os.File
	other  net.Listener // of no site, and not opened by Caddy
	values *strings.Replacer
}

func newLocalWorld(t *testing.T) *localWorld {
	descriptor := func(port string) *os.File {
		l, err := net.Listen("tcp", "[::]:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	w := &localWorld{port: "8080", admin: descriptor("2120"), site: descriptor("8094")}
	var err error
	if w.other, err = net.Listen("tcp", "[::]:2121"); err != nil {
		t.Fatal(err)
	}
	go func() { _ = http.Serve(w.other, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) }()
	t.Cleanup(func() {
		_ = caddy.Stop()
		w.other.Close()
		w.admin.Close()
		w.site.Close()
	})
	w.values = strings.NewReplacer("<ADMIN>", fmt.Sprint(w.admin.Fd()), "<SITE>", fmt.Sprint(w.site.Fd()))
	return w
}

// localSites are the rules under which all is called.
var localSites = map[string]string{
	"default":  "",
	"report":   "guard report",
	"any":      "allow_ips any",
	"specific": "allow_ips 45.9.9.9 46.1.2.3 2600:7::/48",
}

// start starts the gateway with an address of the admin API.
func (w *localWorld) start(t *testing.T, admin string) {
	t.Helper()
	var sites strings.Builder
	for name, rules := range localSites {
		fmt.Fprintf(&sites, "http://%s.site:%s {\nbind [::]\ntarget_proxy {header.X-Target} {\n%s\n}\n}\n", name, w.port, rules)
	}
	config, err := adapt(w.values.Replace(fmt.Sprintf(`{
		auto_https disable_redirects
		skip_install_trust
		persist_config off
		storage file_system %q
		log default {
			output discard
		}
		servers :8092 {
			listener_wrappers {
				proxy_protocol
				http_redirect
				tls
			}
		}
		admin %s
	}
	%s
	http://:8090 {
		bind %s
		respond 418
	}
	http://:8091 {
		bind 0.0.0.0
		respond 418
	}
	http://:8092 {
		respond 418
	}
	https://localhost:8093 {
		tls internal
		respond 418
	}
	http://:80 {
		bind fd/<SITE>
		respond 418
	}`, t.TempDir(), admin, sites.String(), ownAddr2)))
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
}

// status returns the status of a request for a target.
func (w *localWorld) status(t *testing.T, site, target string) int {
	t.Helper()
	// just after a reload, the listener of the configuration before may take a connection
	// and be closed
	for try := 1; ; try++ {
		status, err := w.try(site, target)
		switch {
		case err == nil:
			return status
		case try == 5:
			t.Fatalf("%s, %s: %v", site, target, err)
		}
	}
}

func (w *localWorld) try(site, target string) (int, error) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
	_, _ = io.WriteString(conn, req("GET /config/ HTTP/1.1", "Host: "+site+".site", "Connection: close", "X-Target: http://"+target))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	res.Body.Close()
	return res.StatusCode, nil
}

// localAddrs returns the addresses of this machine, of each range some, as the
// tool ip shows them.
func localAddrs(t *testing.T) (list []netip.Addr) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		out, err := exec.Command("ip", family, "-o", "route", "show", "table", "all", "type", "local").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			text := strings.Fields(line)[1]
			if a, err := netip.ParseAddr(text); err == nil {
				list = append(list, a)
				continue
			}
			p := netip.MustParsePrefix(text)
			list = append(list, p.Addr().Next(), lastOf(p).Prev())
		}
	}
	for _, a := range []string{"45.9.9.9", "127.9.9.9", "64:ff9b::5db8:d822", "64:ff9b::7f00:1"} {
		list = append(list, netip.MustParseAddr(a))
	}
	if len(list) < 20 {
		t.Fatalf("these are not all: %s", list)
	}
	return list
}

// lastOf returns the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// listeningPorts returns the ports on which something listens in this namespace, and
// there is nothing but this process.
func listeningPorts(t *testing.T) (ports []string) {
	t.Helper()
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if fields[3] != "0A" {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			port, err := strconv.ParseUint(hex, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			ports = append(ports, fmt.Sprint(port))
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// spelled returns how an address may stand in a target.
func spelled(a netip.Addr) []string {
	if a.Is4() {
		return []string{a.String(), "[" + netip.AddrFrom16(a.As16()).String() + "]"}
	}
	return []string{"[" + a.String() + "]", "[" + a.StringExpanded() + "]"}
}

// call calls one port of one address under all rules.
func (w *localWorld) call(t *testing.T, a netip.Addr, port string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(a.String(), port), testlab.Timeout)
	if err != nil {
		return // nothing listens there
	}
	conn.Close()
	site := strings.HasPrefix(port, "80")
	for name := range localSites {
		opened := site && (name == "report" || name == "any" && !a.IsUnspecified() ||
			name == "specific" && slices.ContainsFunc([]string{"45.9.9.9/32", "46.1.2.3/32", "2600:7::/48"}, func(p string) bool {
				return netip.MustParsePrefix(p).Contains(a)
			}))
		for _, host := range spelled(a) {
			if got := w.status(t, name, host+":"+port); (got == http.StatusForbidden) == opened {
				t.Errorf("%s: %s:%s: status %d, want 403: %t", name, host, port, got, !opened)
			}
		}
	}
}

// allListeners calls all ports of all addresses.
func (w *localWorld) allListeners(t *testing.T) {
	w.start(t, ":2119")
	ports := listeningPorts(t)
	if want := []string{"2119", "2120", "2121", "8080", "8090", "8091", "8092", "8093", "8094"}; !slices.Equal(ports, want) {
		t.Fatalf("the process listens on %s, want %s", ports, want)
	}
	addrs := append(localAddrs(t), netip.IPv4Unspecified(), netip.IPv6Unspecified())
	for _, a := range addrs {
		for _, port := range ports {
			w.call(t, a, port)
		}
	}
	t.Logf("%d addresses, %d ports, %d sites", len(addrs), len(ports), len(localSites))
	for name := range localSites { // by a name
		if got := w.status(t, name, "localhost:2119"); got != http.StatusForbidden {
			t.Errorf("%s: localhost: status %d, want 403", name, got)
		}
	}
}

// adminAddresses moves the admin API from one address to the next, and calls it at
// once.
func (w *localWorld) adminAddresses(t *testing.T) {
	for _, admin := range []string{
		"127.0.0.1:2119", ":2119", "[0:0::0]:2119", "[::0000]:2119", "0.0.0.0:2119", "[::ffff:0:0]:2119", "tcp4/:2119", "tcp6/:2119",
		"localhost:2119", "Localhost:2119", "[0:0::1]:2119", "[::ffff:7f00:1]:2119", "[::FFFF:127.0.0.1]:2119",
		ownAddr + ":2119", "[2606:2800:021f:CB07:0::34]:2119", "45.9.9.9:2119", "46.1.2.3:2119", "fd/<ADMIN>",
		":8090", // a site has the port of one address
	} {
		t.Run(admin, func(t *testing.T) {
			w.start(t, admin)
			port := "2119"
			switch admin {
			case "fd/<ADMIN>":
				port = "2120"
			case ":8090":
				for _, a := range []string{ownAddr, "46.1.2.3", "127.0.0.1", ownAddr6} {
					for name := range localSites {
						if got := w.status(t, name, net.JoinHostPort(a, "8090")); got != http.StatusForbidden {
							t.Errorf("%s: %s: status %d, want 403", name, a, got)
						}
					}
				}
				return
			}
			reached := 0
			for _, a := range localAddrs(t) {
				if conn, err := net.Dial("tcp", net.JoinHostPort(a.String(), port)); err == nil {
					conn.Close()
					reached++
				}
				w.call(t, a, port)
			}
			if reached == 0 {
				t.Error("it was not there")
			}
		})
	}
}

// addedLater adds addresses while the gateway runs, which has looked just before.
func (w *localWorld) addedLater(t *testing.T) {
	w.start(t, ":2119")
	ip(t, "-6 rule add to 2600:b::1 lookup 77")
	for _, command := range []string{
		"addr add 50.0.0.1/32 dev lo", "route add local 51.0.0.1/32 dev lo", "-6 route add local 2600:b::1/128 dev lo table 77",
		"-6 addr add 2600:9::1/128 dev lo", "-6 route add local 2600:a::1/128 dev lo",
	} {
		text := strings.TrimPrefix(command, "-6 ")
		text = strings.TrimPrefix(strings.TrimPrefix(text, "addr add "), "route add local ")
		text, _, _ = strings.Cut(text, " ")
		a := netip.MustParsePrefix(text).Addr()
		w.status(t, "default", "127.0.0.1:2119") // which has the addresses read
		ip(t, command)
		for range 2 {
			w.call(t, a, "2119")
			w.call(t, a, "8091")
		}
	}
}

// pooled: a connection that one site may have is not for others.
func (w *localWorld) pooled(t *testing.T) {
	for range 3 {
		w.start(t, "127.0.0.1:2119") // which leaves the site on 8094 its socket
		for _, a := range []string{"46.1.2.3:8091", "[2600:8::1]:8091", "46.1.2.3:8094"} {
			if got := w.status(t, "any", a); got != http.StatusTeapot {
				t.Errorf("%s: status %d, want %d", a, got, http.StatusTeapot)
			}
			if got := w.status(t, "default", a); got != http.StatusForbidden {
				t.Errorf("%s: status %d over the connection of another site, want %d", a, got, http.StatusForbidden)
			}
		}
	}
}
