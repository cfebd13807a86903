package caddytarget

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/replay"
	"caddytarget/internal/testlab"
)

// Sources with a name of their own, beside each other and beside static upstreams.

// TestStaticFallback: static upstreams serve if a source finds no addresses, but not
// what is refused.
func TestStaticFallback(t *testing.T) {
	w := newWorld(t)
	w.resolver = "timeout 300ms\ndeadline 500ms"
	static := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	dead := testlab.FreePort(t)
	w.dns.Has("good.example", "127.0.0.3")
	w.dns.Has("denied.example", "127.0.0.2")
	w.dns.Has("private.example", "10.0.0.1")
	w.dns.Set("fails.example", testlab.Reply{Rcode: 2})
	w.dns.Set("silent.example", testlab.Reply{Silent: true})
	w.dns.Set("_empty._tcp.example", testlab.Reply{SRV: []string{"0 0 80 gone.example."}, TTL: 60})
	w.dns.Set("_private._tcp.example", testlab.Reply{SRV: []string{"0 0 80 gone.example.", "0 0 80 private.example."}, TTL: 60})
	const guarded = "deny denied.example\nallow_ips 127.0.0.0/8"
	for _, test := range []struct {
		name, source, options, header string
		status                        int
	}{
		{"gone", "gone.example", "", "", 200},
		{"fails", "fails.example", "", "", 200},
		{"silent", "silent.example", "", "", 200},
		{"service gone", "_gone._tcp.example", "", "", 200},
		{"service without addresses", "_empty._tcp.example", "", "", 200},
		{"placeholder, gone", "{header.X-Name}", guarded, "gone.example", 200},
		{"placeholder, silent", "{header.X-Name}", guarded, "silent2.example", 200},
		{"placeholder, service gone", "_{header.X-Name}._tcp.example", guarded, "gone", 200},
		{"refused name", "{header.X-Name}", guarded, "denied.example", 503},
		{"refused address", "{header.X-Name}", guarded, "private.example", 503},
		{"refused literal", "{header.X-Name}", guarded, "10.0.0.1", 503},
		{"malformed name", "{header.X-Name}", guarded, "a b", 503},
		{"no name", "{header.X-Name}", guarded, "", 503},
		{"refused address of a service", "_{header.X-Name}._tcp.example", guarded, "private", 503},
	} {
		for _, retries := range []int{0, 3} {
			t.Run(fmt.Sprint(test.name, ", retries ", retries), func(t *testing.T) {
				w.dns.Set("silent2.example", testlab.Reply{Silent: true})
				upstreams, more := "127.0.0.2:"+static.Port, ""
				if retries > 0 { // of the static upstreams the first one is dead
					upstreams, more = "127.0.0.2:"+dead+" "+upstreams, fmt.Sprintf("lb_retries %d\nlb_policy round_robin", retries)
				}
				w.run(fmt.Sprintf("reverse_proxy %s {\ndynamic target %s {\n%s\n}\ntransport target\n%s\n}", upstreams, test.source, test.options, more))
				for range 3 {
					res := w.get("/", "", header("X-Name", test.header))
					if res.StatusCode != test.status || test.status == 200 && res.seen.Address != "127.0.0.2" {
						t.Errorf("%v, want %d", res, test.status)
					}
				}
			})
		}
	}
	t.Run("found", func(t *testing.T) {
		found := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
		w.run(fmt.Sprintf("reverse_proxy 127.0.0.2:%s {\ndynamic target good.example %s\ntransport target\n}", static.Port, found.Port))
		for range 5 {
			if res := w.mustGet("/", ""); res.seen.Address != "127.0.0.3" {
				t.Errorf("sent to %s, want 127.0.0.3", res.seen.Address)
			}
		}
	})
}

// TestEnteredAgain: a route that a request enters once more calls the name that it has
// then, with its headers.
func TestEnteredAgain(t *testing.T) {
	w := newWorld(t)
	const named = `
	---
	&(call) {
		reverse_proxy {
			dynamic target NAME {
				allow_ips 127.0.0.0/8
			}
			transport target
			lb_retries 2
			header_up X-For {vars.to}
			@teapot status 418
			handle_response @teapot {
				vars seen yes
			}
		}
	}`
	second := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
	dead := testlab.FreePort(t)
	teapot := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	})})
	w.dns.Has("first.example", "127.0.0.2")
	w.dns.Has("second.example", "127.0.0.3")
	w.dns.Set("_http._tcp.second.example", testlab.Reply{SRV: []string{"0 0 " + second.Port + " second.example."}, TTL: 60})
	for _, test := range []struct {
		name, first, site string
	}{
		{"handle_errors", dead, "vars to first.example\nvars port DEAD\ninvoke /x call\nhandle_errors {\nvars to second.example\nvars port SECOND\ninvoke call\n}"},
		{"handle_errors in a row", dead, "vars to first.example\nvars port DEAD\ninvoke /x call\nhandle_errors {\nroute {\nvars to second.example\nvars port SECOND\ninvoke call\n}\n}"},
		{"invoke", teapot.Port, "route /x {\nvars to first.example\nvars port TEAPOT\ninvoke call\nvars to second.example\nvars port SECOND\ninvoke call\n}"},
	} {
		for _, source := range []string{"{vars.to} {vars.port}", "_http._tcp.{vars.to}"} {
			t.Run(test.name+" "+source, func(t *testing.T) {
				w.dns.Set("_http._tcp.first.example", testlab.Reply{SRV: []string{"0 0 " + test.first + " first.example."}, TTL: 60})
				w.resolver = fmt.Sprintf("cache_size %d", 1000+w.runs) // one of its own
				forgetNames()                                          // which it would take over
				text := strings.NewReplacer("DEAD", dead, "TEAPOT", teapot.Port, "SECOND", second.Port)
				route := strings.Replace(named, "NAME", source, 1)
				w.run(text.Replace(test.site + strings.ReplaceAll(route, "\n\t", "\n")))
				for range 3 {
					res := w.get("/x", "")
					if res.StatusCode != 200 || res.seen.Address != "127.0.0.3" || res.seen.Header.Get("X-For") != "second.example" {
						t.Errorf("%v, headers for %q", res, res.seen.Header.Get("X-For"))
					}
				}
			})
		}
	}
}

// readAndReset reads whole requests and resets their connections.
func readAndReset(t testing.TB, port, addr string) (string, *atomic.Int64) {
	t.Helper()
	requests := new(atomic.Int64)
	b := testlab.NewRawBackend(t, port, addr, nil, func(conn net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			requests.Add(1)
		}
		testlab.Reset(conn)
	})
	return b.Port, requests
}

// TestBodyOfAllUpstreams: a body that an upstream has read goes to the next one whole,
// wherever the two come from.
func TestBodyOfAllUpstreams(t *testing.T) {
	w := newWorld(t)
	good := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}})
	bad, requests := readAndReset(t, "", "127.0.0.2")
	w.dns.Has("bad.example", "127.0.0.2")
	w.dns.Has("good.example", "127.0.0.3")
	w.dns.Set("_http._tcp.example", testlab.Reply{SRV: []string{"0 0 " + bad + " bad.example.", "1 0 " + good.Port + " good.example."}, TTL: 60})
	text := strings.NewReplacer("BAD", bad, "GOOD", good.Port)
	for _, test := range []struct{ name, upstreams, config string }{
		{"service", "", "dynamic target _http._tcp.example {\nfail_duration 0\n}"},
		{"dynamic multi", "", "dynamic multi {\ntarget bad.example BAD {\nfail_duration 0\n}\ntarget good.example GOOD\n}"},
		{"static", "127.0.0.2:BAD 127.0.0.3:GOOD", ""},
		{"service, request_buffers", "", "dynamic target _http._tcp.example {\nfail_duration 0\n}\nrequest_buffers 1MB"},
		{"multi with another source", "", "dynamic multi {\na 127.0.0.2 BAD {\nversions ipv4\n}\ntarget good.example GOOD\n}"},
	} {
		for _, size := range []int{1, 50_000, 2 * replay.MaxKept} {
			t.Run(fmt.Sprint(test.name, " ", size), func(t *testing.T) {
				policy := "lb_policy first\nlb_retries 3"
				if !strings.HasPrefix(test.name, "service") {
					policy = "lb_policy round_robin\nlb_retries 5"
				}
				w.run(text.Replace(fmt.Sprintf("reverse_proxy %s {\n%s\ntransport target\n%s\n}\nhandle_errors {\nrespond \"{err.message}\" {err.status_code}\n}", test.upstreams, test.config, policy)))
				body := strings.Repeat("x", size)
				met := false
				for range 10 {
					before := requests.Load()
					// chunked, as it is not known how long it is
					res, err := w.try(http.MethodGet, "/", "", io.MultiReader(strings.NewReader(body)))
					bad := requests.Load() > before
					met = met || bad
					switch {
					case err != nil:
						t.Error(err)
					case size > replay.MaxKept && bad && !strings.HasSuffix(test.name, "request_buffers"):
						if res.StatusCode != http.StatusBadGateway || strings.Contains(res.body, "the body has been sent and is not kept") {
							t.Errorf("status %d: %s, want the error of the first attempt", res.StatusCode, res.body)
						}
					case res.StatusCode != 200 || res.seen.Body != body:
						t.Errorf("status %d, a body of %d octets, want %d", res.StatusCode, len(res.seen.Body), len(body))
					}
				}
				if !met {
					t.Error("the bad upstream was never met: this showed nothing")
				}
			})
		}
	}
}

// TestSilentService: many silent records take no longer than a silent address. Of what
// would take dial_timeout more, this measures the part that does.
func TestSilentService(t *testing.T) {
	w := newWorld(t)
	const n = 8
	var records []string
	for i := range n {
		name := fmt.Sprintf("n%d.example", i)
		w.dns.Has(name, fmt.Sprintf("127.0.1.%d", i+1))
		records = append(records, fmt.Sprintf("%d 0 9 %s.", i/4, name))
	}
	w.dns.Set("_http._tcp.example", testlab.Reply{SRV: records, TTL: 60})
	multi := "dynamic multi {\n"
	for i := range n {
		multi += fmt.Sprintf("target n%d.example 9 {\nfail_duration 0\n}\n", i)
	}
	for i, test := range []struct{ name, config string }{
		{"service", "dynamic target _http._tcp.example {\nmax_upstreams 8\nfail_duration 0\n}"},
		{"dynamic multi", multi + "}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			// settings of its own, so that it has a pool without dials of the one before
			w.run(fmt.Sprintf("reverse_proxy {\n%s\ntransport target {\nkeepalive_idle_conns %d\n}\nlb_retries %d\n}", test.config, 1000+i, n-1))
			var last atomic.Int64
			w.hookDials(func(dialler) dialler {
				return func(ctx context.Context, _, _ string) (net.Conn, error) {
					last.Store(time.Now().UnixNano())
					<-ctx.Done()
					return nil, ctx.Err()
				}
			})
			// the machine may be busy at one time: not each time
			testlab.Eventually(t, "the last record is not given all of dial_timeout", func() bool {
				res := w.get("/", "")
				took := time.Since(time.Unix(0, last.Load()))
				if res.StatusCode != http.StatusGatewayTimeout {
					t.Errorf("got %v, want status 504", res)
				}
				return took < 2500*time.Millisecond
			})
		})
	}
}

// TestClaimIsGivenUp: an address that was to be tried, and was not, is tried by the next
// request.
func TestClaimIsGivenUp(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3"}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: append(addrs, "127.0.0.4")})
	w.dns.Has("name.example", addrs...)
	w.dns.Has("other.example", "127.0.0.4")
	shared := acquireShared()
	defer releaseShared()
	at := netip.MustParseAddrPort("127.0.0.2:" + b.Port)
	const options = "fail_duration 100ms"
	policy := &health.Policy{MaxFails: 1, EjectFor: 100 * time.Millisecond, Retryable: true}
	w.run(fmt.Sprintf(`
		handle /multi {
			reverse_proxy {
				dynamic multi {
					target other.example %[1]s
					target name.example %[1]s {
						%[2]s
					}
				}
				transport target
				lb_policy first
			}
		}
		handle /name {
			reverse_proxy {
				dynamic target name.example %[1]s {
					%[2]s
				}
				transport target
			}
		}`, b.Port, options))
	for _, test := range []struct {
		name, path string
		sent       bool // a request was sent before the failure: it takes a request to find out
	}{
		{"trial, another source", "/multi", true},
		{"probe, another source", "/multi", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			shared.health.Failed("name.example", at, test.sent, nil)
			want := health.NeedsProbe
			if test.sent {
				want = health.NeedsTrial
			}
			testlab.Eventually(t, "its time is over", func() bool { return shared.health.State(policy, "name.example", at) == want })
			if res := w.mustGet(test.path, ""); res.seen.Address != "127.0.0.4" {
				t.Fatalf("sent to %s, want 127.0.0.4", res.seen.Address)
			}
			if test.sent {
				if got := shared.health.State(policy, "name.example", at); got != want {
					t.Errorf("state %d after a request that went elsewhere, want %d", got, want)
				}
				if res := w.mustGet("/name", ""); res.seen.Address != "127.0.0.2" {
					t.Errorf("%v, want the trial", res)
				}
				return
			}
			testlab.Eventually(t, "the probe shows that it works", func() bool { return shared.health.State(policy, "name.example", at) == health.Healthy })
		})
	}
}
