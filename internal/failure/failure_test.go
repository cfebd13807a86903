package failure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/guard"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// TestOf has the phase, the token and the status of each kind of error.
func TestOf(t *testing.T) {
	lookup := func(kind dnsclient.Kind, rcode int) error {
		return OfLookup("a.example", &dnsclient.Error{Name: "a.example", Type: dns.TypeA, Kind: kind, Rcode: rcode})
	}
	attempt := func(phase pool.Phase, err error) error {
		return OfPool("a.example", "192.0.2.1:443", &pool.Error{Phase: phase, Err: err})
	}
	for _, test := range []struct {
		name   string
		err    error
		want   string
		status int // 0: that of reverse_proxy
	}{
		{"nothing", nil, " ", 0},
		{"another error", errors.New("x"), " ", 502},
		{"no target", NewMalformed(targeturl.ErrNoTarget), "request http_request_error no_target", 400},
		{"malformed", NewMalformed(ErrConnect), "request http_request_error malformed", 400},
		{"loop", ErrLoop, "request proxy_loop_detected loop", 508},
		{"name", &guard.Refusal{Kind: guard.KindName, Rule: guard.RuleDeny}, "policy http_request_denied deny", 403},
		{"address", fmt.Errorf("a: %w", &guard.Refusal{Kind: guard.KindAddress, Rule: guard.RulePrivate}), "policy destination_ip_prohibited private", 403},
		{"max_requests", fmt.Errorf("a: %w: 2", ErrMaxRequests), "policy connection_limit_reached max_requests", 503},
		{"max_lookups", OfLookup("a", dnscache.ErrOverloaded), "dns dns_limit_reached max_lookups", 503},
		{"new_names", OfLookup("a", dnscache.ErrTooManyNewNames), "dns dns_limit_reached new_names", 503},
		{"NXDOMAIN", lookup(dnsclient.NotFound, 3), "dns destination_not_found", 502},
		{"NODATA", lookup(dnsclient.NoData, 0), "dns dns_no_data", 502},
		{"SERVFAIL", lookup(dnsclient.ServerFailure, 2), "dns dns_error", 502},
		{"silent", lookup(dnsclient.Timeout, -1), "dns dns_timeout", 504},
		{"outage", lookup(dnsclient.Outage, -1), "dns dns_timeout", 502},
		{"malformed reply", OfLookup("b", lookup(dnsclient.Malformed, -1)), "dns dns_error", 502},
		{"lookup ended by a timeout", OfLookup("a", context.DeadlineExceeded), "dns dns_timeout", 504},
		{"onion", OfLookup("a.onion", errors.New("never")), "dns destination_not_found", 502},
		{"refused", attempt(pool.Connect, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}), "connect connection_refused", 502},
		{"no route", attempt(pool.Connect, syscall.EHOSTUNREACH), "connect destination_ip_unroutable", 502},
		{"no descriptors", attempt(pool.Connect, syscall.EMFILE), "connect proxy_internal_error", 502},
		{"reset in connect", attempt(pool.Connect, syscall.ECONNRESET), "connect connection_terminated", 502},
		{"connect timeout", attempt(pool.Connect, context.DeadlineExceeded), "connect connection_timeout", 504},
		{"limit", attempt(pool.Connect, pool.ErrLimit), "connect connection_limit_reached", 502},
		{"handshake timeout", attempt(pool.Handshake, context.DeadlineExceeded), "tls connection_timeout", 504},
		{"wrong name", attempt(pool.Handshake, &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: new(x509.Certificate)}}), "tls tls_certificate_error", 502},
		{"expired", attempt(pool.Handshake, x509.CertificateInvalidError{Reason: x509.Expired}), "tls tls_certificate_error", 502},
		{"authority", attempt(pool.Handshake, x509.UnknownAuthorityError{}), "tls tls_certificate_error", 502},
		{"alert", attempt(pool.Handshake, tls.AlertError(40)), "tls tls_alert_received", 502},
		{"late alert", attempt(pool.Response, &net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}), "tls tls_alert_received", 502},
		{"no TLS", attempt(pool.Handshake, tls.RecordHeaderError{Msg: "x"}), "tls tls_protocol_error", 502},
		{"closed in the handshake", attempt(pool.Handshake, io.EOF), "tls connection_terminated", 502},
		{"write timeout", attempt(pool.Send, os.ErrDeadlineExceeded), "send connection_write_timeout", 504},
		{"reset while sending", attempt(pool.Send, syscall.ECONNRESET), "send connection_terminated", 502},
		{"read timeout", attempt(pool.Response, os.ErrDeadlineExceeded), "response connection_read_timeout", 504},
		{"silence", attempt(pool.Response, pool.ErrSilent), "response connection_read_timeout", 504},
		{"slow", attempt(pool.Response, context.DeadlineExceeded), "response http_response_timeout", 504},
		{"reset", attempt(pool.Response, syscall.ECONNRESET), "response connection_terminated", 502},
		{"malformed response", attempt(pool.Response, errors.New("malformed HTTP response")), "response http_protocol_error", 502},
		{"incomplete", &Error{Phase: Response, Err: io.ErrUnexpectedEOF, Incomplete: true}, "response http_response_incomplete", 502},
		{"client", attempt(pool.Response, context.Canceled), "response client_disconnected", 499},
		{"request", attempt(pool.Prepare, errors.New("invalid header")), "request http_request_error", 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := Of(test.err)
			got := strings.TrimSuffix(fmt.Sprintf("%s %s %s", f.Phase, f.Token, f.Rule), " ")
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			for _, f := range []Failure{f, f.Unavailable()} {
				if f.Token != "" && !slices.Contains(RequestFailures(), Failure{Phase: f.Phase, Token: f.Token}) {
					t.Errorf("%s %s is none of RequestFailures", f.Phase, f.Token)
				}
			}
			if test.err == nil {
				return
			}
			if status := StatusOf(test.err); test.status != 0 && status != test.status {
				t.Errorf("status %d, want %d", status, test.status)
			}
		})
	}
}

// TestErrorText: an error begins with target and address, and names its phase.
func TestErrorText(t *testing.T) {
	late := OfPool("a.example", "192.0.2.1:443", &pool.Error{Phase: pool.Handshake, Err: context.DeadlineExceeded})
	late.RanOut(2 * time.Second)
	for want, err := range map[string]error{
		"a.example at 192.0.2.1:443: TLS handshake: no answer within the timeout of 2s": late,
		"a.example at 192.0.2.1:80: connect: no answer in time":                         OfPool("a.example", "192.0.2.1:80", &pool.Error{Phase: pool.Connect, Err: context.DeadlineExceeded}),
		"192.0.2.1:80: response: reset":                                                 OfPool("", "192.0.2.1:80", &pool.Error{Phase: pool.Response, Err: errors.New("reset")}),
		"a.example: DNS lookup (A): no nameserver replied in time":                      OfLookup("a.example", &dnsclient.Error{Name: "a.example", Type: dns.TypeA, Kind: dnsclient.Timeout}),
		"a.example: DNS lookup: too many lookups in flight":                             OfLookup("a.example", dnscache.ErrOverloaded),
	} {
		if got := err.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := Text(errors.New("a \"b\" \\ \x1b[31m \u2028 \xff ü")); got != "a 'b' / ?[31m ? ? ü" {
		t.Errorf("got %q", got)
	}
	if got := Text(nil); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
}

// TestDropProxyStatus: the members of others stay, in their order.
func TestDropProxyStatus(t *testing.T) {
	for _, test := range []struct{ fields, want []string }{
		{nil, nil},
		{[]string{"a", "b"}, []string{"a", "b"}},
		{[]string{"caddytarget"}, nil},
		{[]string{"a, caddytarget;error=x ,b"}, []string{"a", "b"}},
		{[]string{"\tCADDYTARGET;a=\"x,y\"", "b"}, []string{"b"}},
		{[]string{`"caddytarget"`, "b"}, []string{"b"}},
		{[]string{`a;d="\", caddytarget"`, "caddytarget"}, []string{`a;d="\", caddytarget"`}},
		{[]string{"(a caddytarget, b);c", "caddytarget"}, []string{"(a caddytarget, b);c"}},
		{[]string{`a;d="caddytarget`}, nil},
		{[]string{`a;d="x`}, []string{`a;d="x`}},
		{[]string{"(caddytarget"}, nil},
	} {
		header := http.Header{}
		if test.fields != nil {
			header["Proxy-Status"] = slices.Clone(test.fields)
		}
		DropProxyStatus(header)
		if got := header["Proxy-Status"]; !slices.Equal(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.fields, got, test.want)
		}
	}
	header := http.Header{"Proxy-Status": {"a", "caddytarget; error=old"}}
	Failure{Token: DNSError, Rcode: "SERVFAIL"}.SetProxyStatus(header, "a \"b\"\x01ü")
	want := []string{"a", `caddytarget; error=dns_error; rcode="SERVFAIL"; details="a \"b\"??"`}
	if got := header["Proxy-Status"]; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLimiter: 100 lines of a token at once, and 10 a second.
func TestLimiter(t *testing.T) {
	var l Limiter
	now := time.Now()
	count := func(token Token, n int) (logged, suppressed int) {
		for range n {
			if s, ok := l.Allow(token, now); ok {
				logged++
				suppressed += s
			}
		}
		return logged, suppressed
	}
	check := func(what string, token Token, n, wantLogged, wantSuppressed int) {
		t.Helper()
		if logged, suppressed := count(token, n); logged != wantLogged || suppressed != wantSuppressed {
			t.Errorf("%s: %d lines after %d suppressed ones, want %d and %d", what, logged, suppressed, wantLogged, wantSuppressed)
		}
	}
	check("a flood", DNSError, 1000, 100, 0)
	check("another token", DNSTimeout, 1, 1, 0)
	now = now.Add(time.Second)
	check("a second later", DNSError, 1000, 10, 900)
	now = now.Add(time.Hour)
	check("an hour later", DNSError, 1000, 100, 990)
}
