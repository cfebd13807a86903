package caddytarget

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"caddytarget/internal/explain"
)

// explainParams are the parameters of /target/explain.
var explainParams = []string{"url", "site", "method", "uri", "header", "connect"}

// adminGetExplain serves /target/explain: how a request would be treated.
func adminGetExplain(r *http.Request, params map[string]string) (any, error) {
	q, err := newExplainQuery(params, r.URL.Query()["header"])
	if err != nil {
		return nil, adminErrorf(http.StatusBadRequest, "%v", err)
	}
	site, err := selectSite(targetSites(), params["site"])
	if err != nil {
		return nil, err
	}
	q.request.RemoteAddr = r.RemoteAddr
	return q.explain(r, site), nil
}

// explainQuery is what is to be explained.
type explainQuery struct {
	request *http.Request
	url     *string // what the template of the target gives; nil: it is read from the request
	connect bool
}

// explain explains the request at a site, for one to the admin API.
func (q *explainQuery) explain(by *http.Request, site *targetSite) *explain.Report {
	return newExplanation(site, q.request.WithContext(by.Context()), q.url, q.connect).run()
}

// newExplainQuery reads parameters. The request gets a line and header fields as they may
// come over HTTP.
func newExplainQuery(params map[string]string, header []string) (*explainQuery, error) {
	q := new(explainQuery)
	if value, ok := params["url"]; ok {
		q.url = &value
	}
	uri, ok := params["uri"]
	switch {
	case q.url == nil && !ok && header == nil:
		return nil, errors.New("missing url: expecting the target or, if the site's template takes it from the request, uri or header")
	case !ok:
		uri = "/"
	}
	switch params["connect"] {
	case "", "0":
	case "1":
		q.connect = true
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
	q.request, err = newExplainedRequest(method, uri, header)
	return q, err
}

// newExplainedRequest makes a request of its parts, as a server does.
func newExplainedRequest(method, uri string, header []string) (*http.Request, error) {
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
