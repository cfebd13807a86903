package caddytarget

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"

	"caddytarget/internal/testlab"
)

// TestDebugStory: at the level debug, the log tells what happened to a request, each fact
// once.
func TestDebugStory(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("down.example", "127.0.0.3")
	lines := w.logTo("DEBUG", "http.handlers.target")
	w.run(w.proxy())
	for _, tc := range []struct {
		target string
		want   []string // message and fields
	}{
		{"http://a.example:" + b.Port + "/secret?secret", []string{
			"target read: host name port remote scheme",
			"addresses found: addresses duration lookup name remote",
			"attempt: connect dialled name remote response reused send status",
			"request done: attempts duration name remote status",
		}},
		{"http://down.example:" + b.Port + "/secret?secret", []string{
			"target read: host name port remote scheme",
			"addresses found: addresses duration lookup name remote",
			"attempt: connect dialled error failure name phase remote reused",
			"target failed: attempts dialled error failure host name phase port remote scheme status",
		}},
		{"http://none.example/", []string{
			"target read: host name port remote scheme",
			"target not resolved: attempts error failure host name phase port remote scheme status",
		}},
		{"http://127.0.0.1:25/", []string{
			"target refused: attempts error failure host name phase port remote rule scheme status",
		}},
	} {
		before := len(lines())
		w.get("/", tc.target)
		var got []string
		testlab.Eventually(t, "all lines", func() bool {
			got = nil
			for _, line := range lines()[before:] {
				if text := fmt.Sprint(line); strings.Contains(text, "secret") {
					t.Errorf("%s: got %s, want no path and no query", tc.target, text)
				}
				message := line["msg"]
				for _, key := range []string{"level", "ts", "logger", "msg"} {
					delete(line, key)
				}
				got = append(got, fmt.Sprint(message, ": ", strings.Join(slices.Sorted(maps.Keys(line)), " ")))
			}
			return len(got) >= len(tc.want)
		})
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: got the lines\n%s\nwant\n%s", tc.target, strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
	}
}

// spanExporter keeps the spans of Caddy's provider.
type spanExporter struct {
	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *spanExporter) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spans = append(e.spans, spans...)
	return nil
}

// Shutdown implements sdktrace.SpanExporter.
func (*spanExporter) Shutdown(context.Context) error { return nil }

// take returns the spans until now, and forgets them.
func (e *spanExporter) take() []sdktrace.ReadOnlySpan {
	e.mu.Lock()
	defer e.mu.Unlock()
	spans := e.spans
	e.spans = nil
	return spans
}

// TestSpans runs Caddy with its handler tracing, and checks the spans of attempts.
// It is long because the spans of one server are checked one after the other.
func TestSpans(t *testing.T) {
	exporter := new(spanExporter)
	autoexport.RegisterSpanExporter("caddytarget-test", func(context.Context) (sdktrace.SpanExporter, error) { return exporter, nil })
	t.Setenv("OTEL_TRACES_EXPORTER", "caddytarget-test")
	t.Setenv("OTEL_PROPAGATORS", "tracecontext,b3")
	w := newWorld(t)
	var header http.Header // of the last request at a backend
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		if r.URL.Path == "/fail" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	plain := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: handler})
	secure := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca, HTTP2: true, Handler: handler})
	w.dns.Has("a.example", "127.0.0.2")
	w.dns.Has("b.example", "127.0.0.2")
	w.dns.Has("down.example", "127.0.0.3", "127.0.0.4")
	w.dns.Has("named.example", "127.0.0.2")
	traced := "@traced not path /untraced\ntracing @traced {\nspan site\n}\n"
	named := `handle /named {
		reverse_proxy {
			dynamic target named.example ` + plain.Port + `
			transport target
		}
	}
	handle /removed {
		target {header.X-Target} {
			allow_ips 127.0.0.0/8
		}
		reverse_proxy {
			dynamic target
			transport target
			header_up -traceparent
		}
	}
	@other path /t /untraced
	handle @other {
		` + w.proxy("lb_retries 1", "fail_duration 0")
	site, errors, _ := strings.Cut(traced+named, "handle_errors")
	site += "\n}\nhandle_errors" + errors
	for _, tc := range []struct {
		method, path, target string
		want                 []string
	}{
		{"GET", "/t", "http://a.example:" + plain.Port + "/p?secret=1", []string{
			"GET: http.request.method=GET http.response.status_code=200 network.peer.address=127.0.0.2 network.peer.port=PORT network.protocol.version=1.1 server.address=a.example server.port=PORT url.full=http://a.example:PORT/p" +
				" > DNS lookup, connect",
		}},
		{"PURGE", "/t", "http://a.example:" + plain.Port + "/fail", []string{
			"HTTP: error.type=503 http.request.method=_OTHER http.request.method_original=PURGE http.response.status_code=503 network.peer.address=127.0.0.2 network.peer.port=PORT network.protocol.version=1.1 server.address=a.example server.port=PORT url.full=http://a.example:PORT/fail error > connect",
		}},
		{"GET", "/t", "https://b.example:" + secure.Port, []string{
			"GET: http.request.method=GET http.response.status_code=200 network.peer.address=127.0.0.2 network.peer.port=PORT network.protocol.version=2 server.address=b.example server.port=PORT url.full=https://b.example:PORT/t" +
				" > DNS lookup, connect, TLS handshake",
		}},
		{"GET", "/t", "http://down.example:" + plain.Port, []string{
			"GET: error.type=connection_refused http.request.method=GET network.peer.address=DOWN network.peer.port=PORT server.address=down.example server.port=PORT url.full=http://down.example:PORT/t error > DNS lookup, connect",
			"GET: error.type=connection_refused http.request.method=GET http.request.resend_count=1 network.peer.address=DOWN network.peer.port=PORT server.address=down.example server.port=PORT url.full=http://down.example:PORT/t error > connect",
		}},
		{"GET", "/t", "http://none.example", []string{
			"GET: error.type=destination_not_found http.request.method=GET server.address=none.example server.port=80 url.full=http://none.example/t error > DNS lookup",
		}},
		{"GET", "/t", "http://10.0.0.1", nil},
		{"GET", "/named", "", []string{
			"GET: http.request.method=GET http.response.status_code=200 network.peer.address=127.0.0.2 network.peer.port=PORT network.protocol.version=1.1 server.address=named.example server.port=PORT > DNS lookup, connect",
		}},
		{"GET", "/removed", "http://a.example:" + plain.Port + "/p", []string{
			"GET: http.request.method=GET http.response.status_code=200 network.peer.address=127.0.0.2 network.peer.port=PORT network.protocol.version=1.1 server.address=a.example server.port=PORT url.full=http://a.example:PORT/p > connect",
		}},
		{"GET", "/untraced", "http://a.example:" + plain.Port, nil},
	} {
		w.run(site)
		header = nil
		if _, err := w.try(tc.method, tc.path, tc.target, nil); err != nil {
			t.Fatal(err)
		}
		served := header
		w.run("respond ok") // the provider exports what it has when it is released
		var server sdktrace.ReadOnlySpan
		clients := make(map[oteltrace.SpanID]sdktrace.ReadOnlySpan)
		children := make(map[oteltrace.SpanID][]sdktrace.ReadOnlySpan)
		spans := exporter.take()
		for _, s := range spans {
			switch {
			case s.SpanKind() == oteltrace.SpanKindServer && s.Name() == "site" && server == nil:
				server = s
			case s.SpanKind() == oteltrace.SpanKindClient:
				clients[s.SpanContext().SpanID()] = s
			case s.SpanKind() == oteltrace.SpanKindInternal:
				children[s.Parent().SpanID()] = append(children[s.Parent().SpanID()], s)
			}
		}
		if server != nil && tc.path == "/untraced" {
			server = nil // that of /__run
		}
		var got []string
		traceparents := map[string]bool{}
		for id, s := range clients {
			text := s.Name() + ":"
			var attributes []string
			for _, a := range s.Attributes() {
				attributes = append(attributes, string(a.Key)+"="+a.Value.String())
			}
			slices.Sort(attributes)
			text += " " + strings.Join(attributes, " ")
			if s.Status().Code == codes.Error {
				text += " error"
			}
			text = strings.NewReplacer(plain.Port, "PORT", secure.Port, "PORT", "127.0.0.3", "DOWN", "127.0.0.4", "DOWN").Replace(text)
			var names []string
			for _, c := range children[id] {
				names = append(names, c.Name())
				if c.StartTime().Before(s.StartTime()) || c.EndTime().After(s.EndTime()) {
					t.Errorf("%s: %s is from %s to %s, its parent from %s to %s", tc.target, c.Name(), c.StartTime(), c.EndTime(), s.StartTime(), s.EndTime())
				}
			}
			if names != nil {
				text += " > " + strings.Join(names, ", ")
			}
			got = append(got, text)
			traceparents[fmt.Sprintf("00-%s-%s-01", s.SpanContext().TraceID(), id)] = true
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(tc.want))
		if !slices.Equal(got, want) {
			t.Errorf("%s %s: got the spans\n%s\nwant\n%s", tc.path, tc.target, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		switch parent := served.Get("Traceparent"); {
		case tc.path == "/removed" || tc.path == "/untraced":
			if parent != "" {
				t.Errorf("%s: the backend got the traceparent %s, want none", tc.path, parent)
			}
		case served != nil && !traceparents[parent]:
			t.Errorf("%s %s: the backend got the traceparent %s, want that of the attempt, %v", tc.path, tc.target, parent, traceparents)
		case served != nil && !strings.Contains(parent, strings.Split(served.Get("B3"), "-")[1]):
			t.Errorf("%s %s: the backend got the b3 %s, want the span of %s", tc.path, tc.target, served.Get("B3"), parent)
		}
	}
}
