package caddytarget

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/clientspan"
	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
	"caddytarget/internal/trace"
)

// record is what is recorded of a request: for listeners of the live trace, for spans and
// for the debug log. The methods may be called where it is nil: then there are none of
// them.
type record struct {
	trace.Request
	log   *zap.Logger     // at the level debug; nil: no lines
	spans context.Context // with the span above those of the attempts; nil: no spans

	response *recordedResponse
}

// newRecord returns the record of a request that a handler begins; nil if neither a
// listener nor a span nor the log wants it.
func (h *Handler) newRecord(r *http.Request, begun time.Time) *record {
	debug, recorded := h.policy.log.Core().Enabled(zapcore.DebugLevel), clientspan.Recorded(r.Context())
	if !debug && !recorded && !h.trace.Listening() {
		return nil
	}
	rec := &record{Request: trace.Request{Begun: begun, Method: r.Method, Site: r.Host}}
	if debug {
		rec.log = h.policy.log
	}
	if recorded {
		rec.spans = r.Context()
	}
	return rec
}

// recordOfSource returns the record of a request that maybe no handler has seen. There is
// none then but for spans.
func (st *requestState) recordOfSource(r *http.Request) *record {
	if st.record == nil {
		st.record = recordForSpans(r)
	}
	return st.record
}

// recordForSpans returns the record of a request for spans; nil if there are none.
func recordForSpans(r *http.Request) *record {
	if !clientspan.Recorded(r.Context()) {
		return nil
	}
	return &record{Request: trace.Request{Method: r.Method}, spans: r.Context()}
}

// debug writes a line about a call.
func (r *record) debug(message string, c *call, fields ...zap.Field) {
	if r.log == nil {
		return
	}
	if ce := r.log.Check(zapcore.DebugLevel, message); ce != nil {
		ce.Write(append(fields, zap.String("name", c.Host), zap.String("remote", c.client.remote))...)
	}
}

// targetRead records the target of a request that may go on.
func (r *record) targetRead(c *call) {
	if r == nil {
		return
	}
	r.Target = targetOf(c)
	r.debug("target read", c, zap.String("scheme", c.scheme), zap.Uint16("port", c.Port), zap.String("host", c.client.host))
}

// resolved records a lookup that has ended.
func (r *record) resolved(c *call, err error) {
	if r == nil {
		return
	}
	now := time.Now()
	r.LookedUp(c.answer.From, now, c.answer.Waited)
	if err == nil {
		r.debug("addresses found", c, zap.Stringers("addresses", c.Addrs), zap.String("lookup", c.answer.From), zap.Duration("duration", c.answer.Waited))
		return
	}
	e := r.NotSent(&trace.Entry{Target: targetOf(c), Method: r.Method, Begun: now, Ended: now, Failure: failure.Of(err), Err: err})
	if e != nil && r.spans != nil {
		clientspan.Start(r.spans, e, 0).End(e)
	}
}

// targetOf returns what a call calls.
func targetOf(c *call) trace.Target {
	return trace.Target{Scheme: c.scheme, Host: c.Host, Port: c.Port, Path: c.url(c.uri).Path}
}

// recordedAttempt is what is recorded of an attempt.
type recordedAttempt struct {
	trace.Entry
	record *record
	span   *clientspan.Span // nil: none
}

// beginRecord begins to record an attempt that has an order. It reports whether that is
// wanted.
func (a *attempt) beginRecord(req *http.Request) bool {
	rec := a.recordOf(req)
	if rec == nil {
		return false
	}
	r := &recordedAttempt{record: rec}
	r.Method, r.Begun, r.Address = req.Method, time.Now(), a.order.Key.Addr
	if !r.Address.IsValid() {
		r.Dial = a.order.Key.Dial
	}
	if c := a.call; c != nil {
		r.Target = targetOf(c)
	} else {
		r.Target.Host = a.order.Key.ServerName
	}
	resends := len(rec.Entries)
	rec.Begin(&r.Entry)
	a.order.Timing, a.recorded = &r.Timing, r
	if rec.spans != nil {
		r.span = clientspan.Start(rec.spans, &r.Entry, resends)
	}
	return true
}

// recordOf returns the record of the request that the attempt is made for.
func (a *attempt) recordOf(req *http.Request) *record {
	switch c := a.call; {
	case c == nil:
		return recordForSpans(req)
	case c.scheme == "": // maybe no handler has seen it
		return c.state.recordOfSource(req)
	default:
		return c.state.record
	}
}

// end records how the attempt ended.
func (r *recordedAttempt) end(a *attempt, res *http.Response, err error) {
	r.Ended = time.Now()
	if res != nil {
		r.Status = res.StatusCode
	}
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
		err = e.Err // its text is for people
	}
	if err != nil {
		r.Err, r.Failure = err, failure.Of(err)
	}
	if a.call != nil {
		r.Reused = err == nil && a.call.state.reused
		r.debugEnd(a.call)
	}
	if r.span != nil {
		r.span.End(&r.Entry)
	}
}

// debugEnd logs the attempt.
func (r *recordedAttempt) debugEnd(c *call) {
	if r.record.log == nil {
		return
	}
	fields := []zap.Field{zap.String("dialled", r.Dialled()), zap.Bool("reused", r.Reused)}
	for _, s := range []struct {
		name  string
		phase pool.Phase
	}{{"connect", pool.Connect}, {"tls", pool.Handshake}, {"send", pool.Send}, {"response", pool.Response}} {
		if step := r.Timing.Steps[s.phase]; step.Happened() {
			fields = append(fields, zap.Duration(s.name, step.Duration()))
		}
	}
	if r.Err != nil {
		fields = append(fields, zap.Error(r.Err), zap.String("phase", string(r.Failure.Phase)), zap.String("failure", string(r.Failure.Token)))
	} else {
		fields = append(fields, zap.Int("status", r.Status))
	}
	r.record.debug("attempt", c, fields...)
}

// endRecord passes on what was recorded of a request that a handler has ended.
func (h *Handler) endRecord(rec *record, st *requestState, err error) {
	if st.record != rec && len(rec.Entries) == 0 {
		return // a handler that came after this one has made the attempts
	}
	if rec.Target.Host == "" && st.call != nil { // it was refused
		rec.Target = targetOf(st.call)
	}
	status := rec.response.status
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
		status = e.StatusCode
	}
	now, f := time.Now(), st.failure()
	if f.Token == "" && st.call != nil {
		rec.debug("request done", st.call, zap.Int("status", status), zap.Int("attempts", st.attempts), zap.Duration("duration", now.Sub(rec.Begun)))
	}
	if h.trace.Listening() {
		h.trace.Publish(rec.End(now, status, f, st.errorText()))
	}
}

// recordedResponse notes the status of the response to a request.
type recordedResponse struct {
	*caddyhttp.ResponseWriterWrapper
	status int // 0: none yet
}

// watch returns a writer for the response that notes its status.
func (r *record) watch(w http.ResponseWriter) http.ResponseWriter {
	r.response = &recordedResponse{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	return r.response
}

func (w *recordedResponse) begin(status int) {
	if w.status == 0 && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
}

// WriteHeader implements http.ResponseWriter.
func (w *recordedResponse) WriteHeader(status int) {
	w.begin(status)
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recordedResponse) Write(p []byte) (int, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (w *recordedResponse) ReadFrom(r io.Reader) (int64, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// Interface guards
var (
	_ http.ResponseWriter = (*recordedResponse)(nil)
	_ io.ReaderFrom       = (*recordedResponse)(nil)
)
