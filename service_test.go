package caddytarget

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// service is a site that calls a service.
func (w *world) service(name, options string, more ...string) string {
	if !slices.ContainsFunc(more, func(s string) bool { return strings.HasPrefix(s, "transport") }) {
		more = append(more, "transport target")
	}
	return fmt.Sprintf(`reverse_proxy {
		dynamic target %s {
			%s
		}
		%s
	}
	handle_errors {
		respond "{err.status_code} {http.target.error}"
	}`, name, options, strings.Join(more, "\n\t\t"))
}

// serviceTest is a service, and how its requests are answered. AA, BB and CC are
// the ports of the backends, DEAD one without a backend.
type serviceTest struct {
	name    string
	srv     []string
	options string
	more    []string
	shares  map[*testlab.Backend]serviceShare // of the requests; all are served if there are any
	status  int
	reason  string
}

// serviceShare bounds how many requests a backend gets.
type serviceShare struct{ min, max float64 }

const serviceRequests = 300 // for each test that has shares

// serviceWorld has backends for the records of a service.
type serviceWorld struct {
	*world
	a, b, c, tlsA, tlsB *testlab.Backend
	text                *strings.Replacer // puts in the ports
}

func newServiceWorld(t *testing.T) *serviceWorld {
	w := newWorld(t)
	s := &serviceWorld{
		world: w,
		a:     testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}}),
		b:     testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}}),
		c:     testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.4"}}),
		tlsA:  testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true}),
		tlsB:  testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true}),
	}
	s.text = strings.NewReplacer("DEAD", testlab.FreePort(t), "TLSA", s.tlsA.Port, "TLSB", s.tlsB.Port, "CA", w.ca.File, "AA", s.a.Port, "BB", s.b.Port, "CC", s.c.Port)
	return s
}

// TestService has services with backends. It is long because its table is.
func TestService(t *testing.T) {
	w := newServiceWorld(t)
	a, b, c, tlsA, tlsB := w.a, w.b, w.c, w.tlsA, w.tlsB
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.3")
	w.dns.Has("c.example", "127.0.0.4")
	w.dns.Has("dead.example", "127.0.0.9")
	w.dns.Has("private.example", "10.0.0.1")
	w.dns.Set("failing.example", testlab.Reply{Rcode: 2})

	const requests = serviceRequests
	wide := 5 * math.Sqrt(requests/4.) // sigmas, since nothing is seeded here
	exactly := func(n float64) serviceShare { return serviceShare{n, n} }
	half := serviceShare{requests/2 - wide, requests/2 + wide}
	for i, test := range []serviceTest{
		{
			name: "one", srv: []string{"0 0 AA a.example."},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "Caddy's own transport", srv: []string{"0 0 AA a.example."}, more: []string{"transport http"},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "upper case", srv: []string{"0 0 AA A.Example."},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "equal weights", srv: []string{"0 5 AA a.example.", "0 5 BB b.example."},
			shares: map[*testlab.Backend]serviceShare{a: half, b: half},
		},
		{
			name: "equal weights, first", srv: []string{"0 0 BB b.example.", "0 0 AA a.example."}, more: []string{"lb_policy first"},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "equal weights, round robin", srv: []string{"0 0 BB b.example.", "0 0 AA a.example.", "0 0 CC c.example."}, more: []string{"lb_policy round_robin"},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests / 3), b: exactly(requests / 3), c: exactly(requests / 3)},
		},
		{
			name: "more than are offered", srv: []string{"0 0 BB b.example.", "0 0 AA a.example."}, options: "max_upstreams 1",
			shares: map[*testlab.Backend]serviceShare{a: half, b: half},
		},
		{
			name: "weights", srv: []string{"0 9 AA a.example.", "0 3 BB b.example."}, more: []string{"lb_policy first"},
			shares: map[*testlab.Backend]serviceShare{a: {225 - wide, 225 + wide}, b: {75 - wide, 75 + wide}},
		},
		{
			name: "weight 0", srv: []string{"0 0 AA a.example.", "0 100 BB b.example."},
			shares: map[*testlab.Backend]serviceShare{a: {0, 2}, b: {requests - 2, requests}},
		},
		{
			name: "priorities", srv: []string{"2 9 AA a.example.", "1 0 BB b.example.", "3 0 CC c.example."},
			shares: map[*testlab.Backend]serviceShare{b: exactly(requests)},
		},
		{
			name: "the first priority has no address", srv: []string{"2 0 AA a.example.", "1 0 BB unknown.example.", "1 0 BB failing.example."},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "the first priority is down", srv: []string{"2 0 AA a.example.", "1 0 DEAD b.example.", "1 0 DEAD c.example."}, more: []string{"lb_retries 3", "lb_policy first"},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "a heavy record is down", srv: []string{"0 1 AA a.example.", "0 50 DEAD b.example."}, more: []string{"lb_retries 3"},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "some targets have no address", srv: []string{"0 0 AA a.example.", "0 0 BB unknown.example.", "0 0 CC c.example."},
			shares: map[*testlab.Backend]serviceShare{a: half, c: half},
		},
		{
			name: "one is not offered", srv: []string{"0 0 AA a.example.", "0 0 BB ."},
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "TLS, two names on one address", srv: []string{"0 0 TLSA a.example.", "0 0 TLSB other.example."},
			more:   []string{"transport target {\ntls\ntls_trust_pool file CA\n}"},
			shares: map[*testlab.Backend]serviceShare{tlsA: half, tlsB: half},
		},
		{
			name: "guard: ports", srv: []string{"0 0 AA a.example.", "0 0 BB b.example."}, options: "ports AA\nallow_ips 127.0.0.0/8",
			shares: map[*testlab.Backend]serviceShare{a: exactly(requests)},
		},
		{
			name: "guard: addresses", srv: []string{"0 0 AA a.example.", "0 0 BB b.example.", "1 0 AA private.example."}, options: "allow_ips 127.0.0.3",
			shares: map[*testlab.Backend]serviceShare{b: exactly(requests)},
		},
		{
			name: "guard: all ports", srv: []string{"0 0 AA a.example."}, options: "ports 1\nallow_ips any",
			status: 503, reason: ": port AA is refused: it is not an allowed port",
		},
		{
			name: "guard: all addresses", srv: []string{"0 0 AA private.example.", "1 0 AA private.example."}, options: "ports 1-65535",
			status: 503, reason: ": private.example: address 10.0.0.1 is refused: it is a private address",
		},
		{
			name: "guard: names", srv: []string{"0 0 AA a.example."}, options: "allow a.example\nallow_ips any",
			status: 503, reason: `is refused: it is not in the allow list`,
		},
		{
			name: "no target has an address", srv: []string{"0 0 AA unknown.example.", "1 0 AA failing.example."},
			status: 503, reason: "unknown.example: DNS lookup (A): " + w.dns.Addr + " replied NXDOMAIN",
		},
		{
			name: "not offered", srv: []string{"0 0 0 ."}, status: 503, reason: "_http._tcp.svc",
		},
		{
			name: "no such service", status: 503, reason: "DNS lookup (SRV): ",
		},
		{
			name: "all are down", srv: []string{"0 0 DEAD a.example.", "1 0 DEAD b.example."}, more: []string{"lb_retries 3"},
			status: 502, reason: "connection refused",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			// a name of its own: the one of the test before is in the cache
			w.check(t, test, fmt.Sprintf("_http._tcp.svc%d.example", i))
		})
	}
	for _, shared := range append(tlsA.Misdirected(), tlsB.Misdirected()...) {
		t.Errorf("a connection served more than one name: %s", shared)
	}
}

// check calls a service with the records of a test.
func (w *serviceWorld) check(t *testing.T, test serviceTest, service string) {
	w.dns.Has("other.example", "127.0.0.2")
	if test.srv != nil {
		var srv []string
		for _, record := range test.srv {
			srv = append(srv, w.text.Replace(record))
		}
		w.dns.Set(service, testlab.Reply{SRV: srv, TTL: 60})
	}
	template := service
	if test.options != "" && !strings.HasPrefix(test.options, "max") {
		template = "_http._tcp.{header.X-Name}"
	}
	// what failed in other tests is of no interest here
	w.run(w.text.Replace(w.service(template, "fail_duration 1h\n"+test.options, test.more...)))
	n := serviceRequests
	if test.shares == nil {
		n = 3
	}
	before := w.served()
	for range n {
		res := w.get("/x?y", "", header("Host", "client.example"), header("X-Name", strings.TrimPrefix(service, "_http._tcp.")))
		if test.shares == nil {
			if res.StatusCode != test.status || !strings.Contains(res.body, w.text.Replace(test.reason)) {
				t.Fatalf("status %d, want %d with %q: %s", res.StatusCode, test.status, w.text.Replace(test.reason), res.body)
			}
			continue
		}
		if res.StatusCode != 200 || res.seen.URI != "/x?y" {
			t.Fatalf("status %d, request URI %q, want 200 and /x?y: %s", res.StatusCode, res.seen.URI, res.body)
		}
		wantHost, wantSNI := "client.example", ""
		if strings.HasPrefix(test.name, "TLS") {
			wantHost, wantSNI = "a.example:"+w.tlsA.Port, "a.example"
			if strings.HasSuffix(res.Header.Get("Backend"), w.tlsB.Port) {
				wantHost, wantSNI = "other.example:"+w.tlsB.Port, "other.example"
			}
		}
		if res.seen.Host != wantHost || res.seen.SNI != wantSNI {
			t.Fatalf("Host %q, SNI %q, want %q, %q", res.seen.Host, res.seen.SNI, wantHost, wantSNI)
		}
	}
	for backend, after := range w.served() {
		got, want := float64(after-before[backend]), test.shares[backend]
		if got < want.min || got > want.max {
			t.Errorf("%v requests to port %s, want %v to %v", got, backend.Port, want.min, want.max)
		}
	}
	if n := w.dns.Asked("SRV " + service); n > 1 && test.srv != nil && test.srv[0] != "0 0 0 ." {
		t.Errorf("%d queries for the service, want at most 1", n)
	}
}

// served returns how many requests each backend has served.
func (w *serviceWorld) served() map[*testlab.Backend]int64 {
	counts := make(map[*testlab.Backend]int64)
	for _, backend := range []*testlab.Backend{w.a, w.b, w.c, w.tlsA, w.tlsB} {
		counts[backend] = backend.Served.Load()
	}
	return counts
}

// TestServiceRecovers: a priority that works again is used again, and only the
// request that tries it is delayed if it does not.
func TestServiceRecovers(t *testing.T) {
	w := newWorld(t)
	backup := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.3")
	port := testlab.FreePort(t)
	w.dns.Set("_http._tcp.example", testlab.Reply{SRV: []string{"1 0 " + port + " a.example.", "2 0 " + backup.Port + " b.example."}, TTL: 60})
	w.run(w.service("_http._tcp.example", "fail_duration 100ms", "lb_retries 2"))
	for range 20 {
		if res := w.mustGet("/", ""); res.seen.Address != "127.0.0.3" {
			t.Fatalf("sent to %s, want 127.0.0.3", res.seen.Address)
		}
	}
	main := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Port: port})
	testlab.Eventually(t, "the first priority is used again", func() bool { return w.mustGet("/", "").seen.Address == "127.0.0.2" })
	for range 20 {
		if res := w.mustGet("/", ""); res.seen.Address != "127.0.0.2" {
			t.Fatalf("sent to %s, want 127.0.0.2", res.seen.Address)
		}
	}
	main.Close()
	if res := w.mustGet("/", ""); res.seen.Address != "127.0.0.3" {
		t.Errorf("sent to %s, want 127.0.0.3", res.seen.Address)
	}
}

// TestServiceSilentTarget: a target whose name is not answered for does not hold up
// requests that others can serve.
func TestServiceSilentTarget(t *testing.T) {
	w := newWorld(t)
	w.resolver = "timeout 50s\ndeadline 50s"
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Set("silent.example", testlab.Reply{Silent: true})
	records := []string{"1 0 " + b.Port + " silent.example.", "1 0 " + b.Port + " a.example.", "2 0 " + b.Port + " silent2.example."}
	w.dns.Set("_http._tcp.example", testlab.Reply{SRV: records, TTL: 60})
	w.run(w.service("_http._tcp.example", "max_fails 1"))
	start := time.Now()
	for range 5 {
		w.mustGet("/", "")
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s, want at most 20s", took)
	}
	w.dns.Set("_late._tcp.example", testlab.Reply{SRV: []string{"1 0 " + b.Port + " silent3.example.", "2 0 " + b.Port + " a.example."}, TTL: 60})
	if n := w.dns.Asked("silent2.example"); n > 0 {
		t.Errorf("%d queries for a target that is not needed", n)
	}
	// nor does a priority whose names are not answered for
	w.run(w.service("_late._tcp.example", "max_fails 1"))
	start = time.Now()
	w.mustGet("/", "")
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s, want at most 20s", took)
	}
	// a first connection that takes long leaves time for others
	hole := testlab.NewBlackhole(t, "", "127.0.0.7").Port
	w.dns.Has("hole.example", "127.0.0.7")
	w.dns.Set("_hole._tcp.example", testlab.Reply{SRV: []string{"1 0 " + hole + " hole.example.", "2 0 " + b.Port + " a.example."}, TTL: 60})
	w.run(w.service("_hole._tcp.example", "max_fails 1", "lb_retries 1", "transport target {\ndial_timeout 50s\n}"))
	start = time.Now()
	w.mustGet("/", "")
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s, want at most 20s", took)
	}
}
