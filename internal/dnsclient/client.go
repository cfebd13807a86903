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

// Client asks nameservers. It is safe for concurrent use.
type Client struct {
	timeout   time.Duration
	tries     int
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
		timeout: cfg.Timeout, tries: cfg.Tries, roots: cfg.Roots,
		route: cfg.Route, trace: cfg.Trace, traced: cfg.Traced, health: cfg.Health,
		parsing: make(chan struct{}, runtime.GOMAXPROCS(0)), intervals: defaultIntervals,
	}
	if c.health == nil {
		c.health = func(Nameserver, string) {}
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if c.tries <= 0 {
		c.tries = defaultTries
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.SetNameservers(servers)
	return c
}

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

// Lookup asks for the addresses of name, a lower-case ASCII name without a
// trailing dot, of the type A or AAAA. They come as the reply has them, and may
// be used for ttl, the smallest TTL of the records that led to them. Without an
// address the error is an *Error.
//
// Aliases are followed (RFC 1034, section 3.6.2). If a reply ends with an alias
// and no word about the name that it leads to, that name is asked for once.
func (c *Client) Lookup(ctx context.Context, name string, qtype uint16) (addrs []netip.Addr, ttl time.Duration, err error) {
	if qtype != dns.TypeA && qtype != dns.TypeAAAA {
		qtype = dns.TypeNone
	}
	r, err := c.lookup(ctx, name, qtype)
	return r.addrs, r.ttl, err
}

// LookupSRV asks where a service is (RFC 2782), as Lookup asks for addresses.
// Targets are without a trailing dot. A target that says that the service is
// not offered (".") is no record; without another one there is no data.
func (c *Client) LookupSRV(ctx context.Context, name string) (services []net.SRV, ttl time.Duration, err error) {
	r, err := c.lookup(ctx, name, dns.TypeSRV)
	return r.services, r.ttl, err
}

func (c *Client) lookup(ctx context.Context, name string, qtype uint16) (reply, error) {
	start := time.Now()
	l := lookup{ctx: ctx}
	r, f := l.run(c, name, qtype)
	traced := c.trace != nil && (c.traced == nil || c.traced())
	if f.kind == 0 && !traced {
		return r, nil
	}
	tries := l.tries()
	var err error
	if f.kind != 0 {
		e := &Error{
			Name: name, Type: qtype,
			Kind: f.kind, Rcode: f.rcode, Server: f.server, err: f.err,
			Tries: tries, down: f.down, elsewhere: f.elsewhere,
		}
		if f.kind == NotFound || f.kind == NoData {
			if e.HasSOA = r.soa; r.soa {
				e.TTL = min(r.ttl, r.soaTTL)
			}
		}
		r, err = reply{}, e
	}
	if traced {
		c.trace(&Trace{
			Name: name, Type: qtype, Duration: time.Since(start), Tries: tries,
			Addrs: r.addrs, Services: r.services, TTL: r.ttl, Err: err,
		})
	}
	return r, err
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

// lookup is the question of one caller.
type lookup struct {
	ctx      context.Context
	attempts []*attempt
}

// tries lists what was sent.
func (l *lookup) tries() []Try {
	tries := make([]Try, 0, len(l.attempts))
	for _, a := range l.attempts {
		if a.over {
			tries = append(tries, a.tries...)
			continue
		}
		tries = append(tries, Try{
			Name: a.q.name, Server: a.s.Nameserver, Transport: a.s.first.String(),
			Duration: time.Since(a.start), Outcome: "no reply yet",
		})
	}
	return tries
}

func (l *lookup) run(c *Client, name string, qtype uint16) (reply, failure) {
	if name == "" || qtype == dns.TypeNone {
		return reply{}, failure{kind: Invalid, rcode: -1, err: errors.New("no name, or not a type that is asked for")}
	}
	q, err := newQuestion(dns.Fqdn(name), qtype)
	if err != nil {
		return reply{}, failure{kind: Invalid, rcode: -1, err: err}
	}
	r, f := l.resolve(c, q, true)
	asked := c
	if c.route != nil && r.links > 0 {
		asked = c.route(strings.ToLower(strings.TrimSuffix(r.end, ".")))
	}
	switch {
	case asked == nil:
		return reply{}, failure{kind: Invalid, rcode: -1, err: fmt.Errorf("an alias leads to %s, which is never asked for", r.end)}
	case asked == c && (f.kind != 0 || !r.dangling()):
		return r, f
	}
	q, err = newQuestion(r.end, qtype)
	if err != nil { // r.end has just been on the wire
		return reply{}, failure{kind: Malformed, rcode: r.rcode, err: err}
	}
	q.links = r.links
	rest, f := l.resolve(asked, q, false)
	f.elsewhere = asked != c
	rest.ttl = min(rest.ttl, r.ttl)
	return rest, f
}

// dangling reports whether r leads to another name and says nothing about it.
func (r *reply) dangling() bool {
	return len(r.addrs)+len(r.services) == 0 && r.links > 0 && !r.soa
}

// resolve asks one server after the other until one answers q. If dangling is
// set, a reply that ends with an alias is an answer.
//
// A server that has not replied in the time in which it usually does is not
// waited for alone: the next one is asked too, and the first to answer wins.
// So a dead server costs little, and a slow name gets all of its time.
func (l *lookup) resolve(c *Client, q *question, dangling bool) (reply, failure) {
	if !c.enter() {
		return reply{}, failure{kind: Closed, rcode: -1, err: ErrClosed}
	}
	defer c.running.Done()

	servers, up := c.plan(q)
	tries := c.tries
	if up < len(servers) {
		tries = min(tries, maxPerServer*up+1)
	}
	nth := func(try int) *server {
		if try >= up && try == tries-1 && up < len(servers) {
			return servers[up] // the last try may as well go to one that is down
		}
		return servers[try%up]
	}
	over := make(chan *attempt, tries)
	running, sent, before := 0, 0, len(l.attempts)
	var (
		last  *attempt
		worst failure
	)
	patience := time.NewTimer(0) // with the last attempt; at first with nothing
	defer patience.Stop()
	for {
		select {
		case a := <-over:
			running--
			a.over = true
			switch a.f.kind {
			case 0, NotFound, NoData, Closed:
				return a.r, a.f
			}
			if a.f.kind >= worst.kind {
				worst = a.f
			}
			if a != last && running > 0 {
				continue // the next one has begun already
			}
		case <-patience.C:
			if last != nil {
				c.failed(last) // for now
			}
		case <-l.ctx.Done():
		}

		switch f := contextFailure(l.ctx); {
		case f.kind == Timeout && worst.kind > Timeout:
			return reply{}, worst
		case f.kind != 0:
			return reply{}, f
		case up == 0 || sent > 0 && sent < tries && c.Outage() != nil:
			return reply{}, failure{kind: Outage, rcode: -1, down: c.causes()}
		}
		if sent == tries {
			if running == 0 {
				return reply{}, worst
			}
			continue
		}
		a := &attempt{c: c, s: nth(sent), q: q, dangling: dangling, start: time.Now()}
		a.end, _ = l.ctx.Deadline()
		if a.left = maxPerServer - queriesTo(a.s, l.attempts[before:]); a.left <= 0 {
			tries = sent
			if running == 0 {
				return reply{}, worst
			}
			continue
		}
		l.attempts = append(l.attempts, a)
		c.running.Go(func() {
			a.run()
			over <- a
		})
		next := nth(sent + 1)
		again := slices.ContainsFunc(l.attempts[before:], func(a *attempt) bool { return a.s == next })
		patience.Reset(c.patience(a.s, again))
		last = a
		running++
		sent++
	}
}

// queriesTo returns how many queries of some attempts went to s the first way.
func queriesTo(s *server, attempts []*attempt) (n int) {
	for _, a := range attempts {
		switch {
		case a.s != s:
		case !a.over:
			n++
		default:
			for _, try := range a.tries {
				if try.Transport == s.first.String() {
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
	c        *Client
	s        *server
	q        *question
	dangling bool
	start    time.Time
	end      time.Time // of the lookup; zero: none
	left     int       // how many queries may go to the server the first way
	counted  bool      // as a failure, or not to be; under Client.mu

	// The lookup's once the attempt was received as over.
	over  bool
	tries []Try
	r     reply
	f     failure
}

// run asks the server, and asks it again without EDNS or over TCP if the reply
// makes that necessary.
func (a *attempt) run() {
	c, s, q := a.c, a.s, a.q
	transport, edns := s.first, c.wantsEDNS(s)
	fellBack := false
	for {
		start := time.Now()
		deadline := start.Add(c.timeout)
		cut := !a.end.IsZero() && a.end.Before(deadline)
		if cut {
			deadline = a.end
		}
		msg, ignored, err := transport.exchange(c.ctx, deadline, q, edns)
		took := time.Since(start)
		note := func(outcome string) {
			a.tries = append(a.tries, Try{
				Name: q.name, Server: s.Nameserver, Transport: transport.String(),
				Duration: took, Ignored: ignored, Outcome: outcome,
			})
		}
		if err != nil {
			a.f = exchangeFailure(s.Nameserver, err)
			switch {
			case c.ctx.Err() != nil:
				a.f = failure{kind: Closed, rcode: -1, err: ErrClosed}
			case a.f.kind == Malformed, errors.Is(err, errHungUp):
				c.failed(a) // but something is there
			case a.f.kind == Network, !cut, took >= c.intervals.evidence:
				c.gotNothing(a)
			}
			note(a.f.String())
			return
		}
		c.gotReply(s, took)

		r, err := c.parse(msg, q)
		switch {
		case err != nil:
			note(err.Error())
			a.f = failure{kind: Malformed, server: s.Nameserver, rcode: r.rcode, err: err}
			c.failed(a)
			return
		case edns && r.refusesEDNS() && a.left > 1:
			note(rcodeString(r.rcode))
			edns, fellBack = false, true
			continue
		case r.truncated && s.fallback != nil && transport != s.fallback:
			note("truncated")
			transport = s.fallback
			continue
		}
		if fellBack && !r.refusesEDNS() {
			c.refusedEDNS(s)
		}

		a.r, a.f = r, r.judge(a.dangling)
		a.f.server = s.Nameserver
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
		return
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
