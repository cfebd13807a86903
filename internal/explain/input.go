package explain

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Input is the request to be explained.
type Input struct {
	Request *http.Request
	URL     *string // what the template of the target gives; nil: it is read from the request
	Connect bool    // a connection is opened
}

// NewInput reads the parameters url, method, uri and connect, and the lines of a header. The
// request gets a line and header fields as they may come over HTTP.
func NewInput(params map[string]string, header []string) (*Input, error) {
	in := new(Input)
	if value, ok := params["url"]; ok {
		in.URL = &value
	}
	uri, ok := params["uri"]
	switch {
	case in.URL == nil && !ok && header == nil:
		return nil, errors.New("missing url: expecting the target or, if the site's template takes it from the request, uri or header")
	case !ok:
		uri = "/"
	}
	switch params["connect"] {
	case "", "0":
	case "1":
		in.Connect = true
	default:
		return nil, fmt.Errorf("connect %q is neither 0 nor 1", params["connect"])
	}
	method, ok := params["method"]
	if !ok {
		method = http.MethodGet
	}
	if !httpguts.ValidHeaderFieldName(method) { // both are tokens
		return nil, fmt.Errorf("method %q is not one of HTTP", method)
	}
	var err error
	in.Request, err = newRequest(method, uri, header)
	return in, err
}

// newRequest makes a request of its parts, as a server does.
func newRequest(method, uri string, header []string) (*http.Request, error) {
	r := &http.Request{
		Method: method, RequestURI: uri, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Host: "localhost", Header: make(http.Header), Body: http.NoBody,
	}
	for _, line := range header {
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		switch {
		case !ok:
			return nil, fmt.Errorf("header %q has no colon: expecting NAME: VALUE", line)
		case !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value):
			return nil, fmt.Errorf("header %q is not a valid field", line)
		case http.CanonicalHeaderKey(name) == "Host":
			r.Host = value
		default:
			r.Header.Add(name, value)
		}
	}
	authority := method == http.MethodConnect && !strings.HasPrefix(uri, "/")
	if authority {
		uri = "http://" + uri
	}
	var err error
	if r.URL, err = url.ParseRequestURI(uri); err != nil {
		return nil, fmt.Errorf("uri: %w", err)
	}
	if authority {
		r.URL.Scheme = ""
	}
	if r.URL.Host != "" { // in absolute form
		r.Host = r.URL.Host
	}
	return r, nil
}

// NoResponse is the response to a request that is only explained.
type NoResponse struct{}

// Header implements http.ResponseWriter.
func (NoResponse) Header() http.Header { return make(http.Header) }

// Write implements http.ResponseWriter.
func (NoResponse) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (NoResponse) WriteHeader(int) {}

// Interface guards
var (
	_ http.ResponseWriter = NoResponse{}
)
