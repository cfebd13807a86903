package command

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"caddytarget/internal/explain"
)

// run runs a command. Each request gets the next one of some answers, of which those that
// are no JSON are errors of Caddy. It returns the requests, without the path of all of
// them, what was printed, and the exit status.
func run(t *testing.T, args []string, answers ...string) (requests, out, errOut string, status int) {
	t.Helper()
	status = -1
	cmd := &cobra.Command{Use: "target", SilenceErrors: true, SilenceUsage: true}
	SetUp(cmd, &Caddy{
		Address: func(address, config, _ string) (string, error) {
			if config != "" {
				return "", errors.New("no file " + config)
			}
			return address, nil
		},
		Request: func(address, method, uri string, _ http.Header, body io.Reader) (*http.Response, error) {
			line := fmt.Sprintf("%s %s %s", address, method, strings.TrimPrefix(uri, "/target/"))
			if body != nil {
				text, err := io.ReadAll(body)
				if err != nil {
					t.Fatal(err)
				}
				line += " " + string(text)
			}
			requests += line + "\n"
			if len(answers) == 0 {
				t.Fatalf("%q: got %s, want no more requests", args, line)
			}
			answer := answers[0]
			answers = answers[1:]
			if !strings.HasPrefix(answer, "{") && !strings.HasPrefix(answer, ":") {
				return nil, errors.New(answer)
			}
			return &http.Response{Body: io.NopCloser(strings.NewReader(answer))}, nil
		},
		Explain: func(nameserver string, in *explain.Input) (*explain.Report, error) {
			if nameserver == "bad" {
				return nil, errors.New("bad \x1b nameserver")
			}
			return &explain.Report{Site: "(defaults)", Method: in.Request.Method, Outcome: explain.Outcome{WouldSend: nameserver == "good", Status: 502}}, nil
		},
		Exit: func(_ *cobra.Command, s int, err error) error {
			status = s
			return err
		},
	})
	var stdout, stderr bytes.Buffer
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		fmt.Fprintf(&stderr, "error: %v\n", err)
	}
	if len(answers) > 0 {
		t.Errorf("%q: got the requests %s, want %d more", args, requests, len(answers))
	}
	return requests, stdout.String(), stderr.String(), status
}

// tableTests are commands, what they ask for, and what they print of the answers.
var tableTests = []struct {
	args     string
	answers  []string
	requests string
	out      string
}{
	{
		"names --prefix a --state fresh",
		[]string{`{"names": [
			{"name": "a.example", "state": "fresh", "ttl": 90, "used": 1.25, "addresses": ["192.0.2.1", "2001:db8::1", "192.0.2.3", "192.0.2.4"], "zone": ".", "resolver": "6f1e2a9c"},
			{"name": "_a._tcp.example", "state": "stale", "ttl": -0.5, "used": 0, "records": [{"target": "b.example", "port": 81}], "zone": "example", "resolver": "6f1e2a9c"},
			{"name": "ab.example", "state": "negative", "ttl": 3, "used": 0, "zone": ".", "resolver": "6f1e2a9c", "error": "no such name"}]}`},
		"here GET names?limit=100&prefix=a&state=fresh", `
NAME             STATE     TTL        USED  ADDRESSES                 ZONE     RESOLVER  ERROR
a.example        fresh     1m30s      1.3s  192.0.2.1,2001:db8::1,+2  .        6f1e2a9c
_a._tcp.example  stale     -500.00ms  0s    b.example:81              example  6f1e2a9c
ab.example       negative  3s         0s    -                         .        6f1e2a9c  no such name
`,
	},
	{
		"names a/b",
		[]string{`{"resolvers": [{"resolver": "6f1e2a9c", "hosts": true, "addresses": ["192.0.2.1", "192.0.2.2"], "outside_dns": true, "found": "a.corp.example", "names": [
			{"name": "a.corp.example", "zone": ".", "state": "stale", "in_flight": true, "addresses": ["192.0.2.3"], "records": [{"target": "b.example", "port": 81, "priority": 1, "weight": 2}],
			"types": [{"type": "A", "count": 1, "ttl": 5, "failures": 1, "retry": 0}, {"type": "AAAA", "count": 0, "failures": 2, "retry": 0.5}], "ttl": -5, "stale_for": 60, "used": 1, "preload": true, "next_refresh": 0,
			"error": "SERVFAIL", "error_age": 2, "tries": [{"name": "a.corp.example.", "nameserver": "10.0.0.53:53", "transport": "udp", "outcome": "SERVFAIL", "seconds": 0.0125, "ignored": 3}, {"name": "b.", "nameserver": "x", "transport": "tcp", "outcome": "y"}]}]}]}`},
		"here GET names/a%2Fb", `
resolver         6f1e2a9c
hosts file       192.0.2.1 192.0.2.2
outside the DNS  never asked for (RFC 6761, RFC 7686)
short for        a.corp.example
name             a.corp.example
  zone           .
  state          stale, a lookup is in flight
  addresses      192.0.2.3
  record         b.example:81, priority 1, weight 2
  type A         records: 1, TTL 5s, failures in a row: 1, asked for again with the next request
  type AAAA      records: 0, failures in a row: 2, not asked for again for 500.00ms
  TTL            -5s
  stale for      1m0s
  used           1s ago
  preload        yes
  refresh        in 0s
  error          SERVFAIL (2s ago)
  try            10.0.0.53:53 udp: SERVFAIL after 12.50ms, 3 messages ignored
  try            b, x tcp: y after 0s
`,
	},
	{
		"nameservers",
		[]string{`{"nameservers": [{"nameserver": "10.0.0.53:53", "zone": ".", "resolver": "6f1e2a9c", "down": true, "changed": 65, "reason": "timeout", "rtt": 0.001, "replies": {"NXDOMAIN": 1, "NOERROR": 2},
			"malformed": 1, "timeouts": 1, "refused": 2, "network_errors": 4, "failures": 5, "in_flight": 6}, {"nameserver": "10.0.0.54:53", "zone": ".", "resolver": "6f1e2a9c"}]}`},
		"here GET nameservers", `
NAMESERVER    STATE  FOR   RTT     REPLIES                           NO REPLY  FAILURES  IN FLIGHT  ZONE  RESOLVER  REASON
10.0.0.53:53  down   1m5s  1.00ms  NOERROR:2,NXDOMAIN:1,malformed:1  7         5         6          .     6f1e2a9c  timeout
10.0.0.54:53  up     -     0s      -                                 0         0         0          .     6f1e2a9c
`,
	},
	{
		"pools --target a.example --ip 192.0.2.1 --state idle,dialling --limit 5 --after x",
		[]string{`{"pools": [{"target": "a.example", "address": "192.0.2.1:443", "protocol": "h2", "server_name": "a.example", "idle": 1, "in_use": 2, "requests": 3, "waiting": 4, "dialling": 1,
			"dial": {"phase": "tls", "seconds": 1}, "oldest": 60, "newest": 1, "unused": 0.5, "pool": "0d5b7c31", "draining": true}, {"address": "192.0.2.1:80", "pool": "0d5b7c31"}]}`},
		"here GET pools?address=192.0.2.1&after=x&limit=5&state=idle%2Cdialling&target=a.example", `
TARGET     ADDRESS        PROTOCOL  SERVER NAME  IDLE  IN USE  REQUESTS  WAITING  DIALLING        OLDEST  NEWEST  UNUSED    POOL
a.example  192.0.2.1:443  h2        a.example    1     2       3         4        1 (tls for 1s)  1m0s    1s      500.00ms  0d5b7c31 (draining)
(any)      192.0.2.1:80   -         -            0     0       0         0        0               -       -       -         0d5b7c31
`,
	},
	{
		"addresses --all",
		[]string{
			`{"families": [{"family": "ipv6", "state": "ejected", "networks": 3, "last": 1, "left": 9}], "addresses": [{"address": "192.0.2.1:80", "target": "a.example", "limit": "timeout 1s", "state": "ejected", "failures": 2,
			"last": 1, "left": 8, "since": 2, "failure": "connection_refused", "error": "connect: refused"}], "next": "x"}`,
			`{"families": [], "addresses": [{"address": "192.0.2.2:80", "state": "needs_trial", "failures": 1, "claimed": true}, {"address": "192.0.2.3:80", "state": "needs_trial", "failures": 1, "claimed": true, "dialling": 1}]}`,
		},
		"here GET addresses?limit=100\nhere GET addresses?after=x&limit=100", `
ADDRESS       TARGET     STATE    LEFT  SINCE  FAILURES  LAST  LIMIT       FAILURE             ERROR
(all ipv6)    (any)      ejected  9s    -      3         1s    -           -                   networks that could not be reached: 3
192.0.2.1:80  a.example  ejected  8s    2s     2         1s    timeout 1s  connection_refused  connect: refused
ADDRESS       TARGET  STATE                   LEFT  SINCE  FAILURES  LAST  LIMIT  FAILURE  ERROR
192.0.2.2:80  (any)   needs_trial (claimed)   -     -      1         -     -      -        -
192.0.2.3:80  (any)   needs_trial (dialling)  -     -      1         -     -      -        -
`,
	},
	{
		"purge a.example --ask-again",
		[]string{`{"names": 1, "ejections": 2, "connections": 3, "resolvers": [{"resolver": "6f1e2a9c", "names": 1}]}`},
		`here POST purge {"name":"a.example","ask_again":true}`, `
RESOLVER  NAMES ASKED FOR AGAIN
6f1e2a9c  1
EJECTIONS ENDED  CONNECTIONS CLOSED
2                3
`,
	},
	{
		"top --by failures -n 1",
		[]string{`{"by": "failures", "targets": [{"host": "a.example", "requests": 4, "failures": 2, "seconds": 2, "connections": 1}], "other": {}}`},
		"here GET top?by=failures&limit=1", `
TARGET        REQUESTS  FAILURES  SECONDS EACH  NEW CONNECTIONS
a.example     4         2         0.5000        1
(all others)  0         0         -             0
`,
	},
	{
		"explain http://a.example --site b --header A:1 --header B:2 --connect",
		[]string{`{"site": "b", "method": "GET", "would_send": true}`},
		"here GET explain?connect=1&header=A%3A1&header=B%3A2&site=b&url=http%3A%2F%2Fa.example", `
site    b
result  the request would be sent
`,
	},
	{"names -o json --all", []string{`{"names": [], "next": "x"}`, "{\"names\": [{\"name\": \"\u202e\"}]}"}, "here GET names?limit=100\nhere GET names?after=x&limit=100", `
{"names":[],"next":"x"}
{"names":[{"name":"\u202e"}]}
`},
	{"trace -o json --target .example -n 5 --seconds 3", []string{": listening\n\ndata: {\"method\":\"\u202e\"}\n\nevent: end\ndata: {}\n\n"}, "here GET trace?limit=5&seconds=3&target=.example", `
{"method":"\u202e"}
`},
}

// TestTables checks what the commands ask for and what they print.
func TestTables(t *testing.T) {
	for _, test := range tableTests {
		requests, out, errOut, status := run(t, append(strings.Fields(test.args), "--address", "here"), test.answers...)
		out = regexp.MustCompile(" +\n").ReplaceAllString(out, "\n")
		if requests != test.requests+"\n" || out != strings.TrimPrefix(test.out, "\n") || errOut != "" || status != 0 {
			t.Errorf("%s: got status %d, the requests %s and\n%s%s\nwant %s and\n%s", test.args, status, requests, out, errOut, test.requests, test.out)
		}
	}
}

// TestErrors checks exit statuses and what is printed beside tables.
func TestErrors(t *testing.T) {
	for _, test := range []struct {
		args   string
		answer string // empty: there is no request
		status int
		errOut string
	}{
		{"names", "performing request: dial \x1b", ExitNoServer, `error: no server answered: dial \x1b`},
		{"names", `caddy responded with error: HTTP 400: {"error":"limit \u001b"}`, ExitFailed, `error: limit \x1b (HTTP 400)`},
		{"names", "caddy responded with error: HTTP 404: not found\n", ExitFailed, "error: caddy responded with error: HTTP 404: not found"},
		{"names", "{", ExitFailed, "error: reading the response: unexpected end of JSON input"},
		{"names", `{"next": "x"}`, 0, "There are more: --after x, or --all"},
		{"names -o json", `{"next": "x"}`, 0, ""},
		{"names a --after x", "", ExitFailed, "error: --after does not go with a name"},
		{"names -o xml", "", ExitFailed, "error: unknown output xml: expecting table or json"},
		{"names -c gone", "", ExitFailed, "error: couldn't determine admin API address: no file gone"},
		{"names a b", "", -1, "error: accepts at most 1 arg(s), received 2"},
		{"purge", "", ExitFailed, "error: expecting one of name, suffix and address, got 0"},
		{"explain x", `{"site": "a", "status": 403}`, ExitFailed, "error: the request would not be sent: status 403"},
		{"explain x --nameserver good", "", 0, ""},
		{"explain x --nameserver slow", "", ExitFailed, "error: the request would not be sent: status 502"},
		{"explain x --nameserver bad -o json", "", ExitFailed, `error: bad \x1b nameserver`},
		{"explain x --nameserver good --method a/b", "", ExitFailed, `error: method "a/b" is not one of HTTP`},
		{"explain --nameserver good", "", ExitFailed, "error: --nameserver needs a url"},
		{"explain x --nameserver good --site x", "", ExitFailed, "error: --site does not go with --nameserver, which needs no server"},
		{"trace", ": listening\n\n", ExitFailed, "error: the live trace has no end: EOF"},
		{"trace", ":\n\nevent: dropped\ndata: {\"dropped\":3}\n\nevent: end\ndata: {\"reason\":\"reload\"}\n\n", 0, "3 requests are left out: this is too slow for them\nThe server has loaded another configuration, or stops"},
		{"trace", ":\n\ndata: x\n\n", ExitFailed, "error: reading the response: invalid character 'x' looking for beginning of value"},
		{"trace -o json", ":\n\ndata: x\n\n", ExitFailed, "error: reading the response: an event is not JSON"},
	} {
		var answers []string
		if test.answer != "" {
			answers = []string{test.answer}
		}
		_, out, errOut, status := run(t, strings.Fields(test.args), answers...)
		if status != test.status || test.errOut != "" && errOut != test.errOut+"\n" || test.errOut == "" && status == 0 && errOut != "" {
			t.Errorf("%s, %q: got status %d, %s and %q, want %d and %q", test.args, test.answer, status, out, errOut, test.status, test.errOut)
		}
	}
}
