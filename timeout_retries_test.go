package caddytarget

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// TestTimeoutEndsRetries: a request ends when its timeout is over, however long it may be
// tried again, and its status is that of the last failure. Where it is tried again at once,
// that may be the timeout itself.
func TestTimeoutEndsRetries(t *testing.T) {
	const tries = time.Hour // a test that waits for that has failed long before
	w := newWorld(t)
	w.dns.Has("hole.example", "127.0.0.9")
	w.dns.Has("name.example", "127.0.0.8")
	hole := "http://hole.example:" + testlab.NewBlackhole(t, "", "127.0.0.9").Port
	silent := "http://name.example:" + testlab.SilentBackend(t, "", "127.0.0.8").Port
	refuses := "http://name.example:" + testlab.FreePort(t)
	closes := "http://name.example:" + testlab.NewRawBackend(t, "", "127.0.0.8", nil, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1000))
	}).Port
	for _, interval := range []string{"lb_try_interval 10ms", "lb_try_interval 1h", ""} {
		w.run(w.proxy("timeout 1s", "lb_try_duration "+tries.String(), interval))
		for _, test := range []struct {
			target string
			status int
		}{{hole, 504}, {silent, 504}, {refuses, 502}, {closes, 502}, {"https" + strings.TrimPrefix(closes, "http"), 502}} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				var body io.Reader
				if method == http.MethodPost {
					body = strings.NewReader("body")
				}
				mayRunOut := strings.HasSuffix(interval, " 10ms")
				if res, err := w.try(method, "/", test.target, body); err != nil || res.StatusCode != test.status && (!mayRunOut || res.StatusCode != 504) {
					t.Errorf("%s %s, %s: %v, %v, want status %d", method, test.target, interval, res, err, test.status)
				}
			}
		}
	}
}
