package caddytarget

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"caddytarget/internal/record"
	"caddytarget/internal/trace"
)

// Recorded implements record.Caller.
func (c *call) Recorded() record.Call {
	return record.Call{
		Target: trace.Target{Scheme: c.scheme, Host: c.Host, Port: c.Port, Path: c.url(c.uri).Path},
		Site:   c.client.host, Remote: c.client.remote,
		Lookup: c.answer.From, Waited: c.answer.Waited, Addrs: c.Addrs,
	}
}

// caller returns c; nil if that is nil.
func (c *call) caller() record.Caller {
	if c == nil {
		return nil
	}
	return c
}

// recordOfSource returns the record of a request that maybe no handler has seen. There is
// none then but for spans.
func (st *requestState) recordOfSource(r *http.Request) *record.Request {
	if st.record == nil {
		st.record = record.ForSpans(r)
	}
	return st.record
}

// beginRecord begins to record an attempt that has an order. It reports whether that is
// wanted.
func (a *attempt) beginRecord(req *http.Request) bool {
	rec := a.recordOf(req)
	if rec == nil {
		return false
	}
	recorded := rec.Attempt(req.Method, &a.order.Key, a.call.caller())
	a.order.Timing, a.recorded = &recorded.Timing, &recordedAttempt{recorded, recorded}
	return true
}

// recordOf returns the record of the request that the attempt is made for.
func (a *attempt) recordOf(req *http.Request) *record.Request {
	switch c := a.call; {
	case c == nil:
		return record.ForSpans(req)
	case c.scheme == "": // maybe no handler has seen it
		return c.state.recordOfSource(req)
	default:
		return c.state.record
	}
}

// endRecord records how the attempt ended.
func (a *attempt) endRecord(res *http.Response, err error) {
	status := 0
	if res != nil {
		status = res.StatusCode
	}
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
		err = e.Err // its text is for people
	}
	a.recorded.End(a.call.caller(), status, err == nil && a.call != nil && a.call.state.reused, err)
}

// endRecord passes on what was recorded of a request that a handler has ended.
func (st *requestState) endRecord(rec *record.Request, err error) {
	if st.record != rec && len(rec.Entries) == 0 {
		return // a handler that came after this one has made the attempts
	}
	o := st.outcome(err)
	o.Text = st.errorText()
	rec.Done(o)
}

// outcome returns how a request ended for which a handler returns an error, or nil.
func (st *requestState) outcome(err error) record.Outcome {
	o := record.Outcome{Caller: st.call.caller(), Failure: st.failure(), Attempts: st.attempts}
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
		o.Status = e.StatusCode
	}
	return o
}
