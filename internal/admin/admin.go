// Package admin serves what is below /target/ in the admin API: to operators, it shows what
// the resolvers, pools and sites of a process know, and lets them purge it.
//
// An API has an Endpoint for each path. Most of them read the parameters of a request and
// return a value that is sent as JSON: Overview, Ready, Names, NameReport, Nameservers, Pools,
// Addresses, Top, Purged or, for a Site, an explain.Report. Long lists come in pages
// (pages.go). A live trace is a stream of events (trace.go). What is refused is an Error.
// No response has other text than printable ASCII (text.go).
//
// The API gets all that it shows from its functions, which return what is in use at that
// moment. Nothing in it holds up a lookup or a request to a target.
package admin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
	"caddytarget/internal/topk"
	"caddytarget/internal/trace"
	"caddytarget/internal/warm"
)

// Path is the path below which the endpoints are.
const Path = "/target/"

// MaxErrorLength is how many octets the text of an Error may have, which quotes the
// request. One that is longer is cut there and gets three dots.
const MaxErrorLength = 500

// API serves the endpoints. New makes one; all of its functions have to be set.
type API struct {
	lists *pace

	// CaddyVersion returns the version of Caddy.
	CaddyVersion func() string

	// Resolvers returns the resolvers in use, by ID.
	Resolvers func() []*resolver.Resolver

	// Sites returns the target handlers of the running configuration, by place.
	Sites func() []*Site

	// Running reports whether a configuration with targets runs: after it was started.
	Running func() bool

	// Shared returns what all configurations of the process share, or nil if there is none.
	Shared func() *Shared
}

// New returns an API without functions.
func New() *API { return &API{lists: newPace()} }

// Shared is what all configurations of a process share.
type Shared struct {
	ID     uint64    // random: those of an earlier process do not have it
	Began  time.Time // when the first of these configurations began
	Health *health.Tracker
	Pools  *pool.Set
	Top    *topk.Sketch
	Trace  *trace.Hub
	Warm   *warm.List
}

// Endpoint is one endpoint of the API.
type Endpoint struct {
	Method string
	Params []string // the parameters that its query may have
	list   string   // the one of them that it may have several times; empty: none
	paged  bool     // the response may be a page of a long list

	// serve returns what is sent as JSON.
	serve func(r *http.Request, p params) (any, error)

	// stream, if not nil, sends the response itself, in place of serve.
	stream func(w http.ResponseWriter, r *http.Request, p params) error
}

// Endpoint returns the endpoint of a path below Path; nil if there is none.
func (a *API) Endpoint(path string) *Endpoint {
	if name, ok := strings.CutPrefix(path, "names/"); ok {
		return &Endpoint{Method: http.MethodGet, serve: func(*http.Request, params) (any, error) { return a.getName(name) }}
	}
	switch path {
	case "":
		return &Endpoint{Method: http.MethodGet, serve: a.getOverview}
	case "ready":
		return &Endpoint{Method: http.MethodGet, serve: a.getReady}
	case "names":
		return &Endpoint{Method: http.MethodGet, Params: []string{"prefix", "state", "after", "limit"}, paged: true, serve: a.getNames}
	case "nameservers":
		return &Endpoint{Method: http.MethodGet, serve: a.getNameservers}
	case "explain":
		return &Endpoint{Method: http.MethodGet, Params: []string{"url", "site", "method", "uri", "header", "connect"}, list: "header", serve: a.getExplanation}
	case "pools":
		return &Endpoint{Method: http.MethodGet, Params: []string{"target", "address", "state", "after", "limit"}, paged: true, serve: a.getPools}
	case "addresses":
		return &Endpoint{Method: http.MethodGet, Params: []string{"target", "address", "state", "after", "limit"}, paged: true, serve: a.getAddresses}
	case "top":
		return &Endpoint{Method: http.MethodGet, Params: []string{"by", "limit"}, serve: a.getTop}
	case "trace":
		return &Endpoint{Method: http.MethodGet, Params: []string{"target", "limit", "seconds"}, stream: a.streamTrace}
	case "purge":
		return &Endpoint{Method: http.MethodPost, serve: a.purge}
	default:
		return nil
	}
}

// Serve serves a request. If it returns an error, nothing was sent; an *Error has the
// status of the response.
func (a *API) Serve(w http.ResponseWriter, r *http.Request) error {
	e := a.Endpoint(strings.TrimPrefix(r.URL.Path, Path))
	if e == nil {
		return errorf(http.StatusNotFound, "unknown endpoint %s", r.URL.Path)
	}
	if r.Method != e.Method && (r.Method != http.MethodHead || e.Method != http.MethodGet) {
		w.Header().Set("Allow", e.Method)
		return errorf(http.StatusMethodNotAllowed, "method %s is not allowed: expecting %s", r.Method, e.Method)
	}
	p, err := parseParams(r, e.Params, e.list)
	if err != nil {
		return err
	}
	if e.stream != nil {
		return e.stream(w, r, p)
	}
	var text []byte
	toJSON := func() error {
		response, err := e.serve(r, p)
		if err == nil {
			text, err = json.Marshal(response)
		}
		return err
	}
	if e.paged {
		err = a.lists.do(r.Context(), toJSON)
	} else {
		err = toJSON()
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(ASCIIJSON(text), '\n')) // it fails only if the client is gone
	return nil
}

// Error is why a request is refused.
type Error struct {
	Status int // of the response
	text   string
}

// Error returns a text that any terminal may show.
func (e *Error) Error() string { return e.text }

// errorf returns an Error.
func errorf(status int, format string, args ...any) error {
	text := Printable(fmt.Sprintf(format, args...))
	if len(text) > MaxErrorLength {
		text = text[:MaxErrorLength] + "..."
	}
	return &Error{status, text}
}

// params are the parameters of a request's query.
type params map[string]string

// parseParams returns the parameters of a request. list is the one of which the first value
// is returned, if there are several.
func parseParams(r *http.Request, allowed []string, list string) (params, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "reading the query: %v", err)
	}
	p := make(params, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch {
		case len(allowed) == 0:
			return nil, errorf(http.StatusBadRequest, "unknown parameter %q: this endpoint has none", name)
		case !slices.Contains(allowed, name):
			return nil, errorf(http.StatusBadRequest, "unknown parameter %q: expecting %s", name, strings.Join(allowed, ", "))
		case len(values[name]) > 1 && name != list:
			return nil, errorf(http.StatusBadRequest, "parameter %s already specified", name)
		}
		p[name] = values[name][0]
	}
	return p, nil
}

// number returns a parameter that is a number from 1 to a maximum; or else, if it is not
// there, another number.
func (p params) number(name string, other, maximum int) (int, error) {
	text, ok := p[name]
	if !ok {
		return other, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maximum {
		return 0, errorf(http.StatusBadRequest, "%s %q is not a number from 1 to %d", name, text, maximum)
	}
	return n, nil
}

// statesOf returns the states that the parameter state lists; nil if it is not there.
func statesOf[State any](p params, parse func(string) (State, error)) (states []State, err error) {
	text, ok := p["state"]
	if !ok {
		return nil, nil
	}
	for word := range strings.SplitSeq(text, ",") {
		state, err := parse(word)
		if err != nil {
			return nil, errorf(http.StatusBadRequest, "%v", err)
		}
		states = append(states, state)
	}
	return states, nil
}
