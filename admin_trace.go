package caddytarget

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"caddytarget/internal/guard"
	"caddytarget/internal/trace"
)

const (
	// The limits of a live trace.
	maxTraceSeconds = 60
	maxTraceEvents  = 100_000

	// traceWriteGrace is how long a client may take to read what is left of a live trace
	// when that has ended.
	traceWriteGrace = time.Second
)

// The names of events of a live trace. Requests have none.
const (
	traceDropped = "dropped"
	traceEnd     = "end"
)

// adminTraceDropped is the data of the event dropped: so many requests were left out
// because the client was too slow.
type adminTraceDropped struct {
	Dropped uint64 `json:"dropped"`
}

// adminTraceEnd is the data of the last event.
type adminTraceEnd struct {
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

func parseTraceQuery(params map[string]string) (q traceQuery, err error) {
	number := func(name string, to *int, maximum int) {
		text, ok := params[name]
		if !ok || err != nil {
			return
		}
		n, wrong := strconv.Atoi(text)
		if wrong != nil || n < 1 || n > maximum {
			err = adminErrorf(http.StatusBadRequest, "%s %q is not a number from 1 to %d", name, text, maximum)
		}
		*to = n
	}
	q.seconds = maxTraceSeconds
	number("limit", &q.limit, maxTraceEvents)
	number("seconds", &q.seconds, maxTraceSeconds)
	if text, ok := params["target"]; ok && err == nil {
		host, below := strings.CutPrefix(text, ".")
		q.filter.Below = below
		if q.filter.Host, err = guard.NormalizeHost(host); err != nil {
			err = adminErrorf(http.StatusBadRequest, "target %q: %v", text, err)
		}
	}
	return q, err
}

// adminGetTrace sends the requests of target handlers as server-sent events while they
// end.
func adminGetTrace(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	q, err := parseTraceQuery(params)
	if err != nil {
		return err
	}
	var hub *trace.Hub
	shareds.Range(func(_, value any) bool {
		hub = value.(*shared).trace
		return false
	})
	if hub == nil {
		return adminErrorf(http.StatusServiceUnavailable, "no site has a target handler")
	}
	l, err := hub.Listen(q.filter)
	switch {
	case errors.Is(err, trace.ErrTooMany):
		w.Header().Set("Retry-After", "1")
		return adminErrorf(http.StatusTooManyRequests, "%d clients have a live trace already: that is the limit", trace.MaxListeners)
	case err != nil:
		return adminErrorf(http.StatusServiceUnavailable, "the server stops: %v", err)
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
		_ = s.send(traceEnd, adminTraceEnd{reason, s.events, s.listener.Dropped()})
		_ = s.control.Flush()
		return
	}
}

// request sends a request, and before it how many were left out. It reports whether the
// client is still there.
func (s *traceStream) request(e *trace.Event) bool {
	if n := s.listener.Dropped(); n > s.dropped {
		if s.send(traceDropped, adminTraceDropped{n - s.dropped}) != nil {
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
	fmt.Fprintf(&b, "data: %s\n\n", asciiJSON(text))
	_, err = s.w.Write(b.Bytes())
	return err
}

// showTrace is the command `caddy target trace`.
func showTrace(c *adminClient) error {
	query := url.Values{"seconds": {strconv.Itoa(c.flags.Int("seconds"))}}
	if c.flags.Changed("limit") {
		query.Set("limit", strconv.Itoa(c.flags.Int("limit")))
	}
	if c.flags.Changed("target") {
		query.Set("target", c.flags.String("target"))
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- c.readTrace(query) }()
	select {
	case err := <-ended:
		return err
	case <-interrupted.Done():
		return nil
	}
}

// readTrace prints the events of a live trace until its end.
func (c *adminClient) readTrace(query url.Values) error {
	res, err := caddycmd.AdminAPIRequest(c.address, http.MethodGet, adminPath+"trace?"+query.Encode(), nil, nil)
	if err != nil {
		return requestError(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for name := ""; ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("the live trace has no end: %w", err)
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			if err := c.printEvent(name, value); err != nil || name == traceEnd {
				return err
			}
			name = ""
		}
	}
}

// printEvent prints one event.
func (c *adminClient) printEvent(name, data string) error {
	var err error
	switch name {
	case "":
		if c.json {
			if !json.Valid([]byte(data)) {
				return errors.New("reading the response: an event is not JSON")
			}
			_, err = fmt.Fprintf(c.out, "%s\n", asciiJSON([]byte(data)))
			break
		}
		var e trace.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("reading the response: %w", err)
		}
		_, err = fmt.Fprintln(c.out, printable(e.Line()))
	case traceDropped:
		var d adminTraceDropped
		if err := json.Unmarshal([]byte(data), &d); err != nil {
			return fmt.Errorf("reading the response: %w", err)
		}
		_, err = fmt.Fprintf(c.err, "%d requests are left out: this is too slow for them\n", d.Dropped)
	case traceEnd:
		var end adminTraceEnd
		if err := json.Unmarshal([]byte(data), &end); err != nil {
			return fmt.Errorf("reading the response: %w", err)
		}
		if end.Reason == "reload" {
			_, err = fmt.Fprintln(c.err, "The server has loaded another configuration, or stops")
		}
	}
	return err
}
