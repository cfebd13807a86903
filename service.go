package caddytarget

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/health"
	"caddytarget/internal/targeturl"
)

const (
	// priorityWait is how long a request waits for the addresses of one priority
	// while there is another one.
	priorityWait = time.Second

	// serviceGrace is how long a request waits for the addresses of more
	// targets once it has those of one; they are for other requests then.
	serviceGrace = 50 * time.Millisecond

	// weightUnit is what a weight of 1 counts beside one of 0, which RFC 2782
	// gives "a very small chance".
	weightUnit = 256
)

// serviceCall is the call of a service: a call for each of its records.
type serviceCall struct {
	name     string
	records  []net.SRV   // by priority
	calls    []namedCall // of records
	resolved int         // how many of calls, always whole priorities
	end      time.Time   // after it, what is not known is not waited for
	renewed  bool        // the addresses were asked for again
	drawn    bool        // the first record of a priority was chosen by the weights
	err      error       // why there is no address, as far as it is known
}

// failed records why there is no address of a record. A refusal is told before
// anything else.
func (s *serviceCall) failed(err error) {
	if s.err == nil || ruleOf(s.err) == "" && ruleOf(err) != "" {
		s.err = err
	}
}

// isService tells whether the name is that of a service (RFC 2782).
func (u *Upstreams) isService() bool { return strings.HasPrefix(u.Name, "_") }

// service returns the call of the source's service, a new one at first.
func (u *Upstreams) service(r *http.Request, repl *caddy.Replacer, st *requestState) (*serviceCall, error) {
	p := st.pass
	if i := slices.IndexFunc(p.named, func(n *namedCall) bool { return n.source == u }); i >= 0 {
		return p.named[i].call.service, nil
	}
	name, _, err := targeturl.NormalizeHost(repl.ReplaceAll(u.Name, ""))
	if err != nil {
		return nil, malformedError{err}
	}
	if u.dynamic {
		if err := u.judge.name(&call{host: name, client: clientOf(r)}); err != nil {
			return nil, err
		}
	}
	records, err := u.resolver.lookupService(r.Context(), name)
	if err != nil {
		return nil, err
	}
	records, drawn := u.someRecords(records)
	s := &serviceCall{name: name, records: records, drawn: drawn, end: time.Now().Add(time.Duration(u.resolver.config.Deadline))}
	s.calls = make([]namedCall, len(s.records))
	for i, record := range s.records {
		n := &s.calls[i]
		n.source = u
		n.call.service, n.call.state, n.call.pass, n.call.resolver = s, st, p, u.resolver
		n.call.hostport = r.Host // as long as there is no TLS, the client's
		n.call.repeats = isRepeatable(r.Method)
		if u.dynamic {
			n.call.judge, n.call.client = u.judge, clientOf(r)
		}
		if err := n.call.setTarget(record); err != nil {
			s.failed(err)
		}
	}
	p.named = append(p.named, &namedCall{source: u, call: call{service: s}})
	return s, nil
}

// setTarget makes c the call of a record. Without a host, it is that of none.
func (c *call) setTarget(record net.SRV) error {
	host, literal, err := targeturl.NormalizeHost(record.Target)
	switch {
	case err != nil:
		return err
	case record.Port == 0:
		return fmt.Errorf("%s: port 0 cannot be called", host)
	}
	c.host, c.port = host, record.Port
	if c.judge != nil {
		if err := c.judge.port(c); err != nil {
			c.host = ""
			return err
		}
	}
	if !literal.IsValid() {
		return nil
	}
	err = c.resolve(context.Background(), literal)
	if err != nil {
		c.host = ""
	}
	return err
}

// errNotYet is the end of atOnce.
var errNotYet = errors.New("not known yet")

// atOnce is the context of a lookup that does not wait: if the answer is not
// known, it is asked for, for whoever comes back.
var atOnce = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errNotYet)
	return ctx
}()

// endOf returns where the priority ends that begins at a record.
func (s *serviceCall) endOf(from int) int {
	to := from
	for to < len(s.records) && s.records[to].Priority == s.records[from].Priority {
		to++
	}
	return to
}

// resolveNext resolves the targets of the next priority.
func (s *serviceCall) resolveNext(ctx context.Context) {
	from := s.resolved
	s.resolved = s.endOf(from)
	end := s.end
	if next := time.Now().Add(priorityWait); s.resolved < len(s.records) && next.Before(end) {
		end = next
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	group := s.calls[from:s.resolved]

	some := false
	var unknown, stale []*call
	for i := range group {
		c := &group[i].call
		if c.host == "" || len(c.addrs) > 0 {
			some = some || c.host != ""
			continue
		}
		switch err := c.resolve(atOnce, netip.Addr{}); {
		case errors.Is(err, errNotYet):
			unknown = append(unknown, c)
		case err != nil:
			s.failed(err)
		case c.lookup == "stale":
			stale = append(stale, c) // what is known may be over by the time that they have waited
		default:
			some = true
		}
	}
	for _, c := range stale { // they may have to wait, all for the same time
		if err := c.resolve(ctx, netip.Addr{}); err != nil {
			s.failed(err)
			continue
		}
		some = true
	}
	if len(unknown) > 0 {
		s.await(ctx, unknown, some)
	}
	for i := range group {
		if n := &group[i]; len(n.call.addrs) > 0 {
			n.call.pass.named = append(n.call.pass.named, n)
		}
	}
}

// await resolves targets that were not known: as many as come in time, if there
// are others, or the first of them and those that follow soon.
func (s *serviceCall) await(ctx context.Context, calls []*call, others bool) {
	type result struct {
		i   int
		a   answer
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(calls))
	for i, c := range calls {
		c := *c
		go func() {
			err := c.resolve(ctx, netip.Addr{})
			results <- result{i, c.answer, err}
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
			calls[r.i].answer = r.a
			if grace == nil && !others {
				others, grace = true, time.After(serviceGrace)
			}
		case <-grace:
			cancel() // the lookups go on, without us
			grace = nil
		}
	}
}

// standing is how well a call can be made now.
type standing int

const (
	fit    standing = iota // it has an address that works, or may by now
	unfit                  // it has no address left that works
	used                   // all its addresses were tried
	absent                 // it has none
)

// standing returns how well c can be made now.
func (u *Upstreams) standing(c *call) standing {
	best, p := absent, u.policy(c)
	for _, a := range c.addrs {
		switch v, n := u.usable(c, &p, a); {
		case n == worn || n == spent:
			best = min(best, used)
		case v == health.Ejected:
			best = min(best, unfit)
		default:
			return fit
		}
	}
	return best
}

// offerService returns upstreams for the addresses of a service that should be
// tried now: of the first priority that has one that works; else of the first
// of those that are left, for some address has to be tried.
func (u *Upstreams) offerService(ctx context.Context, s *serviceCall) ([]*reverseproxy.Upstream, error) {
	for i := range s.calls {
		s.calls[i].offers = nil
	}
	var candidates []candidate
	best := absent
	for from := 0; from < len(s.records) && best > fit; {
		if from == s.resolved {
			s.resolveNext(ctx)
		}
		to := s.endOf(from)
		for i := from; i < to; i++ {
			n := &s.calls[i]
			switch st := u.standing(&n.call); {
			case st == absent || st > best:
			case st == best && candidates[0].priority == s.records[i].Priority:
				candidates = append(candidates, candidate{n, s.records[i].Priority, s.records[i].Weight})
			case st < best:
				best = st
				candidates = append(candidates[:0], candidate{n, s.records[i].Priority, s.records[i].Weight})
			}
		}
		from = to
	}
	if best > fit && len(candidates) > 0 && s.renew(ctx) {
		return u.offerService(ctx, s)
	}
	if len(candidates) == 0 {
		switch {
		case s.err == nil:
			return nil, fmt.Errorf("%s: the service is not offered", s.name)
		case errors.Is(s.err, context.DeadlineExceeded):
			return nil, fmt.Errorf("%s: no address of a host of the service came in time", s.name)
		}
		return nil, fmt.Errorf("%s: %w", s.name, s.err)
	}
	random := rand.Uint64N
	if s.drawn {
		random = func(uint64) uint64 { return 0 } // the first one
	}
	drawn := draw(candidates, random)
	return u.offerRecords(ctx, drawn, len(drawn) < len(candidates) || s.resolved < len(s.records)), nil
}

// renew asks for the addresses of all hosts again, once, and tells whether there
// are others now.
func (s *serviceCall) renew(ctx context.Context) (changed bool) {
	if s.renewed {
		return false
	}
	s.renewed = true
	for i := range s.calls[:s.resolved] {
		if c := &s.calls[i].call; len(c.addrs) > 0 {
			changed = c.renew(ctx) || changed
		}
	}
	return changed
}

// candidate is a record whose addresses may be offered.
type candidate struct {
	call             *namedCall
	priority, weight uint16
}

// draw returns the candidates to offer: all of them if their weights are equal;
// else one, at random in proportion to the weights, so that they hold whatever
// chooses among what is offered.
func draw(candidates []candidate, random func(n uint64) uint64) []candidate {
	equal := true
	sum := uint64(0)
	for _, c := range candidates {
		equal = equal && c.weight == candidates[0].weight
		sum += c.share()
	}
	if equal {
		return candidates
	}
	at := random(sum)
	for i, c := range candidates {
		if at < c.share() {
			return candidates[i : i+1]
		}
		at -= c.share()
	}
	return candidates[:1] // never: at is less than sum
}

func (c candidate) share() uint64 { return max(1, weightUnit*uint64(c.weight)) }

// offerRecords returns upstreams for the addresses of some records; more says
// whether there are others.
func (u *Upstreams) offerRecords(ctx context.Context, candidates []candidate, more bool) []*reverseproxy.Upstream {
	total := 0
	for _, c := range candidates {
		total += len(c.call.call.addrs)
	}
	if total > u.MaxUpstreams && !u.sticky {
		// not always the same ones: the others would never be called
		at := rand.IntN(len(candidates))
		candidates = slices.Concat(candidates[at:], candidates[:at])
	}
	var buf [defaultMaxUpstreams]netip.AddrPort
	addrs := buf[:0]
	type part struct {
		of       *namedCall
		from, to int
	}
	var partsBuf [defaultMaxUpstreams]part
	parts := partsBuf[:0]
	for _, c := range candidates {
		if len(addrs) == u.MaxUpstreams {
			break
		}
		chosen := u.choose(ctx, &c.call.call)
		if chosen.trial { // this request tries it
			addrs, parts = addrs[:0], parts[:0]
		}
		c.call.call.more = chosen.more
		from := len(addrs)
		for k := range chosen.len(u.MaxUpstreams - from) {
			addrs = append(addrs, netip.AddrPortFrom(chosen.at(k), c.call.call.port))
		}
		parts = append(parts, part{c.call, from, len(addrs)})
		if chosen.trial {
			break
		}
	}
	upstreams := upstreamsFor(addrs)
	for _, p := range parts {
		p.of.offers = upstreams[p.from:p.to]
		p.of.call.more = p.of.call.more || more || len(addrs) > 1
	}
	return upstreams
}

// attempts returns how many addresses were tried for the request.
func (c *call) attempts() (n int) {
	for other := range c.inPass().calls(c) {
		n += len(other.tried)
	}
	return n
}

// lookupService returns the SRV records of a name in normal form, which belong
// to the cache.
func (r *resolver) lookupService(ctx context.Context, name string) ([]net.SRV, error) {
	if isLocalhost(name) || neverAsked(name) {
		return nil, errNeverAsked(name)
	}
	a, err := r.zoneOf(name).cache.LookupSRV(ctx, name)
	if errors.Is(err, dnscache.ErrClosed) {
		again, err := r.again()
		if err != nil {
			return nil, err
		}
		defer func() { _ = again.release() }()
		return again.lookupService(ctx, name)
	}
	return a.Records, err
}
