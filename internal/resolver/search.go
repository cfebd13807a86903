package resolver

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
	"caddytarget/internal/dnsname"
)

const (
	// maxFound bounds for how many names it is remembered where they were found.
	maxFound = 10_000

	// warnInterval is how long after a warning that a domain fails the next one is
	// logged.
	warnInterval = time.Hour
)

// searchList is what resolv.conf says about names that are not complete. It
// remembers where it found a name.
type searchList struct {
	domains []string
	ndots   int
	noTLD   bool // a name without dots is not tried as it is

	mu     sync.RWMutex
	found  map[string]found
	warned map[string]time.Time // by domain: when it was last logged that it fails
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
func (r *Resolver) setSearch(c *resolvConf) {
	if len(c.search) > maxSearch {
		r.logger().Warn("too many search domains: the last ones are not used",
			zap.String("file", r.confFile.path), zap.Int("used", maxSearch), zap.Strings("unused", c.search[maxSearch:]))
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
			if len(name)+1+len(domain) <= dnsname.MaxLen && !yield(name+"."+domain) {
				return
			}
		}
		if !complete && (!s.noTLD || strings.Contains(name, ".")) {
			yield(name)
		}
	}
}

// remember stores what a name was found to be short for.
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

// recall returns what a name was found to be short for, if that was less than
// maxAge ago.
func (s *searchList) recall(name string, maxAge time.Duration) (string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f, ok := s.found[name]
	return f.name, ok && time.Since(f.at) < maxAge
}

// lookupSearching returns the addresses of the first of the candidates for a name
// that has any. If one has none, or could not be asked for, the next one is tried. But
// a name that was found before stays what it was found to be while asking fails, for as
// long as stale answers may serve: an outage must not turn it into another host that
// only has the same name in another domain.
//
// The whole search has the deadline of one lookup.
func (r *Resolver) lookupSearching(ctx context.Context, list *searchList, name string) (Answer, error) {
	if _, ok := r.local(name); ok || isOutsideDNS(name) {
		return r.LookupComplete(ctx, name)
	}
	s := &search{Context: ctx, request: ctx, r: r, list: list, name: name, remaining: len(list.domains) + 1, from: Hit}
	var unanswered []string
	for candidate := range list.candidates(name) {
		if s.waited >= r.config.Deadline {
			s.addError("", fmt.Errorf("searching for %s: %w", name, errNoAnswer))
			break
		}
		a, err := s.find(candidate)
		if err == nil {
			return a, nil
		}
		s.remaining--
		s.addError(candidate, err)
		if dnscache.IsNegative(err) {
			continue
		}
		before := s.foundBefore()
		if ctx.Err() != nil || before == candidate || isOverload(err) && before == "" {
			return a, err
		}
		if before != "" {
			a, err := s.find(before)
			if err == nil {
				a.From = Stale
				return a, nil
			}
			if !dnscache.IsNegative(err) {
				return a, err
			}
			s.before = new(string) // it no longer exists
		}
		if errors.Is(err, errNoAnswer) {
			unanswered = append(unanswered, candidate)
		}
		if candidate != name {
			r.warnSearch(list, candidate[len(name)+1:], err)
		}
	}
	if len(unanswered) > 0 && s.waited < r.config.Deadline {
		s.noAnswer, s.remaining = nil, 1 // they have the rest of the time
		for _, candidate := range unanswered {
			a, err := s.find(candidate)
			if err == nil {
				return a, nil
			}
			s.addError(candidate, err)
		}
	}
	return s.answer(), s.err()
}

// isOverload reports whether a name was not asked for because there are too many.
func isOverload(err error) bool {
	return errors.Is(err, dnscache.ErrOverloaded) || errors.Is(err, dnscache.ErrTooManyNewNames)
}

// search is the search for one name. It is also the context of its lookups: a lookup
// that has to wait asks for Done, and that starts the time that its candidate has.
type search struct {
	context.Context                    // of the request, or of the lookup that waits
	cancel          context.CancelFunc // of the latter; nil: none waits

	request   context.Context
	r         *Resolver
	list      *searchList
	name      string
	candidate string  // that is looked up
	remaining int     // about how many candidates are to be looked up, this one included
	before    *string // what the name was found to be; nil: that was not looked up

	waited time.Duration
	from   string // Answer.From of all lookups so far

	asItIs, failure, noAnswer, negative error // of the candidates so far, one of each kind
}

// addError records the error of a candidate.
func (s *search) addError(candidate string, err error) {
	switch {
	case candidate == s.name:
		s.asItIs = err
	case dnscache.IsNegative(err):
		s.negative = cmp.Or(s.negative, err)
	case errors.Is(err, errNoAnswer):
		s.noAnswer = err
	default:
		s.failure = cmp.Or(s.failure, err)
	}
}

// err returns why nothing was found. A failure of any candidate means that the name
// may exist.
func (s *search) err() error {
	negative := cmp.Or(s.asItIs, s.negative)
	switch {
	case negative != nil && !dnscache.IsNegative(negative):
		return negative
	case s.failure != nil || s.noAnswer != nil:
		return cmp.Or(s.failure, s.noAnswer)
	}
	return fmt.Errorf("%w (nor is there %s with one of the search domains %s)", negative, s.name, strings.Join(s.list.domains, ", "))
}

// errNoAnswer is the failure of a candidate for which no answer came within its part
// of the time.
var errNoAnswer = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// find looks a candidate up, and remembers it if it has an address.
func (s *search) find(candidate string) (Answer, error) {
	s.candidate = candidate
	a, err := s.r.LookupComplete(s, candidate)
	if s.cancel != nil {
		if err != nil && s.Err() != nil && s.request.Err() == nil {
			err = fmt.Errorf("searching for %s: %s: %w", s.name, candidate, errNoAnswer)
		}
		s.cancel()
		s.Context, s.cancel = s.request, nil
	}
	s.waited += a.Waited
	if a.From != Hit {
		s.from = a.From
	}
	if err != nil {
		return s.answer(), err
	}
	s.list.remember(s.name, candidate)
	a.Found, a.Waited, a.From = candidate, s.waited, s.from
	return a, nil
}

// answer is that of a search that has found nothing so far.
func (s *search) answer() Answer { return Answer{From: s.from, Waited: s.waited} }

// Done implements context.Context. It is called by a lookup that waits.
func (s *search) Done() <-chan struct{} {
	if s.cancel == nil {
		s.Context, s.cancel = context.WithTimeout(s.request, s.timeLimit())
	}
	return s.Context.Done()
}

// timeLimit returns how long the lookup of the candidate may take. A complete name, and
// what the name was found to be before, have all the time. Other candidates have a part
// of it; if the name was found before, StaleWait at most, since there is an answer.
func (s *search) timeLimit() time.Duration {
	left := s.r.config.Deadline - s.waited
	before := s.foundBefore()
	switch {
	case s.candidate == before, s.candidate == s.name && s.remaining == len(s.list.domains)+1:
		return left
	case before == "":
		return left / time.Duration(max(s.remaining, 1))
	case s.r.zoneOf(s.candidate).cache.Failing(s.candidate):
		return 0
	}
	return min(left/time.Duration(max(s.remaining, 1)), s.r.config.StaleWait)
}

// foundBefore returns what the name was found to be short for; empty if it was not
// found, or too long ago.
func (s *search) foundBefore() string {
	if s.before == nil {
		before, ok := s.list.recall(s.name, s.r.config.Stale)
		if !ok {
			before = ""
		}
		s.before = &before
	}
	return *s.before
}

// warnSearch logs that a domain fails, so that names are looked for in the next one;
// once in warnInterval.
func (r *Resolver) warnSearch(s *searchList, domain string, err error) {
	s.mu.Lock()
	last, ok := s.warned[domain]
	due := !ok || time.Since(last) > warnInterval
	if due {
		s.warned[domain] = time.Now()
	}
	s.mu.Unlock()
	if due {
		r.logger().Warn("a search domain fails: names are looked for in the next one", zap.String("domain", domain), zap.Error(err))
	}
}

// peekSearching returns the addresses that lookupSearching would, if they are
// known.
func (r *Resolver) peekSearching(s *searchList, name string) ([]netip.Addr, bool) {
	if addrs, ok := r.local(name); ok {
		return addrs, true
	}
	for candidate := range s.candidates(name) {
		if addrs, known := r.peekComplete(candidate); !known || len(addrs) > 0 {
			return addrs, known
		}
		if r.zoneOf(candidate).cache.Failing(candidate) {
			if before, ok := s.recall(name, r.config.Stale); ok {
				return r.peekComplete(before)
			}
		}
	}
	return nil, true
}
