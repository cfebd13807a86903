// Package redirect follows redirects: which responses are redirects, how the request changes
// that follows one (RFC 9110, section 15.4), and what of the one before is sent again (the
// [Follower], follower.go, which also keeps the body).
package redirect

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// IsStatus reports whether clients follow the Location of a response with this status.
func IsStatus(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// nextMethod returns the method of the request that follows a redirect (RFC 9110, sections
// 15.4.2 to 15.4.9). If it is another one, the request has no body.
func nextMethod(status int, method string) string {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound:
		if method == http.MethodPost {
			return http.MethodGet
		}
	case http.StatusSeeOther:
		if method != http.MethodHead {
			return http.MethodGet
		}
	}
	return method
}

// bodyFields are the fields that describe the body, beside Content-….
var bodyFields = []string{"Digest", "Expect", "Last-Modified", "Repr-Digest"}

// dropBodyFields deletes the fields that describe a request's body.
func dropBodyFields(header http.Header) {
	maps.DeleteFunc(header, func(field string, _ []string) bool {
		return strings.HasPrefix(field, "Content-") || slices.Contains(bodyFields, field)
	})
}

// dropCredentials deletes the fields that another origin must not get: those that hold
// credentials by their name, and those that match one of patterns. A pattern is the name of a
// field, in any case; an asterisk at an end stands for any octets.
func dropCredentials(header http.Header, patterns []string) {
	for field := range header {
		lower := strings.ToLower(field)
		if holdsCredentials(lower) || slices.ContainsFunc(patterns, func(pattern string) bool {
			return matches(strings.ToLower(pattern), lower)
		}) {
			delete(header, field)
		}
	}
}

// isPattern reports whether s is a pattern for dropCredentials.
func isPattern(s string) bool {
	return httpguts.ValidHeaderFieldName(strings.TrimSuffix(strings.TrimPrefix(s, "*"), "*"))
}

// holdsCredentials reports whether a field, in lower case, holds credentials by its name.
func holdsCredentials(field string) bool {
	for _, part := range [...]string{"auth", "cookie", "credential", "password", "secret", "session", "token"} {
		if strings.Contains(field, part) {
			return true
		}
	}
	return strings.HasSuffix(field, "key") && field != "idempotency-key"
}

// matches reports whether a pattern matches a field. Both are in lower case.
func matches(pattern, field string) bool {
	pattern, anyPrefix := strings.CutPrefix(pattern, "*")
	pattern, anySuffix := strings.CutSuffix(pattern, "*")
	switch {
	case anyPrefix && anySuffix:
		return strings.Contains(field, pattern)
	case anyPrefix:
		return strings.HasSuffix(field, pattern)
	case anySuffix:
		return strings.HasPrefix(field, pattern)
	}
	return field == pattern
}

// dropBody ends the response of a redirect that is followed: after it, the response has
// neither a body nor trailers. A short body is read, so that its connection can be used again.
func dropBody(res *http.Response) {
	const maxLen, maxTime = 4 << 10, 200 * time.Millisecond
	body := res.Body
	if res.ContentLength <= maxLen {
		timer := time.AfterFunc(maxTime, func() { _ = body.Close() })
		_, _ = io.CopyN(io.Discard, body, maxLen+1)
		timer.Stop()
	}
	_ = body.Close()
	res.Body, res.ContentLength, res.Trailer = http.NoBody, 0, nil
}
