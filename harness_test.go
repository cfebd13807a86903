package caddytarget

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"go.uber.org/goleak"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// The integration tests run Caddy in this process, between the nameservers and the
// backends of testlab.

// checkLeaks is leaktest.Check for tests that run Caddy.
func checkLeaks(t testing.TB) {
	leaktest.Check(t,
		// what Caddy and its dependencies start once and never end
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Upstream).fillDynamicHost.func1.1"),
		goleak.IgnoreAnyFunction("github.com/DeRuina/timberjack.(*Logger).millRun"), // of access logs
	)
}

// --- Caddy ---

// world is a DNS server and a test CA, and the gateway between them and the
// client.
type world struct {
	testing.TB
	dns    *testlab.Nameserver
	ca     *testlab.Authority
	port   string // of the gateway
	client *http.Client

	// what the gateway is configured with
	runs          int
	global        string // more global options
	resolver      string // more of the default resolver
	targetOptions string // more of the global option target
	log           string // the default log, instead of none
	store         string // the storage, instead of a folder of files
	admin         string // where the admin API listens, instead of nowhere
}

func newWorld(t testing.TB) *world {
	t.Helper()
	checkLeaks(t)
	w := &world{TB: t, dns: testlab.NewNameserver(t), ca: testlab.NewAuthority(t), port: testlab.FreePort(t)}
	rt := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 256}
	w.client = &http.Client{
		Transport:     rt,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		rt.CloseIdleConnections()
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// caddyfile returns a whole Caddyfile for what stands in the gateway's site;
// what follows after a line of dashes stands at the top level.
func (w *world) caddyfile(site string) string {
	site, more, _ := strings.Cut(site, "\n---\n")
	return fmt.Sprintf(`{
	admin %s
	auto_https off
	persist_config off
	storage %s
	log default {
		%s
	}
	%s
	target {
		resolver %s {
			hosts off
			family ipv4
			%s
		}
		%s
	}
}

http://:%s {
	bind 127.0.0.1
	@run path /__run
	log_skip @run
	respond @run %d
	%s
}
%s`, cmp.Or(w.admin, "off"), cmp.Or(w.store, fmt.Sprintf("file_system %q", w.storage())), cmp.Or(w.log, "output discard\nlevel ERROR"), w.global, w.dns.Addr, w.resolver, w.targetOptions, w.port, w.runs, site, more)
}

// logTo makes the next configuration log from a level on. It returns a function
// that returns what a logger has said until now: all, or with one of some messages.
func (w *world) logTo(level, logger string, messages ...string) func() []map[string]any {
	file := filepath.Join(w.TempDir(), "log")
	w.log = fmt.Sprintf("output file %q\nformat json\nlevel %s", file, level)
	return func() (lines []map[string]any) {
		data, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				w.Fatalf("%s: %v", line, err)
			}
			if fields["logger"] == logger && (len(messages) == 0 || slices.Contains(messages, fields["msg"].(string))) {
				lines = append(lines, fields)
			}
		}
		return lines
	}
}

func (w *world) storage() string { return filepath.Join(filepath.Dir(w.ca.File), "storage") }

// adapt turns a Caddyfile into JSON.
func adapt(caddyfile string) ([]byte, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	return config, err
}

// run starts the gateway, or reloads it.
func (w *world) run(site string) {
	w.Helper()
	if err := w.tryRun(site); err != nil {
		w.Fatal(err)
	}
}

func (w *world) tryRun(site string) error {
	w.runs++
	config, err := adapt(w.caddyfile(site))
	if err != nil {
		return err
	}
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	w.settle()
	return nil
}

// forgetNames makes the resolvers in use forget what they know.
func forgetNames() {
	for _, r := range usedResolvers() {
		r.Purge(dnscache.Purge{Suffix: "."})
	}
}

// settle waits until connections to the gateway meet the new configuration only.
// Caddy opens a new listener and takes a moment to close the old one, with the
// connections in its queue.
func (w *world) settle() {
	w.Helper()
	w.client.CloseIdleConnections()
	want := fmt.Sprint(w.runs, " 200 OK")
	inARow := 0
	testlab.Eventually(w, "the new configuration", func() bool {
		for inARow < 20 {
			conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
			if err != nil {
				inARow = 0
				return false
			}
			_, _ = io.WriteString(conn, "GET /__run HTTP/1.1\r\nHost: run\r\nConnection: close\r\n\r\n")
			got := ""
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				body, _ := io.ReadAll(res.Body)
				got = string(body) + " " + res.Status
			}
			_ = conn.Close()
			if got != want {
				inARow = 0
				return false
			}
			inARow++
		}
		return true
	})
}

// proxy is a site that proxies to what the header X-Target names; errors tell
// why in their body.
func (w *world) proxy(options ...string) string {
	return fmt.Sprintf(`target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8 ::1
		tls_trust_pool file %q
		%s
	}
	handle_errors {
		respond "{err.status_code} {http.target.error}"
	}`, w.ca.File, strings.Join(options, "\n\t\t"))
}

// response is a response that was read to its end.
type response struct {
	*http.Response
	body string
	seen testlab.Request // if the backend told
}

func (r response) String() string {
	if r.Response == nil {
		return "no response"
	}
	return fmt.Sprintf("status %d: %.300s", r.StatusCode, r.body)
}

// request makes a request to the gateway.
func (w *world) request(method, path, target string, body io.Reader, change ...func(*http.Request)) (*http.Request, context.CancelFunc) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testlab.Timeout)
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+w.port+path, body)
	if err != nil {
		w.Fatal(err)
	}
	if target != "" {
		req.Header["X-Target"] = []string{target}
	}
	for _, f := range change {
		f(req)
	}
	return req, cancel
}

// try sends a request to the gateway.
func (w *world) try(method, path, target string, body io.Reader, change ...func(*http.Request)) (response, error) {
	w.Helper()
	req, cancel := w.request(method, path, target, body, change...)
	defer cancel()
	return do(w.client, req)
}

// do sends a request and reads the response.
func do(client *http.Client, req *http.Request) (response, error) {
	res, err := client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	r := response{Response: res, body: string(text)}
	if err != nil {
		return r, fmt.Errorf("reading the body: %w", err)
	}
	if res.StatusCode == http.StatusOK && res.Header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(text, &r.seen); err != nil {
			return r, err
		}
	}
	return r, nil
}

// get sends a GET request, which has to be answered.
func (w *world) get(path, target string, change ...func(*http.Request)) response {
	w.Helper()
	res, err := w.try(http.MethodGet, path, target, nil, change...)
	if err != nil {
		w.Fatal(err)
	}
	return res
}

// mustGet sends a GET request, which has to be answered by the backend.
func (w *world) mustGet(path, target string, change ...func(*http.Request)) response {
	w.Helper()
	res := w.get(path, target, change...)
	if res.StatusCode != http.StatusOK {
		w.Fatalf("GET %s of %s: status %d: %s", path, target, res.StatusCode, res.body)
	}
	return res
}

// header returns a change to a request.
func header(name, value string) func(*http.Request) {
	return func(r *http.Request) {
		if name == "Host" {
			r.Host = value
			return
		}
		r.Header.Set(name, value)
	}
}
