package dnsclient

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
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

	// largeMessage is the size from which on few messages are parsed at a time.
	largeMessage = 4096
)

// Config is how a Client asks. The zero value is useful.
type Config struct {
	// Timeout is how long one try waits for the reply; default 2s. A query that
	// the reply makes necessary, over TCP or without EDNS, belongs to the same try
	// and waits that long again. The next try begins sooner if the server usually
	// replies sooner.
	Timeout time.Duration

	// Tries is how many times a question is sent, to the next nameserver each
	// time; default 3. One nameserver gets it 3 times at most (RFC 9520, section
	// 3.1).
	Tries int

	// Rotate begins each question at any of the nameservers that work, at random,
	// instead of the first in the list.
	Rotate bool

	// Roots are the certificate authorities that may vouch for nameservers;
	// default: those of the system.
	Roots *x509.CertPool

	// Route, if not nil, returns the client to ask for a name to which an alias
	// leads. If it is another client, what the reply with the alias says about the
	// name is ignored. It returns nil if the name must not be asked for.
	Route func(name string) *Client

	// Trace, if not nil, is called after each lookup for which Traced, if not nil,
	// returns true.
	Trace  func(*Trace)
	Traced func() bool

	// Health, if not nil, is called when a nameserver goes down, with the reason,
	// and when it replies again, with an empty reason.
	Health func(server Nameserver, reason string)
}

// Settings are those of Config that Client.Change changes.
type Settings struct {
	Timeout time.Duration
	Tries   int
	Rotate  bool
}

// Client asks nameservers. It is safe for concurrent use. Of its locks and those
// of what belongs to it, lookup.mu is taken before Client.mu, and that before
// health.mu.
type Client struct {
	// Set by New, never changed.
	roots         *x509.CertPool
	route         func(name string) *Client
	trace         func(*Trace)
	traced        func() bool
	healthChanged func(server Nameserver, reason string)
	intervals     intervals
	ctx           context.Context // ends with Close
	cancel        context.CancelFunc

	settings   atomic.Pointer[Settings]
	running    sync.WaitGroup // lookups, attempts and watches
	mismatches atomic.Uint64
	parsing    chan struct{} // one for each large message that is parsed

	mu       sync.Mutex // guards all below
	closed   bool
	servers  []*server                     // in the configured order; replaced, never changed
	outage   chan struct{}                 // not nil while all servers are down
	skipped  *question                     // the last question that was not asked because of the outage
	counters map[Nameserver]*queryCounters // of all that there have been
}

// New returns a client that asks servers in this order of preference. It
// touches no network before the first lookup. Close releases what it holds.
func New(servers []Nameserver, cfg Config) *Client {
	c := &Client{
		roots: cfg.Roots,
		route: cfg.Route, trace: cfg.Trace, traced: cfg.Traced, healthChanged: cfg.Health,
		parsing: make(chan struct{}, runtime.GOMAXPROCS(0)), intervals: defaultIntervals,
		counters: make(map[Nameserver]*queryCounters),
	}
	if c.healthChanged == nil {
		c.healthChanged = func(Nameserver, string) {}
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.Change(servers, Settings{Timeout: cfg.Timeout, Tries: cfg.Tries, Rotate: cfg.Rotate})
	return c
}

// Change replaces the nameservers, as setNameservers does, and how they are asked.
func (c *Client) Change(nameservers []Nameserver, s Settings) {
	if s.Timeout <= 0 {
		s.Timeout = defaultTimeout
	}
	if s.Tries <= 0 {
		s.Tries = defaultTries
	}
	c.settings.Store(&s)
	c.setNameservers(nameservers)
}

func (c *Client) timeout() time.Duration { return c.settings.Load().Timeout }

// setNameservers replaces the nameservers. Those that stay keep their sockets
// and what is known about their health; lookups under way end with the ones
// they began with.
func (c *Client) setNameservers(nameservers []Nameserver) {
	for _, s := range c.replaceServers(nameservers) {
		s.close()
	}
}

// replaceServers returns the servers that were removed.
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
	c.updateOutageLocked()
	return removed
}

// Nameservers returns the nameservers in the configured order.
func (c *Client) Nameservers() []Nameserver {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Nameserver, len(c.servers))
	for i, s := range c.servers {
		all[i] = s.Nameserver
	}
	return all
}

// Mismatches returns how many messages were ignored because they were no reply
// to a query that was sent on their socket. A few are late or repeated replies;
// many are a sign of forgery.
func (c *Client) Mismatches() uint64 { return c.mismatches.Load() }

// Close ends all lookups and probes, waits for them, and closes all sockets.
// These lookups, and all later ones, fail with errClosed, wrapped in an *Error.
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

// enter notes that a lookup runs, and reports whether it may: the client is not
// closed. The lookup ends with running.Done.
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
// Ask returns, at the latest when ctx ends. Addresses are in the order of the
// reply, and may be used for ttl, the smallest TTL of the records that led to
// them. If there is no address, the error is an *Error.
//
// Aliases are followed (RFC 1034, section 3.6.2). If a reply ends with an alias
// and does not say what is at the name that it leads to, that name is asked for,
// once.
func (c *Client) Ask(ctx context.Context, name string, qtype uint16, done func(addrs []netip.Addr, ttl time.Duration, err error)) {
	if qtype != dns.TypeA && qtype != dns.TypeAAAA {
		qtype = dns.TypeNone
	}
	c.ask(ctx, name, qtype, func(r *reply, err error) { done(r.addrs, r.ttl, err) })
}

// AskSRV asks where a service is (RFC 2782), as Ask asks for addresses. Targets
// are without a trailing dot. A record with the target ".", which means that the
// service is not offered, is left out; if it is the only one, the error is NoData.
func (c *Client) AskSRV(ctx context.Context, name string, done func(services []net.SRV, ttl time.Duration, err error)) {
	c.ask(ctx, name, dns.TypeSRV, func(r *reply, err error) { done(r.services, r.ttl, err) })
}

// Trace describes one lookup, for logs.
type Trace struct {
	// Name and Type are the question.
	Name string
	Type uint16

	// Duration is how long the answer took.
	Duration time.Duration

	// Tries is all that was sent, in order.
	Tries []Try

	// Addrs or Services is the answer, which may be used for TTL. Err is set
	// instead if there is none.
	Addrs    []netip.Addr
	Services []net.SRV
	TTL      time.Duration
	Err      error
}

// plan returns the servers in the order in which to ask them q. Up is how many
// are not down; in an outage it is zero, and nothing may be sent.
func (c *Client) plan(q *question) (servers []*server, up int) {
	c.mu.Lock()
	servers = c.servers
	outage := c.outage != nil
	if outage {
		c.skipped = q
	}
	c.mu.Unlock()
	if outage {
		return nil, 0
	}
	if c.settings.Load().Rotate && len(servers) > 1 {
		at := rand.IntN(len(servers))
		servers = slices.Concat(servers[at:], servers[:at])
	}
	return byHealth(servers)
}

// Outage returns nil while some nameserver can be expected to answer. Otherwise
// lookups send nothing, and it returns a channel that is closed as soon as one
// answers again.
func (c *Client) Outage() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outage
}

// updateOutage begins or ends the outage after a server went down or came up.
func (c *Client) updateOutage() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.updateOutageLocked()
}

// updateOutageLocked is updateOutage for a caller that holds c.mu.
func (c *Client) updateOutageLocked() {
	down := !slices.ContainsFunc(c.servers, func(s *server) bool { return !s.health.isDown() })
	switch {
	case down && c.outage == nil:
		c.outage = make(chan struct{})
	case !down && c.outage != nil:
		close(c.outage)
		c.outage, c.skipped = nil, nil
	}
}

// lastSkipped returns the last question that was not asked because of the
// outage; nil: none.
func (c *Client) lastSkipped() *question {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skipped
}

// silences returns for each server why it is silent.
func (c *Client) silences() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]string, len(c.servers))
	for i, s := range c.servers {
		all[i] = s.String() + ": " + s.health.silenceReason()
	}
	return all
}
