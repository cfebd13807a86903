package exchange

import (
	"net/netip"
	"strings"
	"time"

	"caddytarget/internal/failure"
	"caddytarget/internal/record"
	"caddytarget/internal/targeturl"
)

// State is what is known of a request. It stands behind the placeholders. There may be several
// handlers one after the other, or one that is entered again by handle_errors.
type State struct {
	Progress
	Explained *Explained // nil: the request is a real one

	exchange *Exchange // the last one
	first    Exchange
}

// Explained is what makes a request one that is only explained: nothing of it is counted
// or logged, and it is not sent.
type Explained struct {
	URL *string // the value of the template of the target; nil: it is read as always
}

// Progress is what is known since the last handler began.
type Progress struct {
	Call     *Call // the last one that was parsed
	Returned bool  // the handlers that call it have returned
	Err      error // why there is no going on
	Reported bool  // Err is in the log
	Record   *record.Request

	Timeout  time.Duration  // of the handler, as it is configured; zero: none
	Attempts int            // how many were made
	Address  netip.AddrPort // of the last one
	Reused   bool           // its connection had carried other requests
	Opened   bool           // an attempt was sent over a new connection

	Redirects int // how many were followed

	notFollowed error // why one was not
	unavailable bool  // all addresses were known to fail when they were first offered
}

// Begin forgets what the handler before this one has left, and returns what it called.
// returned reports whether the handlers that called it have returned.
func (st *State) Begin() (last *Call, returned bool) {
	last, returned = st.Call, st.Returned
	st.Progress = Progress{}
	return last, returned
}

// Failure returns why the request failed; the zero value: it has not, or for a reason
// that has nothing to do with its target.
func (st *State) Failure() failure.Failure {
	f := failure.Of(st.Err)
	if st.unavailable {
		f = f.Unavailable()
	}
	return f
}

// ErrorText returns the text of the error for people. It begins with the target's host.
func (st *State) ErrorText() string {
	text := failure.Text(st.Err)
	if c := st.Call; text != "" && c != nil && !strings.HasPrefix(text, c.Host) {
		text = c.Host + ": " + text
	}
	return text
}

// Placeholder gives the values of the placeholders of the handler.
func (st *State) Placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.target.")
	if !ok {
		return nil, false
	}
	switch name {
	case "error":
		return st.ErrorText(), true
	case "failure":
		return string(st.Failure().Token), true
	case "phase":
		return string(st.Failure().Phase), true
	case "rule":
		return st.Failure().Rule, true
	case "attempts":
		return st.Attempts, true
	case "address":
		if !st.Address.IsValid() {
			return "", true
		}
		return st.Address.String(), true
	case "reused":
		return st.Reused, true
	case "redirects":
		return st.Redirects, true
	case "not_followed":
		return failure.Text(st.notFollowed), true
	}
	if st.Call == nil {
		return new(Call).placeholder(name)
	}
	return st.Call.placeholder(name)
}

// placeholder gives the values of those placeholders that are about the target.
func (c *Call) placeholder(name string) (any, bool) {
	switch name {
	case "url":
		if c.Scheme == "" {
			return "", true
		}
		return c.Scheme + "://" + targeturl.JoinHostPort(c.Scheme, c.Host, c.Port) + c.URI, true
	case "scheme":
		return c.Scheme, true
	case "host":
		return c.Host, true
	case "port":
		if c.Port == 0 {
			return "", true
		}
		return c.Port, true
	case "hostport":
		return c.HostPort, true
	case "addresses":
		list := make([]string, len(c.Addrs))
		for i, a := range c.Addrs {
			list[i] = a.String()
		}
		return strings.Join(list, ","), true
	case "lookup":
		return c.Answer.From, true
	case "lookup_ms":
		return float64(c.Answer.Waited.Microseconds()) / 1e3, true
	}
	return nil, false
}
