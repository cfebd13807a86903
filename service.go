package caddytarget

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/resolver"
	"caddytarget/internal/targeturl"
)

const (
	// priorityWait is how long a request waits for the addresses of one priority
	// while there is another one.
	priorityWait = time.Second

	// serviceGrace is how long a request waits for the addresses of more
	// targets once it has those of one; they are for other requests then.
	serviceGrace = 50 * time.Millisecond
)

// service resolves the records of a service for one request: a call for each.
type service struct {
	name     string
	calls    []call
	records  *failover.Service
	exchange *exchange
	end      time.Time // after it, what is not known is not waited for
	err      error     // why there is no address, if it is known
}

// isService reports whether the name is that of a service (RFC 2782).
func (u *Upstreams) isService() bool { return strings.HasPrefix(u.Name, "_") }

// newService looks up the records of the source's service.
func (u *Upstreams) newService(r *http.Request, repl *caddy.Replacer, x *exchange, st *requestState) (*service, error) {
	name, _, err := targeturl.NormalizeHost(repl.ReplaceAll(u.Name, ""))
	if err != nil {
		return nil, failure.NewMalformed(err)
	}
	if u.dynamic {
		c := &call{client: clientOf(r), policy: u.policy}
		c.Host = name
		if err := u.policy.gate.Enforce(u.policy.gate.CheckName(name), c); err != nil {
			return nil, err
		}
	}
	found, err := u.resolver.LookupService(r.Context(), name)
	if err != nil {
		return nil, failure.OfLookup(name, err)
	}
	sample, drawn := u.source.Sample(found)
	s := &service{name: name, calls: make([]call, len(sample)), exchange: x, end: time.Now().Add(u.resolver.Deadline())}
	records := make([]failover.Record, len(sample))
	for i, record := range sample {
		c := &s.calls[i]
		if err := u.newRecord(c, r, record, x, st); err != nil {
			s.failed(err)
		}
		records[i] = failover.Record{Target: &c.Target, Priority: record.Priority, Weight: record.Weight}
	}
	s.records = failover.NewService(records, drawn, s)
	return s, nil
}

// failed records why there is no address of a record. A refusal counts more than
// anything else.
func (s *service) failed(err error) {
	if s.err == nil || failure.RuleOf(s.err) == "" && failure.RuleOf(err) != "" {
		s.err = err
	}
}

// offerService returns upstreams for the addresses of the service that should be tried
// now.
func (n *named) offerService(ctx context.Context) ([]*reverseproxy.Upstream, error) {
	s, x := n.service, n.service.exchange
	n.offers = n.offers[:0]
	addrs, parts, found := s.records.Next(ctx, &n.source.source, &x.plan, x.resendable())
	if !found {
		return nil, s.unavailable()
	}
	upstreams := upstreamsFor(addrs)
	for _, p := range parts {
		n.offers = append(n.offers, offer{&s.calls[p.Record], upstreams[p.From:p.To]})
	}
	return upstreams, nil
}

// unavailable returns why no record has an address.
func (s *service) unavailable() error {
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
func (s *service) Resolve(ctx context.Context, from, to int, last bool) {
	end := s.end
	if next := time.Now().Add(priorityWait); !last && next.Before(end) {
		end = next
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()

	known := false
	var unknown, stale []*call
	for i := from; i < to; i++ {
		c := &s.calls[i]
		if c.Host == "" || len(c.Addrs) > 0 {
			known = known || c.Host != ""
			continue
		}
		switch err := c.resolve(atOnce, netip.Addr{}); {
		case errors.Is(err, errNotYet):
			unknown = append(unknown, c)
		case err != nil:
			s.failed(err)
		case c.answer.From == resolver.Stale:
			stale = append(stale, c) // what is known may be over by the time that they have waited
		default:
			known = true
		}
	}
	for _, c := range stale { // they may have to wait, all for the same time
		if err := c.resolve(ctx, netip.Addr{}); err != nil {
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
func (s *service) await(ctx context.Context, calls []*call, others bool) {
	type result struct {
		call *call
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
func (s *service) Renew(ctx context.Context, record int) (changed bool) {
	return s.calls[record].renew(ctx)
}
