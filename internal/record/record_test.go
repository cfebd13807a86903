package record

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
	"caddytarget/internal/trace"
)

// never is a caller that must not be asked.
type never struct{}

func (*never) Recorded() Call { panic("asked for what is not recorded") }

// TestFree: without a listener, a span and the debug log there is no record, the caller is
// asked for nothing, and nothing is allocated.
func TestFree(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "http://site.example/", nil)
	core, _ := observer.New(zapcore.InfoLevel)
	log, hub, begun, by := zap.New(core), new(trace.Hub), time.Now(), new(never)
	if n := testing.AllocsPerRun(100, func() {
		rec := New(r, begun, log, hub)
		rec.TargetRead(by)
		rec.Resolved(by, nil)
		if rec != nil || ForSpans(r) != nil {
			t.Error("it is recorded")
		}
	}); n != 0 {
		t.Errorf("got %g allocations, want none", n)
	}
}

// to is a caller with a target.
type to Call

func (c *to) Recorded() Call { return Call(*c) }

// TestListener: a listener gets what was recorded, with the status of the response or of
// the error.
func TestListener(t *testing.T) {
	for _, tc := range []struct {
		status, want int
	}{{0, http.StatusTeapot}, {http.StatusBadGateway, http.StatusBadGateway}} {
		hub := new(trace.Hub)
		l, err := hub.Listen(trace.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		by := &to{Target: trace.Target{Scheme: "http", Host: "a.example", Port: 80, Path: "/"}, Lookup: "miss", Waited: time.Second}
		rec := New(httptest.NewRequest(http.MethodGet, "http://site.example/", nil), time.Now(), zap.NewNop(), hub)
		w := rec.Watch(httptest.NewRecorder())
		rec.TargetRead(by)
		rec.Resolved(by, nil)
		key := pool.Key{Addr: netip.MustParseAddrPort("192.0.2.1:80")}
		rec.Attempt(http.MethodGet, &key, by).End(by, 0, false, errors.New("x"))
		rec.Attempt(http.MethodGet, &key, by).End(by, http.StatusTeapot, true, nil)
		w.WriteHeader(http.StatusTeapot)
		rec.Done(Outcome{Caller: by, Status: tc.status, Attempts: 2})
		e := <-l.Events()
		l.Close()
		if e.Site != "site.example" || e.Target != "http://a.example/" || e.Status != tc.want || len(e.Attempts) != 2 {
			t.Errorf("got %+v, want the status %d and two attempts", e, tc.want)
			continue
		}
		first, second := e.Attempts[0], e.Attempts[1]
		if first.Lookup != "miss" || first.DNS != 1 || first.Error != "x" || first.Reused || second.Lookup != "" || !second.Reused || second.Status != http.StatusTeapot {
			t.Errorf("got %+v", e.Attempts)
		}
	}
}

// readerFrom is a writer with a ReadFrom.
type readerFrom struct {
	*httptest.ResponseRecorder
	used bool
}

func (w *readerFrom) ReadFrom(r io.Reader) (int64, error) {
	w.used = true
	return io.Copy(w.ResponseRecorder, r)
}

// TestResponse: the first status that is final counts, however the response is written.
func TestResponse(t *testing.T) {
	for _, tc := range []struct {
		name  string
		write func(w *Response)
		want  int
	}{
		{"nothing", func(*Response) {}, 0},
		{"interim", func(w *Response) { w.WriteHeader(http.StatusEarlyHints) }, 0},
		{"interim and final", func(w *Response) { w.WriteHeader(http.StatusEarlyHints); w.WriteHeader(404); w.WriteHeader(500) }, 404},
		{"another protocol", func(w *Response) { w.WriteHeader(http.StatusSwitchingProtocols) }, 101},
		{"body", func(w *Response) { _, _ = w.Write([]byte("x")) }, 200},
		{"file", func(w *Response) { _, _ = w.ReadFrom(strings.NewReader("x")) }, 200},
	} {
		rec := new(Request)
		w := rec.Watch(httptest.NewRecorder())
		tc.write(w)
		if w.status != tc.want || rec.response != w {
			t.Errorf("%s: got the status %d, want %d", tc.name, w.status, tc.want)
		}
	}
	inner := &readerFrom{ResponseRecorder: httptest.NewRecorder()}
	w := new(Request).Watch(inner)
	if n, err := w.ReadFrom(strings.NewReader("abc")); n != 3 || err != nil || !inner.used || inner.Body.String() != "abc" {
		t.Errorf("got %d, %v, %q, want what the writer reads itself", n, err, inner.Body)
	}
	if err := http.NewResponseController(w).Flush(); err != nil || !inner.Flushed {
		t.Errorf("got %v and flushed %t, want a flush", err, inner.Flushed)
	}
	if err := w.Push("/", nil); !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("got %v of a push, want %v", err, http.ErrNotSupported)
	}
}

// TestFailureLog: at the level debug all failures are logged, at others so many at once,
// and the next line says how many were not.
func TestFailureLog(t *testing.T) {
	for level, want := range map[zapcore.Level]int{zapcore.DebugLevel: 300, zapcore.InfoLevel: 100, zapcore.ErrorLevel: 100} {
		core, lines := observer.New(zapcore.DebugLevel)
		l := FailureLog{Log: zap.New(core), Level: level}
		err := &failure.Error{Target: "a.example", Phase: failure.DNS, Err: errors.New("x")}
		o := Outcome{Failure: failure.Of(err), Status: 502}
		for range 300 {
			l.Failed(&o, err, netip.AddrPort{})
		}
		if n := lines.Len(); n < want || n > want+10 || lines.All()[0].Message != "target not resolved" || lines.All()[0].Level != level {
			t.Errorf("%s: got %d lines, the first one %+v, want %d", level, n, lines.All()[0], want)
		}
	}
}
