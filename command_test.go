package caddytarget

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"caddytarget/internal/admin"
	"caddytarget/internal/testlab"
)

// asCaddy is in the environment of the processes of this test that are the caddy command.
const asCaddy = "CADDYTARGET_AS_CADDY"

func TestMain(m *testing.M) {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		os.Exit(0)
	}
	os.Exit(withStorage(m.Run))
}

// caddyTarget runs the command caddy target in a process of its own.
func caddyTarget(t testing.TB, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{"target"}, args...)...)
	cmd.Env = append(os.Environ(), asCaddy+"=1")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			t.Fatal(err)
		}
		status = exit.ExitCode()
	}
	if text := out.String() + errOut.String(); !isPrintable(strings.ReplaceAll(strings.ReplaceAll(text, "\n", ""), "\t", "")) {
		t.Errorf("caddy target %q: got the output %q, want printable ASCII only", args, text)
	}
	return status, out.String(), errOut.String()
}

// TestCommand checks the commands and their exit statuses.
// It is long because its table is.
func TestCommand(t *testing.T) {
	w := newAdminWorld(t)
	w.dns.Set("a.example", testlab.Reply{Addrs: []string{"127.0.0.2"}, TTL: 600})
	w.dns.Set("b.example", testlab.Reply{Addrs: []string{"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"}, TTL: 600})
	w.run(w.proxy())
	w.lookup(usedResolvers()[0], []string{"a.example", "b.example", "none.example"})
	config := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(config, []byte("{\nadmin "+w.admin+"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	nothing := "127.0.0.1:" + testlab.FreePort(t)
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	here := "--address=" + w.admin
	for _, tc := range []struct {
		args   string
		status int
		stdout []string // what it has, in order
		stderr string
	}{
		{"names " + here, 0, []string{"NAME", "STATE", "RESOLVER"}, ""},
		{"names --config " + config, 0, []string{"a.example"}, ""},
		{"names --state fresh --prefix a " + here, 0, []string{"NAME", "a.example", "fresh", "127.0.0.2"}, ""},
		{"names --prefix b " + here, 0, []string{"b.example", "127.0.0.", ",127.0.0.", ",+2 "}, ""},
		{"names --limit 2 " + here, 0, []string{"NAME", "\n", "\n", "\n"}, "There are more: --after "},
		{"names --limit 1 --all " + here, 0, []string{"NAME", "\n", "\n", "NAME"}, ""},
		{"names none.example " + here, 0, []string{"name", "none.example", "negative", "error", "NXDOMAIN", "try", w.dns.Addr}, ""},
		{"nameservers " + here, 0, []string{"NAMESERVER", w.dns.Addr, "up", "NOERROR:2,NXDOMAIN:1"}, ""},
		{"ready " + here, 0, []string{"ready\n"}, ""},
		{"explain http://a.example:81/x " + here, 0, []string{"site ", "target ", "a.example", "rule ", "lookup ", "hit", "address ", "127.0.0.2:81: allowed, healthy, offered as number 1", "dial ", "127.0.0.2:81, a new connection, HTTP/1.1", "result ", "would be sent"}, ""},
		{"explain --header X-Target:http://a.example --uri /y --method POST " + here, 0, []string{"POST http://a.example port 80 /y", "would be sent"}, ""},
		{"purge a.example --ask-again " + here, 0, []string{"ASKED FOR AGAIN", " 1\n"}, ""},
		{"purge --suffix example " + here, 0, []string{"FORGOTTEN", " 3\n"}, ""},
		{"purge --ip 127.0.0.2 " + here, 0, []string{"FORGOTTEN", " 0\n"}, ""},
		{"", 0, []string{"Available Commands:", "names", "nameservers", "purge"}, ""},

		{"explain " + here, 1, nil, "missing url"},
		{"explain a b " + here, 1, nil, "accepts at most 1 arg"},
		{"explain a --site x " + here, 1, nil, "unknown site \"x\""},
		{"explain a --method a/b " + here, 1, nil, "method \"a/b\""},
		{"explain a --nameserver " + w.dns.Addr + " " + here, 1, nil, "--address does not go with --nameserver"},
		{"explain a --nameserver " + w.dns.Addr + " --site x", 1, nil, "--site does not go with --nameserver"},
		{"explain a --nameserver dns.example", 1, nil, "nameserver \"dns.example\""},
		{"explain --nameserver " + w.dns.Addr, 1, nil, "--nameserver needs a url"},
		{"names never.example " + here, 1, nil, "unknown name never.example: no resolver has been asked for it, or it was evicted (HTTP 404)"},
		{"names --state rotten " + here, 1, nil, `unknown state "rotten": expecting pending, fresh, stale, negative, failing (HTTP 400)`},
		{"names --limit 0 " + here, 1, nil, "limit"},
		{"names --after x " + here, 1, nil, "cursor"},
		{"top --by requests&limit=x " + here, 1, nil, `by "requests&limit=x" is none of`},
		{"top --by \x1b\xff " + here, 1, nil, `by "\\x1b\\xff" is none of`},
		{"names a.example --limit 3 " + here, 1, nil, "--limit does not go with a name"},
		{"names a.example b.example " + here, 1, nil, "accepts at most 1 arg"},
		{"names -o yaml " + here, 1, nil, "unknown output yaml: expecting table or json"},
		{"names --bogus " + here, 1, nil, "unknown flag: --bogus"},
		{"purge " + here, 1, nil, "expecting one of name, suffix and address, got 0"},
		{"purge a.example --suffix example " + here, 1, nil, "got 2"},
		{"purge --ip 10.0.0.0/8 " + here, 1, nil, "is not an IP address"},
		{"nameservers x " + here, 1, nil, "accepts at most 0 arg"},
		{"bogus " + here, 1, nil, "unknown command"},
		{"names --config " + config + ".missing", 1, nil, "couldn't determine admin API address"},
		{"names --address a:1-3", 1, nil, "invalid admin address"},
		{"names --address " + strings.TrimPrefix(other.URL, "http://"), 1, nil, "404 page not found"},

		{"names --address " + nothing, 2, nil, "no server answered: "},
		{"explain a.example --address " + nothing, 2, nil, "no server answered: "},
		{"purge a.example --address " + nothing, 2, nil, "no server answered: "},
		{"ready --address " + nothing, 2, nil, "no server answered: "},
		{"nameservers -o json --address " + nothing, 2, nil, "no server answered: "},
		{"names --address unix/" + config + ".socket", 2, nil, "no server answered: "},
	} {
		status, stdout, stderr := caddyTarget(t, strings.Fields(tc.args)...)
		if status != tc.status || !strings.Contains(stderr, tc.stderr) && !strings.Contains(strings.ReplaceAll(stderr, `\"`, `"`), tc.stderr) {
			t.Errorf("%s: got status %d, %s, want %d, %s", tc.args, status, stderr, tc.status, tc.stderr)
		}
		rest := stdout
		for _, want := range tc.stdout {
			_, after, ok := strings.Cut(rest, want)
			if !ok {
				t.Errorf("%s: got %s (%s), want %q in order", tc.args, stdout, stderr, tc.stdout)
				break
			}
			rest = after
		}
		if tc.status != 0 && stdout != "" {
			t.Errorf("%s: got %s on stdout, want nothing", tc.args, stdout)
		}
	}
}

// TestCommandJSON checks the output for scripts, over a Unix socket.
func TestCommandJSON(t *testing.T) {
	w := newWorld(t)
	dir, err := os.MkdirTemp("", "") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w.withAdmin("unix/" + filepath.Join(dir, "admin"))
	w.run(w.proxy())
	var names []string
	for i := range 25 {
		names = append(names, fmt.Sprintf("n%02d.example", i))
	}
	w.lookup(usedResolvers()[0], names)
	run := func(args ...string) *json.Decoder {
		t.Helper()
		status, stdout, stderr := caddyTarget(t, append(args, "-o", "json", "--address", w.admin)...)
		if status != 0 || stderr != "" {
			t.Fatalf("%s: got status %d, %s, want 0", args, status, stderr)
		}
		return json.NewDecoder(strings.NewReader(stdout))
	}
	var got []string
	pages := 0
	for d := run("names", "--all", "--limit", "10"); d.More(); pages++ {
		var page admin.Names
		if err := d.Decode(&page); err != nil {
			t.Fatal(err)
		}
		for _, n := range page.Names {
			got = append(got, n.Name)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, names) || pages != 3 {
		t.Errorf("got %v on %d pages, want %v on 3", got, pages, names)
	}
	var report admin.NameReport
	if err := run("names", "n01.example").Decode(&report); err != nil || report.Name != "n01.example" {
		t.Errorf("got %+v, %v, want n01.example", report, err)
	}
	var servers admin.Nameservers
	if err := run("nameservers").Decode(&servers); err != nil || len(servers.Nameservers) != 1 || servers.Nameservers[0].Nameserver != w.dns.Addr {
		t.Errorf("got %+v, %v, want the nameserver %s", servers, err, w.dns.Addr)
	}
	var purged admin.Purged
	if err := run("purge", "--suffix", ".").Decode(&purged); err != nil || purged.Names != 25 {
		t.Errorf("got %+v, %v, want 25 names", purged, err)
	}
}

// TestCommandHostileServer checks that the commands show nothing of what a server sends
// in a form that could control a terminal; caddyTarget looks at it.
func TestCommandHostileServer(t *testing.T) {
	const evil = "a\x1b[2J\u009b31m\x7f\u202eb"
	text, err := json.Marshal(evil)
	if err != nil {
		t.Fatal(err)
	}
	for _, response := range []struct {
		status int
		body   string
	}{
		{200, strings.ReplaceAll(`{"site": EVIL, "method": EVIL, "would_send": true, "error": EVIL, "target": {"scheme": EVIL, "host": EVIL, "uri": EVIL, "host_header": EVIL},
			"rules": [{"check": EVIL, "value": EVIL, "rule": EVIL}], "lookup": {"resolver": EVIL, "from": EVIL, "found": EVIL, "error": EVIL, "names": [{"name": EVIL, "zone": EVIL, "state": EVIL}], "queries": [{"name": EVIL, "outcome": EVIL, "transport": EVIL}]},
			"addresses": [{"address": "192.0.2.1:80", "rule": EVIL, "state": EVIL, "causes": [{"of": EVIL, "limit": EVIL}]}], "dial": {"address": EVIL, "protocol": EVIL, "server_name": EVIL},
			"connect": {"address": EVIL, "tls": EVIL, "alpn": EVIL, "certificates": [{"subject": EVIL, "issuer": EVIL, "names": [EVIL]}], "error": EVIL}, "names": [{"name": EVIL, "state": EVIL, "error": EVIL, "zone": EVIL, "resolver": EVIL, "records": [{"target": EVIL}]}],
			"nameservers": [{"nameserver": EVIL, "reason": EVIL, "replies": {EVIL: 1}}],
			"resolvers": [{"resolver": EVIL, "found": EVIL, "names": [{"name": EVIL, "error": EVIL, "error_age": 1, "tries": [{"outcome": EVIL}], "types": [{"type": EVIL}]}]}]}`, "EVIL", string(text))},
		{200, evil}, {400, evil}, {400, `{"error": ` + string(text) + `}`}, {500, ""},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(response.status)
			body := response.body
			if r.URL.Path == "/target/purge" {
				body = strings.ReplaceAll(body, `"names": [`, `"other": [`)
			}
			_, _ = rw.Write([]byte(body))
		}))
		for _, command := range []string{"names", "names a.example", "nameservers", "purge a.example", "names -o json", "explain x", "explain x -o json"} {
			want := 0
			if response.status != 200 || response.body == evil {
				want = 1
			}
			status, stdout, stderr := caddyTarget(t, append(strings.Fields(command), "--address", strings.TrimPrefix(server.URL, "http://"))...)
			if status != want || status == 0 && stdout == "" {
				t.Errorf("%s of %d %.20q: got status %d, %q, %q, want status %d", command, response.status, response.body, status, stdout, stderr, want)
			}
		}
		server.Close()
	}
}
