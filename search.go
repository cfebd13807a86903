package caddytarget

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"caddytarget/internal/dnscache"
)

const (
	// maxName is the most octets of a name.
	maxName = 253

	// maxFound bounds the names of which it is remembered where they were found.
	maxFound = 10_000

	// warnAgain is how long after the last time it is logged that a domain fails.
	warnAgain = time.Hour
)

// searchList is what resolv.conf says about names that are not complete. It
// remembers where it found a name.
type searchList struct {
	domains []string
	ndots   int
	noTLD   bool // a name without dots is not tried as it is

	mu     sync.RWMutex
	found  map[string]found
	warned map[string]time.Time // when the log was last told that a domain fails
}

// found is what a name was found to be short for.
type found struct {
	name string
	at   time.Time
}

// newSearchList returns the search list of resolv.conf; nil if there is none.
func newSearchList(c *resolvConf) *searchList {
	if len(c.search) == 0 {
		return nil
	}
	return &searchList{
		domains: c.search[:min(len(c.search), maxSearch)], ndots: c.ndots, noTLD: c.noTLDQuery,
		found: make(map[string]found), warned: make(map[string]time.Time),
	}
}

// setSearch sets the search list to that of resolv.conf.
func (r *resolver) setSearch(c *resolvConf) {
	if len(c.search) > maxSearch {
		r.logger().Warn("too many search domains: the last ones are not used",
			zap.String("file", r.resolvConf), zap.Int("used", maxSearch), zap.Strings("unused", c.search[maxSearch:]))
	}
	s := newSearchList(c)
	if old := r.search.Load(); old != nil && s != nil &&
		old.ndots == s.ndots && old.noTLD == s.noTLD && slices.Equal(old.domains, s.domains) {
		return // and what was found stays known
	}
	r.search.Store(s)
}

// candidates returns what a name may be short for, in the order in which that
// is tried.
func (s *searchList) candidates(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		complete := strings.Count(name, ".") >= s.ndots
		if complete && !yield(name) {
			return
		}
		for _, domain := range s.domains {
			if len(name)+1+len(domain) <= maxName && !yield(name+"."+domain) {
				return
			}
		}
		if !complete && (!s.noTLD || strings.Contains(name, ".")) {
			yield(name)
		}
	}
}

// lookupSearching returns the addresses of the first of the candidates for a
// name that has any. If one has none, or could not be asked for, the next one is
// tried. But a name that was found before stays what it was found to be while
// asking fails, for as long as stale answers may serve: an outage must not turn it
// into another host, which only goes by the same name in another domain.
//
// The whole search has the deadline of one lookup.
func (r *resolver) lookupSearching(ctx context.Context, list *searchList, name string) (answer, error) {
	if _, ok := r.local(name); ok || neverAsked(name) {
		return r.lookupComplete(ctx, name)
	}
	s := &search{Context: ctx, request: ctx, r: r, list: list, name: name, left: len(list.domains) + 1, lookup: "hit"}
	var late []string
	for candidate := range list.candidates(name) {
		if s.waited >= time.Duration(r.config.Deadline) {
			s.note("", fmt.Errorf("searching for %s: %w", name, errLate))
			break
		}
		a, err := s.find(candidate)
		if err == nil {
			return a, nil
		}
		s.left--
		if s.note(candidate, err); isNegative(err) {
			continue
		}
		before := s.foundBefore()
		if ctx.Err() != nil || before == candidate || isOverload(err) && before == "" {
			return a, err
		}
		if before != "" {
			a, err := s.find(before)
			if err == nil {
				a.lookup = "stale"
				return a, nil
			}
			if !isNegative(err) {
				return a, err
			}
			s.before = new(string) // it is not there any more
		}
		if errors.Is(err, errLate) {
			late = append(late, candidate)
		}
		if candidate != name {
			r.warnSearch(list, candidate[len(name)+1:], err)
		}
	}
	if len(late) > 0 && s.waited < time.Duration(r.config.Deadline) {
		s.late = nil
	} else {
		late = nil
	}
	s.left = 1
	for _, candidate := range late { // they have the rest of the time
		a, err := s.find(candidate)
		if err == nil {
			return a, nil
		}
		s.note(candidate, err)
	}
	return s.answer(), s.err()
}

// isOverload reports whether a name was not asked for because there are too many.
func isOverload(err error) bool {
	return errors.Is(err, dnscache.ErrOverloaded) || errors.Is(err, dnscache.ErrTooManyNewNames)
}

// search is the search for one name. It is also the context of its lookups, so that
// one that has to wait does so for its part of the time only.
type search struct {
	context.Context                    // of the request, or of the lookup that waits
	cancel          context.CancelFunc // of the latter; nil: none waits

	request   context.Context
	r         *resolver
	list      *searchList
	name      string
	candidate string  // that is looked up
	left      int     // about how many candidates there are, with this one
	before    *string // what the name was found to be; nil: that was not looked up

	waited time.Duration
	lookup string

	asItIs, failure, late, negative error // of the candidates so far, one of each kind
}

// note keeps the error of a candidate.
func (s *search) note(candidate string, err error) {
	switch {
	case candidate == s.name:
		s.asItIs = err
	case isNegative(err):
		s.negative = cmp.Or(s.negative, err)
	case errors.Is(err, errLate):
		s.late = err
	default:
		s.failure = cmp.Or(s.failure, err)
	}
}

// err returns why nothing was found. A failure of any candidate means that the name
// may exist.
func (s *search) err() error {
	negative := cmp.Or(s.asItIs, s.negative)
	switch {
	case negative != nil && !isNegative(negative):
		return negative
	case s.failure != nil || s.late != nil:
		return cmp.Or(s.failure, s.late)
	}
	return fmt.Errorf("%w (nor is there %s with one of the search domains %s)", negative, s.name, strings.Join(s.list.domains, ", "))
}

// errLate is the failure of a candidate for which no answer came in its part of the
// time.
var errLate = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// find looks a candidate up, and remembers it if it has an address.
func (s *search) find(candidate string) (answer, error) {
	s.candidate = candidate
	a, err := s.r.lookupComplete(s, candidate)
	if s.cancel != nil {
		if err != nil && s.Err() != nil && s.request.Err() == nil {
			err = fmt.Errorf("searching for %s: %s: %w", s.name, candidate, errLate)
		}
		s.cancel()
		s.Context, s.cancel = s.request, nil
	}
	s.waited += a.waited
	if a.lookup != "hit" {
		s.lookup = a.lookup
	}
	if err != nil {
		return s.answer(), err
	}
	s.list.remember(s.name, candidate)
	a.found, a.waited, a.lookup = candidate, s.waited, s.lookup
	return a, nil
}

// answer is that of a search that has found nothing so far.
func (s *search) answer() answer { return answer{lookup: s.lookup, waited: s.waited} }

// Done implements context.Context. It is called by a lookup that waits.
func (s *search) Done() <-chan struct{} {
	if s.cancel == nil {
		s.Context, s.cancel = context.WithTimeout(s.request, s.timeLimit())
	}
	return s.Context.Done()
}

// timeLimit returns how long the lookup of a candidate may take. One of a complete
// name, or of what the name was found to be before, has all the time. Otherwise
// there are others: for a name that was found before, one that is known.
func (s *search) timeLimit() time.Duration {
	left := time.Duration(s.r.config.Deadline) - s.waited
	before := s.foundBefore()
	switch {
	case s.candidate == before, s.candidate == s.name && s.left == len(s.list.domains)+1:
		return left
	case before == "":
		return left / time.Duration(max(s.left, 1))
	case s.r.zoneOf(s.candidate).cache.Failing(s.candidate):
		return 0
	}
	return min(left/time.Duration(max(s.left, 1)), time.Duration(s.r.config.StaleWait))
}

// foundBefore returns what the name was found to be short for; empty if it was not
// found, or too long ago.
func (s *search) foundBefore() string {
	if s.before == nil {
		before, ok := s.list.recall(s.name, time.Duration(s.r.config.Stale))
		if !ok {
			before = ""
		}
		s.before = &before
	}
	return *s.before
}

// warnSearch logs that names are not looked for in a domain, though not for each
// name.
func (r *resolver) warnSearch(s *searchList, domain string, err error) {
	s.mu.Lock()
	last, ok := s.warned[domain]
	again := !ok || time.Since(last) > warnAgain
	if again {
		s.warned[domain] = time.Now()
	}
	s.mu.Unlock()
	if again {
		r.logger().Warn("a search domain fails: names are looked for in the next one", zap.String("domain", domain), zap.Error(err))
	}
}

// peekSearching returns the addresses that lookupSearching would, if they are
// known.
func (r *resolver) peekSearching(s *searchList, name string) ([]netip.Addr, bool) {
	if addrs, ok := r.local(name); ok {
		return addrs, true
	}
	for candidate := range s.candidates(name) {
		if addrs, known := r.peekComplete(candidate); !known || len(addrs) > 0 {
			return addrs, known
		}
		if r.zoneOf(candidate).cache.Failing(candidate) {
			if before, ok := s.recall(name, time.Duration(r.config.Stale)); ok {
				return r.peekComplete(before)
			}
		}
	}
	return nil, true
}

// isNegative reports whether an error is an answer: there is no such name, or no
// address of it.
func isNegative(err error) bool {
	var e interface {
		Negative() (ttl time.Duration, ok bool)
	}
	if !errors.As(err, &e) {
		return false
	}
	_, ok := e.Negative()
	return ok
}

// remember notes what a name was found to be short for.
func (s *searchList) remember(name, as string) {
	now := time.Now()
	s.mu.RLock()
	before, ok := s.found[name]
	s.mu.RUnlock()
	if ok && before.name == as && now.Sub(before.at) < time.Second {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.found) >= maxFound && !ok {
		clear(s.found)
	}
	if !ok {
		name = strings.Clone(name) // it may be a part of something large
	}
	s.found[name] = found{as, now}
}

// recall returns what a name was found to be short for, not longer ago than
// that.
func (s *searchList) recall(name string, ago time.Duration) (string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f, ok := s.found[name]
	return f.name, ok && time.Since(f.at) < ago
}
