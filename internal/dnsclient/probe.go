package dnsclient

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// suspect starts to watch s, unless it is watched or was so a moment ago.
func (s *server) suspect() {
	if !s.removed() && s.health.startWatch() {
		s.client.running.Go(s.watch)
	}
}

// watch finds out whether a suspect is down. If so, it sends probes until the
// server is up again.
func (s *server) watch() {
	if s.confirmDown() {
		s.probeUntilUp()
	}
}

// probeUntilUp sends probes to a server that is down until it is up again.
func (s *server) probeUntilUp() {
	var probes sync.WaitGroup
	defer probes.Wait()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	replied := make(chan struct{}, 1)

	// A probe may wait longer than the time to the next one, so that a slow server
	// is not taken for a dead one.
	interval := s.client.intervals.probe
	for n := 1; ; n++ {
		select {
		case <-replied:
		case <-ctx.Done():
		case <-time.After(interval + rand.N(interval/5)):
		}
		lastAnswered, ok := s.health.continueWatch(ctx.Err() != nil)
		if !ok {
			return
		}
		q := probeQuestion(n, lastAnswered, s.client.lastSkipped())
		probes.Go(func() {
			if s.probe(ctx, s.first, q) {
				select {
				case replied <- struct{}{}:
				default:
				}
			}
		})
	}
}

// confirmDown sends s one probe. If nothing has come from s when it ends,
// neither to the probe nor to any other query, s is down.
func (s *server) confirmDown() bool {
	c := s.client
	q, replies := s.health.toConfirm()

	// over a connection of its own, since another query may be what makes the
	// server close those that are kept
	first, fallback := newTransports(s.Nameserver, c.roots, &c.mismatches)
	s.probe(s.ctx, first, q)
	first.close()
	if fallback != nil {
		fallback.close()
	}

	reason, down := s.health.confirmDown(replies, s.removed())
	if down {
		c.updateOutage()
		c.healthChanged(s.Nameserver, reason)
	}
	return down
}

// probeQuestion returns the question of the n-th probe of a server that is down:
// in rotation one that it answered before, the root, and one that a lookup would
// ask now. Any of them may go without a reply for ever, and a server that gets
// no other probe would stay down. All but the root may be nil.
func probeQuestion(n int, lastAnswered, lastSkipped *question) *question {
	candidates := [...]*question{lastAnswered, rootQuestion, lastSkipped}
	if q := candidates[n%len(candidates)]; q != nil {
		return q
	}
	return rootQuestion
}

// probe asks s over a transport and reports whether a reply of any kind came.
func (s *server) probe(ctx context.Context, over transport, q *question) bool {
	c := s.client
	start := time.Now()
	s.counters.begin()
	msg, _, err := over.exchange(ctx, start.Add(c.timeout()), q, s.health.wantsEDNS())
	s.counters.end()
	if err != nil {
		f := exchangeFailure(&s.Nameserver, err)
		if ctx.Err() == nil {
			s.counters.failed(f)
		}
		s.health.probeFailed(f.String())
		return false
	}
	rtt := time.Since(start)
	r, err := parse(msg, q)
	s.counters.replied(&r, err, rtt)
	s.replied(rtt)

	isAnswer := err == nil && (r.truncated || r.rcode == dns.RcodeSuccess || r.rcode == dns.RcodeNameError)
	s.health.probeAnswered(isAnswer && rtt < c.intervals.maxHedgeDelay)
	return true
}
