// Package httpfield knows what the fields of requests mean to a gateway: which of them
// may stand in a trailer, and which change how the request is sent.
package httpfield

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Delete deletes a field. If there is no such field nothing is written: others may be
// reading.
func Delete(header http.Header, field string) {
	if _, ok := header[field]; ok { //nolint:staticcheck // delete counts as a write in any case
		delete(header, field)
	}
}

// IsUpgrade reports whether a request asks for another protocol on its connection (RFC
// 9110, section 7.8).
func IsUpgrade(header http.Header) bool {
	return header["Upgrade"] != nil && httpguts.HeaderValuesContainsToken(header["Connection"], "Upgrade")
}

// IsExtendedConnect reports whether a request opens a WebSocket over HTTP/2 or
// HTTP/3 (RFC 8441, RFC 9220), which reverse_proxy turns into one of HTTP/1.1.
func IsExtendedConnect(r *http.Request) bool {
	switch r.ProtoMajor {
	case 2:
		return r.Header.Get(":protocol") == "websocket"
	case 3:
		return r.Proto == "websocket"
	}
	return false
}

// DropH2CUpgrade deletes a request to go on in HTTP/2 on this connection (RFC 7540,
// section 3.2; RFC 9113 has it no more). A backend that agreed would take all that the
// client sends from then on, unchecked.
func DropH2CUpgrade(header http.Header) {
	if httpguts.HeaderValuesContainsToken(header["Upgrade"], "h2c") {
		delete(header, "Upgrade")
		delete(header, "Connection")
	}
	Delete(header, "Http2-Settings")
}

// MayBeSilent reports whether the client may rightly send nothing of the body before
// something has come from the backend: in a stream of gRPC.
func MayBeSilent(r *http.Request) bool {
	return r.ProtoMajor >= 2 && r.ContentLength < 0 && hasPrefixFold(r.Header.Get("Content-Type"), "application/grpc")
}

// ExpectsContinue reports whether the client waits for the backend's 100 (Continue).
func ExpectsContinue(r *http.Request) bool {
	return r.ProtoAtLeast(1, 1) && httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue")
}

// IsForHeader reports whether a field means something in a header that it may not mean
// in a trailer (RFC 9110, section 6.5.1), or is one that a gateway sets.
func IsForHeader(name string) bool {
	if !httpguts.ValidTrailerHeader(name) || hasPrefixFold(name, "X-Forwarded-") || hasPrefixFold(name, "Proxy-") {
		return true
	}
	switch http.CanonicalHeaderKey(name) {
	case "Forwarded", "Via", "Cdn-Loop", "Upgrade", "Http2-Settings", "Alt-Svc":
		return true
	}
	return false
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// MayMatch reports whether a name of a field in Caddy's header operations may mean a
// field: it may hold placeholders, and wildcards at its ends.
func MayMatch(name, field string) bool {
	if strings.EqualFold(name, field) || strings.Contains(name, "{") {
		return true
	}
	if !strings.Contains(name, "*") {
		return false
	}
	name, field = strings.ToLower(name), strings.ToLower(field)
	inner := strings.Trim(name, "*")
	switch {
	case strings.HasPrefix(name, "*") && strings.HasSuffix(name, "*"):
		return strings.Contains(field, inner)
	case strings.HasPrefix(name, "*"):
		return strings.HasSuffix(field, inner)
	case strings.HasSuffix(name, "*"):
		return strings.HasPrefix(field, inner)
	}
	return true // in the middle it means nothing to Caddy
}

// HasBody reports whether a request has a body.
func HasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }
