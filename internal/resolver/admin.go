package resolver

import (
	"context"
	"errors"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
)

// This file is for operators: what is known of names and nameservers, by zone. Nothing
// in it holds up a lookup or counts as a use of a name.

// rootZone is the name of the zone of all names that are in no other.
const rootZone = "."

// named yields the zones with their suffixes: first that of all other names, the root,
// and then the others by suffix.
func (z *zones) named() iter.Seq2[string, *zone] {
	return func(yield func(string, *zone) bool) {
		if !yield(rootZone, &z.zone) {
			return
		}
		for _, suffix := range slices.Sorted(maps.Keys(z.bySuffix)) {
			if !yield(suffix, z.bySuffix[suffix]) {
				return
			}
		}
	}
}

// suffixOf returns the suffix of the zone of a name.
func (z *zones) suffixOf(name string) string {
	in := z.zoneOf(name)
	for suffix, other := range z.named() {
		if other == in {
			return suffix
		}
	}
	return rootZone
}

// Name is what is known of a name of a cache.
type Name struct {
	dnscache.Name

	Resolver string // its ID

	// Zone is the suffix of the zone that the name is in; a dot: of no other.
	Zone string
}

// Tries returns what was sent for the lookup whose error is Err, in order; none if it was
// no lookup that failed, or nothing was sent.
func (n *Name) Tries() []dnsclient.Try {
	if e, ok := errors.AsType[*dnsclient.Error](n.Err); ok {
		return e.Tries
	}
	return nil
}

// Page is some of the names of resolvers.
type Page struct {
	Names []Name

	// Next is the Query.After of the next page; empty if there is none.
	Next string
}

// Names returns names of all caches of resolvers, one cache after the other and page by page,
// as [dnscache.Cache.Names] does. The error is [dnscache.ErrCursor], or that of ctx.
func Names(ctx context.Context, resolvers []*Resolver, q dnscache.Query) (Page, error) {
	var page Page
	for _, r := range resolvers {
		for suffix, z := range r.named() {
			of, err := z.cache.Names(ctx, q)
			if errors.Is(err, dnscache.ErrCursor) {
				continue // it is that of a later cache
			}
			if err != nil {
				return Page{}, err
			}
			page.Names = slices.Grow(page.Names, len(of.Names))
			for _, n := range of.Names {
				page.Names = append(page.Names, Name{n, r.ID(), suffix})
			}
			if of.Next != "" {
				page.Next = of.Next
				return page, nil
			}
			q.After, q.Limit = "", q.Limit-len(of.Names)
		}
	}
	if q.After != "" {
		return Page{}, dnscache.ErrCursor
	}
	return page, nil
}

// NameReport is what is known of one name.
type NameReport struct {
	// Hosts is whether the name is in the hosts file or localhost, and so is never
	// asked for. Addrs are its addresses then, those of [Config.Family].
	Hosts bool
	Addrs []netip.Addr

	// OutsideDNS is whether the name is never asked for because it cannot exist in the
	// DNS (RFC 6761, RFC 7686).
	OutsideDNS bool

	// Names is what the caches know: of the name or, if search domains are tried, of
	// each name that it may be short for, in the order in which these are tried. A name
	// is there twice if it is that of a host and of a service.
	Names []Name

	// Found is what the name was last found to be short for; empty: nothing is known.
	Found string
}

// Name returns what is known of a name in normal form, as Lookup would find it. It reports
// false if there is nothing.
func (r *Resolver) Name(name string) (NameReport, bool) {
	var report NameReport
	if report.Addrs, report.Hosts = r.local(name); report.Hosts {
		return report, true
	}
	if isOutsideDNS(name) {
		report.OutsideDNS = true
		return report, true
	}
	for candidate := range r.shortFor(name) {
		suffix := r.suffixOf(candidate)
		for _, n := range r.zoneOf(candidate).cache.Name(candidate) {
			report.Names = append(report.Names, Name{n, r.ID(), suffix})
		}
	}
	if s := r.search.Load(); s != nil {
		report.Found, _ = s.recall(name, r.config.Stale)
	}
	return report, len(report.Names) > 0 || report.Found != ""
}

// Place is where a name is looked up.
type Place struct {
	Name string // that the name may be short for, or it
	Zone string // as Name.Zone
}

// Places returns where Lookup looks a name in normal form up in the DNS, in that order.
// There is none for a name that is in the hosts file, is localhost or cannot exist in the
// DNS. Lookup goes on to the next place if a name has no address.
func (r *Resolver) Places(name string) (places []Place) {
	if _, ok := r.local(name); ok || isOutsideDNS(name) {
		return nil
	}
	for candidate := range r.shortFor(name) {
		places = append(places, Place{candidate, r.suffixOf(candidate)})
	}
	return places
}

// shortFor yields the names that a name may be short for.
func (r *Resolver) shortFor(name string) iter.Seq[string] {
	if s := r.search.Load(); s != nil {
		return s.candidates(name)
	}
	return func(yield func(string) bool) { yield(name) }
}

// Purge forgets names of all caches or asks for them again, as [dnscache.Cache.Purge]
// does, and returns how many. A name may be one that has to be completed by a search
// domain. Where a name was found before is forgotten too, but if names are chosen by
// their address. The hosts file stays as it is.
func (r *Resolver) Purge(p dnscache.Purge) (n int) {
	if s := r.search.Load(); s != nil && !p.AskAgain {
		s.forget(p)
	}
	all := []dnscache.Purge{p}
	if p.Name == "" {
		for _, z := range r.named() {
			n += z.cache.Purge(p)
		}
	} else {
		for candidate := range r.shortFor(p.Name) {
			p.Name = candidate
			n += r.zoneOf(candidate).cache.Purge(p)
			all = append(all, p)
		}
	}
	if !p.AskAgain {
		r.memory.purges.add(all)
	}
	return n
}

// forget forgets where names were found that p chooses by their name.
func (s *searchList) forget(p dnscache.Purge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.found, func(name string, f found) bool { return forgets(p, name, f.name) })
}

// forgets reports whether a purge chooses what a name was found to be short for.
func forgets(p dnscache.Purge, name, found string) bool {
	switch {
	case p.Addr.IsValid():
		return false
	case p.Name != "":
		return name == p.Name || found == p.Name
	default:
		return p.Suffix != "" && (dnscache.IsBelow(name, p.Suffix) || dnscache.IsBelow(found, p.Suffix))
	}
}

// ZoneNameservers is what is known of the nameservers of one zone.
type ZoneNameservers struct {
	Zone string // as Name.Zone

	// Outage is whether all of them are down, so that nothing but probes is sent.
	Outage bool

	// Mismatches counts messages that were no reply to a query of this zone. Many are a
	// sign of forgery.
	Mismatches uint64

	Nameservers []dnsclient.NameserverStats // in the configured order
}

// Nameservers returns what is known of all nameservers, by zone.
func (r *Resolver) Nameservers() (all []ZoneNameservers) {
	for suffix, z := range r.named() {
		all = append(all, ZoneNameservers{
			Zone: suffix, Outage: z.client.Outage() != nil, Mismatches: z.client.Mismatches(), Nameservers: z.client.Stats(),
		})
	}
	return all
}

// ZoneStats is what the cache of one zone has counted.
type ZoneStats struct {
	Zone string // as Name.Zone
	dnscache.Stats
}

// Stats returns what the caches have counted, by zone. See [dnscache.Cache.Stats] for
// what it costs.
func (r *Resolver) Stats() (all []ZoneStats) {
	for suffix, z := range r.named() {
		all = append(all, ZoneStats{suffix, z.cache.Stats()})
	}
	return all
}
