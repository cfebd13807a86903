package caddytarget

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"caddytarget/internal/exchange"
	"caddytarget/internal/record"
	"caddytarget/internal/testlab"
	"caddytarget/internal/trace"
)

// listenTo opens a live trace. next returns the name and the data of the next event, or
// the empty string twice after the last one.
func (w *world) listenTo(query string) (next func() (name, data string), leave func()) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 2*testlab.Timeout) // later than what the test waits for
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.admin+"/target/trace?"+query, nil)
	if err != nil {
		w.Fatal(err)
	}
	res, err := w.client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	leave = func() {
		cancel()
		_ = res.Body.Close()
	}
	w.Cleanup(leave)
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		w.Fatalf("%s: got %s, %s, want events", query, res.Status, res.Header.Get("Content-Type"))
	}
	if !res.Close {
		w.Error("the connection may be used again, want none whose time limit is that of the live trace")
	}
	lines := bufio.NewReader(res.Body)
	if line, err := lines.ReadString('\n'); line != ": listening\n" {
		w.Fatalf("got %q, %v, want that the server listens", line, err)
	}
	return func() (name, data string) {
		w.Helper()
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return "", ""
			}
			line = strings.TrimSuffix(line, "\n")
			if !isPrintable(line) {
				w.Errorf("got %q, want printable ASCII", line)
			}
			switch field, value, _ := strings.Cut(line, ": "); field {
			case "event":
				name = value
			case "data":
				return name, value
			}
		}
	}, leave
}

// nextRequest returns the next event of a live trace, which has to be a request.
func (w *world) nextRequest(next func() (name, data string)) (e trace.Event) {
	w.Helper()
	name, data := next()
	if err := json.Unmarshal([]byte(data), &e); err != nil || name != "" {
		w.Fatalf("got the event %q, %s: %v, want a request", name, data, err)
	}
	return e
}

// phases returns what an attempt went through, and how it ended.
func phases(a trace.Attempt) string {
	var all []string
	for _, p := range []struct {
		name    string
		seconds float64
	}{{"dns", a.DNS}, {"connect", a.Connect}, {"tls", a.TLS}, {"send", a.Send}, {"response", a.Response}} {
		if p.seconds > 0 {
			all = append(all, p.name)
		}
	}
	return fmt.Sprint(strings.Join(all, " "), map[bool]string{true: " reused"}[a.Reused], ": ", a.Status, " ", a.Failure)
}

// TestLiveTrace checks what a live trace says of requests of all kinds.
func TestLiveTrace(t *testing.T) {
	w := newAdminWorld(t)
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	secure := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca})
	redirecting := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.RedirectHandler("http://to.example:"+plain.Port+"/there", http.StatusFound)})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.2")
	w.dns.Has("to.example", "127.0.0.2")
	w.dns.Has("down.example", "127.0.0.3", "127.0.0.4")
	w.dns.Has("private.example", "10.0.0.1")
	w.run(w.proxy("fail_duration 0", "follow_redirects 2", "lb_retries 1", "lb_policy first"))
	for _, tc := range []struct {
		method, target string
		want           string // the target of the event
		attempts       []string
		end            string // status, phase, token and rule
	}{
		{"GET", "http://a.example:" + plain.Port + "/p?secret=1", "http://a.example:" + plain.Port + "/p", []string{"dns connect send response: 200 "}, "200   "},
		{"GET", "http://a.example:" + plain.Port, "http://a.example:" + plain.Port + "/", []string{"send response reused: 200 "}, "200   "},
		{"POST", "https://b.example:" + secure.Port, "https://b.example:" + secure.Port + "/", []string{"dns connect tls send response: 200 "}, "200   "},
		{"GET", "http://down.example:" + plain.Port, "http://down.example:" + plain.Port + "/", []string{"dns connect: 0 connection_refused", "connect: 0 connection_refused"}, "502 connect connection_refused "},
		{"GET", "http://none.example", "http://none.example/", []string{"dns: 0 destination_not_found"}, "502 dns destination_not_found "},
		{"GET", "http://private.example", "http://private.example/", []string{"dns: 0 destination_ip_prohibited"}, "403 policy destination_ip_prohibited private"},
		{"GET", "http://private.example", "http://private.example/", nil, "403 policy destination_ip_prohibited private"},
		{"GET", "ftp://a.example", "ftp://a.example/", nil, "403 policy http_request_denied schemes"},
		{"GET", "http://a b", "", nil, "400 request http_request_error malformed"},
		{"GET", "", "", nil, "400 request http_request_error no_target"},
		{"GET", "http://a.example:" + redirecting.Port, "http://a.example:" + redirecting.Port + "/", []string{"connect send response: 302 ", "dns connect send response: 200 "}, "200   "},
	} {
		next, leave := w.listenTo("")
		body := strings.NewReader("")
		if tc.method == http.MethodPost {
			body = strings.NewReader("body")
		}
		if _, err := w.try(tc.method, "/", tc.target, body, header("Host", "site.example")); err != nil {
			t.Fatal(err)
		}
		e := w.nextRequest(next)
		leave()
		var attempts []string
		for i, a := range e.Attempts {
			if i < len(tc.attempts) && a.Seconds+1e-6 < a.DNS+a.Connect+a.TLS+a.Send+a.Response-1e-5 {
				t.Errorf("%s: attempt %d: got %+v, want no more time in the phases than in all", tc.target, i, a)
			}
			attempts = append(attempts, phases(a))
		}
		if e.Target != tc.want || e.Site != "site.example" || e.Method != tc.method {
			t.Errorf("%s: got %s %s of %s, want %s %s of site.example", tc.target, e.Method, e.Target, e.Site, tc.method, tc.want)
		}
		if strings.Join(attempts, ", ") != strings.Join(tc.attempts, ", ") {
			t.Errorf("%s: got the attempts %q, want %q", tc.target, attempts, tc.attempts)
		}
		if got := fmt.Sprintf("%d %s %s %s", e.Status, e.Phase, e.Failure, e.Rule); got != tc.end || (e.Error == "") != (e.Failure == "") {
			t.Errorf("%s: got the end %q, error %q, want %q", tc.target, got, e.Error, tc.end)
		}
	}
}

// TestTraceEnds checks the limits of a live trace, and that a reload and a client that
// leaves end it.
func TestTraceEnds(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	for _, name := range []string{"a.example", "b.a.example", "other.example"} {
		w.dns.Has(name, "127.0.0.2")
	}
	w.run(w.proxy())
	get := func(name string) { w.mustGet("/", "http://"+name+":"+b.Port) }
	hub := func() *trace.Hub { return acquiredShared(w).trace }

	next, _ := w.listenTo("limit=2&target=.A.example")
	for _, name := range []string{"a.example", "b.a.example", "other.example", "b.a.example", "b.a.example"} {
		get(name)
	}
	for range 2 {
		if e := w.nextRequest(next); !strings.HasPrefix(e.Target, "http://b.a.example:") {
			t.Errorf("got %s, want b.a.example", e.Target)
		}
	}
	if name, data := next(); name != "end" || data != `{"reason":"limit","events":2,"dropped":0}` {
		t.Errorf("got %s, %s, want the end by the limit", name, data)
	}
	next, _ = w.listenTo("seconds=1")
	if name, data := next(); name != "end" || data != `{"reason":"time","events":0,"dropped":0}` {
		t.Errorf("got %s, %s, want the end after a second", name, data)
	}
	_, leave := w.listenTo("")
	leave()
	testlab.Eventually(t, "the client that left listens no more", func() bool { return !hub().Listening() })

	next, _ = w.listenTo("")
	w.run(w.proxy())
	if name, data := next(); name != "end" || !strings.Contains(data, `"reason":"reload"`) {
		t.Errorf("got %s, %s, want the end by a reload", name, data)
	}
	// too many
	for range trace.MaxListeners {
		w.listenTo("")
	}
	if status, text := w.askAdmin("GET", "/target/trace", ""); status != http.StatusTooManyRequests || !strings.Contains(text, "8 clients have a live trace already") {
		t.Errorf("one more: got %d, %s, want 429", status, text)
	}
	hub().Disconnect()
	testlab.Eventually(t, "all have ended", func() bool { return !hub().Listening() })
	if status, _ := w.askAdmin("HEAD", "/target/trace", ""); status != http.StatusOK {
		t.Errorf("HEAD: got %d, want 200", status)
	}
	for query, want := range map[string]string{
		"limit=0": "limit \"0\" is not a number from 1 to 100000", "limit=x": "limit", "seconds=61": "seconds \"61\" is not a number from 1 to 60",
		"seconds=": "seconds", "target=": "target \"\": ", "target=a..b": "target \"a..b\": ", "target=*.a": "target", "n=3": "unknown parameter \"n\": expecting target, limit, seconds",
		"limit=1&limit=2": "already specified", "target=" + url.QueryEscape("a\x1b[2J"): "target",
	} {
		status, text := w.askAdmin("GET", "/target/trace?"+query, "")
		if status != http.StatusBadRequest || !strings.Contains(strings.ReplaceAll(text, `\"`, `"`), want) {
			t.Errorf("%s: got %d, %s, want 400 and %s", query, status, text, want)
		}
	}
	if status, _ := w.askAdmin("POST", "/target/trace", ""); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %d, want 405", status)
	}
	w.run("respond ok")
	if hub := acquiredShared(w); hub == nil {
		if status, text := w.askAdmin("GET", "/target/trace", ""); status != http.StatusServiceUnavailable {
			t.Errorf("without a target: got %d, %s, want 503", status, text)
		}
	}
}

// acquiredShared returns what the configurations in use share.
func acquiredShared(w *world) (s *shared) {
	shareds.Range(func(_, value any) bool {
		s = value.(*shared)
		return false
	})
	return s
}

// TestTraceSlow: a client that reads nothing holds no request up, and does not keep its
// place for longer than it asked for.
func TestTraceSlow(t *testing.T) {
	w := newAdminWorld(t)
	w.run(w.proxy())
	_, _ = w.listenTo("seconds=2") // nothing is read
	long := "http://" + strings.Repeat("a", 60) + ".invalid/" + strings.Repeat("p", 4000)
	for range 3000 {
		w.get("/", long)
	}
	testlab.Eventually(t, "the listener is gone", func() bool { return !acquiredShared(w).trace.Listening() })
}

// TestTraceCommand checks the command's lines, and that an interrupt is a good end.
func TestTraceCommand(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("a.example", "127.0.0.2")
	w.run(w.proxy())
	hostile := func(r *http.Request) {
		r.Host = "\u202eevil\u009b"
		r.Header.Set("X-Target", "http://a.example:"+b.Port+"/\u009b")
	}
	start := func(args ...string) (lines *bufio.Scanner, cmd *exec.Cmd) {
		cmd = exec.CommandContext(t.Context(), os.Args[0], append([]string{"target", "trace", "--address", w.admin}, args...)...)
		cmd.Env = append(os.Environ(), asCaddy+"=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testlab.Eventually(t, "the command listens", acquiredShared(w).trace.Listening)
		return bufio.NewScanner(out), cmd
	}
	lines, cmd := start("--target", "a.example", "-n", "1")
	w.get("/", "http://none.example")
	w.get("/", "", hostile)
	if lines.Scan(); !isPrintable(lines.Text()) || !strings.Contains(lines.Text(), " 200 GET http://a.example:") || !strings.Contains(lines.Text(), " 127.0.0.2:"+b.Port+" dns ") {
		t.Errorf("got %q, want a line about a.example", lines.Text())
	}
	if err := cmd.Wait(); err != nil || lines.Scan() {
		t.Errorf("got %v and %q, want status 0 and one line", err, lines.Text())
	}
	lines, cmd = start("-o", "json")
	w.get("/", "", hostile)
	var e trace.Event
	if lines.Scan(); json.Unmarshal(lines.Bytes(), &e) != nil || !isPrintable(lines.Text()) || e.Status != 200 {
		t.Errorf("got %q, want JSON", lines.Text())
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: got %v, want status 0", err)
	}
	if status, _, stderr := caddyTarget(t, "trace", "--seconds", "99", "--address", w.admin); status != 1 || !strings.Contains(stderr, "is not a number from 1 to 60") {
		t.Errorf("got status %d, %s, want 1 and the limits", status, stderr)
	}
	if status, _, stderr := caddyTarget(t, "trace", "--address", "127.0.0.1:"+testlab.FreePort(t)); status != 2 {
		t.Errorf("got status %d, %s, want 2", status, stderr)
	}
}

// TestUnrecordedIsFree: without a listener, a span and the debug log, nothing of a request
// is recorded, and nothing is allocated.
func TestUnrecordedIsFree(t *testing.T) {
	w := newAdminWorld(t)
	w.run(w.proxy())
	hub, log := acquiredShared(w).trace, zap.NewNop()
	r, _ := http.NewRequest(http.MethodGet, "http://site.example/", nil)
	begun := time.Now()
	c := &exchange.Call{State: new(exchange.State), Scheme: "http"}
	a := exchange.NewAttempt(nil, c, nil)
	if n := testing.AllocsPerRun(100, func() {
		rec := record.New(r, begun, log, hub)
		rec.TargetRead(c)
		rec.Resolved(c, nil)
		if rec != nil || a.BeginRecord(r) {
			t.Error("it is recorded")
		}
	}); n != 0 {
		t.Errorf("got %g allocations, want none", n)
	}
}
