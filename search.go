package caddytarget

import (
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
)

const (
	// maxName is the most octets of a name.
	maxName = 253

	// maxFound bounds the names of which it is remembered where they were found.
	maxFound = 10_000
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
		if !complete && !(s.noTLD && !strings.Contains(name, ".")) {
			yield(name)
		}
	}
}

// lookupSearching returns the addresses of the first of the candidates for a
// name that has any. The next one is tried only if there is no such name or no
// address: if a candidate could not be asked for, going on could lead to
// another host, which only goes by the same name in another domain. Then the
// name stays what it was found to be, for as long as stale answers may serve.
// The whole search has the deadline of one lookup.
func (r *resolver) lookupSearching(ctx context.Context, s *searchList, name string) (answer, error) {
	if _, ok := r.local(name); ok || neverAsked(name) {
		return r.lookupComplete(ctx, name)
	}
	whole := answer{lookup: "hit"}
	var asItIs error
	for candidate := range s.candidates(name) {
		searching := ctx
		if whole.waited > 0 {
			var cancel context.CancelFunc
			searching, cancel = context.WithTimeout(ctx, time.Duration(r.config.Deadline)-whole.waited)
			defer cancel()
		}
		a, err := r.lookupComplete(searching, candidate)
		whole.waited += a.waited
		if a.lookup != "hit" {
			whole.lookup = a.lookup
		}
		if err == nil {
			s.remember(name, candidate)
			whole.addrs, whole.preferred, whole.found = a.addrs, a.preferred, candidate
			return whole, nil
		}
		if candidate == name {
			asItIs = err
		}
		switch late := whole.waited >= time.Duration(r.config.Deadline); {
		case isNegative(err) && !late:
			continue
		case isNegative(err), searching.Err() != nil && ctx.Err() == nil:
			err = fmt.Errorf("searching for %s: %w", name, context.DeadlineExceeded)
		}
		remembered, ok := s.recall(name, time.Duration(r.config.Stale))
		if !ok || remembered == candidate {
			return whole, err
		}
		if a, err := r.lookupComplete(ctx, remembered); err == nil {
			a.waited += whole.waited
			a.lookup = "stale"
			a.found = remembered
			return a, nil
		}
		return whole, err
	}
	return whole, fmt.Errorf("%w (nor is there %s with one of the search domains %s)",
		asItIs, name, strings.Join(s.domains, ", "))
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
	}
	return nil, true
}

// isNegative tells whether an error is an answer: there is no such name, or no
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
