package dnsclient

import (
	"sync"
	"time"
)

// A nameserver that does not reply may be dead. It may also be waiting for
// another server that is dead, and still answer all other questions. Only a
// question whose answer it has shows the difference. So questions without a
// reply never make a server down: they make it a suspect. A suspect gets a probe
// (probe.go), and is down if nothing at all comes from it until the probe ends.

const (
	// suspectAfter is how many attempts in a row without a reply make a suspect.
	suspectAfter = 3

	// noEDNSFor is for how long a server that refused a query with an OPT record
	// gets queries without one.
	noEDNSFor = 15 * time.Minute
)

// intervals are the times that tests shorten.
type intervals struct {
	// probe is the time from one probe of a server that is down to the next.
	probe time.Duration

	// recheck is how long after its last failure a server gets a probe, if
	// lookups ask other servers first because of that failure.
	recheck time.Duration

	// minSilence is how long a query must have waited to count as one without a
	// reply, if the deadline of its lookup cut it short.
	minSilence time.Duration

	// minHedgeDelay and maxHedgeDelay are the bounds of health.hedgeDelay.
	minHedgeDelay, maxHedgeDelay time.Duration
}

var defaultIntervals = intervals{
	probe:         time.Second,
	recheck:       5 * time.Second,
	minSilence:    250 * time.Millisecond,
	minHedgeDelay: 250 * time.Millisecond,
	maxHedgeDelay: time.Second,
}

// health is what is known about one server. It only keeps state: it sends
// nothing and starts nothing. Attempts and probes report what they saw, each as
// a value; Client.plan and the probes of probe.go ask what follows from it.
//
// It is safe for concurrent use. No other lock is taken while mu is held.
type health struct {
	intervals *intervals

	mu sync.Mutex // guards all below
	healthState
	watched   bool      // server.watch or server.probeUntilUp runs
	watchedAt time.Time // when it last began to run
}

// healthState is what is known about a server, and what another client may take over.
type healthState struct {
	// Answers. Failures are attempts in a row that gave no answer, or none within
	// the hedge delay.
	failures     int
	failedAt     time.Time // the last of them
	lastAnswered *question // the last question that got an answer
	unconfirmed  bool      // lastAnswered got no reply since then

	// Replies, of any kind.
	replies uint64
	silent  int    // attempts in a row without a reply
	reason  string // the last of them ended like this

	// The round trip time, smoothed, and its mean deviation (RFC 6298). That of a
	// recursive server is mostly the time that other servers take to answer it.
	rtt, deviation time.Duration

	down        bool
	changedAt   time.Time // when down last changed; zero: never
	noEDNSUntil time.Time
}

// outcome is what the end of an attempt shows about the server.
type outcome int

const (
	// inconclusive: nothing, because the attempt was cut short.
	inconclusive outcome = iota
	// answered: the server answers the question.
	answered
	// failed: something is there, but it does not answer the question.
	failed
	// silent: no reply came, or the server could not be reached.
	silent
)

// observation is what one attempt reports when it ends.
type observation struct {
	outcome  outcome
	question *question
	failure  failure // if the server gave no answer
	late     bool    // health.countLate has counted it as a failure before
}

// observe notes how an attempt ended, and reports whether the server is a
// suspect. An answer that is late does not end the row of failures, or a slow
// server would be asked before a fast one.
func (h *health) observe(o observation) (suspect bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case o.outcome == inconclusive || o.late:
	case o.outcome == answered:
		h.failures = 0
	default:
		h.countFailure()
	}
	switch o.outcome {
	case answered:
		h.lastAnswered, h.unconfirmed = o.question, false
	case silent:
		h.silent++
		h.reason = o.failure.String()
		if h.lastAnswered != nil && h.lastAnswered.name == o.question.name {
			h.unconfirmed = true
		}
		return h.silent >= suspectAfter
	}
	return false
}

// countLate counts an attempt as a failure that has not ended within the hedge delay.
func (h *health) countLate() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.countFailure()
}

// countFailure notes a failure. The caller holds h.mu.
func (h *health) countFailure() {
	h.failures++
	h.failedAt = time.Now()
}

// replied notes that a reply of any kind came, and reports whether the server
// was down until then.
func (h *health) replied(rtt time.Duration) (wasDown bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rtt == 0 {
		h.rtt, h.deviation = rtt, rtt/2
	} else {
		h.deviation += ((h.rtt - rtt).Abs() - h.deviation) / 4
		h.rtt += (rtt - h.rtt) / 8
	}
	h.silent = 0
	h.replies++
	wasDown, h.down = h.down, false
	if wasDown {
		h.changedAt = time.Now()
	}
	return wasDown
}

// hedgeDelay returns how long to wait for a reply before another server is asked
// as well: as long as a reply usually takes (RFC 6298, section 2), within bounds.
func (h *health) hedgeDelay() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.intervals.maxHedgeDelay
	if h.rtt > 0 {
		d = min(max(h.rtt+4*h.deviation, h.intervals.minHedgeDelay), d)
	}
	return d
}

// wantsEDNS reports whether queries carry an OPT record.
func (h *health) wantsEDNS() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !time.Now().Before(h.noEDNSUntil)
}

// refusedEDNS notes that the server answers queries only without an OPT record.
func (h *health) refusedEDNS() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noEDNSUntil = time.Now().Add(noEDNSFor)
}

// rank is what the order of servers depends on.
type rank struct {
	down     bool
	failures int
	recheck  bool // it gets a probe if it is not asked first
}

// compare returns less than zero if a server of rank r is asked before one of
// rank other.
func (r rank) compare(other rank) int {
	switch {
	case r.down == other.down:
		return r.failures - other.failures
	case r.down:
		return 1
	default:
		return -1
	}
}

func (h *health) rank() rank {
	h.mu.Lock()
	defer h.mu.Unlock()
	return rank{
		down:     h.down,
		failures: h.failures,
		recheck:  h.failures > 0 && time.Since(h.failedAt) >= h.intervals.recheck,
	}
}

// isHealthy reports whether the server is neither down nor failed last.
func (h *health) isHealthy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.down && h.failures == 0
}

func (h *health) isDown() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down
}

// silenceReason returns why the last attempt or probe without a reply got none.
func (h *health) silenceReason() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reason
}

// What follows is for the probes of probe.go.

// startWatch reports whether server.watch is to be started now, which then must
// end with continueWatch or confirmDown.
func (h *health) startWatch() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watched || time.Since(h.watchedAt) < h.intervals.probe {
		return false
	}
	h.watched, h.watchedAt = true, time.Now()
	return true
}

// toConfirm returns the question that shows whether the server is down: one
// whose answer it has. Replies is how many came so far, for confirmDown.
func (h *health) toConfirm() (q *question, replies uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lastAnswered == nil || h.unconfirmed {
		return rootQuestion, h.replies
	}
	return h.lastAnswered, h.replies
}

// confirmDown makes the server down if no reply came since toConfirm, and
// returns the reason. Otherwise, or if the server was removed meanwhile, it ends
// the watch.
func (h *health) confirmDown(replies uint64, removed bool) (reason string, down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replies != replies || removed {
		h.watched = false
		return "", false
	}
	h.down, h.changedAt = true, time.Now()
	return h.reason, true
}

// continueWatch reports whether the watch continues, and ends it if the server is up
// again or was removed. LastAnswered may be nil.
func (h *health) continueWatch(removed bool) (lastAnswered *question, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.down || removed {
		h.watched = false
		return nil, false
	}
	return h.lastAnswered, true
}

// probeAnswered notes whether the reply to a probe was an answer, and came soon
// enough for the server to be asked first again.
func (h *health) probeAnswered(soon bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if soon {
		h.failures = 0
	} else {
		h.failedAt = time.Now()
	}
}

// probeFailed notes why a probe got no reply.
func (h *health) probeFailed(reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reason = reason
}
