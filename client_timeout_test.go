package caddytarget

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/testlab"
)

// TestClientTimeoutTeaches: an address that answers no request is left out although it is the
// clients that say how long they wait.
func TestClientTimeoutTeaches(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		for _, silent := range []string{"accepts", "reads"} {
			t.Run(scheme+" "+silent, func(t *testing.T) {
				w := newWorld(t)
				config := testlab.BackendConfig{Addrs: []string{"127.0.0.3"}}
				if scheme == "https" {
					config.CA = w.ca
				}
				good := testlab.NewBackend(t, config)
				if silent == "accepts" {
					testlab.SilentBackend(t, good.Port, "127.0.0.2")
				} else {
					config.Addrs, config.Port = []string{"127.0.0.2"}, good.Port
					config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						<-r.Context().Done()
					})
					testlab.NewBackend(t, config)
				}
				w.dns.Has("name.example", "127.0.0.2", "127.0.0.3")
				w.run(w.proxy("timeout {header.X-Timeout}", "fail_duration 1h", "lb_policy random"))
				inARow := 0
				testlab.Eventually(t, "40 requests in a row succeed", func() bool {
					res, err := w.try(http.MethodPost, "/", scheme+"://name.example:"+good.Port, strings.NewReader("body"), header("X-Timeout", "400ms"))
					switch {
					case err != nil:
						t.Error(err)
					case res.StatusCode == http.StatusOK:
						inARow++
					default:
						inARow = 0
					}
					return inARow == 40
				})
			})
		}
	}
}

// TestImpatientClient: requests with hardly any time, at any rate, take no address from
// others, nor from each other.
func TestImpatientClient(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-r.Context().Done():
		}
	})})
	w.dns.Has("name.example", addrs...)
	shared := acquireShared()
	defer releaseShared()
	w.run(w.proxy("timeout {header.X-Timeout}", "fail_duration 1h"))
	target := "http://name.example:" + b.Port
	send := func(timeout string) int {
		res, err := w.try(http.MethodPost, "/", target, strings.NewReader("body"), header("X-Timeout", timeout))
		if err != nil {
			t.Error(err)
			return 0
		}
		return res.StatusCode
	}
	for range 60 { // what is usual
		if status := send("50s"); status != http.StatusOK {
			t.Fatalf("status %d, want 200", status)
		}
	}
	for _, timeout := range []string{"1ms", "20ms"} {
		inParallel(8, 400, func(int) { send(timeout) })
	}
	for _, addr := range addrs {
		at := netip.MustParseAddrPort(addr + ":" + b.Port)
		for _, timeout := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond, time.Minute} {
			if got := shared.health.State(&health.Policy{MaxFails: 1, EjectFor: time.Hour, Timeout: timeout}, "name.example", at); got != health.Healthy {
				t.Errorf("%s with a timeout of %s: state %d", addr, timeout, got)
			}
		}
	}
}
