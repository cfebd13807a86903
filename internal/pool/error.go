package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// Phase is the step at which a request failed.
type Phase int

// The phases of a request. Those of a dial have the lowest numbers: arrays of
// dialPhaseCount are indexed by them.
const (
	Connect   Phase = iota // opening a TCP connection
	Handshake              // the TLS handshake
	Send                   // sending the request
	Response               // waiting for the response's header and reading it
	Prepare                // none of these: the request cannot be sent as it is, to any backend
)

// dialPhaseCount is the number of the phases of a dial, Connect and Handshake.
const dialPhaseCount = 2

// Sent is how much of a request the backend may have acted on.
type Sent int

// The values of Sent.
const (
	Nothing Sent = iota // nothing was written, or the backend said that it will not act on it
	Part
	All
)

// Error is the reason why there is no response.
type Error struct {
	Phase  Phase
	Sent   Sent
	Reused bool // the connection had been idle, or carried other requests
	Err    error

	// Refused is true if a backend of HTTP/2 said that it has not acted on the
	// request, or takes none.
	Refused bool

	// Pending is the dial that the request gave up and that goes on; nil: none.
	Pending *Pending

	stale   bool // the connection ended or refused the request before any octet of a response came
	bounced bool // the connection had served other requests before it refused this one, over HTTP/2
}

// Error implements error.
func (e *Error) Error() string {
	if e.Phase == Handshake {
		return "TLS handshake: " + e.Err.Error()
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Timeout implements net.Error: it reports whether a timeout ended the request.
func (e *Error) Timeout() bool { return IsTimeout(e.Err) }

// Temporary implements net.Error.
func (e *Error) Temporary() bool { return false }

// Dialling reports whether the request failed before it had a connection: nothing of
// it was sent.
func (e *Error) Dialling() bool { return e.Phase <= Handshake }

// mayRetry reports whether a request may be sent over another connection to the same
// address: the connection failed, not the address.
func (e *Error) mayRetry(req *http.Request) bool {
	return e.stale && req.Context().Err() == nil && (e.Sent == Nothing || isReplayable(req))
}

// maxSilence is how long a backend may leave what was sent to it unacknowledged.
const maxSilence = 10 * time.Second

var (
	// ErrLimit is returned where Limits allow no other connection.
	ErrLimit = errors.New("too many connections are in use")

	// ErrSilent ends the requests over a connection whose backend acknowledges
	// nothing any more. It is a timeout.
	ErrSilent error = &timeoutError{fmt.Sprintf("the backend has gone silent: it has acknowledged nothing for %s", maxSilence)}

	errResponseHeaderTimeout = &timeoutError{"no response header in time"}
	errDialTimeout           = &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}
	errNoStreams             = errors.New("the backend takes no requests")
	errNoClient              = errors.New("PROXY protocol: the client has no IP address")
	errClosed                = errors.New("the backend closed the connection without a response")
	errHeaderCut             = errors.New("the backend closed the connection within the response header")
	errHeaderSize            = errors.New("the response header is too large")
	errHeaderFields          = fmt.Errorf("the response header has more than %d fields", maxFields)
	errInterim               = fmt.Errorf("more than %d interim responses", maxInterim)
	errSwitching             = errors.New("the backend switches the protocol in HTTP/2, which has no such switch")
	errUnasked               = errors.New("the backend switches the protocol, which was not asked for")
	errStalled               = errors.New("the client did not read the response, which kept others from theirs")
)

// timeoutError is an error for which Timeout is true.
type timeoutError struct{ text string }

func (e *timeoutError) Error() string { return e.text }

// Timeout implements net.Error.
func (*timeoutError) Timeout() bool { return true }

// Temporary implements net.Error. A tls.Conn can be read again after such an error.
func (*timeoutError) Temporary() bool { return true }

// Is makes it a context.DeadlineExceeded for errors.Is.
func (*timeoutError) Is(err error) bool { return err == context.DeadlineExceeded }

// IsTimeout reports whether an error is a timeout.
func IsTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// IsClosed reports whether the backend closed the connection before it should have.
func IsClosed(err error) bool {
	return errors.Is(err, errClosed) || errors.Is(err, errHeaderCut) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

// IsHeaderSize reports whether a response was not taken because its header is too large.
func IsHeaderSize(err error) bool {
	return errors.Is(err, errHeaderSize) || errors.Is(err, errHeaderFields) || err != nil && strings.Contains(err.Error(), "response header list larger than advertised limit")
}

// IsLocalExhaustion reports whether dialing failed because local resources ran out.
func IsLocalExhaustion(err error) bool {
	return isOneOf(err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL)
}

// isWriteError reports whether writing to a connection failed.
func isWriteError(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "write"
}

// isNoRoute reports whether there is no route to an address.
func isNoRoute(err error) bool { return isOneOf(err, syscall.ENETUNREACH, syscall.EHOSTUNREACH) }

func isOneOf(err error, codes ...syscall.Errno) bool {
	for _, code := range codes {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// isRefused reports whether the backend did not act on a stream of HTTP/2, because it
// said so or because nothing was sent (RFC 9113, section 8.7). golang.org/x/net exports
// only some of these errors; the others are known by their texts.
func isRefused(err error) bool {
	if e, ok := errors.AsType[http2.StreamError](err); ok {
		return e.Code == http2.ErrCodeRefusedStream
	}
	switch text := err.Error(); text {
	case "http2: client conn not usable", "http2: client conn could not be established",
		"http2: Transport received Server's graceful shutdown GOAWAY":
		return true
	default:
		return strings.HasPrefix(text, "http2: Transport received GOAWAY from server ErrCode:")
	}
}

// isTooLarge reports whether a request was not sent over HTTP/2 because its header is
// larger than the backend allows.
func isTooLarge(err error) bool {
	return strings.Contains(err.Error(), "request header list larger than peer's advertised limit")
}

// isStreamError reports whether an error ended one stream of HTTP/2, not the connection.
func isStreamError(err error) bool {
	_, ok := errors.AsType[http2.StreamError](err)
	return ok
}
