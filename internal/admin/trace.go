package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"caddytarget/internal/guard"
	"caddytarget/internal/trace"
)

// The limits of a live trace.
const (
	MaxTraceSeconds = 60
	MaxTraceEvents  = 100_000

	// traceWriteGrace is how long a client may take to read what is left of a live trace
	// when that has ended.
	traceWriteGrace = time.Second
)

// The names of events of a live trace. Requests have none.
const (
	EventDropped = "dropped" // its data is TraceDropped
	EventEnd     = "end"     // its data is TraceEnd; it is the last one
)

// TraceDropped is the data of the event dropped: so many requests were left out
// because the client was too slow.
type TraceDropped struct {
	Dropped uint64 `json:"dropped"`
}

// TraceEnd is the data of the last event.
type TraceEnd struct {
	Reason  string `json:"reason"`  // limit, time or reload
	Events  int    `json:"events"`  // requests that were sent
	Dropped uint64 `json:"dropped"` // requests that were left out
}

// traceQuery is what the parameters of a live trace mean.
type traceQuery struct {
	filter  trace.Filter
	limit   int // 0: none
	seconds int
}

func (p params) traceQuery() (q traceQuery, err error) {
	if q.limit, err = p.number("limit", 0, MaxTraceEvents); err != nil {
		return q, err
	}
	if q.seconds, err = p.number("seconds", MaxTraceSeconds, MaxTraceSeconds); err != nil {
		return q, err
	}
	if text, ok := p["target"]; ok {
		host, below := strings.CutPrefix(text, ".")
		q.filter.Below = below
		if q.filter.Host, err = guard.NormalizeHost(host); err != nil {
			err = errorf(http.StatusBadRequest, "target %q: %v", text, err)
		}
	}
	return q, err
}

// streamTrace serves /target/trace: it sends the requests of target handlers as server-sent
// events while they end.
func (a *API) streamTrace(w http.ResponseWriter, r *http.Request, p params) error {
	q, err := p.traceQuery()
	if err != nil {
		return err
	}
	shared := a.Shared()
	if shared == nil {
		return errorf(http.StatusServiceUnavailable, "no site has a target handler")
	}
	l, err := shared.Trace.Listen(q.filter)
	switch {
	case errors.Is(err, trace.ErrTooMany):
		w.Header().Set("Retry-After", "1")
		return errorf(http.StatusTooManyRequests, "%d clients have a live trace already: that is the limit", trace.MaxListeners)
	case err != nil:
		return errorf(http.StatusServiceUnavailable, "the server stops: %v", err)
	}
	defer l.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	// the time limit of writing would hold for later requests over the connection
	w.Header().Set("Connection", "close")
	if r.Method == http.MethodHead {
		return nil
	}
	s := &traceStream{w: w, control: http.NewResponseController(w), listener: l, query: q}
	s.run(r.Context()) // an error means that the client is gone
	return nil
}

// traceStream sends a live trace to one client.
type traceStream struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	listener *trace.Listener
	query    traceQuery

	events  int
	dropped uint64 // of which the client knows
}

// run sends events until one of the limits is reached or the client is gone.
func (s *traceStream) run(ctx context.Context) {
	timeout := time.NewTimer(time.Duration(s.query.seconds) * time.Second)
	defer timeout.Stop()
	// the time limits of the server are for requests that are short; that of writing ends
	// a client which reads nothing
	_ = s.control.SetReadDeadline(time.Time{})
	_ = s.control.SetWriteDeadline(time.Now().Add(time.Duration(s.query.seconds)*time.Second + traceWriteGrace))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.listener.Ended():
			_ = s.control.SetWriteDeadline(time.Now().Add(traceWriteGrace))
		case <-ctx.Done():
		}
	}()
	if _, err := s.w.Write([]byte(": listening\n\n")); err != nil || s.control.Flush() != nil {
		return
	}
	for {
		var reason string
		select {
		case e := <-s.listener.Events():
			if !s.request(e) {
				return
			}
			if s.query.limit == 0 || s.events < s.query.limit {
				continue
			}
			reason = "limit"
		case <-timeout.C:
			reason = "time"
		case <-s.listener.Ended():
			reason = "reload"
		case <-ctx.Done():
			return
		}
		_ = s.send(EventEnd, TraceEnd{reason, s.events, s.listener.Dropped()})
		_ = s.control.Flush()
		return
	}
}

// request sends a request, and before it how many were left out. It reports whether the
// client is still there.
func (s *traceStream) request(e *trace.Event) bool {
	if n := s.listener.Dropped(); n > s.dropped {
		if s.send(EventDropped, TraceDropped{n - s.dropped}) != nil {
			return false
		}
		s.dropped = n
	}
	s.events++
	return s.send("", e) == nil && (len(s.listener.Events()) > 0 || s.control.Flush() == nil)
}

// send sends one event. An empty name is that of a request.
func (s *traceStream) send(name string, data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if name != "" {
		fmt.Fprintf(&b, "event: %s\n", name)
	}
	fmt.Fprintf(&b, "data: %s\n\n", ASCIIJSON(text))
	_, err = s.w.Write(b.Bytes())
	return err
}
