package pool

import (
	"fmt"
	"net/http"

	"golang.org/x/net/http/httpguts"
)

// validate returns why a request cannot be sent, as net/http decides it.
func validate(req *http.Request) error {
	for _, header := range [...]http.Header{req.Header, req.Trailer} {
		for name, values := range header {
			if !httpguts.ValidHeaderFieldName(name) {
				return fmt.Errorf("invalid header field name %q", name)
			}
			for _, value := range values {
				if !httpguts.ValidHeaderFieldValue(value) {
					return fmt.Errorf("invalid value of the header field %q", name) // the value may be a secret
				}
			}
		}
	}
	for i := range len(req.Method) {
		if !httpguts.IsTokenRune(rune(req.Method[i])) {
			return fmt.Errorf("invalid method %q", req.Method)
		}
	}
	return nil
}

// isReplayable reports whether a request may be sent again although the backend may
// have acted on it (RFC 9110, section 9.2.2): a GET, and without a body each request
// that net/http sends again, too.
func isReplayable(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet:
		return true
	case http.MethodHead, http.MethodOptions, http.MethodTrace:
		return !hasBody(req)
	}
	for _, field := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		if _, ok := req.Header[field]; ok {
			return !hasBody(req)
		}
	}
	return false
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

// asksForUpgrade reports whether a request asks for another protocol on its connection.
func asksForUpgrade(req *http.Request) bool {
	return req.Header["Upgrade"] != nil && httpguts.HeaderValuesContainsToken(req.Header["Connection"], "Upgrade")
}

// rewind returns the request with its body from the beginning, or nil if GetBody does
// not return it.
func rewind(req *http.Request) *http.Request {
	if !hasBody(req) {
		return req
	}
	if req.GetBody == nil {
		return nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil
	}
	again := *req // the goroutine of an upload may still read the first one
	again.Body = body
	return &again
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}
