package caddytarget

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
)

// The values of Handler.ProxyStatus.
const (
	proxyStatusOn      = "on"
	proxyStatusDetails = "details"
	proxyStatusOff     = "off"
)

// failure returns why the request failed; the zero value: it has not, or for a reason
// that has nothing to do with its target.
func (st *requestState) failure() failure.Failure {
	f := failure.Of(st.err)
	if st.unavailable {
		f = f.Unavailable()
	}
	return f
}

// errorText returns the text of the error for people. It begins with the target's host.
func (st *requestState) errorText() string {
	text := failure.Text(st.err)
	if c := st.call; text != "" && c != nil && !strings.HasPrefix(text, c.Host) {
		text = c.Host + ": " + text
	}
	return text
}

// report tells of a request that has failed: in the log, in metrics and, if an error is
// still to be answered, in the response.
func (h *Handler) report(w http.ResponseWriter, st *requestState, err error) {
	f := st.failure()
	if f.Token == "" {
		return
	}
	if err != nil && h.ProxyStatus != proxyStatusOff {
		details := ""
		if h.ProxyStatus == proxyStatusDetails {
			details = st.errorText()
		}
		f.SetProxyStatus(w.Header(), details)
	}
	if st.reported { // by a handler that came after this one
		return
	}
	st.reported = true
	h.policy.counters.Failures.WithLabelValues(string(f.Phase), string(f.Token)).Inc()
	ce := h.policy.log.Check(h.logLevel, failedMessage(f))
	if ce == nil {
		return
	}
	suppressed, ok := 0, true
	if h.logLevel > zapcore.DebugLevel {
		suppressed, ok = h.limiter.Allow(f.Token, time.Now())
	}
	if !ok {
		return
	}
	list := append(failureFields(st.call, st.err, f), zap.Int("attempts", st.attempts))
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok { // else the response had begun
		list = append(list, zap.Int("status", e.StatusCode))
	}
	if st.address.IsValid() {
		list = append(list, zap.Stringer("dialled", st.address))
	}
	if suppressed > 0 {
		list = append(list, zap.Int("suppressed", suppressed))
	}
	ce.Write(list...)
}

// failedMessage returns the message of the log for a failure.
func failedMessage(f failure.Failure) string {
	switch {
	case f.Rule != "":
		return "target refused"
	case f.Phase == failure.DNS:
		return "target not resolved"
	}
	return "target failed"
}

// fields describes a request that failed, for the log: without the path and the query,
// which may hold secrets.
func fields(c *call, err error) []zap.Field { return failureFields(c, err, failure.Of(err)) }

// failureFields is fields for a failure that is known.
func failureFields(c *call, err error, f failure.Failure) []zap.Field {
	list := []zap.Field{zap.Error(err)}
	if f.Token != "" {
		list = append(list, zap.String("phase", string(f.Phase)), zap.String("failure", string(f.Token)))
		if f.Rule != "" {
			list = append(list, zap.String("rule", f.Rule))
		}
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

// dialError is a failure before anything of the request was sent. For reverse_proxy it is
// a reverseproxy.DialError, so that any request may be tried elsewhere, and a net.Error,
// so that a timeout becomes status 504.
type dialError struct{ failure *failure.Error }

func (e dialError) Error() string { return e.failure.Error() }

func (e dialError) Unwrap() error { return e.failure }

// As makes e a reverseproxy.DialError for errors.As.
func (e dialError) As(target any) bool {
	t, ok := target.(*reverseproxy.DialError)
	if ok {
		*t = reverseproxy.NewDialError(e.failure.Err)
	}
	return ok
}

// Timeout implements net.Error.
func (e dialError) Timeout() bool { return e.failure.Timeout() }

// Temporary implements net.Error.
func (e dialError) Temporary() bool { return false }

// Interface guards
var _ net.Error = dialError{}
