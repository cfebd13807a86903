package caddytarget

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/guard"
	"caddytarget/internal/pool"
	"caddytarget/internal/targeturl"
)

var (
	errLoop        = errors.New("the request has already come through this server")
	errMaxRequests = errors.New("too many requests in flight")
	errNoPath      = errors.New("the request line has no path")
	errConnect     = errors.New("CONNECT asks for a tunnel, and a target is none")
)

// malformedError is an error in what the request says.
type malformedError struct{ error }

func (e malformedError) Unwrap() error { return e.error }

// statusClientGone is what Caddy reports of a request whose client has left.
const statusClientGone = 499

// statusOf returns the status of a request that cannot be sent on.
func statusOf(err error) int {
	switch ruleOf(err) {
	case "":
	case ruleNoTarget, ruleMalformed:
		return http.StatusBadRequest
	case ruleLoop:
		return http.StatusLoopDetected
	case ruleMaxRequests, ruleMaxLookups, ruleNewNames:
		return http.StatusServiceUnavailable
	default:
		return http.StatusForbidden
	}
	switch {
	case pool.IsTimeout(err):
		return http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		return statusClientGone
	}
	return http.StatusBadGateway
}

// fields describes a request that failed, for the log: without the path and the query,
// which may hold secrets.
func fields(c *call, err error) []zap.Field {
	list := []zap.Field{zap.Error(err)}
	if rule := ruleOf(err); rule != "" {
		list = append(list, zap.String("rule", rule))
	}
	if c != nil {
		list = append(list, zap.String("scheme", c.scheme), zap.String("name", c.Host), zap.Uint16("port", c.Port))
		if c.client.remote != "" {
			list = append(list, zap.String("host", c.client.host), zap.String("remote", c.client.remote))
		}
	}
	if r, ok := errors.AsType[*guard.Refusal](err); ok && r.Kind == guard.KindAddress {
		list = append(list, zap.String("address", r.Value))
	}
	return list
}

// ruleOf returns the rule by which a request was refused: "" if it was not, but
// failed.
func ruleOf(err error) string {
	if r, ok := errors.AsType[*guard.Refusal](err); ok {
		return r.Rule
	}
	switch {
	case errors.Is(err, targeturl.ErrNoTarget):
		return ruleNoTarget
	case errors.Is(err, errLoop):
		return ruleLoop
	case errors.Is(err, errMaxRequests):
		return ruleMaxRequests
	case errors.Is(err, dnscache.ErrOverloaded):
		return ruleMaxLookups
	case errors.Is(err, dnscache.ErrTooManyNewNames):
		return ruleNewNames
	}
	if _, ok := errors.AsType[malformedError](err); ok {
		return ruleMalformed
	}
	return ""
}

// dialError is a failure before anything of the request was sent. For
// reverse_proxy it is a reverseproxy.DialError, so that any request may be
// tried elsewhere, and a net.Error, so that a timeout becomes status 504.
type dialError struct {
	target string // target and address
	err    error
}

func newDialError(a *attempt, err error) error {
	target := a.address()
	if a.call != nil {
		target = a.call.Host + " at " + target
	}
	return &dialError{target, err}
}

func (e *dialError) Error() string { return e.target + ": " + e.err.Error() }

func (e *dialError) Unwrap() error { return e.err }

// As makes e a reverseproxy.DialError for errors.As.
func (e *dialError) As(target any) bool {
	t, ok := target.(*reverseproxy.DialError)
	if ok {
		*t = reverseproxy.NewDialError(e.err)
	}
	return ok
}

// Timeout implements net.Error.
func (e *dialError) Timeout() bool { return pool.IsTimeout(e.err) }

// Temporary implements net.Error.
func (e *dialError) Temporary() bool { return false }

// Interface guards
var _ net.Error = (*dialError)(nil)
