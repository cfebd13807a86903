package dnsclient

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	defaultTimeout = 2 * time.Second
	defaultTries   = 3

	// maxPerServer is how many times a question is sent to one server (RFC 9520,
	// section 3.1).
	maxPerServer = 3

	// largeMessage is from which size on a message is parsed beside few others.
	largeMessage = 4096
)

// Config is how a Client asks. The zero value is useful.
type Config struct {
	// Timeout is how long one try waits for the reply; default 2s. What a reply
	// itself makes necessary, asking again over TCP or without EDNS, belongs to
	// the try but waits anew. The next try begins earlier than that if the server
	// usually replies sooner.
	Timeout time.Duration

	// Tries is how many times a question is sent, to the next nameserver each
	// time; default 3, the most that RFC 9520 allows to one server, and that one
	// gets.
	Tries int

	// Rotate makes any of the nameservers that work the first one for a question,
	// at random, instead of the first in the list.
	Rotate bool

	// Roots are the authorities that certificates of nameservers must lead to;
	// default: those of the system.
	Roots *x509.CertPool

	// Route, if not nil, returns the client to ask for a name to which an alias
	// led: this one or another one, whose word then counts, whatever the reply
	// with the alias says about the name; nil if nobody may be asked.
	Route func(name string) *Client

	// Trace, if not nil, is called after each lookup for which Traced says so;
	// default: all.
	Trace  func(*Trace)
	Traced func() bool

	// Health, if not nil, is called when a nameserver goes down, with the reason,
	// and with none when it replies again.
	Health func(server Nameserver, why string)
}

// Settings are those of Config that Client.Change changes.
type Settings struct {
	Timeout time.Duration
	Tries   int
	Rotate  bool
}

// Client asks nameservers. It is safe for concurrent use.
type Client struct {
	settings  atomic.Pointer[Settings]
	roots     *x509.CertPool
	route     func(name string) *Client
	trace     func(*Trace)
	traced    func() bool
	health    func(Nameserver, string)
	intervals intervals

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	running    sync.WaitGroup // lookups and watches
	mismatches atomic.Uint64
	parsing    chan struct{} // one for each large message that is parsed

	mu      sync.Mutex
	closed  bool
	servers []*server     // in the configured order; replaced, never changed
	outage  chan struct{} // not nil while all servers are down
	wanted  *question     // the last question that was not asked because of the outage
}

// New returns a client that asks servers in this order of preference. It
// touches no network before the first lookup. Close releases what it holds.
func New(servers []Nameserver, cfg Config) *Client {
	c := &Client{
		roots: cfg.Roots,
		route: cfg.Route, trace: cfg.Trace, traced: cfg.Traced, health: cfg.Health,
		parsing: make(chan struct{}, runtime.GOMAXPROCS(0)), intervals: defaultIntervals,
	}
	if c.health == nil {
		c.health = func(Nameserver, string) {}
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.Change(servers, Settings{Timeout: cfg.Timeout, Tries: cfg.Tries, Rotate: cfg.Rotate})
	return c
}

// Change replaces the nameservers, as SetNameservers does, and how they are asked.
func (c *Client) Change(nameservers []Nameserver, s Settings) {
	if s.Timeout <= 0 {
		s.Timeout = defaultTimeout
	}
	if s.Tries <= 0 {
		s.Tries = defaultTries
	}
	c.settings.Store(&s)
	c.SetNameservers(nameservers)
}

func (c *Client) timeout() time.Duration { return c.settings.Load().Timeout }

// SetNameservers replaces the nameservers. Those that stay keep their sockets
// and what is known about their health; lookups under way end with the ones
// they began with.
func (c *Client) SetNameservers(nameservers []Nameserver) {
	for _, s := range c.replaceServers(nameservers) {
		s.close()
	}
}

// replaceServers returns the servers that no longer are.
func (c *Client) replaceServers(nameservers []Nameserver) (removed []*server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.servers
	c.servers = make([]*server, 0, len(nameservers))
	for _, ns := range nameservers {
		same := func(s *server) bool { return s.Nameserver == ns }
		if slices.ContainsFunc(c.servers, same) {
			continue
		}
		if i := slices.IndexFunc(old, same); i >= 0 {
			c.servers = append(c.servers, old[i])
		} else {
			c.servers = append(c.servers, c.newServer(ns))
		}
	}
	for _, s := range old {
		if !slices.Contains(c.servers, s) {
			removed = append(removed, s)
		}
	}
	c.reviewOutage()
	return removed
}

// Nameservers returns the nameservers in the configured order.
func (c *Client) Nameservers() []Nameserver {
	c.mu.Lock()
	defer c.mu.Unlock()
	return nameservers(c.servers)
}

func nameservers(servers []*server) []Nameserver {
	all := make([]Nameserver, len(servers))
	for i, s := range servers {
		all[i] = s.Nameserver
	}
	return all
}

// Mismatches returns how many messages were ignored because they were no reply
// to a query that was sent on their socket. Some are late or repeated
// replies; many are a sign of somebody who forges them.
func (c *Client) Mismatches() uint64 { return c.mismatches.Load() }

// Close ends all lookups and probes, waits for them, and closes all sockets.
// Lookups then return ErrClosed, wrapped in an *Error.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()

	c.cancel()
	c.running.Wait()

	c.mu.Lock()
	servers := c.servers
	c.mu.Unlock()
	for _, s := range servers {
		s.close()
	}
}

// enter lets a lookup begin, unless the client is closed.
func (c *Client) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.running.Add(1)
	}
	return !c.closed
}

// Ask asks for the addresses of name, a lower-case ASCII name without a trailing
// dot, of the type A or AAAA. It does not wait: done is called once, maybe before
// Ask returns, at the latest when ctx ends. Addresses come as the reply has them,
// and may be used for ttl, the smallest TTL of the records that led to them.
// Without an address the error is an *Error.
//
// Aliases are followed (RFC 1034, section 3.6.2). If a reply ends with an alias
// and no word about the name that it leads to, that name is asked for once.
func (c *Client) Ask(ctx context.Context, name string, qtype uint16, done func(addrs []netip.Addr, ttl time.Duration, err error)) {
	if qtype != dns.TypeA && qtype != dns.TypeAAAA {
		qtype = dns.TypeNone
	}
	c.ask(ctx, name, qtype, func(r *reply, err error) { done(r.addrs, r.ttl, err) })
}

// AskSRV asks where a service is (RFC 2782), as Ask asks for addresses. Targets
// are without a trailing dot. A target that says that the service is not offered
// (".") is no record; without another one there is no data.
func (c *Client) AskSRV(ctx context.Context, name string, done func(services []net.SRV, ttl time.Duration, err error)) {
	c.ask(ctx, name, dns.TypeSRV, func(r *reply, err error) { done(r.services, r.ttl, err) })
}

// Trace is one lookup, as somebody who wants to know what the resolver does
// would like to see it.
type Trace struct {
	// Name and Type are the question.
	Name string
	Type uint16

	// Duration is how long the answer took.
	Duration time.Duration

	// Tries is all that was sent, in order.
	Tries []Try

	// Addrs or Services, and for how long they hold, is the answer; Err is set
	// instead if there is none.
	Addrs    []netip.Addr
	Services []net.SRV
	TTL      time.Duration
	Err      error
}

// lookup is the question of one caller. It has no goroutine of its own, but goes
// on where an attempt is over, or has taken too long, or its context ends: names
// that nobody answers for keep thousands of lookups waiting, and what they hold
// meanwhile, stacks above all, is what the garbage collector has to look through.
type lookup struct {
	client *Client
	ctx    context.Context
	name   string
	qtype  uint16
	start  time.Time
	done   func(*reply, error)
	unbind func() bool // from ctx

	mu       sync.Mutex
	attempts []*attempt
	round

	// Of what led to the question of the second round.
	aliasTTL  time.Duration
	elsewhere bool // to another client

	// The outcome.
	over bool
	r    *reply // nil if there is none
	f    failure
}

// round is the part of a lookup that is about one question: that of its caller,
// or then the one to which an alias led.
type round struct {
	c        *Client // that is asked; nil if it is closed
	q        *question
	dangling bool      // a reply that ends with an alias is an answer
	servers  []*server // in the order in which they are asked; those from up on are down
	up       int
	tries    int

	before        int // attempts of the lookup
	sent, running int
	last          *attempt
	worst         *failure // so far; nil: none
}

func (c *Client) ask(ctx context.Context, name string, qtype uint16, done func(*reply, error)) {
	l := &lookup{client: c, ctx: ctx, name: name, qtype: qtype, start: time.Now(), done: done}
	l.step(l.begin)
}

// step has a lookup go on, unless it is over, and tells its caller if it then is.
func (l *lookup) step(f func()) {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return
	}
	f()
	over := l.over
	l.mu.Unlock()
	if over {
		l.tell()
	}
}

// tell ends a lookup that is over.
func (l *lookup) tell() {
	if l.unbind != nil {
		l.unbind()
	}
	c := l.client
	traced := c.trace != nil && (c.traced == nil || c.traced())
	var tries []Try
	if l.f.kind != 0 || traced {
		tries = l.allTries()
	}
	r := l.r
	var err error
	if f := &l.f; f.kind != 0 {
		e := &Error{
			Name: l.name, Type: l.qtype,
			Kind: f.kind, Rcode: f.rcode, err: f.err,
			Tries: tries, down: f.down, elsewhere: f.elsewhere,
		}
		if f.server != nil {
			e.Server = *f.server
		}
		if f.kind == NotFound || f.kind == NoData {
			if e.HasSOA = r.soa; r.soa {
				e.TTL = min(r.ttl, r.soaTTL)
			}
		}
		r, err = new(reply), e
	}
	if traced {
		c.trace(&Trace{
			Name: l.name, Type: l.qtype, Duration: time.Since(l.start), Tries: tries,
			Addrs: r.addrs, Services: r.services, TTL: r.ttl, Err: err,
		})
	}
	done := l.done
	l.done = nil // an attempt may go on, and keep l
	done(r, err)
	if l.c != nil {
		l.c.running.Done()
	}
}

// allTries lists what was sent.
func (l *lookup) allTries() []Try {
	tries := make([]Try, 0, len(l.attempts))
	for _, a := range l.attempts {
		all := []sent{{a.s.first, time.Since(a.start), 0, "no reply yet"}}
		if a.over {
			all = a.sent
		}
		for _, q := range all {
			tries = append(tries, Try{
				Name: a.q.name, Server: a.s.Nameserver, Transport: q.transport.String(),
				Duration: q.took, Ignored: q.ignored, Outcome: q.outcome,
			})
		}
	}
	return tries
}

// What follows runs within step.

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
	l.resolve(l.client, q, true)
	if !l.over {
		l.unbind = context.AfterFunc(l.ctx, func() { l.step(l.next) })
	}
}

// end ends a lookup.
func (l *lookup) end(r *reply, f failure) { l.r, l.f, l.over = r, f, true }

func (l *lookup) fail(f failure) { l.end(nil, f) }

// resolve begins to ask one server after the other until one answers q. If
// dangling is set, a reply that ends with an alias is an answer.
//
// A server that has not replied in the time in which it usually does is not
// waited for alone: the next one is asked too, and the first to answer wins.
// So a dead server costs little, and a slow name gets all of its time.
func (l *lookup) resolve(c *Client, q *question, dangling bool) {
	l.round = round{q: q, dangling: dangling, before: len(l.attempts)}
	if !c.enter() {
		l.unresolved(failure{kind: Closed, rcode: -1, err: ErrClosed})
		return
	}
	l.c = c
	l.servers, l.up = c.plan(q)
	l.tries = c.settings.Load().Tries
	if l.up < len(l.servers) {
		l.tries = min(l.tries, maxPerServer*l.up+1)
	}
	l.next()
}

// resolved ends a round; the first one may make a second one necessary.
func (l *lookup) resolved(r *reply, f failure) {
	if l.last != nil {
		l.last.patience.Stop()
	}
	c := l.client
	if !l.dangling {
		r.ttl, f.elsewhere = min(r.ttl, l.aliasTTL), l.elsewhere
		l.end(r, f)
		return
	}
	asked := c
	if c.route != nil && r.links > 0 {
		asked = c.route(strings.ToLower(strings.TrimSuffix(r.end, ".")))
	}
	switch {
	case asked == nil:
		l.fail(failure{kind: Invalid, rcode: -1, err: fmt.Errorf("an alias leads to %s, which is never asked for", r.end)})
		return
	case asked == c && (f.kind != 0 || !r.dangling()):
		l.end(r, f)
		return
	}
	q, err := newQuestion(r.end, l.qtype)
	if err != nil { // r.end has just been on the wire
		l.fail(failure{kind: Malformed, rcode: r.rcode, err: err})
		return
	}
	q.links = r.links
	l.aliasTTL, l.elsewhere = r.ttl, asked != c
	defer c.running.Done() // when the other one has been entered
	l.resolve(asked, q, false)
}

func (l *lookup) unresolved(f failure) { l.resolved(new(reply), f) }

// dangling reports whether r leads to another name and says nothing about it.
func (r *reply) dangling() bool {
	return len(r.addrs)+len(r.services) == 0 && r.links > 0 && !r.soa
}

// ended notes that an attempt is over.
func (l *lookup) ended(a *attempt) {
	if a.q != l.q {
		return // of the first round
	}
	l.running--
	a.over = true
	switch a.f.kind {
	case 0, NotFound, NoData, Closed:
		if a.r == nil {
			l.unresolved(a.f)
		} else {
			l.resolved(a.r, a.f)
		}
		return
	}
	if l.worst == nil || a.f.kind >= l.worst.kind {
		l.worst = &a.f
	}
	if a == l.last || l.running == 0 { // else the next one has begun already
		a.patience.Stop()
		l.next()
	}
}

// tooLong notes that an attempt has taken longer than usual.
func (l *lookup) tooLong(a *attempt) {
	if a == l.last && !a.over {
		l.c.failed(a) // for now
		l.next()
	}
}

// next makes the next attempt, or ends the round if it is time to do so.
func (l *lookup) next() {
	c := l.c
	switch f := contextFailure(l.ctx); {
	case f.kind == Timeout && l.worst != nil && l.worst.kind > Timeout:
		l.unresolved(*l.worst)
		return
	case f.kind != 0:
		l.unresolved(f)
		return
	case l.up == 0 || l.sent > 0 && l.sent < l.tries && c.Outage() != nil:
		l.unresolved(failure{kind: Outage, rcode: -1, down: c.causes()})
		return
	}
	if l.sent < l.tries {
		s := l.nth(l.sent)
		if left := maxPerServer - queriesTo(s, l.attempts[l.before:]); left > 0 {
			l.try(s, left)
			return
		}
		l.tries = l.sent
	}
	if l.running == 0 {
		l.unresolved(*l.worst)
	}
}

// nth returns the server for a try.
func (l *lookup) nth(try int) *server {
	if try >= l.up && try == l.tries-1 && l.up < len(l.servers) {
		return l.servers[l.up] // the last try may as well go to one that is down
	}
	return l.servers[try%l.up]
}

// try begins an attempt, which may send so many queries.
func (l *lookup) try(s *server, left int) {
	a := &attempt{lookup: l, c: l.c, s: s, q: l.q, dangling: l.dangling, start: time.Now(), left: left}
	a.end, _ = l.ctx.Deadline()
	if l.last != nil {
		l.last.patience.Stop()
	}
	l.attempts = append(l.attempts, a)
	l.last = a
	l.running++
	l.sent++
	next := l.nth(l.sent)
	again := slices.ContainsFunc(l.attempts[l.before:], func(a *attempt) bool { return a.s == next })
	a.patience = time.AfterFunc(l.c.patience(s, again), func() { l.step(func() { l.tooLong(a) }) })
	l.c.running.Add(1)
	go a.run()
}

// queriesTo returns how many queries of some attempts went to s the first way.
func queriesTo(s *server, attempts []*attempt) (n int) {
	for _, a := range attempts {
		switch {
		case a.s != s:
		case !a.over:
			n++
		default:
			for _, q := range a.sent {
				if q.transport == s.first {
					n++
				}
			}
		}
	}
	return n
}

// attempt is one try, which goes on when its lookup has got an answer from
// elsewhere: whether the server replies after all is worth knowing.
type attempt struct {
	lookup   *lookup
	c        *Client
	s        *server
	q        *question
	dangling bool
	start    time.Time
	end      time.Time   // of the lookup; zero: none
	left     int         // how many queries may go to the server the first way
	patience *time.Timer // how long the lookup waits for it alone
	counted  bool        // as a failure, or not to be; under Client.mu

	// How the next query is sent, and whether that is without EDNS because the
	// reply to the last one made that necessary.
	transport transport
	edns      bool
	fellBack  bool

	// The lookup's once the attempt was received as over.
	over bool
	sent []sent
	r    *reply // nil if there is none that can be read
	f    failure
}

// sent is a query that was sent, and what came of it.
type sent struct {
	transport transport
	took      time.Duration
	ignored   int
	outcome   string
}

// run asks the server, and asks it again without EDNS or over TCP if the reply
// makes that necessary. This is the goroutine that waits, often for long, so its
// frames are small: what a reply needs is elsewhere.
func (a *attempt) run() {
	defer a.c.running.Done()
	a.transport, a.edns = a.s.first, a.c.wantsEDNS(a.s)
	for a.query() {
	}
	a.lookup.step(func() { a.lookup.ended(a) })
}

// query sends one query and reports whether the reply asks for another one.
func (a *attempt) query() (again bool) {
	start := time.Now()
	deadline := start.Add(a.c.timeout())
	cut := !a.end.IsZero() && a.end.Before(deadline)
	if cut {
		deadline = a.end
	}
	msg, ignored, err := a.transport.exchange(a.c.ctx, deadline, a.q, a.edns)
	took := time.Since(start)
	if err != nil {
		a.gotError(err, took, ignored, cut)
		return false
	}
	return a.got(msg, took, ignored)
}

// gotError notes why there is no reply. Cut is whether the query had less time
// than others.
func (a *attempt) gotError(err error, took time.Duration, ignored int, cut bool) {
	c := a.c
	a.f = exchangeFailure(&a.s.Nameserver, err)
	switch {
	case c.ctx.Err() != nil:
		a.f = failure{kind: Closed, rcode: -1, err: ErrClosed}
	case a.f.kind == Malformed, errors.Is(err, errHungUp):
		c.failed(a) // but something is there
	case a.f.kind == Network, !cut, took >= c.intervals.evidence:
		c.gotNothing(a)
	}
	a.sent = append(a.sent, sent{a.transport, took, ignored, a.f.String()})
}

// got reads a reply, and reports whether it asks for another query.
func (a *attempt) got(msg []byte, took time.Duration, ignored int) (again bool) {
	c, s := a.c, a.s
	c.gotReply(s, took)

	note := func(outcome string) {
		a.sent = append(a.sent, sent{a.transport, took, ignored, outcome})
	}
	r, err := c.parse(msg, a.q)
	switch {
	case err != nil:
		note(err.Error())
		a.f = failure{kind: Malformed, server: &s.Nameserver, rcode: r.rcode, err: err}
		c.failed(a)
		return false
	case a.edns && r.refusesEDNS() && a.left > 1:
		note(rcodeString(r.rcode))
		a.edns, a.fellBack = false, true
		return true
	case r.truncated && s.fallback != nil && a.transport != s.fallback:
		note("truncated")
		a.transport = s.fallback
		return true
	}
	if a.fellBack && !r.refusesEDNS() {
		c.refusedEDNS(s)
	}

	a.r, a.f = &r, r.judge(a.dangling)
	a.f.server = &s.Nameserver
	switch a.f.kind {
	case 0, NotFound, NoData:
		c.gotAnswer(a)
	default:
		c.failed(a)
	}
	switch {
	case a.f.kind != 0:
		note(a.f.String())
	case r.dangling():
		note(isAlias)
	default:
		note("answer")
	}
	return false
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

// refusesEDNS reports whether r may be due to the OPT record of the query
// (RFC 6891, section 7).
func (r *reply) refusesEDNS() bool {
	switch r.rcode {
	case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers:
		return true
	default:
		return false
	}
}

// judge says what r means; nothing if it has addresses, or if it ends with an
// alias and that is good enough.
func (r *reply) judge(dangling bool) failure {
	f := failure{rcode: r.rcode}
	switch {
	case r.truncated:
		f.kind, f.err = Malformed, malformed("truncated")
	case r.rcode != dns.RcodeSuccess && r.rcode != dns.RcodeNameError:
		f.kind = ServerFailure
	case r.dangling() && dangling:
	case r.dangling() && !r.empty:
		f.kind, f.err = Malformed, malformed("CNAME records lead nowhere")
	case r.rcode == dns.RcodeNameError:
		f.kind = NotFound
	case len(r.addrs)+len(r.services) > 0:
	case r.empty && !r.authoritative && !r.recursive && !r.soa:
		f.kind, f.err = ServerFailure, errors.New("without an answer, as a server that is neither authoritative nor recursive")
	default:
		f.kind = NoData
	}
	return f
}
