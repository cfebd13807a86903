package dnsclient

import (
	"errors"
	"time"
)

// attempt asks one server one question for a lookup, in a goroutine of its own.
// The goroutine continues when the lookup has its answer from another server:
// whether this server replies after all is worth knowing.
//
// The task never changes, so both may read it. All else in attempt belongs to the
// lookup: lookup.mu guards it. What the goroutine works with is a dialogue, which
// only it knows. In the end it hands a result to lookup.attemptEnded.
type attempt struct {
	task
	lookup *lookup

	hedge  *time.Timer // begins the next attempt
	late   bool        // it did so, and the attempt counted as a failure of the server
	ended  bool
	result attemptResult // once ended
}

// task is what an attempt has to do.
type task struct {
	client      *Client
	server      *server
	question    *question
	acceptAlias bool // see round
	start       time.Time
	deadline    time.Time // of the lookup; zero: none
	maxQueries  int       // over the first transport of the server
}

// attemptResult is how an attempt ended. It does not change any more.
type attemptResult struct {
	queries []sentQuery
	reply   *reply // nil if there is none that can be read
	failure failure
	outcome outcome // for the health of the server
}

// sentQuery is a query that was sent, and how it ended.
type sentQuery struct {
	transport transport
	took      time.Duration
	ignored   int
	outcome   string // see Try
}

// run asks the server, and asks it again without EDNS or over TCP if the reply
// makes that necessary. This is the goroutine that waits, often for long, so the
// stack below exchange is small: what a reply needs is in functions of their own.
func (a *attempt) run() {
	defer a.client.running.Done()
	d := dialogue{task: &a.task, transport: a.server.first, edns: a.server.health.wantsEDNS()}
	for d.query() {
	}
	a.lookup.attemptEnded(a, d.result)
}

// dialogue is the queries to the server and its replies while an attempt runs.
// Only the goroutine of the attempt uses it.
type dialogue struct {
	*task
	transport transport
	edns      bool
	fellBack  bool          // edns was set for the query before
	result    attemptResult // so far
}

// query sends one query and reports whether the reply asks for another one.
func (d *dialogue) query() (again bool) {
	start := time.Now()
	deadline := start.Add(d.client.timeout())
	shortened := !d.deadline.IsZero() && d.deadline.Before(deadline)
	if shortened {
		deadline = d.deadline
	}
	d.server.counters.begin()
	msg, ignored, err := d.transport.exchange(d.client.ctx, deadline, d.question, d.edns)
	d.server.counters.end()
	took := time.Since(start)
	if err != nil {
		d.gotError(err, took, ignored, shortened)
		return false
	}
	return d.gotReply(msg, took, ignored)
}

// note adds a query to the result.
func (d *dialogue) note(took time.Duration, ignored int, outcome string) {
	d.result.queries = append(d.result.queries, sentQuery{d.transport, took, ignored, outcome})
}

// gotError notes why there is no reply. Shortened is whether the deadline of the
// lookup left the query less time than the timeout.
func (d *dialogue) gotError(err error, took time.Duration, ignored int, shortened bool) {
	r := &d.result
	r.failure = exchangeFailure(&d.server.Nameserver, err)
	switch {
	case d.client.ctx.Err() != nil:
		r.failure = failure{kind: Closed, rcode: -1, err: errClosed}
	case r.failure.kind == Malformed, errors.Is(err, errHungUp):
		r.outcome = failed
	case r.failure.kind == Network, !shortened, took >= d.client.intervals.minSilence:
		r.outcome = silent
	}
	if r.failure.kind != Closed {
		d.server.counters.failed(r.failure)
	}
	d.note(took, ignored, r.failure.String())
}

// gotReply reads a reply, and reports whether it asks for another query.
func (d *dialogue) gotReply(msg []byte, took time.Duration, ignored int) (again bool) {
	s, result := d.server, &d.result
	s.replied(took)

	r, err := d.client.parse(msg, d.question)
	s.counters.replied(&r, err, took)
	switch {
	case err != nil:
		d.note(took, ignored, err.Error())
		result.failure = failure{kind: Malformed, server: &s.Nameserver, rcode: r.rcode, err: err}
		result.outcome = failed
		return false
	case d.edns && r.refusesEDNS() && d.maxQueries > 1:
		d.note(took, ignored, rcodeString(r.rcode))
		d.edns, d.fellBack = false, true
		return true
	case r.truncated && s.fallback != nil && d.transport != s.fallback:
		d.note(took, ignored, "truncated")
		d.transport = s.fallback
		return true
	}
	if d.fellBack && !r.refusesEDNS() {
		s.health.refusedEDNS()
	}

	result.reply, result.failure = &r, r.classify(d.acceptAlias)
	result.failure.server = &s.Nameserver
	if result.isAnswer() {
		result.outcome = answered
	} else {
		result.outcome = failed
	}
	switch {
	case result.failure.kind != 0:
		d.note(took, ignored, result.failure.String())
	case r.isAlias():
		d.note(took, ignored, outcomeAlias)
	default:
		d.note(took, ignored, "answer")
	}
	return false
}

// isAnswer reports whether the server answered the question, be it with the
// absence of records.
func (r *attemptResult) isAnswer() bool {
	switch r.failure.kind {
	case 0, NotFound, NoData:
		return true
	default:
		return false
	}
}

// parse reads a reply. Few large ones are read at a time, since what they take
// in memory is a multiple of their size.
func (c *Client) parse(msg []byte, q *question) (reply, error) {
	if len(msg) > largeMessage {
		c.parsing <- struct{}{}
		defer func() { <-c.parsing }()
	}
	return parse(msg, q)
}
