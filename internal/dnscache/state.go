package dnscache

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// family is one of the two address families.
type family uint8

const (
	v4 family = iota
	v6
)

func (f family) qtype() uint16 {
	if f == v6 {
		return TypeAAAA
	}
	return TypeA
}

// serviceRecords is the Family of a service, whose records take the place of the
// addresses of v4.
const serviceRecords Family = 0xff

// families returns the families to ask for, the first to be offered first.
func families(order Family) []family {
	switch order {
	case IPv4, serviceRecords:
		return []family{v4}
	case IPv6:
		return []family{v6}
	case PreferIPv4:
		return []family{v4, v6}
	default:
		return []family{v6, v4}
	}
}

// reply is what came back for one family.
type reply struct {
	family family
	done   bool          // false: not asked for, or no reply yet
	at     time.Duration // when it came
	ttl    time.Duration
	err    error

	addrs   []netip.Addr
	records []net.SRV // of a service, instead of addrs
}

func (r *reply) empty() bool { return len(r.addrs) == 0 && len(r.records) == 0 }

// state is what is known of a name beyond what a hit needs. It is immutable once
// its entry is published.
type state struct {
	node  *node
	err   error         // what readers get if there are no addresses, or why a family is missing
	errAt time.Duration // when err came back

	// By family.
	expires      [2]time.Duration // when the last good answer expires, which may have been before the start of the clock; without addresses: the NODATA, see holdsNoData
	refreshAfter [2]time.Duration // from then on a lookup of the name asks for this family too
	retryAfter   [2]time.Duration // a family that failed is not asked for before that
	count        [2]uint16        // addresses of the last good answer
	failures     [2]uint8         // failed lookups in a row

	order        Family // in which the addresses are offered
	known        bool   // a lookup has ended
	renewals     uint8  // see Renew: lookups in a row that brought nothing new
	learnedStale bool   // the addresses had expired when the lookup ended
	restored     bool   // it is not from a lookup: see Import
	slow         bool   // the lookup took longer than slowAfter
	negative     bool   // there are no addresses, and err is no failure
}

const (
	// maxAddrs is how many addresses of a family are kept.
	maxAddrs = 1000

	// maxRecords is how many records of a service are kept: those that a client
	// has to use first.
	maxRecords = 1000
)

// errNoAddress stands for a reply without addresses and without error.
var errNoAddress = errors.New("no addresses")

// merge makes the next entry of a name from the last one and from what came
// back for each family. A family that failed, is late or was not asked for
// keeps the addresses it had. It is never taken to have none, not even if the reply
// for the other family is that the name does not exist: nameservers that give that
// reply for AAAA alone are not rare (RFC 4074, section 4.2).
func merge(cfg *Config, last *entry, got [2]reply, order Family, now time.Duration) *entry {
	old := last.state
	s := &state{node: old.node, order: order, known: true}
	e := newEntry(last.name(), last.size, s)
	var addrs [2][]netip.Addr
	var records []net.SRV // of a service
	keep := func(f family) {
		if old.count[f] > 0 && now < old.expires[f]+max(cfg.Stale, 0) {
			s.count[f], s.expires[f], s.refreshAfter[f] = old.count[f], old.expires[f], old.refreshAfter[f]
			addrs[f], records = last.addrsOf(f), last.records()
		}
	}
	jitter := rand.Float64()
	var failure, negative error // if both families have one, that of IPv4
	notFound, negativeUntil := false, now+cfg.MaxTTL
	for _, f := range families(order) {
		r := &got[f]
		if !r.done {
			keep(f)
			if old.count[f] == 0 {
				s.expires[f] = old.expires[f]
			}
			s.failures[f], s.retryAfter[f] = old.failures[f], old.retryAfter[f]
			if s.failures[f] > 0 && failure == nil {
				failure, s.errAt = old.err, old.errAt
			}
			continue
		}
		if r.err == nil && !r.empty() {
			ttl := min(max(r.ttl, cfg.MinTTL), cfg.MaxTTL)
			s.expires[f], s.refreshAfter[f] = r.at+ttl, r.at+ttl*3/4
			addrs[f], records = sortAddrs(e.name(), r.addrs), sortRecords(r.records)
			s.count[f] = uint16(len(addrs[f]) + len(records))
			continue
		}
		if ttl, ok := negativeTTL(cfg, r.err); ok {
			negativeUntil = min(negativeUntil, r.at+ttl)
			if hasNoDataTTL(r.err) {
				s.expires[f] = r.at + min(ttl, cfg.MaxTTL)
			}
			if isNotFound(r.err) {
				notFound, negative = true, r.err
			} else if negative == nil || f == v4 && !notFound {
				negative = cmp.Or(r.err, errNoAddress)
			}
			continue
		}
		if failure == nil || f == v4 {
			failure, s.errAt = r.err, r.at
		}
		keep(f)
		if isOutage(r.err) || r.err == ErrOverloaded {
			s.failures[f] = old.failures[f]
		} else {
			s.failures[f] = min(old.failures[f], 10) + 1
			s.retryAfter[f] = now + backoff(s.failures[f], jitter)
		}
	}
	if e.isService() {
		e.setRecords(records)
	} else {
		e.setAddrs(offer(order, addrs))
	}
	s.err = failure
	switch {
	case e.count > 0:
		e.expires = s.expiry(now)
		s.learnedStale = e.expires <= now
		e.limitNoData(cfg, got, now)
	case failure == nil:
		s.err, s.errAt, s.negative, e.expires = negative, now, true, negativeUntil
	default:
		// a failure is remembered until it may be asked for again
		e.expires = max(s.nextRetry(), now)
	}
	return e
}

// limitNoData makes a NODATA count only if it holds for longer than the addresses, and
// sees to it that its family is asked for when it ends.
func (e *entry) limitNoData(cfg *Config, got [2]reply, now time.Duration) {
	s := e.state
	for f := range got {
		switch {
		case s.count[f] > 0:
		case got[f].done && s.expires[f] <= s.expires[1-f]:
			s.expires[f] = 0 // this family is asked for whenever the other one is
		case cfg.Refresh < 0 && !s.node.pinned.Load() && s.holdsNoData(family(f), now):
			e.expires = min(e.expires, s.expires[f]) // there is no scheduler that would ask
		}
	}
}

// expiry returns when the answer expires: as soon as one of the families that hold
// now does, or, if none holds, when the last one did.
func (s *state) expiry(now time.Duration) time.Duration {
	first, last := maxDuration, -maxDuration
	for f, at := range s.expires {
		if s.count[f] == 0 {
			continue
		}
		last = max(last, at)
		if at > now {
			first = min(first, at)
		}
	}
	if first == maxDuration {
		return last
	}
	return first
}

// staleUntil returns until when the addresses may be served while lookups fail.
func (e *entry) staleUntil(cfg *Config) (until time.Duration) {
	for f, n := range e.state.count {
		if n > 0 {
			until = max(until, e.state.expires[f]+max(cfg.Stale, 0))
		}
	}
	return until
}

// nextRetry returns when the first of the families that failed may be asked for
// again; 0: none failed.
func (s *state) nextRetry() time.Duration {
	if s.retryAfter[v4] == 0 || s.retryAfter[v6] == 0 {
		return max(s.retryAfter[v4], s.retryAfter[v6])
	}
	return min(s.retryAfter[v4], s.retryAfter[v6])
}

// mayAsk reports whether a lookup makes sense: a family has addresses and did not
// fail just now, or one that failed may be asked for again.
func (s *state) mayAsk(now time.Duration) bool {
	for f, n := range s.count {
		if n > 0 && now >= s.retryAfter[f] {
			return true
		}
	}
	return now >= s.nextRetry()
}

// onlyNoDataEnded reports whether a NODATA has ended, but addresses that hold need no
// refresh yet.
func (s *state) onlyNoDataEnded(now time.Duration) bool {
	for f, n := range s.count {
		if n == 0 && s.expires[f] > 0 && s.expires[f] <= now {
			return now < s.refreshAfter[1-f]
		}
	}
	return false
}

// learnedAt returns when the addresses came.
func (s *state) learnedAt() (at time.Duration) {
	for f, n := range s.count {
		if n > 0 {
			at = max(at, s.expires[f]-4*(s.expires[f]-s.refreshAfter[f])) // see merge
		}
	}
	return at
}

// likelySlow reports whether the next lookup is likely to take long, because the
// last one did or failed.
func (s *state) likelySlow() bool { return s.failing() || s.slow }

// failing reports whether a family failed when it was last asked for.
func (s *state) failing() bool { return s.failures[v4] > 0 || s.failures[v6] > 0 }

// holdsNoData reports whether f need not be asked for, since the last reply for it
// was NODATA and that holds by its own TTL (RFC 2308, section 5). It has to be asked
// for if the other family has no addresses or fails: then the name needs them.
func (s *state) holdsNoData(f family, now time.Duration) bool {
	return s.count[f] == 0 && now < s.expires[f] && s.count[1-f] > 0 && !s.failing()
}

// wanted returns the families that a lookup should ask for. It leaves out those
// whose NODATA holds, those that failed just now, and those that need no refresh yet.
// A renewal leaves out only those that failed just now. If that leaves none, it
// returns all but those whose NODATA holds.
func (s *state) wanted(order Family, now time.Duration, renewal bool) []family {
	all := families(order)
	if len(all) > 1 && !renewal {
		all = slices.DeleteFunc(all, func(f family) bool { return s.holdsNoData(f, now) })
	}
	wanted := slices.DeleteFunc(slices.Clone(all), func(f family) bool { return !s.wants(f, now, renewal) })
	if len(wanted) == 0 {
		return all
	}
	return wanted
}

// queryCost returns how many families the next lookup asks for: see wanted.
func (s *state) queryCost(now time.Duration, renewal bool) int {
	all, wanted := 0, 0
	for _, f := range families(s.order) {
		if !renewal && s.holdsNoData(f, now) {
			continue
		}
		all++
		if s.wants(f, now, renewal) {
			wanted++
		}
	}
	return cmp.Or(wanted, all)
}

// overdueAt returns when there is just enough time left to ask for f again before
// its answer expires.
func (s *state) overdueAt(f family) time.Duration {
	return s.refreshAfter[f] + (s.expires[f]-s.refreshAfter[f])/2
}

// untilOverdue returns how long a lookup of the families asked may take before
// the other family, if its answer holds, is overdue; else math.MaxInt64.
func (s *state) untilOverdue(asked []family, now time.Duration) time.Duration {
	rest := time.Duration(math.MaxInt64)
	for f, n := range s.count {
		if f := family(f); n > 0 && now < s.refreshAfter[f] && !slices.Contains(asked, f) {
			rest = min(rest, s.overdueAt(f)-now)
		}
	}
	return rest
}

// wants reports whether a lookup should ask for a family whose NODATA does not hold,
// if that goes by this family alone.
func (s *state) wants(f family, now time.Duration, renewal bool) bool {
	fresh := s.count[f] > 0 && now < s.refreshAfter[f]
	return (!fresh || renewal) && now >= s.retryAfter[f]
}

// offer merges the addresses of both families in the order in which they are
// offered. The first preferred of them are of the preferred family.
func offer(order Family, addrs [2][]netip.Addr) (all []netip.Addr, preferred int) {
	var lists [2][]netip.Addr
	for i, f := range families(order) {
		lists[i] = addrs[f]
	}
	first, second := lists[0], lists[1]
	switch {
	case len(second) == 0:
		return first, len(first)
	case len(first) == 0:
		return second, len(second)
	case order == Interleaved:
		all = make([]netip.Addr, 0, len(first)+len(second))
		for i := range max(len(first), len(second)) {
			if i < len(first) {
				all = append(all, first[i])
			}
			if i < len(second) {
				all = append(all, second[i])
			}
		}
		return all, len(all)
	default:
		all = append(make([]netip.Addr, 0, len(first)+len(second)), first...)
		return append(all, second...), len(first)
	}
}

// addrsOf returns the addresses of one family: it takes apart what offer has
// merged.
func (e *entry) addrsOf(wanted family) []netip.Addr {
	all, s := e.addrs(), e.state
	if int(s.count[wanted]) == len(all) {
		return all
	}
	list := make([]netip.Addr, 0, s.count[wanted])
	order := families(s.order)
	for left := s.count; len(all) > 0; {
		for _, f := range order {
			n := uint16(1)
			if s.order != Interleaved {
				n = left[f]
			}
			n = min(n, left[f])
			if f == wanted {
				list = append(list, all[:n]...)
			}
			all, left[f] = all[n:], left[f]-n
		}
	}
	return list
}

// sortRecords sorts the records of a service: by priority, which a client has to
// follow, and then in an order that is the same at every lookup. It leaves out what
// is beyond maxRecords.
func sortRecords(records []net.SRV) []net.SRV {
	list := slices.Clone(records)
	slices.SortFunc(list, func(a, b net.SRV) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(b.Weight, a.Weight),
			cmp.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
	})
	list = slices.Compact(list)
	return slices.Clone(list[:min(len(list), maxRecords)])
}

// sortAddrs sorts addresses in an order that is the same at every lookup and in
// every instance, but differs between names. So names spread over all addresses if
// there are more of them than are used.
func sortAddrs(name string, addrs []netip.Addr) []netip.Addr {
	switch len(addrs) {
	case 0:
		return nil
	case 1:
		return []netip.Addr{addrs[0]} // without the array that it came in
	}
	type ranked struct {
		rank uint64
		addr netip.Addr
	}
	h := fnv.New64a()
	h.Write([]byte(name))
	seed := h.Sum64()
	list := make([]ranked, len(addrs))
	for i, a := range addrs {
		b := a.As16()
		rank := mix(seed ^ binary.BigEndian.Uint64(b[:8]))
		list[i] = ranked{mix(rank ^ binary.BigEndian.Uint64(b[8:])), a}
	}
	slices.SortFunc(list, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), a.addr.Compare(b.addr))
	})
	list = slices.Compact(list)
	sorted := make([]netip.Addr, min(len(list), maxAddrs))
	for i := range sorted {
		sorted[i] = list[i].addr
	}
	return sorted
}

// mix spreads the bits of x (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// backoff returns how long to wait after so many failures in a row: 1, 2, 4 …
// 30 seconds. The jitter, from 0 to 1, changes it by up to a quarter, so that names
// that failed together are not asked for together. It makes the last pause shorter
// and the others longer, since RFC 9520 asks for at least a second.
func backoff(failures uint8, jitter float64) time.Duration {
	d := float64(time.Second << (failures - 1))
	return time.Duration(min(d*(1+jitter/4), float64(maxBackoff)*(1-jitter/4)))
}

// negativeTTL returns how long an error holds as a negative answer (RFC 2308), and
// false if it is no negative answer. A reply without addresses and without error is
// one.
func negativeTTL(cfg *Config, err error) (time.Duration, bool) {
	ttl := time.Duration(-1)
	if err != nil {
		var ok bool
		if ttl, ok = negative(err); !ok {
			return 0, false
		}
	}
	if ttl < 0 {
		ttl = noSOATTL
	}
	return min(max(ttl, cfg.MinTTL), cfg.NegativeTTL), true
}

// hasNoDataTTL reports whether an error is a NODATA with a TTL of its own. NXDOMAIN is
// not: it is about the name. NODATA without SOA has no TTL, and has to be asked for
// each time (RFC 2308, section 5).
func hasNoDataTTL(err error) bool {
	ttl, ok := negative(err)
	return ok && ttl >= 0 && !isNotFound(err)
}

// IsNegative reports whether an error of a lookup is an answer: that there is no such
// name, or no record of the type (RFC 2308).
func IsNegative(err error) bool {
	_, ok := negative(err)
	return ok
}

// negative returns the TTL of a negative answer, which is below zero if it has none.
func negative(err error) (ttl time.Duration, ok bool) {
	var e interface {
		Negative() (ttl time.Duration, ok bool)
	}
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.Negative()
}

func isNotFound(err error) bool {
	var e interface{ NotFound() bool }
	return errors.As(err, &e) && e.NotFound()
}

// isOutage reports whether the question was not asked.
func isOutage(err error) bool {
	var e interface{ Outage() bool }
	return errors.As(err, &e) && e.Outage() || err == ErrClosed
}
