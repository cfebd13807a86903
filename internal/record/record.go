// Package record has what is recorded of single requests: for listeners of the live trace,
// as spans, and in the log.
//
// A [Request] is made of a request if one of the three wants it; else it is nil, its methods
// do nothing, and nothing is allocated. It has an [Attempt] for each attempt to send the
// request, and notes the status of the [Response]. What is called is a [Call], and is asked
// for only if it is recorded: see [Caller]. That a request failed is logged whether it is
// recorded or not: [FailureLog] and [FailureFields].
package record

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/clientspan"
	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
	"caddytarget/internal/trace"
)

// Request is what is recorded of a request. TargetRead and Resolved may be called where it
// is nil.
type Request struct {
	trace.Request
	hub      *trace.Hub      // nil: it is for spans
	log      *zap.Logger     // at the level debug; nil: no lines
	spans    context.Context // with the span above those of the attempts; nil: no spans
	response *Response       // nil: it is not watched
}

// Caller is what calls a target.
type Caller interface{ Recorded() Call }

// Call is what is recorded of what a request calls.
type Call struct {
	trace.Target
	Site   string // the Host header of the client
	Remote string // its address; empty: there is no client

	// How the addresses were found.
	Lookup string
	Waited time.Duration
	Addrs  []netip.Addr
}

// New returns the record of a request that begins; nil if neither a listener nor a span nor
// the log wants it.
func New(r *http.Request, begun time.Time, log *zap.Logger, hub *trace.Hub) *Request {
	debug, recorded := log.Core().Enabled(zapcore.DebugLevel), clientspan.Recorded(r.Context())
	if !debug && !recorded && !hub.Listening() {
		return nil
	}
	rec := &Request{Request: trace.Request{Begun: begun, Method: r.Method, Site: r.Host}, hub: hub}
	if debug {
		rec.log = log
	}
	if recorded {
		rec.spans = r.Context()
	}
	return rec
}

// ForSpans returns the record of a request for spans alone; nil if there are none.
func ForSpans(r *http.Request) *Request {
	if !clientspan.Recorded(r.Context()) {
		return nil
	}
	return &Request{Request: trace.Request{Method: r.Method}, spans: r.Context()}
}

// debug writes a line about a call.
func (r *Request) debug(message string, c *Call, fields ...zap.Field) {
	if r.log == nil {
		return
	}
	if ce := r.log.Check(zapcore.DebugLevel, message); ce != nil {
		ce.Write(append(fields, zap.String("name", c.Host), zap.String("remote", c.Remote))...)
	}
}

// TargetRead records the target of a request that may go on.
func (r *Request) TargetRead(by Caller) {
	if r == nil {
		return
	}
	c := by.Recorded()
	r.Target = c.Target
	r.debug("target read", &c, zap.String("scheme", c.Scheme), zap.Uint16("port", c.Port), zap.String("host", c.Site))
}

// Resolved records a lookup that has ended.
func (r *Request) Resolved(by Caller, err error) {
	if r == nil {
		return
	}
	c, now := by.Recorded(), time.Now()
	r.LookedUp(c.Lookup, now, c.Waited)
	if err == nil {
		r.debug("addresses found", &c, zap.Stringers("addresses", c.Addrs), zap.String("lookup", c.Lookup), zap.Duration("duration", c.Waited))
		return
	}
	e := r.NotSent(&trace.Entry{Target: c.Target, Method: r.Method, Begun: now, Ended: now, Failure: failure.Of(err), Err: err})
	if e != nil && r.spans != nil {
		clientspan.Start(r.spans, e, 0).End(e)
	}
}

// Attempt is what is recorded of an attempt.
type Attempt struct {
	trace.Entry
	record *Request
	span   *clientspan.Span // nil: none
}

// Attempt begins to record an attempt over a connection with a key. Without a caller, its
// target is that of the key.
func (r *Request) Attempt(method string, key *pool.Key, by Caller) *Attempt {
	a := &Attempt{record: r}
	a.Method, a.Begun, a.Address = method, time.Now(), key.Addr
	if !a.Address.IsValid() {
		a.Dial = key.Dial
	}
	if by != nil {
		a.Target = by.Recorded().Target
	} else {
		a.Target.Host = key.ServerName
	}
	resends := len(r.Entries)
	r.Begin(&a.Entry)
	if r.spans != nil {
		a.span = clientspan.Start(r.spans, &a.Entry, resends)
	}
	return a
}

// Header returns the header of the request as it is to be sent: see clientspan.Span.
func (a *Attempt) Header(header http.Header) http.Header {
	if a.span == nil {
		return header
	}
	return a.span.Header(header)
}

// End records how the attempt ended: with a status, over a connection that had been used
// before or not, or with an error.
func (a *Attempt) End(by Caller, status int, reused bool, err error) {
	a.Ended, a.Status, a.Reused = time.Now(), status, reused
	if err != nil {
		a.Err, a.Failure = err, failure.Of(err)
	}
	if by != nil && a.record.log != nil {
		a.debugEnd(by)
	}
	if a.span != nil {
		a.span.End(&a.Entry)
	}
}

// debugEnd logs the attempt.
func (a *Attempt) debugEnd(by Caller) {
	fields := []zap.Field{zap.String("dialled", a.Dialled()), zap.Bool("reused", a.Reused)}
	for _, s := range []struct {
		name  string
		phase pool.Phase
	}{{"connect", pool.Connect}, {"tls", pool.Handshake}, {"send", pool.Send}, {"response", pool.Response}} {
		if step := a.Timing.Steps[s.phase]; step.Happened() {
			fields = append(fields, zap.Duration(s.name, step.Duration()))
		}
	}
	if a.Err != nil {
		fields = append(fields, zap.Error(a.Err), zap.String("phase", string(a.Failure.Phase)), zap.String("failure", string(a.Failure.Token)))
	} else {
		fields = append(fields, zap.Int("status", a.Status))
	}
	c := by.Recorded()
	a.record.debug("attempt", &c, fields...)
}

// Outcome is how a request ended.
type Outcome struct {
	Caller   Caller // nil: the target could not be read
	Failure  failure.Failure
	Text     string // of the failure
	Status   int    // of the error that is to be answered; 0: the response had begun
	Attempts int
}

// Done passes on what was recorded of a request that has ended.
func (r *Request) Done(o Outcome) {
	var c Call
	if o.Caller != nil {
		c = o.Caller.Recorded()
	}
	if r.Target.Host == "" { // it was refused
		r.Target = c.Target
	}
	if o.Status == 0 {
		o.Status = r.response.status
	}
	now := time.Now()
	if o.Failure.Token == "" && o.Caller != nil {
		r.debug("request done", &c, zap.Int("status", o.Status), zap.Int("attempts", o.Attempts), zap.Duration("duration", now.Sub(r.Begun)))
	}
	if r.hub.Listening() {
		r.hub.Publish(r.End(now, o.Status, o.Failure, o.Text))
	}
}
