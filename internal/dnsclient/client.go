package dnsclient

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	defaultTimeout = 2 * time.Second
	defaultTries   = 3
)

// Config is how a Client asks. The zero value is useful.
type Config struct {
	// Timeout is how long one try waits for the reply; default 2s. What a reply
	// itself makes necessary, asking again over TCP or without EDNS, belongs to
	// the try but waits anew.
	Timeout time.Duration

	// Tries is how many times a question is sent, to the next nameserver each
	// time; default 3, the most that RFC 9520 allows to one server.
	Tries int

	// Roots are the authorities that certificates of nameservers must lead to;
	// default: those of the system.
	Roots *x509.CertPool
}

// Client asks nameservers. It is safe for concurrent use.
type Client struct {
	timeout   time.Duration
	tries     int
	intervals intervals

	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	running    sync.WaitGroup // lookups and watches
	mismatches atomic.Uint64

	mu      sync.Mutex
	closed  bool
	servers []*server     // in the configured order; replaced, never changed
	outage  chan struct{} // not nil while all servers are down
	wanted  *question     // the last question that was not asked because of the outage
}

// New returns a client that asks servers in this order of preference. It
// touches no network before the first lookup. Close releases what it holds.
func New(servers []Nameserver, cfg Config) *Client {
	c := &Client{timeout: cfg.Timeout, tries: cfg.Tries, intervals: defaultIntervals}
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
			s.close()
		}
	}
	c.reviewOutage()
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

// Mismatches returns how many datagrams were ignored because they were no reply
// to the query that was sent on their socket. Some are late or repeated
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
	defer c.mu.Unlock()
	for _, s := range c.servers {
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
// trailing dot, of the type A or AAAA. They come without duplicates in the
// order of the reply, and may be used for ttl, the smallest TTL of the records
// that led to them. Without an address the error is an *Error.
//
// Aliases are followed (RFC 1034, section 3.6.2). If a reply ends with an alias
// and no word about the name that it leads to, that name is asked for once.
func (c *Client) Lookup(ctx context.Context, name string, qtype uint16) (addrs []netip.Addr, ttl time.Duration, err error) {
	l := lookup{c: c}
	r, f := l.run(ctx, name, qtype)
	if f.kind == 0 {
		return r.addrs, r.ttl, nil
	}
	e := &Error{
		Name: name, Type: qtype,
		Kind: f.kind, Rcode: f.rcode, Server: f.server, err: f.err,
		Tries: l.tries,
	}
	switch f.kind {
	case NotFound, NoData:
		if e.HasSOA = r.soa; r.soa {
			e.TTL = min(r.ttl, r.soaTTL)
		}
	case Outage:
		e.down = c.Nameservers()
	}
	return nil, 0, e
}

// lookup is one call of Lookup.
type lookup struct {
	c     *Client
	ctx   context.Context
	tries []Try
}

func (l *lookup) run(ctx context.Context, name string, qtype uint16) (reply, failure) {
	if name == "" || qtype != dns.TypeA && qtype != dns.TypeAAAA {
		return reply{}, failure{kind: Invalid, rcode: -1, err: errors.New("not a question for addresses")}
	}
	q, err := newQuestion(dns.Fqdn(name), qtype)
	if err != nil {
		return reply{}, failure{kind: Invalid, rcode: -1, err: err}
	}

	if !l.c.enter() {
		return reply{}, failure{kind: Closed, rcode: -1, err: ErrClosed}
	}
	defer l.c.running.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.c.ctx, func() { cancel(ErrClosed) })()
	l.ctx = ctx

	r, f := l.resolve(q, true)
	if f.kind != 0 || !r.dangling() {
		return r, f
	}
	q, err = newQuestion(r.end, qtype)
	if err != nil { // r.end has just been on the wire
		return reply{}, failure{kind: Malformed, rcode: r.rcode, err: err}
	}
	q.links = r.links
	rest, f := l.resolve(q, false)
	rest.ttl = min(rest.ttl, r.ttl)
	return rest, f
}

// dangling reports whether r leads to another name and says nothing about it.
func (r *reply) dangling() bool {
	return len(r.addrs) == 0 && r.links > 0 && !r.soa
}

// resolve asks one server after the other until one answers q. If dangling is
// set, a reply that ends with an alias is an answer.
func (l *lookup) resolve(q *question, dangling bool) (reply, failure) {
	servers, up := l.c.plan(q)
	var worst failure
	for i := range l.c.tries {
		if l.ctx.Err() != nil {
			return reply{}, contextFailure(l.ctx)
		}
		if up == 0 || i > 0 && l.c.Outage() != nil {
			return reply{}, failure{kind: Outage, rcode: -1}
		}
		s := servers[i%up]
		if i >= up && i == l.c.tries-1 && up < len(servers) {
			s = servers[up] // the last try may as well go to one that is down
		}

		r, f := l.ask(s, q, dangling)
		switch f.kind {
		case 0, NotFound, NoData, Canceled, Closed:
			return r, f
		}
		if f.kind >= worst.kind {
			worst = f
		}
	}
	return reply{}, worst
}

// ask makes one try: it asks s, and asks it again without EDNS or over TCP if
// the reply makes that necessary.
func (l *lookup) ask(s *server, q *question, dangling bool) (reply, failure) {
	transport, edns := s.first, l.c.wantsEDNS(s)
	fellBack := false
	for {
		start := time.Now()
		msg, ignored, err := transport.exchange(l.ctx, start.Add(l.c.timeout), q, edns)
		took := time.Since(start)
		note := func(outcome string) {
			l.tries = append(l.tries, Try{
				Name: q.name, Server: s.Nameserver, Transport: transport.String(),
				Duration: took, Ignored: ignored, Outcome: outcome,
			})
		}
		if err != nil {
			f := exchangeFailure(s.Nameserver, err)
			noReply := f.kind == Timeout || f.kind == Network
			if l.ctx.Err() != nil {
				f = contextFailure(l.ctx)
				noReply = f.kind == Timeout && took >= l.c.intervals.evidence
			}
			if noReply {
				l.c.gotNothing(s, q)
			}
			note(f.String())
			return reply{}, f
		}
		l.c.gotReply(s)

		r, err := parse(msg, q)
		switch {
		case err != nil:
			note(err.Error())
			return reply{}, failure{kind: Malformed, server: s.Nameserver, rcode: r.rcode, err: err}
		case edns && r.refusesEDNS():
			note(rcodeString(r.rcode))
			edns, fellBack = false, true
			continue
		case r.truncated && s.fallback != nil && transport != s.fallback:
			note("truncated")
			transport = s.fallback
			continue
		}
		if fellBack && !r.refusesEDNS() {
			l.c.refusedEDNS(s)
		}

		f := r.judge(dangling)
		f.server = s.Nameserver
		switch f.kind {
		case 0, NotFound, NoData:
			l.c.gotAnswer(s, q)
		}
		switch {
		case f.kind != 0:
			note(f.String())
		case r.dangling():
			note("alias")
		}
		return r, f
	}
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
	case len(r.addrs) > 0:
	case r.empty && !r.authoritative && !r.recursive && !r.soa:
		f.kind, f.err = ServerFailure, errors.New("without an answer, as a server that is neither authoritative nor recursive")
	default:
		f.kind = NoData
	}
	return f
}
