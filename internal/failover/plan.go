// Package failover decides which of a target's addresses a request tries next.
//
// A [Plan] is the memory of one request: the targets that it may be sent to, what was
// tried of each, the time that is left for dialling, and the dials that it has given
// up and that go on. Most requests have one [Target]; one to a service has a [Service]
// with a target for each record. A [Source] holds the settings by which addresses are
// chosen, a [Transport] those by which they are dialled: neither does so itself. What
// outlives the request, the failures of addresses, is in package health.
//
// Each attempt takes four steps. Package exchange takes them: its Call.Offer and
// Service.Next the first one, the methods of Attempt the others. The loop is that of
// reverse_proxy: while retries are left, it makes another attempt. It does so for any
// request if the error is an exchange.Unsent, and after any other error for a GET, or for
// what lb_retry_match says.
//
//  1. [Source.Next] or [Service.Next] offers addresses: healthy ones that were not
//     tried yet; if there are none, whatever may help. The load balancing policy of
//     the caller selects one.
//  2. [Plan.FillOrder] says to the pool how long to wait for a connection to it: shortly
//     while another address is offered, for the rest of the time at the last address or
//     without a retry left.
//  3. [Plan.Begin] takes the claim on the address, if it is on trial, and starts the
//     probes of others in the background.
//  4. [Target.Worked], [Target.Unhealthy], [Plan.Failed] or [Target.Skip] records how it
//     ended, in the plan and in package health. Then [Plan.Release] gives up what was
//     claimed and led to nothing.
//
// Say a name has four addresses: R refuses connections, S is silent, B breaks them
// after the request, H is healthy. They are selected in this order.
//
//   - A GET meets R. Since no connection could be opened, R is ejected for all targets.
//   - It meets S, and after 300 ms gives the dial up, which goes on in the background. S
//     is left out for all targets until the dial has ended, and ejected if it fails.
//     Package pool records that, and the failure of R.
//   - It meets B. The request was sent, but a GET may be sent again. B is ejected for
//     this target alone. A POST, which passes R and S in the same way, ends here with an
//     error: B may have acted on it.
//   - It meets H, and has its response. If the dial of S succeeded before that of H, it
//     would go back to S.
//
// The next request is offered H alone. An ejection lasts for Source.EjectFor, which is the
// option fail_duration, from the failure; that of S begins when its dial fails. Once that of
// R or S is over, a request
// to H begins a probe, which only opens a connection. B is on trial instead: a GET is
// sent there first, since only a request shows whether it answers, and then to H if that
// fails. A POST leaves B out for twice the time, in case a GET comes first. Of several
// requests at the same time one claims the trial or the probe; for the others the address
// stays ejected.
//
// Should H fail before that, R, S and B are offered in spite of their ejection, for some
// address has to be tried. When all were tried, those are offered once more that may
// work by now: S while its dial goes on and time is left, and B, whose connection broke.
// Then nothing is offered, and the caller returns the last error.
//
// Where to find what:
//
//   - plan.go: Plan, Target, Transport; the order for the pool.
//   - source.go: which addresses are offered, and in which order.
//   - service.go: which records of a service are offered, by priority and weight.
//   - sample.go: which part of a large service a request considers, and its bounds.
//   - try.go: what a request has tried, and whether it may try it once more.
//   - claim.go: trials and probes; Begin.
//   - outcome.go: how an attempt has ended: Failed, Worked, Unhealthy, Skip.
//
// The times are not here: for how long a dial is waited for is in package pool
// (dialwait.go), for how long a claim holds in package health (state.go).
package failover

import (
	"net/netip"
	"slices"
	"time"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
)

// Plan is what a request remembers of its attempts, to decide on the next one. The zero
// value is ready to use. It belongs to the goroutine of the request.
type Plan struct {
	targets   []*Target
	room      [1]*Target   // for the usual targets
	deadlines [2]time.Time // of the dial at the last address, by phase; remember sets them; zero: that dial has its whole timeout
	began     time.Time    // when the last attempt did, if a deadline is set
	trial     *Claim       // of the last attempt; nil: it is none
}

// Target is a name whose addresses a request may be sent to, or one address.
type Target struct {
	Host      string
	Port      uint16
	Addrs     []netip.Addr // shared: not written to
	Preferred int          // so many of Addrs, from the first, are preferred
	Owner     pool.Owner

	Retryable bool          // the request may be sent to another address whatever the backend has done with it: a GET
	Measured  bool          // how long responses usually take matters
	Limit     health.Limit  // names the fixed timeout of the site, for requests that run out of it; empty: there is none
	Timeout   time.Duration // that the client has chosen, in place of a fixed one; zero: none
	Begun     time.Time     // when the last attempt at it began; set where that matters

	service *Service // that it belongs to; nil: none
	tries   []try    // failed attempts
	probes  []*Claim // on addresses that are to be probed in the background
	trial   *Claim   // on the only address that is offered, if it is on trial
	offered int      // how many addresses are
	more    bool     // there are others to try if the selected address fails; ejected ones do not count beside healthy ones
}

// Transport is the settings of what sends requests: see pool.Config.
type Transport struct {
	Health   *health.Tracker
	Limit    health.Limit     // under which failures count that are ones only by these settings
	Timeouts [2]time.Duration // for each phase of a dial, pool.Connect and pool.Handshake
	Retries  int              // how often a request that fails is tried again
}

// Add makes a target one of the plan's. What was tried and offered of it in another plan does not
// count. A target that was added before stays as it is.
func (p *Plan) Add(t *Target) {
	if slices.Contains(p.targets, t) {
		return
	}
	if p.targets == nil {
		p.targets = p.room[:0]
	}
	t.tries, t.offered = nil, 0
	p.targets = append(p.targets, t)
}

// FillOrder sets what the pool has to know for an attempt at an address of t, beside the
// key of the connection. The address is the last one if no other is offered, or if
// reverse_proxy makes no further attempt.
func (p *Plan) FillOrder(t *Target, via *Transport, o *pool.Order) {
	o.Target, o.Owner = t.Host, t.Owner
	o.Deadlines = p.deadlines
	isLastTry := p.Tries() >= via.Retries
	if !isLastTry { // there is another one for an address whose dial was given up, and has completed
		o.Pending = p.pending()
	}
	o.Last = isLastTry || !t.more && !p.offersBeside(t)
	if p.deadlines != [2]time.Time{} {
		p.began = time.Now()
	}
}

// Tries returns how many attempts have failed.
func (p *Plan) Tries() (n int) {
	for _, t := range p.targets {
		n += len(t.tries)
	}
	return n
}

// pending returns the dials that were given up.
func (p *Plan) pending() (list []*pool.Pending) {
	for _, t := range p.targets {
		for _, try := range t.tries {
			if try.pending != nil {
				list = append(list, try.pending)
			}
		}
	}
	return list
}

// offersBeside reports whether addresses are offered that are neither those of t nor
// of the same service.
func (p *Plan) offersBeside(t *Target) bool {
	for _, other := range p.targets {
		if other.offered > 0 && other != t && (t.service == nil || other.service != t.service) {
			return true
		}
	}
	return false
}

// addr returns an address of t with its port.
func (t *Target) addr(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, t.Port) }
