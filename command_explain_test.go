package caddytarget

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/explain"
	"caddytarget/internal/testlab"
)

// TestCommandExplain checks what the command prints of requests that would not be sent,
// and that it needs no server with --nameserver.
func TestCommandExplain(t *testing.T) {
	w := newAdminWorld(t)
	w.dns.Has("private.example", "10.0.0.1")
	w.dns.Has("public.example", "93.184.215.14")
	w.dns.Set("failing.example", testlab.Reply{Rcode: 2})
	w.run(w.proxy())
	for _, where := range []string{"--address=" + w.admin, "--nameserver=" + w.dns.Addr} {
		for _, test := range []struct {
			target string
			status int
			want   []string // in order
		}{
			{"http://public.example/x", 0, []string{"target ", "lookup ", "miss", "query ", w.dns.Addr, "answer", "address ", "93.184.215.14:80: allowed", "result ", "would be sent"}},
			{"http://private.example/", 1, []string{"address ", "10.0.0.1:80: refused: private", "result ", "status 403, destination_ip_prohibited in phase policy, rule private"}},
			{"http://failing.example/", 1, []string{"query ", "SERVFAIL", "error ", "result ", "status 502, dns_error in phase dns"}},
			{"http://none.example/", 1, []string{"negative", "result ", "status 502, destination_not_found in phase dns"}},
			{"http://0x7f.1/", 1, []string{"site ", "result ", "status 400, http_request_error in phase request, rule malformed"}},
			{"", 1, []string{"result ", "status 400, http_request_error in phase request, rule no_target"}},
			{"http://[::1]:2019/", 1, []string{"refused: ", "status 403, destination_ip_prohibited"}},
		} {
			if strings.Contains(test.target, "::1") && strings.HasPrefix(where, "--address") {
				continue // which is allowed there
			}
			status, stdout, stderr := caddyTarget(t, "explain", where, "--", test.target)
			rest, found := stdout, true
			for _, want := range test.want {
				if found {
					_, rest, found = strings.Cut(rest, want)
				}
			}
			if status != test.status || !found || (status != 0) != strings.Contains(stderr, "the request would not be sent") {
				t.Errorf("%s %s: got status %d, %s%s, want %d, %q in order", where, test.target, status, stdout, stderr, test.status, test.want)
			}
			status, stdout, stderr = caddyTarget(t, "explain", "-o", "json", where, "--", test.target)
			var report explain.Report
			if err := json.Unmarshal([]byte(stdout), &report); err != nil || status != test.status || report.WouldSend != (status == 0) {
				t.Errorf("%s %s: got status %d, %s%s, %v, want %d with a report in JSON", where, test.target, status, stdout, stderr, err, test.status)
			}
		}
	}
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca})
	w.dns.Has("name.example", "127.0.0.2")
	status, stdout, stderr := caddyTarget(t, "explain", "--connect", "--address="+w.admin, "https://name.example:"+b.Port)
	if status != 0 || !strings.Contains(stdout, "TLS handshake ") || !strings.Contains(stdout, "TLS 1.3") || !strings.Contains(stdout, " for name.example, until ") {
		t.Errorf("got status %d, %s%s, want a handshake and a certificate", status, stdout, stderr)
	}
	status, stdout, stderr = caddyTarget(t, "explain", "--connect", "--nameserver="+w.dns.Addr, "https://name.example:"+b.Port)
	if status != 1 || !strings.Contains(stdout, "rule loopback") || strings.Contains(stdout, "connect ") {
		t.Errorf("got status %d, %s%s, want that the default rules refuse it without a connection", status, stdout, stderr)
	}
}

// TestExplainKnowsNothing: with --nameserver, what a server with this nameserver has saved
// is no answer.
func TestExplainKnowsNothing(t *testing.T) {
	w := newWorld(t)
	w.dns.Has("name.example", "93.184.215.14")
	w.run(w.proxy())
	if got := mustExplain(t, url.Values{"url": {"http://name.example"}}); got == nil || !got.WouldSend {
		t.Fatalf("explained as %+v, want that it is sent", got)
	}
	w.stop()
	files := w.savedFiles()
	if len(files) != 1 {
		t.Fatalf("got the files %q, want one", files)
	}
	file := filepath.Join(caddy.DefaultStorage.Path, "caddytarget", "dns", filepath.Base(files[0]))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, file, read(t, files[0]))
	w.dns.SetSilent(true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	site, release, err := newServerlessSite(w.dns.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	target := "http://name.example"
	in, err := explain.NewInput(map[string]string{"url": target}, nil)
	if err != nil {
		t.Fatal(err)
	}
	in.Request = in.Request.WithContext(ctx)
	if got := newExplanation(site, in).run(); got.WouldSend {
		t.Errorf("explained as %+v by a nameserver that is silent, want a failure", got.Lookup)
	}
}
