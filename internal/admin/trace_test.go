package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"caddytarget/internal/testlab"
	"caddytarget/internal/trace"
)

// slowWriter is a response whose client reads nothing until it may.
type slowWriter struct {
	*httptest.ResponseRecorder
	reads chan struct{} // closed: the client reads
}

func (w *slowWriter) Write(p []byte) (int, error) {
	<-w.reads
	return w.ResponseRecorder.Write(p)
}

// TestTraceDropped: a client that is too slow is told once how many requests were left out,
// before the next one, and again at the end.
func TestTraceDropped(t *testing.T) {
	p := newProcess()
	w := &slowWriter{httptest.NewRecorder(), make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- p.api().Serve(w, httptest.NewRequest(http.MethodGet, "/target/trace?limit=2", nil))
	}()
	testlab.Eventually(t, "the client listens", p.shared.Trace.Listening)
	const published = 300 // more than wait for a listener
	for range published {
		p.shared.Trace.Publish(&trace.Event{Method: "\u202e"})
	}
	close(w.reads)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n\n")
	if len(lines) != 5 || lines[0] != ": listening" || !strings.HasPrefix(lines[1], "event: dropped\ndata: {\"dropped\":") ||
		!strings.HasPrefix(lines[2], `data: {"time":"`) || !strings.Contains(lines[2], `"method":"\u202e"`) || !strings.HasPrefix(lines[3], `data: {"time":"`) ||
		lines[4] != "event: end\ndata: "+`{"reason":"limit","events":2,`+lines[1][len("event: dropped\ndata: {"):] {
		t.Errorf("got %q, want how many were dropped, two requests and the end", lines)
	}
	if p.shared.Trace.Listening() {
		t.Error("it still listens, want that it has ended")
	}
}

// TestTraceEnd: a live trace ends with its time, with a reload and with its client.
func TestTraceEnd(t *testing.T) {
	for _, test := range []struct {
		name, query, want string
		end               func(p *process, leave context.CancelFunc)
	}{
		{"time", "?seconds=1", `"reason":"time"`, func(*process, context.CancelFunc) {}},
		{"reload", "", `"reason":"reload"`, func(p *process, _ context.CancelFunc) { p.shared.Trace.Disconnect() }},
		{"client", "", "", func(_ *process, leave context.CancelFunc) { leave() }},
	} {
		p := newProcess()
		ctx, leave := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		ended := make(chan error, 1)
		go func() {
			ended <- p.api().Serve(w, httptest.NewRequest(http.MethodGet, "/target/trace"+test.query, nil).WithContext(ctx))
		}()
		testlab.Eventually(t, "the client listens", p.shared.Trace.Listening)
		test.end(p, leave)
		if err := <-ended; err != nil {
			t.Errorf("%s: got %v, want no error", test.name, err)
		}
		leave()
		if text := w.Body.String(); !strings.Contains(text, test.want) || test.want == "" && strings.Contains(text, "reason") {
			t.Errorf("%s: got %q, want %s", test.name, text, test.want)
		}
	}
	p := newProcess()
	p.shared.Trace.Close()
	if status, text := ask(t, p.api(), http.MethodGet, "trace", ""); status != http.StatusServiceUnavailable || text != "the server stops: closed" {
		t.Errorf("got %d: %s, want that the server stops", status, text)
	}
}
