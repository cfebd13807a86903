package exchange

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/resolver"
)

const (
	// priorityWait is how long a request waits for the addresses of one priority
	// while there is another one.
	priorityWait = time.Second

	// serviceGrace is how long a request waits for the addresses of more
	// targets once it has those of one; they are for other requests then.
	serviceGrace = 50 * time.Millisecond
)

// Service resolves the records of a service for one request: a call for each.
type Service struct {
	Calls []Call // of the records

	source   *Source
	name     string
	records  *failover.Service
	exchange *Exchange
	end      time.Time // after it, what is not known is not waited for
	err      error     // why there is no address, if it is known
}

// Next returns the addresses of the service that should be tried now, and which of them belong
// to which of Calls.
func (s *Service) Next(ctx context.Context) ([]netip.AddrPort, []failover.Part, error) {
	x := s.exchange
	addrs, parts, found := s.records.Next(ctx, &s.source.Source, &x.Plan, x.resendable())
	if !found {
		return nil, nil, s.unavailable()
	}
	return addrs, parts, nil
}

// failed records why there is no address of a record. A refusal counts more than
// anything else.
func (s *Service) failed(err error) {
	if s.err == nil || failure.RuleOf(s.err) == "" && failure.RuleOf(err) != "" {
		s.err = err
	}
}

// unavailable returns why no record has an address.
func (s *Service) unavailable() error {
	switch {
	case s.err == nil:
		return &failure.Error{Target: s.name, Phase: failure.DNS, Err: errNotOffered}
	case errors.Is(s.err, context.DeadlineExceeded):
		return &failure.Error{Target: s.name, Phase: failure.DNS, Err: errTooLate}
	}
	return fmt.Errorf("%s: %w", s.name, s.err)
}

var (
	errNotOffered = errors.New("the service is not offered")
	errTooLate    = failure.NewTimeout("no address of a host of the service came in time")
)

// errNotYet is the end of atOnce.
var errNotYet = errors.New("not known yet")

// atOnce is the context of a lookup that does not wait: if the answer is not
// known, the lookup goes on, for later requests.
var atOnce = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errNotYet)
	return ctx
}()

// Resolve implements failover.Names.
func (s *Service) Resolve(ctx context.Context, from, to int, last bool) {
	end := s.end
	if next := time.Now().Add(priorityWait); !last && next.Before(end) {
		end = next
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()

	known := false
	var unknown, stale []*Call
	for i := from; i < to; i++ {
		c := &s.Calls[i]
		if c.Host == "" || len(c.Addrs) > 0 {
			known = known || c.Host != ""
			continue
		}
		switch err := c.Resolve(atOnce, netip.Addr{}); {
		case errors.Is(err, errNotYet):
			unknown = append(unknown, c)
		case err != nil:
			s.failed(err)
		case c.Answer.From == resolver.Stale:
			stale = append(stale, c) // what is known may be over by the time that they have waited
		default:
			known = true
		}
	}
	for _, c := range stale { // they may have to wait, all for the same time
		if err := c.Resolve(ctx, netip.Addr{}); err != nil {
			s.failed(err)
			continue
		}
		known = true
	}
	if len(unknown) > 0 {
		s.await(ctx, unknown, known)
	}
}

// await resolves targets that were not known: as many as come in time, if there
// are others, or the first of them and those that follow soon.
func (s *Service) await(ctx context.Context, calls []*Call, others bool) {
	type result struct {
		call *Call
		a    addresses
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(calls))
	for _, c := range calls {
		copied := *c // this may outlive the request
		go func() {
			a, err := copied.find(ctx, netip.Addr{})
			results <- result{c, a, err}
		}()
	}
	var grace <-chan time.Time
	if others {
		grace = time.After(serviceGrace)
	}
	for left := len(calls); left > 0; {
		select {
		case r := <-results:
			left--
			if r.err != nil {
				s.failed(r.err)
				continue
			}
			r.call.set(r.a)
			if grace == nil && !others {
				others, grace = true, time.After(serviceGrace)
			}
		case <-grace:
			cancel() // the lookups go on, without this request
			grace = nil
		}
	}
}

// Renew implements failover.Names.
func (s *Service) Renew(ctx context.Context, record int) (changed bool) {
	return s.Calls[record].renew(ctx)
}
