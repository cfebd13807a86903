package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// testLab is a lab without a caddy.
func testLab(t *testing.T) *lab {
	l := newLab()
	t.Cleanup(l.close)
	return l
}

func testWorld(scheme, kind string) *world {
	w := &world{
		setting: setting{scheme, 20, 0, kind}, Address: "127.0.0.1:8080", Admin: 2019, Nameserver: netip.MustParseAddrPort("127.0.0.1:53"),
		Backend: 9000, CPUs: 2, TTL: 5 * time.Second,
	}
	if scheme != "http" {
		w.CA = "/ca.pem"
	}
	if kind == deadAddress {
		w.DeadAddrs = 2
	}
	return w
}

// Whether they are valid, bench -check asks the programs.
func TestConfigurations(t *testing.T) {
	l := testLab(t)
	for _, c := range contestants {
		for _, scheme := range []string{"http", "https", "h2"} {
			w := testWorld(scheme, deadAddress)
			dir := c.write(l, w)
			var all strings.Builder
			for name := range c.files {
				data, err := os.ReadFile(dir + "/" + name)
				if err != nil {
					t.Fatal(err)
				}
				all.Write(data)
			}
			text := all.String()
			for _, want := range []string{w.Address, "1s"} {
				if !strings.Contains(text, want) {
					t.Errorf("%s, %s: no %q", c.name, scheme, want)
				}
			}
			if strings.Contains(text, "no value") || strings.Contains(text, "%!") {
				t.Errorf("%s, %s: something is not filled in:\n%s", c.name, scheme, text)
			}
			if got := strings.Contains(text, w.CA) && w.CA != ""; got != (scheme != "http") {
				t.Errorf("%s, %s: the authority is there: %t", c.name, scheme, got)
			}
			if !strings.Contains(c.value(w, 3), "d3.test") && c.name != static {
				t.Errorf("%s: %q does not name the domain", c.name, c.value(w, 3))
			}
		}
	}
}

func TestMissing(t *testing.T) {
	c := &contestant{name: "other", needs: []string{"/no/such/file"}, apt: "some-package"}
	err := c.missing()
	if err == nil || !strings.Contains(err.Error(), "apt-get install some-package") {
		t.Errorf("got %v", err)
	}
	if err := (&contestant{}).missing(); err != nil {
		t.Errorf("got %v", err)
	}
}

// Requests to dead names are sent and not counted.
func TestLoad(t *testing.T) {
	var good, dead atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Target") {
		case "good":
			good.Add(1)
		case "failing":
			http.Error(w, "<html>", http.StatusBadGateway)
		default:
			dead.Add(1)
		}
	}))
	defer server.Close()
	spec := loadSpec{Address: strings.TrimPrefix(server.URL, "http://"), Rate: 1000, Duration: time.Second, Timeout: time.Minute}
	r := spec.load(loadValues{Values: []string{"good", "failing"}, Dead: []string{"dead"}})
	if r.Sent != 1000 || r.Failed+len(r.Latencies) != r.Sent || int64(len(r.Latencies)) != good.Load() {
		t.Errorf("%d sent, %d failed, %d latencies, %d met", r.Sent, r.Failed, len(r.Latencies), good.Load())
	}
	if r.Errors["502"] != r.Failed || r.Failed == 0 {
		t.Errorf("%d failed, with %v", r.Failed, r.Errors)
	}
	if dead.Load() == 0 {
		t.Error("no request to dead names in 1000")
	}
}

func TestNamesWithDeadAddresses(t *testing.T) {
	n := &nameserver{ttl: 5, addrs: []netip.Addr{loopback(1), loopback(2)}, deadAddrs: []netip.Addr{deadAddr(0)}}
	n.addr = testlab.ServeDNS(testLab(t), n)
	query := new(dns.Msg).SetQuestion("d1.test.", dns.TypeA)
	reply, err := dns.Exchange(query, n.addr)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for _, rr := range reply.Answer {
		text += rr.(*dns.A).A.String() + " "
	}
	if len(reply.Answer) != 2 || !strings.Contains(text, loopback(2).String()+" ") || !strings.Contains(text, deadAddr(0).String()+" ") {
		t.Errorf("got %s", text)
	}
}

func TestBackendsWithDeadAddresses(t *testing.T) {
	l := testLab(t)
	b := l.newBackends(protocols[0].backends(nil))
	b.listenEverywhere()
	blackholes(b.port, 1)
	c := &conns{limit: 1, timeout: time.Minute}
	c.address = netip.AddrPortFrom(loopback(7), uint16(b.port)).String()
	if status, body := c.get(""); status != http.StatusOK {
		t.Errorf("got %d %s", status, body)
	}
	c.close()
	if conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(deadAddr(0), uint16(b.port)).String(), 300*time.Millisecond); err == nil {
		conn.Close()
		t.Error("a connection to the dead address was opened")
	}
	if n := b.Opened.Load(); n != 1 {
		t.Errorf("%d connections were opened: the dead address is alive", n)
	}
}
