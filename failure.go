package caddytarget

import (
	"net"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"caddytarget/internal/failure"
	"caddytarget/internal/record"
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
	o := st.outcome(err)
	h.failures.Failed(&o, st.err, st.address)
}

// fields describes a request that failed, for the log; c may be nil.
func fields(c *call, err error) []zap.Field {
	return record.FailureFields(c.caller(), err, failure.Of(err))
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
