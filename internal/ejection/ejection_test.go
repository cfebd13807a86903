package ejection

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"caddytarget/internal/failure"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
)

// TestEjectionReasons: each error of an attempt has phase and token, of those whose series
// are there from the start.
func TestEjectionReasons(t *testing.T) {
	known := make(map[failure.Failure]bool)
	for _, f := range failure.AddressFailures() {
		known[f] = true
	}
	evil := "\x1b[2J\"\\\u202e\xff" + strings.Repeat("x", 500)
	for _, err := range []error{
		&pool.Error{Phase: pool.Connect, Err: fmt.Errorf("%s", evil)},
		&pool.Error{Phase: pool.Handshake, Err: fmt.Errorf("%s", evil)},
		&pool.Error{Phase: pool.Send, Err: fmt.Errorf("%s", evil)},
		&pool.Error{Phase: pool.Response, Err: pool.ErrSilent},
		&failure.Unhealthy{Status: 503}, &failure.Unhealthy{Latency: time.Second},
	} {
		r := new(Log).Reason(err)
		if !known[failure.Failure{Phase: failure.Phase(r.Phase), Token: failure.Token(r.Token)}] {
			t.Errorf("%v: got %+v, want one that is known", err, r)
		}
		if r.Text == "" || len(r.Text) > 210 || strings.ContainsAny(r.Text, "\x1b\"\\") {
			t.Errorf("got the text %q, want a short one without control characters", r.Text)
		}
	}
	if r := new(Log).Reason(nil); r != (health.Reason{}) {
		t.Errorf("got %+v without an error, want nothing", r)
	}
}

// TestLoggers: lines go to the last logger that was not released, if there is one.
func TestLoggers(t *testing.T) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ejections_total", Help: "Ejections."}, []string{"phase", "error"})
	l := New(total)
	eject := func() {
		l.Ejected(&health.Ejection{Addr: netip.MustParseAddrPort("192.0.2.1:443"), Reason: health.Reason{Phase: "connect", Token: "connection_refused"}})
	}
	var logs []*observer.ObservedLogs
	var releases []func()
	for range 2 {
		core, observed := observer.New(zapcore.InfoLevel)
		logs, releases = append(logs, observed), append(releases, l.Use(zap.New(core)))
	}
	check := func(when string, want ...int) {
		t.Helper()
		eject()
		for i, n := range want {
			if got := logs[i].Len(); got != n {
				t.Errorf("%s: got %d lines of logger %d, want %d", when, got, i, n)
			}
		}
	}
	check("two", 0, 1)
	releases[1]()
	check("one", 1, 1)
	releases[0]()
	check("none", 1, 1)
}
