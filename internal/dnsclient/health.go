package dnsclient

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// A nameserver that does not reply may be dead, or it may itself be waiting for
// another server that is, and then everything else it would still answer. Only
// a question whose answer it has tells the two apart. So a server is never down
// for questions that went unanswered: these make it a suspect. A suspect is
// sent a probe, and it is down if nothing at all comes back in the meantime.

const (
	// suspectAfter is how many tries in a row without a reply make a suspect.
	suspectAfter = 3

	// noEDNSFor is for how long a server that refused a query with an OPT record
	// is asked without.
	noEDNSFor = 15 * time.Minute
)

// intervals are the times that tests shorten.
type intervals struct {
	// probe is from one probe of a server that is down to the next.
	probe time.Duration

	// recheck is how long after its last failure a server that is passed over
	// for it is a suspect.
	recheck time.Duration

	// evidence is how long a query must have waited, when the deadline of its
	// lookup cut it short, to count as one without a reply.
	evidence time.Duration

	// patience is how long a try waits before the next one begins, and
	// leastPatience the least that round trips can make of it.
	patience, leastPatience time.Duration
}

var defaultIntervals = intervals{
	probe:         time.Second,
	recheck:       5 * time.Second,
	evidence:      250 * time.Millisecond,
	patience:      time.Second,
	leastPatience: 250 * time.Millisecond,
}

// server is a nameserver, the ways to it, and its health.
type server struct {
	Nameserver
	first    transport // for all queries
	fallback transport // for what was truncated over first; nil if there is none

	ctx    context.Context // ends with the server's membership
	cancel context.CancelFunc

	// Under Client.mu.

	failures  int       // tries without an answer, or none in the usual time, since the last answer
	failed    time.Time // the last of them
	silent    int       // tries without a reply since the last reply
	replies   uint64    // all that came
	why       string    // it is silent, as of the last try
	down      bool
	watched   bool      // a goroutine runs watch
	suspected time.Time // when it last began to
	noEDNS    time.Time // until then, queries go without an OPT record
	good      *question // the last one that got an answer
	doubtGood bool      // good went unanswered since

	// The round trip time, smoothed, and its mean deviation (RFC 6298). That of
	// a recursive server is mostly the time that others take to answer it.
	rtt, deviation time.Duration
}

func (c *Client) newServer(ns Nameserver) *server {
	s := &server{Nameserver: ns}
	s.first, s.fallback = newTransports(ns, c.roots, &c.mismatches)
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	return s
}

// close ends the probes of s and closes its idle sockets.
func (s *server) close() {
	s.cancel()
	s.first.close()
	if s.fallback != nil {
		s.fallback.close()
	}
}

// plan returns the servers in the order in which to ask them q: those with the
// fewest failures in a row first, from any of these on if they rotate, and those
// that are down last. Up is how many are
// not down; in an outage it is zero, and nothing may be sent.
func (c *Client) plan(q *question) (servers []*server, up int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outage != nil {
		c.wanted = q
		return nil, 0
	}
	servers, up = c.servers, len(c.servers)
	for _, s := range c.servers {
		if s.down {
			up--
		}
	}
	if c.settings.Load().Rotate && len(servers) > 1 {
		at := rand.IntN(len(servers))
		servers = slices.Concat(servers[at:], servers[:at])
	}
	if !slices.ContainsFunc(servers, func(s *server) bool { return s.down || s.failures > 0 }) {
		return servers, up
	}

	servers = slices.Clone(servers)
	slices.SortStableFunc(servers, func(a, b *server) int {
		switch {
		case a.down != b.down && a.down:
			return 1
		case a.down != b.down:
			return -1
		default:
			return a.failures - b.failures
		}
	})
	for _, s := range servers[1:] {
		if s.failures > 0 && time.Since(s.failed) >= c.intervals.recheck {
			c.suspect(s)
		}
	}
	return servers, up
}

// patience returns how long to wait for a try to s before the next one begins:
// as long as a reply usually takes (RFC 6298, section 2), within bounds. If the
// next one goes to a server that was asked already, it is most of the timeout:
// that server is more likely to wait for others than to have lost the question.
func (c *Client) patience(s *server, again bool) time.Duration {
	if again {
		return c.timeout() * 3 / 4
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.intervals.patience
	if s.rtt > 0 {
		d = min(max(s.rtt+4*s.deviation, c.intervals.leastPatience), d)
	}
	return min(d, c.timeout())
}

// gotReply notes that s is alive.
func (c *Client) gotReply(s *server, took time.Duration) {
	c.mu.Lock()
	if s.rtt == 0 {
		s.rtt, s.deviation = took, took/2
	} else {
		s.deviation += ((s.rtt - took).Abs() - s.deviation) / 4
		s.rtt += (took - s.rtt) / 8
	}
	s.silent = 0
	s.replies++
	up := s.down
	if up {
		s.down = false
		c.reviewOutage()
	}
	c.mu.Unlock()
	if up {
		c.health(s.Nameserver, "")
	}
}

// causes tells of all servers why they are silent.
func (c *Client) causes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	causes := make([]string, len(c.servers))
	for i, s := range c.servers {
		causes[i] = s.String() + ": " + s.why
	}
	return causes
}

// gotAnswer notes that the server can answer the question. Late answers do not
// give it its place back, or a slow server would be asked before a fast one.
func (c *Client) gotAnswer(a *attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !a.counted {
		a.counted = true
		a.s.failures = 0
	}
	a.s.good, a.s.doubtGood = a.q, false
}

// failed notes that no answer came, or none in the usual time.
func (c *Client) failed(a *attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.fail()
}

// fail counts a failure once; c.mu is held.
func (a *attempt) fail() {
	if !a.counted {
		a.counted = true
		a.s.failures++
		a.s.failed = time.Now()
	}
}

// gotNothing notes that the server did not reply, or could not be reached.
func (c *Client) gotNothing(a *attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.fail()
	s := a.s
	s.why = a.f.String()
	s.silent++
	if s.good != nil && s.good.name == a.q.name {
		s.doubtGood = true
	}
	if s.silent >= suspectAfter {
		c.suspect(s)
	}
}

// wantsEDNS reports whether queries to s carry an OPT record.
func (c *Client) wantsEDNS(s *server) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !time.Now().Before(s.noEDNS)
}

// refusedEDNS notes that s answers queries only without an OPT record.
func (c *Client) refusedEDNS(s *server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.noEDNS = time.Now().Add(noEDNSFor)
}

// suspect has s watched. The caller holds c.mu.
func (c *Client) suspect(s *server) {
	if s.watched || s.ctx.Err() != nil || time.Since(s.suspected) < c.intervals.probe {
		return
	}
	s.watched, s.suspected = true, time.Now()
	c.running.Go(func() { c.watch(s) })
}

// watch finds out whether a suspect is down, and if so, when it is up again.
func (c *Client) watch(s *server) {
	if !c.confirmDown(s) {
		return
	}

	var probes sync.WaitGroup
	defer probes.Wait()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	answered := make(chan struct{}, 1)

	// A probe may wait for longer than the time to the next, so that a slow
	// server is not taken for a dead one.
	for turn := 1; ; turn++ {
		select {
		case <-answered:
		case <-ctx.Done():
		case <-time.After(c.intervals.probe + rand.N(c.intervals.probe/5)):
		}
		c.mu.Lock()
		if !s.down || ctx.Err() != nil {
			s.watched = false
			c.mu.Unlock()
			return
		}
		q := c.probeQuestion(s, turn)
		c.mu.Unlock()

		probes.Go(func() {
			if c.probe(ctx, s, s.first, q) {
				select {
				case answered <- struct{}{}:
				default:
				}
			}
		})
	}
}

// confirmDown sends s one probe. If nothing has come from s by its end, to the
// probe or to any other query, s is down.
func (c *Client) confirmDown(s *server) bool {
	c.mu.Lock()
	before := s.replies
	q := s.good
	if q == nil || s.doubtGood {
		q = rootQuestion
	}
	c.mu.Unlock()

	// over a connection of its own, since another query may be what makes the
	// server close those that are kept
	transport, fallback := newTransports(s.Nameserver, c.roots, &c.mismatches)
	c.probe(s.ctx, s, transport, q)
	transport.close()
	if fallback != nil {
		fallback.close()
	}

	c.mu.Lock()
	if s.replies != before || s.ctx.Err() != nil {
		s.watched = false
		c.mu.Unlock()
		return false
	}
	s.down = true
	c.reviewOutage()
	why := s.why
	c.mu.Unlock()
	c.health(s.Nameserver, why)
	return true
}

// probeQuestion returns the question for one of the probes of a server that is
// down. They take turns, because any of them may have gone dead, and a server
// that is asked nothing else would then stay down for ever: one that it has
// answered before, the root, and one that a lookup would ask now. The caller
// holds c.mu.
func (c *Client) probeQuestion(s *server, turn int) *question {
	candidates := [...]*question{s.good, rootQuestion, c.wanted}
	if q := candidates[turn%len(candidates)]; q != nil {
		return q
	}
	return rootQuestion
}

// probe asks s and reports whether it replied, no matter what.
func (c *Client) probe(ctx context.Context, s *server, first transport, q *question) bool {
	start := time.Now()
	msg, _, err := first.exchange(ctx, start.Add(c.timeout()), q, c.wantsEDNS(s))
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		s.why = exchangeFailure(&s.Nameserver, err).String()
		return false
	}
	took := time.Since(start)
	c.gotReply(s, took)

	r, err := parse(msg, q)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && took < c.intervals.patience && (r.truncated || r.rcode == dns.RcodeSuccess || r.rcode == dns.RcodeNameError) {
		s.failures = 0
	} else {
		s.failed = time.Now()
	}
	return true
}

// reviewOutage opens or closes c.outage after a server went down, came up, or
// the servers changed. The caller holds c.mu.
func (c *Client) reviewOutage() {
	down := !slices.ContainsFunc(c.servers, func(s *server) bool { return !s.down })
	switch {
	case down && c.outage == nil:
		c.outage = make(chan struct{})
	case !down && c.outage != nil:
		close(c.outage)
		c.outage, c.wanted = nil, nil
	}
}

// Outage returns nil while some nameserver can be expected to answer.
// Otherwise, and then lookups send nothing, it returns a channel that is closed
// as soon as one answers again.
func (c *Client) Outage() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outage
}
