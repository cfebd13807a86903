package dnsclient

import (
	"context"
	"slices"
	"time"
)

// server is a nameserver of a client. Only its health changes.
type server struct {
	Nameserver
	client   *Client
	first    transport // for all queries
	fallback transport // for what was truncated over first; nil if there is none
	health   health
	counters *queryCounters

	ctx    context.Context // ends when the server is removed or the client closed
	cancel context.CancelFunc
}

// newServer is called with c.mu held.
func (c *Client) newServer(ns Nameserver) *server {
	s := &server{Nameserver: ns, client: c, counters: c.countersOf(ns)}
	s.health.intervals = &c.intervals
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

func (s *server) removed() bool { return s.ctx.Err() != nil }

// observe notes how an attempt ended.
func (s *server) observe(o observation) {
	if s.health.observe(o) {
		s.suspect()
	}
}

// replied notes that a reply of any kind came from s.
func (s *server) replied(rtt time.Duration) {
	if s.health.replied(rtt) {
		s.client.updateOutage()
		s.client.healthChanged(s.Nameserver, "")
	}
}

// hedgeDelay returns how long to wait for an attempt on s before the next one
// begins. If the next one goes to a server that was asked before, it is most of
// the timeout: that server is more likely to wait for other servers than to have
// lost the question.
func (s *server) hedgeDelay(askedBefore bool) time.Duration {
	timeout := s.client.timeout()
	if askedBefore {
		return timeout * 3 / 4
	}
	return min(s.health.hedgeDelay(), timeout)
}

// byHealth returns servers in the order in which to ask them: those with the
// fewest failures in a row first, and those that are down last. Up is how many
// are not down. Those that are not first because of an old failure get a probe.
func byHealth(servers []*server) (ordered []*server, up int) {
	if !slices.ContainsFunc(servers, func(s *server) bool { return !s.health.isHealthy() }) {
		return servers, len(servers)
	}

	type ranked struct {
		*server
		rank
	}
	all := make([]ranked, len(servers))
	for i, s := range servers {
		all[i] = ranked{s, s.health.rank()}
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return a.rank.compare(b.rank) })
	ordered = make([]*server, len(all))
	for i, r := range all {
		ordered[i] = r.server
		if !r.down {
			up++
		}
		if i > 0 && r.recheck {
			r.suspect()
		}
	}
	return ordered, up
}
