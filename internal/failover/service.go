package failover

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"

	"caddytarget/internal/health"
)

// Service chooses among the records of a service (RFC 2782): those of the lowest
// priority number that has a healthy address, and if their weights differ one of
// them, in proportion.
type Service struct {
	records  []Record
	names    Names
	resolved int  // so many of records, from the first, were resolved: whole priorities
	renewed  bool // the addresses were asked for again
	drawn    bool // the first record of a priority was chosen by the weights
}

// Record is one record of a service.
type Record struct {
	*Target
	Priority, Weight uint16
}

// Names finds the addresses of the records of a service.
type Names interface {
	// Resolve sets the addresses of the records from one to before another, which are
	// those of one priority; last says that there are no more.
	Resolve(ctx context.Context, from, to int, last bool)

	// Renew asks again for the addresses of a record that was resolved, and reports
	// whether they have changed.
	Renew(ctx context.Context, record int) (changed bool)
}

// NewService returns a service with records by priority, as Sample returns them.
func NewService(records []Record, drawn bool, names Names) *Service {
	s := &Service{records: records, names: names, drawn: drawn}
	for _, r := range records {
		r.service = s
	}
	return s
}

// Part is a record whose addresses are offered: those from one to before another.
type Part struct{ Record, From, To int }

// weightUnit is what a weight of 1 counts beside one of 0, which RFC 2782 gives "a
// very small chance".
const weightUnit = 256

func share(weight uint16) uint64 { return max(1, weightUnit*uint64(weight)) }

// availability is how well a target can be called now.
type availability int

const (
	available availability = iota // an address is healthy, or its ejection is over
	ejected                       // every address that was not tried is ejected
	tried                         // every address was tried
	absent                        // it has no address
)

// availability returns how well a target can be called now.
func (s *Source) availability(plan *Plan, t *Target) availability {
	best, p := absent, s.policy(t)
	for _, a := range t.Addrs {
		switch state, n := s.state(plan, t, &p, a); {
		case n == retryable || n == exhausted:
			best = min(best, tried)
		case state != health.Ejected:
			return available
		default:
			best = min(best, ejected)
		}
	}
	return best
}

// Next returns the addresses of records to try now, and which of them are whose: those of
// the first priority that has a healthy one. If none has, it asks for the addresses of
// all records again, once. If that does not help, it returns those of the first priority
// that has any left, for some address has to be tried. found is false if no record has an
// address.
func (s *Service) Next(ctx context.Context, src *Source, plan *Plan, resendable bool) (addrs []netip.AddrPort, parts []Part, found bool) {
	for _, r := range s.records {
		r.offered = 0
	}
	candidates, best := s.candidates(ctx, src, plan)
	if best > available && len(candidates) > 0 && s.renew(ctx) {
		candidates, _ = s.candidates(ctx, src, plan)
	}
	if len(candidates) == 0 {
		return nil, nil, false
	}
	random := rand.Uint64N
	if s.drawn {
		random = func(uint64) uint64 { return 0 } // the first one
	}
	selected := s.draw(candidates, random)
	others := len(selected) < len(candidates) || s.resolved < len(s.records)
	addrs, parts = s.offer(ctx, src, plan, selected, others, resendable)
	return addrs, parts, true
}

// candidates returns the places of the records whose addresses may be offered, all of one
// priority, and how well they can be called. It resolves what it has to know.
func (s *Service) candidates(ctx context.Context, src *Source, plan *Plan) (list []int, best availability) {
	best = absent
	for from := 0; from < len(s.records) && best > available; {
		to := s.endOf(from)
		if from == s.resolved {
			s.resolve(ctx, plan, to)
		}
		for i := from; i < to; i++ {
			switch a := src.availability(plan, s.records[i].Target); {
			case a == absent || a > best:
			case a == best && s.records[list[0]].Priority == s.records[i].Priority:
				list = append(list, i)
			case a < best:
				best, list = a, append(list[:0], i)
			}
		}
		from = to
	}
	return list, best
}

// endOf returns where the priority ends that begins at a record.
func (s *Service) endOf(from int) int {
	to := from
	for to < len(s.records) && s.records[to].Priority == s.records[from].Priority {
		to++
	}
	return to
}

// resolve resolves the names of the next priority.
func (s *Service) resolve(ctx context.Context, plan *Plan, to int) {
	s.names.Resolve(ctx, s.resolved, to, to == len(s.records))
	for _, r := range s.records[s.resolved:to] {
		if len(r.Addrs) > 0 {
			plan.Add(r.Target)
		}
	}
	s.resolved = to
}

// renew asks for the addresses of all records again, once, and reports whether there
// are others now.
func (s *Service) renew(ctx context.Context) (changed bool) {
	if s.renewed {
		return false
	}
	s.renewed = true
	for i, r := range s.records[:s.resolved] {
		if len(r.Addrs) > 0 {
			changed = s.names.Renew(ctx, i) || changed
		}
	}
	return changed
}

// draw returns which of some candidates are offered: all if their weights are equal;
// else one, at random in proportion to the weights, so that they hold whatever
// selects among what is offered.
func (s *Service) draw(candidates []int, random func(n uint64) uint64) []int {
	equal, sum := true, uint64(0)
	for _, i := range candidates {
		equal = equal && s.records[i].Weight == s.records[candidates[0]].Weight
		sum += share(s.records[i].Weight)
	}
	if equal {
		return candidates
	}
	at := random(sum)
	for k, i := range candidates {
		n := share(s.records[i].Weight)
		if at < n {
			return candidates[k : k+1]
		}
		at -= n
	}
	return candidates[:1] // never: at is less than sum
}

// offer returns the addresses of some records; others says that there are more
// records to try.
func (s *Service) offer(ctx context.Context, src *Source, plan *Plan, selected []int, others, resendable bool) (addrs []netip.AddrPort, parts []Part) {
	total := 0
	for _, i := range selected {
		total += len(s.records[i].Addrs)
	}
	if total > src.Max && !src.Sticky {
		// not always the same ones: the others would never be called
		at := rand.IntN(len(selected))
		selected = slices.Concat(selected[at:], selected[:at])
	}
	for _, i := range selected {
		if len(addrs) == src.Max {
			break
		}
		t := s.records[i].Target
		o := src.Next(ctx, plan, t, resendable)
		if o.trial { // this request tries it, and nothing else
			s.withdraw(parts)
			addrs, parts = addrs[:0], parts[:0]
		}
		from := len(addrs)
		addrs = o.Append(addrs, t.Port, src.Max-from)
		t.offered = len(addrs) - from
		parts = append(parts, Part{i, from, len(addrs)})
		if o.trial {
			break
		}
	}
	for _, p := range parts {
		t := s.records[p.Record].Target
		t.more = t.more || others || len(addrs) > 1
	}
	return addrs, parts
}

// withdraw takes back what was to be offered.
func (s *Service) withdraw(parts []Part) {
	for _, p := range parts {
		s.records[p.Record].offered = 0
	}
}
