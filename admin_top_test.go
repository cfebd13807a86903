package caddytarget

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"caddytarget/internal/admin"
	"caddytarget/internal/testlab"
)

// TestTop: each request counts once for its target, and all together are all requests.
func TestTop(t *testing.T) {
	w := newAdminWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.dns.Has("busy.example", "127.0.0.2")
	w.dns.Has("calm.example", "127.0.0.2")
	w.dns.Has("cut.example", "127.0.0.3")
	testlab.ResettingBackend(t, b.Port, "127.0.0.3")
	w.targetOptions = "metrics_targets"
	w.run(w.proxy() + "\nmetrics /metrics")
	var before admin.Top
	w.mustAdmin(http.MethodGet, "/target/top", "", &before)
	get := func(host string, n int) {
		for range n {
			w.get("/", "http://"+host+":"+b.Port)
		}
	}
	get("busy.example", 9)
	get("calm.example", 4)
	get("dead.example", 6)
	get("cut.example", 2)
	w.get("/", "not a target") // which counts for no target
	for by, want := range map[string]string{"": "busy.example", "?by=requests": "busy.example", "?by=failures": "dead.example", "?by=latency&limit=1": ""} {
		var top admin.Top
		w.mustAdmin(http.MethodGet, "/target/top"+by, "", &top)
		if len(top.Targets) == 0 || want != "" && top.Targets[0].Host != want {
			t.Fatalf("%s: got %+v, want %s first", by, top.Targets, want)
		}
		if strings.Contains(by, "limit") {
			if n := top.Targets[0].Requests + top.Other.Requests - before.Other.Requests; len(top.Targets) != 1 || n != 21 {
				t.Errorf("%s: got %d targets and %d requests in all, want 1 and 21", by, len(top.Targets), n)
			}
			continue
		}
		sum := top.Other.Requests - before.Other.Requests
		for _, target := range top.Targets {
			sum += target.Requests
			got := fmt.Sprint(target.Requests, target.Failures, target.Connections)
			if want, ok := map[string]string{"busy.example": "9 0 1", "calm.example": "4 0 1", "dead.example": "6 6 0", "cut.example": "2 2 2"}[target.Host]; ok && got != want {
				t.Errorf("%s: requests, failures and new connections are %s, want %s", target.Host, got, want)
			}
		}
		if sum != 21 {
			t.Errorf("%d requests in all, want 21", sum)
		}
	}
	metrics := w.mustGet("/metrics", "").body
	for _, want := range []string{
		`caddy_target_top_requests_total{target="busy.example"} `, `caddy_target_top_requests_failed_total{target="dead.example"} `,
		`caddy_target_top_request_seconds_total{target="(other)"} `, `caddy_target_top_connections_total{target="calm.example"} `,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	w.targetOptions = ""
	w.run(w.proxy() + "\nmetrics /metrics")
	if strings.Contains(w.mustGet("/metrics", "").body, "caddy_target_top_") {
		t.Error("targets are series, want none without metrics_targets")
	}
	for _, query := range []string{"by=size", "limit=0", "limit=1001", "limit=x", "n=3"} {
		if status, text := w.askAdmin(http.MethodGet, "/target/top?"+query, ""); status != http.StatusBadRequest {
			t.Errorf("%s: got status %d, %s, want 400", query, status, text)
		}
	}
	status, stdout, stderr := caddyTarget(t, "top", "--by", "failures", "-n", "2", "--address="+w.admin)
	if status != 0 || !strings.Contains(stdout, "dead.example") || !strings.Contains(stdout, "(all others)") {
		t.Errorf("got status %d, %s%s, want a table with dead.example and all others", status, stdout, stderr)
	}
	if status, _, stderr := caddyTarget(t, "top", "--by", "size", "--address="+w.admin); status != 1 || !strings.Contains(stderr, "is none of requests, failures") {
		t.Errorf("got status %d, %s, want 1 and the orders", status, stderr)
	}
}
