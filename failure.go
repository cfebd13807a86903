package caddytarget

import (
	"errors"
	"net"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/exchange"
	"caddytarget/internal/failure"
)

// The values of Handler.ProxyStatus.
const (
	proxyStatusOn      = "on"
	proxyStatusDetails = "details"
	proxyStatusOff     = "off"
)

// report tells of a request that has failed: in the log, in metrics and, if an error is
// still to be answered, in the response.
func (h *Handler) report(w http.ResponseWriter, st *exchange.State, err error) {
	f := st.Failure()
	if f.Token == "" {
		return
	}
	if err != nil && h.ProxyStatus != proxyStatusOff {
		details := ""
		if h.ProxyStatus == proxyStatusDetails {
			details = st.ErrorText()
		}
		f.SetProxyStatus(w.Header(), details)
	}
	if st.Reported { // by a handler that came after this one
		return
	}
	st.Reported = true
	h.policy.Metrics.Failures.WithLabelValues(string(f.Phase), string(f.Token)).Inc()
	o := st.Outcome(statusOf(err))
	h.failures.Failed(&o, st.Err, st.Address)
}

// statusOf returns the status of an error that is to be answered; 0: the response had begun.
func statusOf(err error) int {
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
		return e.StatusCode
	}
	return 0
}

// forProxy returns an error of an attempt as reverse_proxy has to have it. last says that
// there is no time for another attempt.
func forProxy(err error, last bool) error {
	switch e := err.(type) {
	case *exchange.Refused:
		return caddyhttp.Error(e.Status, forProxy(e.Err, last))
	case exchange.Unsent:
		if last {
			return e.Failure
		}
		return dialError{e.Failure}
	}
	return err
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
