package dnscache

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"math"
	"math/rand/v2"
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

// families returns the families to ask for, the first to be offered first.
func families(order Family) []family {
	switch order {
	case IPv4:
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
	done   bool          // false: not asked, or no reply yet
	at     time.Duration // when it came
	addrs  []netip.Addr
	ttl    time.Duration
	err    error
}

// record is the last good answer for one family of a name.
type record struct {
	addrs   []netip.Addr
	expires time.Duration
	ripe    time.Duration // a lookup of the name asks for this family too from then on
}

// state is all that is known of a name. It is immutable.
type state struct {
	addrs     []netip.Addr  // what readers get
	expires   time.Duration // until then it is served without asking again
	preferred int32
	stale     bool     // addrs had expired when this was learned
	slow      bool     // it took long to learn this
	fails     [2]uint8 // by family: failed lookups in a row
	err       error    // what readers get if there are no addresses, or why a family is missing

	staleUntil time.Duration    // until then addrs may be served while asking fails
	retry      [2]time.Duration // by family: one that failed is not asked for again before

	records [2]*record // by family; nil: no addresses
}

// maxAddrs is how many addresses of a family are kept.
const maxAddrs = 64

// errNoAddress stands for a reply without addresses and without error.
var errNoAddress = errors.New("no addresses")

// merge makes the next state of a name from the last one and from what came
// back for each family. A family that failed, is late or was not asked for
// keeps the addresses it had, and is never taken to have none.
func merge(cfg *Config, name string, old *state, got [2]reply, order Family, now time.Duration) *state {
	if old == nil {
		old = new(state)
	}
	s := new(state)
	jitter := rand.Float64()
	var failure, negative error
	notFound, negativeUntil := false, now+cfg.MaxTTL
	for _, f := range families(order) {
		r := &got[f]
		if !r.done {
			s.records[f], s.fails[f], s.retry[f] = old.lasting(f, cfg, now), old.fails[f], old.retry[f]
			if s.fails[f] > 0 {
				failure = cmp.Or(failure, old.err)
			}
			continue
		}
		if r.err == nil && len(r.addrs) > 0 {
			ttl := min(max(r.ttl, cfg.MinTTL), cfg.MaxTTL)
			s.records[f] = &record{inOrder(name, r.addrs), r.at + ttl, r.at + ttl*3/4}
			continue
		}
		if ttl, ok := negativeTTL(cfg, r.err); ok {
			negativeUntil = min(negativeUntil, r.at+ttl)
			if isNotFound(r.err) {
				notFound, negative = true, r.err
			} else if negative == nil {
				negative = cmp.Or(r.err, errNoAddress)
			}
			continue
		}
		failure = cmp.Or(failure, r.err)
		s.records[f] = old.lasting(f, cfg, now)
		if isOutage(r.err) {
			s.fails[f] = old.fails[f]
		} else {
			s.fails[f] = min(old.fails[f], 10) + 1
			s.retry[f] = now + backoff(s.fails[f], jitter)
		}
	}
	if notFound {
		// It is the name that does not exist: what a family had, but could not
		// be asked for now, does not exist either.
		failure, s.fails, s.retry = nil, [2]uint8{}, [2]time.Duration{}
		for f, r := range s.records {
			if r != nil && r.expires <= now {
				s.records[f] = nil
			}
		}
	}

	var preferred int
	s.addrs, preferred = offer(order, s.records)
	s.preferred = int32(preferred)
	s.err = failure
	switch {
	case len(s.addrs) > 0:
		s.expires = s.lifetime(now)
		s.stale = s.expires <= now
		for _, r := range s.records {
			if r != nil {
				s.staleUntil = max(s.staleUntil, r.expires+max(cfg.Stale, 0))
			}
		}
	case failure == nil:
		s.err, s.expires = negative, negativeUntil
	default:
		// a failure is remembered for as long as it is not tried again
		s.expires = max(s.nextRetry(), now)
	}
	return s
}

// lifetime returns when the first of the families that hold now expires, so
// that one that lives on does not make the answer of the other one stale; if
// none holds, when the last one expired.
func (s *state) lifetime(now time.Duration) time.Duration {
	var first, last time.Duration
	for _, r := range s.records {
		if r == nil {
			continue
		}
		last = max(last, r.expires)
		if r.expires > now && (first == 0 || r.expires < first) {
			first = r.expires
		}
	}
	return cmp.Or(first, last)
}

// nextRetry returns when the first of the families that failed may be asked for
// again; 0: none failed.
func (s *state) nextRetry() time.Duration {
	if s.retry[v4] == 0 || s.retry[v6] == 0 {
		return max(s.retry[v4], s.retry[v6])
	}
	return min(s.retry[v4], s.retry[v6])
}

// limited says whether the next lookup is likely to take long.
func (s *state) limited() bool { return s.failing() || s != nil && s.slow }

// failing says whether a family failed when it was last asked for.
func (s *state) failing() bool {
	return s != nil && (s.fails[v4] > 0 || s.fails[v6] > 0)
}

// wanted returns the families that a lookup should ask for: not those that have
// most of their time before them, nor those that failed just now.
func (s *state) wanted(order Family, now time.Duration) []family {
	all := families(order)
	if s == nil {
		return all
	}
	wanted := slices.DeleteFunc(slices.Clone(all), func(f family) bool {
		r := s.records[f]
		return r != nil && now < r.ripe || now < s.retry[f]
	})
	if len(wanted) == 0 {
		return all
	}
	return wanted
}

// overdue returns when there is just enough time left to ask for r again.
func (r *record) overdue() time.Duration { return r.ripe + (r.expires-r.ripe)/2 }

// patience returns how long a lookup of the families asked may take before
// another one, which holds, has to be asked for again.
func (s *state) patience(asked []family, now time.Duration) time.Duration {
	least := time.Duration(math.MaxInt64)
	if s != nil {
		for f, r := range s.records {
			if r != nil && now < r.ripe && !slices.Contains(asked, family(f)) {
				least = min(least, r.overdue()-now)
			}
		}
	}
	return least
}

// lasting returns what s knows of a family, if that may still be served.
func (s *state) lasting(f family, cfg *Config, now time.Duration) *record {
	if r := s.records[f]; r != nil && now < r.expires+max(cfg.Stale, 0) {
		return r
	}
	return nil
}

// offer merges the families in the order they are offered.
func offer(order Family, records [2]*record) (addrs []netip.Addr, preferred int) {
	var lists [2][]netip.Addr
	for i, f := range families(order) {
		if r := records[f]; r != nil {
			lists[i] = r.addrs
		}
	}
	first, second := lists[0], lists[1]
	switch {
	case len(second) == 0:
		return first, len(first)
	case len(first) == 0:
		return second, len(second)
	case order == Interleaved:
		addrs = make([]netip.Addr, 0, len(first)+len(second))
		for i := range max(len(first), len(second)) {
			if i < len(first) {
				addrs = append(addrs, first[i])
			}
			if i < len(second) {
				addrs = append(addrs, second[i])
			}
		}
		return addrs, len(addrs)
	default:
		addrs = append(make([]netip.Addr, 0, len(first)+len(second)), first...)
		return append(addrs, second...), len(first)
	}
}

// inOrder sorts addresses in an order that is the same at every lookup, in
// every instance, but differs between names: where more addresses come back
// than are used, names spread over all of them.
func inOrder(name string, addrs []netip.Addr) []netip.Addr {
	if len(addrs) == 1 {
		return []netip.Addr{addrs[0]} // whatever array it came in
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
// 30 seconds. The jitter, of 0 to 1, changes it by up to a quarter (to more, but
// for the last, since RFC 9520 asks for a second at least), so that names that
// failed together are not asked for together.
func backoff(fails uint8, jitter float64) time.Duration {
	d := float64(time.Second << (fails - 1))
	return time.Duration(min(d*(1+jitter/4), float64(maxBackoff)*(1-jitter/4)))
}

// negativeTTL returns how long an error holds as an answer (RFC 2308), and
// false if it is none. An answer without addresses and without error is taken
// for one.
func negativeTTL(cfg *Config, err error) (time.Duration, bool) {
	ttl := time.Duration(-1)
	if err != nil {
		var e interface {
			Negative() (ttl time.Duration, ok bool)
		}
		if !errors.As(err, &e) {
			return 0, false
		}
		var ok bool
		if ttl, ok = e.Negative(); !ok {
			return 0, false
		}
	}
	if ttl < 0 {
		ttl = noSOATTL
	}
	return min(max(ttl, cfg.MinTTL), cfg.NegativeTTL), true
}

func isNotFound(err error) bool {
	var e interface{ NotFound() bool }
	return errors.As(err, &e) && e.NotFound()
}

// isOutage says whether nothing was asked.
func isOutage(err error) bool {
	var e interface{ Outage() bool }
	return errors.As(err, &e) && e.Outage() || err == ErrClosed
}
