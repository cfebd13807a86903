package exchange

import (
	"net/http"

	"caddytarget/internal/record"
	"caddytarget/internal/trace"
)

// Recorded implements record.Caller.
func (c *Call) Recorded() record.Call {
	return record.Call{
		Target: trace.Target{Scheme: c.Scheme, Host: c.Host, Port: c.Port, Path: c.url(c.URI).Path},
		Site:   c.Client.Host, Remote: c.Client.Remote,
		Lookup: c.Answer.From, Waited: c.Answer.Waited, Addrs: c.Addrs,
	}
}

// caller returns c; nil if that is nil.
func (c *Call) caller() record.Caller {
	if c == nil {
		return nil
	}
	return c
}

// recordOfSource returns the record of a request that maybe no handler has seen. There is
// none then but for spans.
func (st *State) recordOfSource(r *http.Request) *record.Request {
	if st.Record == nil {
		st.Record = record.ForSpans(r)
	}
	return st.Record
}

// Outcome returns how a request ended; status is that of the error that is to be answered, 0
// if there is none.
func (st *State) Outcome(status int) record.Outcome {
	return record.Outcome{Caller: st.Call.caller(), Failure: st.Failure(), Status: status, Attempts: st.Attempts}
}

// EndRecord passes on what was recorded of a request that a handler has ended.
func (st *State) EndRecord(rec *record.Request, status int) {
	if st.Record != rec && len(rec.Entries) == 0 {
		return // a handler that came after this one has made the attempts
	}
	o := st.Outcome(status)
	o.Text = st.ErrorText()
	rec.Done(o)
}

// BeginRecord begins to record an attempt that has an order. It reports whether that is
// wanted.
func (a *Attempt) BeginRecord(req *http.Request) bool {
	rec := a.recordOf(req)
	if rec == nil {
		return false
	}
	a.Recorded = rec.Attempt(req.Method, &a.Order.Key, a.Call.caller())
	a.Order.Timing = &a.Recorded.Timing
	return true
}

// recordOf returns the record of the request that the attempt is made for.
func (a *Attempt) recordOf(req *http.Request) *record.Request {
	switch c := a.Call; {
	case c == nil:
		return record.ForSpans(req)
	case c.Scheme == "": // maybe no handler has seen it
		return c.State.recordOfSource(req)
	default:
		return c.State.Record
	}
}

// EndRecord records how the attempt ended.
func (a *Attempt) EndRecord(res *http.Response, err error) {
	status := 0
	if res != nil {
		status = res.StatusCode
	}
	if e, ok := err.(*Refused); ok {
		err = e.Err // that has its text
	}
	a.Recorded.End(a.Call.caller(), status, err == nil && a.Call != nil && a.Call.State.Reused, err)
}
