package dnsclient

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// NameserverStats is what a client knows of one of its nameservers.
type NameserverStats struct {
	Nameserver Nameserver

	// Down is whether nothing comes from it, not even for a probe, and Since when that
	// has been so or not; the zero time if it never changed. Reason is how the last query
	// ended that got no reply, of a nameserver that is down.
	Down   bool
	Since  time.Time
	Reason string

	// Failures is how many attempts in a row gave no answer, or none in time. Nameservers
	// with fewer failures are asked first.
	Failures int

	// RTT is the round trip time, smoothed (RFC 6298), with the time that the nameserver
	// takes to ask others; 0 before the first reply.
	RTT time.Duration

	// InFlight is how many queries wait for their reply.
	InFlight int

	Queries QueryCounts
}

// QueryCounts counts the queries to one nameserver by how they ended: those of lookups,
// over any transport, and probes. Those that the end of the client cut short are not
// counted. Counts hold for as long as the client, even if the nameserver is removed and
// added again.
type QueryCounts struct {
	// Rcodes counts replies by the name of their rcode, such as "NOERROR" or "SERVFAIL".
	// Those that are not usual are "other".
	Rcodes map[string]uint64

	Truncated uint64 // replies, of those in Rcodes, that were truncated

	Timeouts  uint64 // queries without a reply in time
	Refused   uint64 // connections that were refused, also by ICMP in reply to a datagram
	Network   uint64 // other failures of the network, of TLS or of HTTP
	Malformed uint64 // replies that cannot be read

	// Seconds is how long replies took, those in Rcodes and Malformed.
	Seconds Histogram
}

// Histogram counts durations as a histogram of Prometheus does.
type Histogram struct {
	Count   uint64
	Sum     float64            // seconds
	Buckets map[float64]uint64 // durations up to this, in seconds
}

// bucketBounds are the bounds of the buckets of a Histogram.
var bucketBounds = [...]time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
}

// queryCounters counts the queries to one nameserver.
type queryCounters struct {
	mu       sync.Mutex // guards all below
	inFlight int
	counts   QueryCounts                   // without Seconds.Buckets
	buckets  [len(bucketBounds) + 1]uint64 // of the durations up to a bound, but above the one before
}

func newQueryCounters() *queryCounters {
	return &queryCounters{counts: QueryCounts{Rcodes: make(map[string]uint64)}}
}

// begin counts a query as in flight until end.
func (c *queryCounters) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight++
}

func (c *queryCounters) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight--
}

// failed counts a query without a reply.
func (c *queryCounters) failed(f failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case f.kind == Malformed:
		c.counts.Malformed++
	case f.kind == Timeout:
		c.counts.Timeouts++
	case errors.Is(f.err, syscall.ECONNREFUSED):
		c.counts.Refused++
	default:
		c.counts.Network++
	}
}

// replied counts a reply: r or, if it cannot be read, err.
func (c *queryCounters) replied(r *reply, err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.counts.Malformed++
	} else {
		c.counts.Rcodes[rcodeLabel(r.rcode)]++
		if r.truncated {
			c.counts.Truncated++
		}
	}
	at := slices.IndexFunc(bucketBounds[:], func(bound time.Duration) bool { return took <= bound })
	if at < 0 {
		at = len(bucketBounds)
	}
	c.buckets[at]++
	c.counts.Seconds.Count++
	c.counts.Seconds.Sum += took.Seconds()
}

// rcodeLabel returns the key of an rcode in QueryCounts.Rcodes, which are few.
func rcodeLabel(rcode int) string {
	if rcode > dns.RcodeRefused {
		return "other"
	}
	return rcodeString(rcode)
}

// read returns the counts up to now.
func (c *queryCounters) read() (counts QueryCounts, inFlight int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts = c.counts
	counts.Rcodes = maps.Clone(counts.Rcodes)
	counts.Seconds.Buckets = make(map[float64]uint64, len(bucketBounds))
	sum := uint64(0)
	for i, bound := range bucketBounds {
		sum += c.buckets[i]
		counts.Seconds.Buckets[bound.Seconds()] = sum
	}
	return counts, c.inFlight
}

// countersOf returns the counters of a nameserver; c.mu is held.
func (c *Client) countersOf(ns Nameserver) *queryCounters {
	counters := c.counters[ns]
	if counters == nil {
		counters = newQueryCounters()
		c.counters[ns] = counters
	}
	return counters
}

// Stats returns what is known of each nameserver, in the configured order.
func (c *Client) Stats() []NameserverStats {
	c.mu.Lock()
	servers := c.servers
	c.mu.Unlock()
	all := make([]NameserverStats, len(servers))
	for i, s := range servers {
		s.health.describe(&all[i])
		all[i].Nameserver = s.Nameserver
		all[i].Queries, all[i].InFlight = s.counters.read()
	}
	return all
}

// describe sets what health knows.
func (h *health) describe(to *NameserverStats) {
	h.mu.Lock()
	defer h.mu.Unlock()
	to.Down, to.Since, to.Failures, to.RTT = h.down, h.changedAt, h.failures, h.rtt
	if h.down {
		to.Reason = h.reason
	}
}
