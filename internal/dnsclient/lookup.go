package dnsclient

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// lookup is one call of Ask or AskSRV, from its question to its answer. It asks
// one server after the other, each in an attempt, until one answers.
//
// A server that has not replied within its hedge delay does not hold the lookup
// up: the next one is asked as well, and the first to answer wins. So a dead
// server costs little, and a slow name gets all of its time.
//
// A lookup has no goroutine of its own. It continues, in update, where an attempt
// has ended, a hedge timer fires or the context ends: thousands of lookups may
// wait for names whose servers are silent, and a stack for each of them would be
// memory for the garbage collector to scan.
type lookup struct {
	// Set at the start, never changed.
	client *Client
	ctx    context.Context
	name   string
	qtype  uint16
	start  time.Time

	mu       sync.Mutex // guards all below until the lookup is over; then it never changes
	attempts []*attempt // of both rounds
	round

	// What the first round leaves for the second one.
	aliasTTL    time.Duration
	otherClient bool // asks it

	// The outcome.
	over    bool
	reply   *reply // nil if there is none
	failure failure

	// Only begin and then deliver use these, which run one after the other.
	done       func(*reply, error)
	unwatchCtx func() bool
}

// round is the part of a lookup that is about one question: that of its caller,
// or then the one to which an alias led.
type round struct {
	asked       *Client // nil if it is closed
	question    *question
	acceptAlias bool      // a reply that ends with an alias is an answer
	servers     []*server // in the order in which they are asked; those from up on are down
	up          int
	maxAttempts int

	earlier        int // attempts of the round before
	begun, running int // attempts
	latest         *attempt
	clearest       *failure // the one that stands for all so far (see Kind); nil: none
}

func (c *Client) ask(ctx context.Context, name string, qtype uint16, done func(*reply, error)) {
	l := &lookup{client: c, ctx: ctx, name: name, qtype: qtype, start: time.Now(), done: done}
	l.update(l.begin)
}

// update runs f, which may continue or end the lookup, and delivers the outcome
// if it has ended it.
func (l *lookup) update(f func()) {
	l.mu.Lock()
	wasOver := l.over
	f()
	ended := l.over && !wasOver
	l.mu.Unlock()
	if ended {
		l.deliver()
	}
}

// deliver calls back with the outcome of a lookup that is over.
func (l *lookup) deliver() {
	if l.unwatchCtx != nil {
		l.unwatchCtx()
	}
	c := l.client
	traced := c.trace != nil && (c.traced == nil || c.traced())
	var tries []Try
	if l.failure.kind != 0 || traced {
		tries = l.tries()
	}
	r := l.reply
	var err error
	if l.failure.kind != 0 {
		r, err = new(reply), l.error(tries)
	}
	if traced {
		c.trace(&Trace{
			Name: l.name, Type: l.qtype, Duration: time.Since(l.start), Tries: tries,
			Addrs: r.addrs, Services: r.services, TTL: r.ttl, Err: err,
		})
	}
	done := l.done
	l.done = nil // an attempt may still run, and keep l
	done(r, err)
	if l.asked != nil {
		l.asked.running.Done()
	}
}

// error returns the failure of a lookup that is over.
func (l *lookup) error(tries []Try) *Error {
	f := &l.failure
	e := &Error{
		Name: l.name, Type: l.qtype,
		Kind: f.kind, Rcode: f.rcode, err: f.err,
		Tries: tries, down: f.down, otherClient: f.otherClient,
	}
	if f.server != nil {
		e.Server = *f.server
	}
	if f.kind == NotFound || f.kind == NoData {
		if r := l.reply; r.soa {
			e.HasSOA, e.TTL = true, min(r.ttl, r.soaTTL)
		}
	}
	return e
}

// tries lists what a lookup that is over has sent.
func (l *lookup) tries() []Try {
	tries := make([]Try, 0, len(l.attempts))
	for _, a := range l.attempts {
		queries := []sentQuery{{a.server.first, time.Since(a.start), 0, "no reply yet"}}
		if a.ended {
			queries = a.result.queries
		}
		for _, q := range queries {
			tries = append(tries, Try{
				Name: a.question.name, Server: a.server.Nameserver, Transport: q.transport.String(),
				Duration: q.took, Ignored: q.ignored, Outcome: q.outcome,
			})
		}
	}
	return tries
}

// What follows runs within update.

// begin asks the question of the caller.
func (l *lookup) begin() {
	if l.name == "" || l.qtype == dns.TypeNone {
		l.fail(failure{kind: Invalid, rcode: -1, err: errors.New("no name, or not a type that is asked for")})
		return
	}
	q, err := newQuestion(dns.Fqdn(l.name), l.qtype)
	if err != nil {
		l.fail(failure{kind: Invalid, rcode: -1, err: err})
		return
	}
	l.beginRound(l.client, q, true)
	if !l.over {
		l.unwatchCtx = context.AfterFunc(l.ctx, func() { l.update(l.ctxEnded) })
	}
}

// end ends the lookup.
func (l *lookup) end(r *reply, f failure) { l.reply, l.failure, l.over = r, f, true }

func (l *lookup) fail(f failure) { l.end(nil, f) }

// beginRound begins to ask the servers of c for q.
func (l *lookup) beginRound(c *Client, q *question, acceptAlias bool) {
	l.round = round{question: q, acceptAlias: acceptAlias, earlier: len(l.attempts)}
	if !c.enter() {
		l.failRound(failure{kind: Closed, rcode: -1, err: errClosed})
		return
	}
	l.asked = c
	l.servers, l.up = c.plan(q)
	l.maxAttempts = c.settings.Load().Tries
	if l.up < len(l.servers) {
		l.maxAttempts = min(l.maxAttempts, maxPerServer*l.up+1)
	}
	l.next()
}

// endRound ends a round. It begins the second one if the reply is an alias, or
// leads to a name that another client is to be asked for.
func (l *lookup) endRound(r *reply, f failure) {
	if l.latest != nil {
		l.latest.hedge.Stop()
	}
	c := l.client
	if !l.acceptAlias { // the second
		r.ttl, f.otherClient = min(r.ttl, l.aliasTTL), l.otherClient
		l.end(r, f)
		return
	}
	next := c
	if r.links > 0 && c.route != nil {
		next = c.route(strings.ToLower(strings.TrimSuffix(r.end, ".")))
	}
	switch {
	case next == nil:
		l.fail(failure{kind: Invalid, rcode: -1, err: fmt.Errorf("an alias leads to %s, which is never asked for", r.end)})
		return
	case next == c && (f.kind != 0 || !r.isAlias()):
		l.end(r, f)
		return
	}
	q, err := newQuestion(r.end, l.qtype)
	if err != nil { // r.end has just been on the wire
		l.fail(failure{kind: Malformed, rcode: r.rcode, err: err})
		return
	}
	q.links = r.links
	l.aliasTTL, l.otherClient = r.ttl, next != c
	defer c.running.Done() // when the other one has been entered
	l.beginRound(next, q, false)
}

func (l *lookup) failRound(f failure) { l.endRound(new(reply), f) }

// attemptEnded takes the result of an attempt. The server's health learns of it
// even if the lookup is over.
func (l *lookup) attemptEnded(a *attempt, r attemptResult) {
	l.update(func() {
		a.server.observe(observation{outcome: r.outcome, question: a.question, failure: r.failure, late: a.late})
		if l.over || a.question != l.question { // the latter: of the first round
			return
		}
		a.ended, a.result = true, r
		l.use(a)
	})
}

// use continues the round after the end of an attempt.
func (l *lookup) use(a *attempt) {
	l.running--
	r := &a.result
	switch {
	case r.isAnswer():
		l.endRound(r.reply, r.failure)
		return
	case r.failure.kind == Closed:
		l.failRound(r.failure)
		return
	}
	if l.clearest == nil || r.failure.kind >= l.clearest.kind {
		l.clearest = &r.failure
	}
	if a == l.latest || l.running == 0 { // else the next one has begun already
		a.hedge.Stop()
		l.next()
	}
}

// hedge begins the next attempt although a has not ended.
func (l *lookup) hedge(a *attempt) {
	if l.over || a.ended || a != l.latest {
		return
	}
	a.late = true
	a.server.health.countLate()
	l.next()
}

// ctxEnded ends the lookup for the end of its context.
func (l *lookup) ctxEnded() {
	if !l.over {
		l.next()
	}
}

// next begins the next attempt, or ends the round if it is time to do so.
func (l *lookup) next() {
	c := l.asked
	switch f := contextFailure(l.ctx); {
	case f.kind == Timeout && l.clearest != nil && l.clearest.kind > Timeout:
		l.failRound(*l.clearest)
		return
	case f.kind != 0:
		l.failRound(f)
		return
	case l.up == 0 || l.begun > 0 && l.begun < l.maxAttempts && c.Outage() != nil:
		l.failRound(failure{kind: Outage, rcode: -1, down: c.silences()})
		return
	}
	if l.begun < l.maxAttempts {
		s := l.serverOf(l.begun)
		if left := maxPerServer - l.queriesTo(s); left > 0 {
			l.beginAttempt(s, left)
			return
		}
		l.maxAttempts = l.begun
	}
	if l.running == 0 {
		l.failRound(*l.clearest)
	}
}

// serverOf returns the server for the n-th attempt of the round, from 0.
func (l *lookup) serverOf(n int) *server {
	if n >= l.up && n == l.maxAttempts-1 && l.up < len(l.servers) {
		return l.servers[l.up] // the last one may as well go to one that is down
	}
	return l.servers[n%l.up]
}

func (l *lookup) beginAttempt(s *server, maxQueries int) {
	a := &attempt{lookup: l, task: task{
		client: l.asked, server: s, question: l.question, acceptAlias: l.acceptAlias,
		start: time.Now(), maxQueries: maxQueries,
	}}
	a.deadline, _ = l.ctx.Deadline()
	if l.latest != nil {
		l.latest.hedge.Stop()
	}
	l.attempts = append(l.attempts, a)
	l.latest = a
	l.running++
	l.begun++
	next := l.serverOf(l.begun)
	askedBefore := slices.ContainsFunc(l.attemptsOfRound(), func(a *attempt) bool { return a.server == next })
	a.hedge = time.AfterFunc(s.hedgeDelay(askedBefore), func() { l.update(func() { l.hedge(a) }) })
	l.asked.running.Add(1)
	go a.run()
}

func (l *lookup) attemptsOfRound() []*attempt { return l.attempts[l.earlier:] }

// queriesTo returns how many queries of the round went to s over its first
// transport.
func (l *lookup) queriesTo(s *server) (n int) {
	for _, a := range l.attemptsOfRound() {
		switch {
		case a.server != s:
		case !a.ended:
			n++
		default:
			for _, q := range a.result.queries {
				if q.transport == s.first {
					n++
				}
			}
		}
	}
	return n
}
