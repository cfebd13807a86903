// Package failure has one vocabulary for why a request to a target failed. The same
// words stand in placeholders, logs, metrics, the Proxy-Status header and the admin API.
//
// A failure has a [Phase], in which the request was, and a [Token], which says what
// happened. The tokens are a closed set. They are those of Proxy-Status (RFC 9209,
// section 2.3) where one fits. [Of] finds both for an error. [Error] gives an error the
// target, the address and the phase that its text has to name.
//
// Where to find what:
//
//   - failure.go: the tokens, Of, and StatusOf: the status depends on the rule or the kind
//     of error, not on the token. RequestFailures and AddressFailures have to list each token.
//   - address.go: the tokens that only addresses have. proxystatus.go: the header.
//     limiter.go: how many failures are logged.
package failure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/guard"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

// Phase is how far a request had come.
type Phase string

// The phases of a request, in their order.
const (
	Request  Phase = "request"  // reading the target and the request
	Policy   Phase = "policy"   // checking what may be called
	DNS      Phase = "dns"      // resolving the name
	Connect  Phase = "connect"  // opening a TCP connection
	TLS      Phase = "tls"      // the TLS handshake
	Send     Phase = "send"     // sending the request
	Response Phase = "response" // waiting for the response and reading it
)

// Token says what happened.
type Token string

// The tokens. Those without a remark are of RFC 9209.
const (
	DNSError                Token = "dns_error"
	DNSTimeout              Token = "dns_timeout"
	DNSNoData               Token = "dns_no_data"       // not of the RFC: the name has no address
	DNSLimitReached         Token = "dns_limit_reached" // not of the RFC: too many lookups or new names
	DestinationNotFound     Token = "destination_not_found"
	DestinationUnavailable  Token = "destination_unavailable"
	DestinationIPProhibited Token = "destination_ip_prohibited"
	DestinationIPUnroutable Token = "destination_ip_unroutable"
	ConnectionRefused       Token = "connection_refused"
	ConnectionTerminated    Token = "connection_terminated"
	ConnectionTimeout       Token = "connection_timeout"
	ConnectionReadTimeout   Token = "connection_read_timeout"
	ConnectionWriteTimeout  Token = "connection_write_timeout"
	ConnectionLimitReached  Token = "connection_limit_reached"
	TLSProtocolError        Token = "tls_protocol_error"
	TLSCertificateError     Token = "tls_certificate_error"
	TLSAlertReceived        Token = "tls_alert_received"
	HTTPRequestError        Token = "http_request_error"
	HTTPRequestDenied       Token = "http_request_denied"
	HTTPResponseIncomplete  Token = "http_response_incomplete"
	HTTPResponseHeaderSize  Token = "http_response_header_size"
	HTTPResponseTimeout     Token = "http_response_timeout"
	HTTPProtocolError       Token = "http_protocol_error"
	ProxyInternalError      Token = "proxy_internal_error"
	ProxyLoopDetected       Token = "proxy_loop_detected"
	ClientDisconnected      Token = "client_disconnected" // not of the RFC: the client has left
)

// The rules by which a request is refused beside those of package guard.
const (
	RuleNoTarget    = "no_target" // there is none
	RuleMalformed   = guard.RuleMalformed
	RuleLoop        = "loop"         // the request has come through this server before
	RuleMaxRequests = "max_requests" // too many requests to the target are in flight
	RuleMaxLookups  = "max_lookups"  // too many lookups are in flight
	RuleNewNames    = "new_names"    // too many names that are not in the cache
)

// Why a request is refused, whatever its target is.
var (
	ErrLoop        = errors.New("the request has already come through this server")
	ErrMaxRequests = errors.New("too many requests in flight")
	ErrNoPath      = errors.New("the request line has no path")
	ErrConnect     = errors.New("CONNECT asks for a tunnel, and a target is none")
)

// malformed is an error in what the request says.
type malformed struct{ error }

// NewMalformed returns err as an error in what the request says.
func NewMalformed(err error) error { return malformed{err} }

// Unwrap returns the error.
func (e malformed) Unwrap() error { return e.error }

// NewTimeout returns an error with a text that is a timeout.
func NewTimeout(text string) error { return timeoutError(text) }

type timeoutError string

// Error implements error.
func (e timeoutError) Error() string { return string(e) }

// Timeout implements net.Error.
func (timeoutError) Timeout() bool { return true }

// Failure is why a request failed.
type Failure struct {
	Phase Phase
	Token Token
	Rule  string // by which it was refused; empty: it was not
	Rcode string // of the nameserver's reply, for DNSError
}

// Error is an error of a request to a target.
type Error struct {
	Target  string // its host
	Address string // that was dialled; empty: none
	Phase   Phase
	Err     error

	Incomplete bool // the response had begun

	text string // what follows target and address, instead of phase and Err
}

// Error begins with the target and names the phase.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Target)
	if e.Address != "" {
		if e.Target != "" {
			b.WriteString(" at ")
		}
		b.WriteString(e.Address)
	}
	b.WriteString(": ")
	if e.text != "" {
		b.WriteString(e.text)
		return b.String()
	}
	b.WriteString(phaseText[e.Phase])
	switch e.Err {
	case context.Canceled:
		b.WriteString("the client has left")
	case context.DeadlineExceeded:
		b.WriteString(noAnswer)
	default:
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// noAnswer is the text of a timeout that is not that of the handler.
const noAnswer = "no answer in time"

// phaseText names a phase in an error.
var phaseText = map[Phase]string{
	Request:  "request: ",
	DNS:      "DNS lookup: ",
	Connect:  "connect: ",
	TLS:      "TLS handshake: ",
	Send:     "sending the request: ",
	Response: "response: ",
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Timeout implements net.Error.
func (e *Error) Timeout() bool { return pool.IsTimeout(e.Err) }

// Temporary implements net.Error.
func (e *Error) Temporary() bool { return false }

// RanOut makes the error say that the request's timeout, as it is configured, is over.
func (e *Error) RanOut(timeout time.Duration) {
	e.text = phaseText[e.Phase] + "no answer within the timeout of " + timeout.String()
}

// NotDialled is RanOut for a request that was over before an address was dialled.
func (e *Error) NotDialled(timeout time.Duration) {
	e.RanOut(timeout)
	e.text += ", before an address was dialled"
}

// OfLookup returns the error of the lookup of a target's name.
func OfLookup(target string, err error) *Error {
	e := &Error{Target: target, Phase: DNS, Err: err}
	if failed, ok := err.(*dnsclient.Error); ok && failed.Name == target {
		e.text = fmt.Sprintf("DNS lookup (%s): %s", dns.Type(failed.Type), failed.Reason())
	}
	return e
}

// OfPool returns the error of an attempt.
func OfPool(target, address string, e *pool.Error) *Error {
	phase := PhaseOf(e.Phase)
	err := e.Err
	if isAlert(err) {
		phase = TLS
	}
	failed := &Error{Target: target, Address: address, Phase: phase, Err: err}
	if e.Dialling() && errors.Is(err, context.DeadlineExceeded) {
		failed.text = phaseText[phase] + noAnswer
	}
	return failed
}

var phaseOfPool = map[pool.Phase]Phase{
	pool.Connect: Connect, pool.Handshake: TLS, pool.Send: Send, pool.Response: Response, pool.Prepare: Request,
}

// PhaseOf returns the phase of a request that a phase of package pool is.
func PhaseOf(p pool.Phase) Phase { return phaseOfPool[p] }

// RuleOf returns the rule by which a request was refused; "" if it was not, but failed.
func RuleOf(err error) string {
	if r, ok := errors.AsType[*guard.Refusal](err); ok {
		return r.Rule
	}
	switch {
	case errors.Is(err, targeturl.ErrNoTarget):
		return RuleNoTarget
	case errors.Is(err, ErrLoop):
		return RuleLoop
	case errors.Is(err, ErrMaxRequests):
		return RuleMaxRequests
	case errors.Is(err, dnscache.ErrOverloaded):
		return RuleMaxLookups
	case errors.Is(err, dnscache.ErrTooManyNewNames):
		return RuleNewNames
	}
	if _, ok := errors.AsType[malformed](err); ok {
		return RuleMalformed
	}
	return ""
}

// StatusClientGone is what Caddy reports of a request whose client has left.
const StatusClientGone = 499

// StatusOf returns the status of a request that cannot be sent on.
func StatusOf(err error) int {
	switch RuleOf(err) {
	case "":
	case RuleNoTarget, RuleMalformed:
		return http.StatusBadRequest
	case RuleLoop:
		return http.StatusLoopDetected
	case RuleMaxRequests, RuleMaxLookups, RuleNewNames:
		return http.StatusServiceUnavailable
	default:
		return http.StatusForbidden
	}
	switch {
	case pool.IsTimeout(err):
		return http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		return StatusClientGone
	}
	return http.StatusBadGateway
}

// Of returns why a request failed. Of nil, and of an error that has nothing to do with
// the target, it returns the zero value.
func Of(err error) Failure {
	if err == nil {
		return Failure{}
	}
	if rule := RuleOf(err); rule != "" {
		return refused(err, rule)
	}
	f := Failure{}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return f
	}
	f.Phase = e.Phase
	switch {
	case errors.Is(err, context.Canceled):
		f.Token = ClientDisconnected
	case errors.Is(err, pool.ErrLimit):
		f.Token = ConnectionLimitReached
	case f.Phase == Request:
		f.Token = HTTPRequestError
	case f.Phase == DNS:
		f.Token, f.Rcode = ofDNS(err)
	case f.Phase == Connect:
		f.Token = ofConnect(err)
	case f.Phase == TLS:
		f.Token = ofTLS(err)
	case f.Phase == Send && pool.IsTimeout(err):
		f.Token = ConnectionWriteTimeout
	case f.Phase == Send:
		f.Token = ConnectionTerminated
	case e.Incomplete && !pool.IsTimeout(err):
		f.Token = HTTPResponseIncomplete
	default:
		f.Token = ofResponse(err)
	}
	return f
}

// refused returns the failure of a request that was refused by a rule.
func refused(err error, rule string) Failure {
	f := Failure{Phase: Policy, Token: HTTPRequestDenied, Rule: rule}
	switch rule {
	case RuleNoTarget, RuleMalformed:
		f.Phase, f.Token = Request, HTTPRequestError
	case RuleLoop:
		f.Phase, f.Token = Request, ProxyLoopDetected
	case RuleMaxRequests:
		f.Token = ConnectionLimitReached
	case RuleMaxLookups, RuleNewNames:
		f.Phase, f.Token = DNS, DNSLimitReached
	}
	if r, ok := errors.AsType[*guard.Refusal](err); ok && r.Kind == guard.KindAddress {
		f.Token = DestinationIPProhibited
	}
	return f
}

func ofDNS(err error) (t Token, rcode string) {
	e, ok := errors.AsType[*dnsclient.Error](err)
	switch {
	case !ok && pool.IsTimeout(err):
		return DNSTimeout, ""
	case !ok:
		return DestinationNotFound, "" // a name that has no place in the DNS
	}
	switch e.Kind {
	case dnsclient.NotFound:
		return DestinationNotFound, ""
	case dnsclient.NoData:
		return DNSNoData, ""
	case dnsclient.Timeout, dnsclient.Outage:
		return DNSTimeout, ""
	case dnsclient.ServerFailure:
		return DNSError, e.RcodeString()
	}
	return DNSError, ""
}

func ofConnect(err error) Token {
	switch {
	case pool.IsTimeout(err):
		return ConnectionTimeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return ConnectionRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return DestinationIPUnroutable
	case pool.IsLocalExhaustion(err):
		return ProxyInternalError
	}
	return ConnectionTerminated
}

func ofTLS(err error) Token {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok || isCertificate(err) {
		return TLSCertificateError
	}
	switch {
	case isAlert(err):
		return TLSAlertReceived
	case pool.IsTimeout(err):
		return ConnectionTimeout
	case isClosed(err):
		return ConnectionTerminated
	}
	return TLSProtocolError
}

func ofResponse(err error) Token {
	switch {
	case pool.IsHeaderSize(err):
		return HTTPResponseHeaderSize
	case errors.Is(err, pool.ErrSilent), errors.Is(err, os.ErrDeadlineExceeded):
		return ConnectionReadTimeout
	case pool.IsTimeout(err):
		return HTTPResponseTimeout
	case isClosed(err):
		return ConnectionTerminated
	}
	return HTTPProtocolError
}

func isCertificate(err error) bool {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return true
	}
	_, ok := errors.AsType[x509.UnknownAuthorityError](err)
	return ok
}

// isAlert reports whether the backend has ended a connection by an alert of TLS.
func isAlert(err error) bool {
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	return err != nil && strings.Contains(err.Error(), "remote error: tls: ")
}

// isClosed reports whether the backend has closed a connection, or reset it.
func isClosed(err error) bool {
	return pool.IsClosed(err) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Unavailable returns the failure of a request all of whose addresses were known to fail
// before the first attempt: if the last attempt failed at the address, that is the reason.
func (f Failure) Unavailable() Failure {
	switch f.Phase {
	case Connect, TLS, Send, Response:
		if f.Token != ClientDisconnected {
			f.Token = DestinationUnavailable
		}
	}
	return f
}

// RequestFailures are the failures that Of and Unavailable may return, without what tells
// one rule and one rcode from another.
func RequestFailures() []Failure {
	return failuresOf(map[Phase][]Token{
		Request: {HTTPRequestError, ProxyLoopDetected, ClientDisconnected},
		Policy:  {HTTPRequestDenied, DestinationIPProhibited, ConnectionLimitReached},
		DNS:     {DestinationNotFound, DNSNoData, DNSError, DNSTimeout, DNSLimitReached, ClientDisconnected},
		Connect: {
			ConnectionRefused, ConnectionTimeout, ConnectionTerminated, DestinationIPUnroutable, ConnectionLimitReached, ProxyInternalError,
			DestinationUnavailable, ClientDisconnected,
		},
		TLS: {
			TLSCertificateError, TLSAlertReceived, TLSProtocolError, ConnectionTimeout, ConnectionTerminated,
			DestinationUnavailable, ClientDisconnected,
		},
		Send: {ConnectionWriteTimeout, ConnectionTerminated, DestinationUnavailable, ClientDisconnected},
		Response: {
			HTTPResponseTimeout, ConnectionReadTimeout, ConnectionTerminated, HTTPProtocolError, HTTPResponseHeaderSize, HTTPResponseIncomplete,
			DestinationUnavailable, ClientDisconnected,
		},
	})
}

// failuresOf returns the failures with these tokens, by phase.
func failuresOf(tokens map[Phase][]Token) (all []Failure) {
	for _, phase := range []Phase{Request, Policy, DNS, Connect, TLS, Send, Response} {
		for _, token := range tokens[phase] {
			all = append(all, Failure{Phase: phase, Token: token})
		}
	}
	return all
}

// Text returns an error's text for a placeholder: it may stand in a JSON string, so it has
// no double quote, backslash or control character.
func Text(err error) string {
	if err == nil {
		return ""
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r == '\\':
			return '/'
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029':
			return '?'
		}
		return r
	}, strings.ToValidUTF8(err.Error(), "?"))
}
