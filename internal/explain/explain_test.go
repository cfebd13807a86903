package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/dnsclient"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
)

func onlyReports(error) bool { return true }

// TestRows has a report with all that there may be, as people see it.
func TestRows(t *testing.T) {
	key := &pool.Key{Protocol: pool.TLS, ServerName: "a.example"}
	addr := netip.MustParseAddrPort("192.0.2.1:443")
	lookup := &Lookup{Resolver: "6f1e2a9c", From: resolver.Miss, Seconds: 0.0123, Found: "a.corp.example"}
	lookup.addQueries(28, []dnsclient.Try{
		{Name: "a.corp.example.", Server: dnsclient.Nameserver{Network: "udp", AddrPort: netip.MustParseAddrPort("10.0.0.53:53")}, Transport: "udp", Duration: 1500 * time.Microsecond, Outcome: "answer", Ignored: 2},
	})
	lookup.addNames([]resolver.Place{{Name: "a.corp.example", Zone: "corp.example"}, {Name: "a.example", Zone: "."}}, nil)
	lookup.Names[0].State, lookup.Names[0].TTL = "fresh", 90
	good, bad := &Address{Address: addr, Offered: 1, Connections: &Connections{Open: 3, Idle: 1, HTTP2: 1, Dials: 1, Waiting: 2}}, &Address{Address: addr}
	good.SetState(health.NeedsTrial, []health.Cause{
		{
			Fails: 1, MaxFails: 2, Age: time.Second, Dialling: 3 * time.Second,
			Reason: health.Reason{Phase: "connect", Token: "connection_refused", Text: "connect: refused"},
		},
		{ForTarget: true, Limit: "timeout 1s", Fails: 2, MaxFails: 2, Age: 1500 * time.Millisecond, Left: 8500 * time.Millisecond},
		{Family: true, Fails: 3, MaxFails: 3, Age: 2 * time.Minute},
	})
	good.Refuse(nil, onlyReports)
	bad.Refuse(&guard.Refusal{Kind: guard.KindAddress, Value: "192.0.2.1", Rule: guard.RuleDocumentation}, func(error) bool { return false })
	if !good.Allowed() || bad.Allowed() {
		t.Errorf("allowed: %t and %t, want true and false", good.Allowed(), bad.Allowed())
	}
	err := &failure.Error{Target: "a.example", Address: addr.String(), Phase: failure.TLS, Err: errors.New("bad \"record\"")}
	refusal := &guard.Refusal{Kind: guard.KindPort, Value: "443", Rule: guard.RulePorts}
	r := &Report{
		Site: "www.example", Method: "GET",
		Target:   &Target{Scheme: "https", Host: "a.example", Port: 443, HostHeader: "a.example", URI: "/x", Timeout: 2.5},
		Rules:    []Rule{NewRule("name", "a.example", nil, nil), NewRule("port", "443", refusal, onlyReports), NewRule("port", "443", refusal, func(error) bool { return false })},
		InFlight: &InFlight{Requests: 1, Max: 5},
		Lookup:   lookup, Found: []*Address{good, bad},
		Dial:    NewDial(addr.String(), 2, key, pool.Connections{Idle: 1}),
		Connect: NewConnect(addr.String(), &pool.Check{Connect: 2 * time.Millisecond, Handshake: 3 * time.Second, CertificateWanted: true}, err),
		Outcome: NewOutcome(err, failure.Of(err), failure.Text(err)),
	}
	until := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	r.Connect.Certificates = []Certificate{
		{Names: []string{"a.example", "b.example"}, Until: until, Issuer: "CN=One"},
		{Subject: "CN=One", Until: until, Issuer: "CN=Root"},
		{Subject: "CN=c", Names: []string{"c.example"}, Until: until, Issuer: "CN=Root"},
	}
	want := `
site|www.example
target|GET https://a.example port 443 /x, Host a.example, timeout 2.5s
rule|name a.example: allowed
rule|port 443: allowed, and reported: ports
rule|port 443: refused: ports
in flight|1 of at most 5 requests
lookup|miss, took 12.30ms, short for a.corp.example (resolver 6f1e2a9c)
  name|a.corp.example: fresh, TTL 1m30s (zone corp.example)
  name|a.example: not asked for (zone .)
  query|a.corp.example AAAA, udp to 10.0.0.53:53: answer after 1.50ms, 2 messages ignored
address|192.0.2.1:443: allowed, needs trial, offered as number 1, connections: 3 open, 1 idle, 1 of HTTP/2, 1 dials, 2 requests waiting
  cause|failures of the address, for all targets: 1 in a row (ejected after 2), the last 1s ago (connection_refused: connect: refused), a dial goes on for at most 3s
  cause|failures of the address, for this target and limit: 2 in a row under the limit timeout 1s (ejected after 2), the last 1.5s ago, ejected for 8.5s
  cause|networks of this address family that could not be reached: 3 (ejected after 3), the last 2m0s ago
address|192.0.2.1:443: refused: documentation
dial|192.0.2.1:443 or another of 2 that are offered, a connection that is open, TLS for a.example
connect|192.0.2.1:443: connect 2.00ms, TLS handshake 3s, the backend asks for a client certificate
  certificate|for a.example b.example, until 2027-01-02T03:04:05Z, by CN=One
  certificate|CN=One, until 2027-01-02T03:04:05Z, by CN=Root
  certificate|CN=c for c.example, until 2027-01-02T03:04:05Z, by CN=Root
  error|a.example at 192.0.2.1:443: TLS handshake: bad 'record'
result|status 502, tls_protocol_error in phase tls: a.example at 192.0.2.1:443: TLS handshake: bad 'record'
`
	var got strings.Builder
	for _, row := range r.Rows() {
		got.WriteString("\n" + strings.Join(row, "|"))
	}
	if got.String()+"\n" != want {
		t.Errorf("got%s\nwant%s", got.String(), want)
	}
}

// TestOutcome: the status of each kind of end.
func TestOutcome(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, "true 0"},
		{failure.ErrLoop, "false 508"},
		{failure.NewMalformed(errors.New("x")), "false 400"},
		{fmt.Errorf("a: %w", failure.ErrMaxRequests), "false 503"},
		{&failure.Error{Phase: failure.Connect, Err: pool.ErrLimit}, "false 503"},
		{&failure.Error{Phase: failure.Connect, Err: failure.NewTimeout("x")}, "false 504"},
		{&failure.Error{Phase: failure.Connect, Err: errors.New("x")}, "false 502"},
	} {
		if o := NewOutcome(test.err, failure.Of(test.err), ""); fmt.Sprint(o.WouldSend, " ", o.Status) != test.want {
			t.Errorf("%v: got %+v, want %s", test.err, o, test.want)
		}
	}
}

// TestAddressAsTarget: the host of a target that is an IPv6 address stands in brackets, as in
// its URL.
func TestAddressAsTarget(t *testing.T) {
	target := Target{Scheme: "http", Host: "::1", Port: 2019, HostHeader: "[::1]:2019", URI: "/"}
	if got, want := target.line("GET"), "GET http://[::1] port 2019 /, Host [::1]:2019"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
