package pool

import (
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// Step is when something began and ended. The zero value: it did not happen.
type Step struct{ Begin, End time.Time }

// Duration returns how long the step took.
func (s Step) Duration() time.Duration { return s.End.Sub(s.Begin) }

// Happened reports whether the step happened.
func (s Step) Happened() bool { return !s.Begin.IsZero() }

// Timing is what one RoundTrip did when. If it sent the request more than once, that is
// about the last time.
type Timing struct {
	// Steps has the phases from Connect to Response. Those of a dial are left out where the
	// request got a connection without waiting for them. Send ends when the request was
	// handed to the system, Response begins then and ends with the first octet of the
	// response. Over HTTP/1.1, a request whose response comes before the end of its body has
	// a Send that ends with the response. The phase in which the request failed ends then.
	Steps [Prepare]Step

	// HTTP2 is true if the request was sent over HTTP/2.
	HTTP2 bool
}

func (t *Timing) reset() {
	if t != nil {
		*t = Timing{}
	}
}

// dialled records the phases of a dial, without the time before the request began to
// wait; shard.mu is held, or the dial has ended.
func (t *Timing) dialled(n *dial, since, now time.Time) {
	if t == nil || n == nil {
		return
	}
	end := n.ended
	if end.IsZero() {
		end = now
	}
	steps := [dialPhaseCount]Step{Connect: n.connect}
	steps[n.phase] = Step{n.phaseBegan, end}
	for ph, s := range steps {
		if s.Happened() && s.End.After(since) {
			if s.Begin.Before(since) {
				s.Begin = since
			}
			t.Steps[ph] = s
		}
	}
}

// beginExchange begins the steps Send and Response. It returns nil if t is nil.
func (t *Timing) beginExchange(http2 bool) *stamps {
	if t == nil {
		return nil
	}
	t.HTTP2 = http2
	return &stamps{begin: time.Now()}
}

// endExchange ends these steps: there is a response, or the exchange failed.
func (t *Timing) endExchange(s *stamps) {
	if t == nil {
		return
	}
	now := time.Now()
	at := func(stamp *atomic.Int64) (time.Time, bool) {
		if d := stamp.Load(); d != 0 {
			return s.begin.Add(time.Duration(d)), true
		}
		return now, false
	}
	sent, isSent := at(&s.sent)
	first, isAnswered := at(&s.answered)
	if sent.After(first) {
		sent = first
	}
	t.Steps[Send], t.Steps[Response] = Step{s.begin, sent}, Step{}
	if isSent || isAnswered {
		t.Steps[Response] = Step{sent, first}
	}
}

// stamps are when a request was sent and its response began, in nanoseconds since begin;
// 0: not yet. Other goroutines than that of the request set them, maybe after its end.
type stamps struct {
	begin          time.Time
	sent, answered atomic.Int64
}

func (s *stamps) setSent() {
	if s != nil {
		s.sent.CompareAndSwap(0, int64(max(1, time.Since(s.begin))))
	}
}

func (s *stamps) setAnswered() {
	if s != nil {
		s.answered.CompareAndSwap(0, int64(max(1, time.Since(s.begin))))
	}
}

// trace makes a trace set the stamps, beside what it does already.
func (s *stamps) trace(t *httptrace.ClientTrace) {
	wrote, got := t.WroteRequest, t.GotFirstResponseByte
	t.WroteRequest = func(info httptrace.WroteRequestInfo) {
		if info.Err == nil {
			s.setSent()
		}
		if wrote != nil {
			wrote(info)
		}
	}
	t.GotFirstResponseByte = func() {
		s.setAnswered()
		if got != nil {
			got()
		}
	}
}
