// Package resolver turns the name of a host into addresses, and that of a service
// into its SRV records.
//
// A [Resolver] looks a name up in this order: the hosts file (hosts.go), localhost and
// names outside the DNS (names.go), then the nameservers of the zone that the name is in
// (zone.go), by way of that zone's cache. If resolv.conf has search domains and
// Config.Search is set, the name is completed first (search.go). Nameservers and options
// of resolv.conf (resolvconf.go) hold for the zone of all names that are in no other.
// Which of A and AAAA is asked for is decided in family.go. Package dnscache keeps the
// answers, package dnsclient asks. What a resolver knows is handed on to the next one, and
// saved, in persist.go; saved.go has the form, shared.go what is kept of other instances,
// and generation.go says which resolver comes after which, and where each is saved.
package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
)

// Resolver looks names up. It is safe for concurrent use.
type Resolver struct {
	config Config
	zones
	hosts     atomic.Pointer[hosts]      // nil if there is none
	search    atomic.Pointer[searchList] // nil if there is none
	system    atomic.Pointer[resolvConf] // nil if its nameservers are not asked
	ipv6Route routeProbe
	observers observers
	memory    *memory

	// for New, and then for watchFiles alone
	hostsFile, confFile file
	noReload            bool // resolv.conf is not read again
	preloadFiles        []*preloadFile

	startOnce sync.Once
	stop      chan struct{}
	watching  sync.WaitGroup
}

// New returns a resolver. It reads the files of the configuration, and sends nothing.
// Lookups may begin at once; Start begins what is done in the background.
func New(c *Compiled) *Resolver {
	r := &Resolver{
		config:    c.config,
		zones:     makeZones(c.zones),
		hostsFile: file{path: c.config.Hosts},
		confFile:  file{path: c.config.ResolvConf},
		stop:      make(chan struct{}),
	}
	r.memory = newMemory(r, c)
	r.readHosts()
	settings := dnsclient.Settings{Timeout: c.config.Timeout, Tries: c.config.Tries}
	ofZones, servers := settings, c.servers
	if r.config.readsResolvConf() {
		if conf := r.readResolvConf(); conf != nil && r.config.asksSystem() {
			servers, settings = conf.servers(r.config.systemPort), conf.settings(&r.config)
		}
	}
	r.openPreloadFiles()
	preload := r.preloads()
	open := func(z *zone, servers []dnsclient.Nameserver, s dnsclient.Settings) {
		z.client = dnsclient.New(servers, dnsclient.Config{
			Timeout: s.Timeout, Tries: s.Tries, Rotate: s.Rotate,
			Roots: c.roots, Route: r.route, Trace: r.trace, Traced: r.traces, Health: r.logHealth,
		})
		exchanger := r.config.Exchanger
		if exchanger == nil {
			exchanger = z.client
		}
		z.cache = dnscache.New(exchanger, r.cacheConfig(z, preload[z]))
	}
	open(&r.zone, servers, settings)
	for suffix, z := range r.bySuffix {
		open(z, c.zones[suffix], ofZones)
	}
	r.memory.identity = r.newIdentity()
	return r
}

// cacheConfig returns the configuration of a zone's cache.
func (r *Resolver) cacheConfig(z *zone, preload []string) dnscache.Config {
	config := dnscache.Config{
		Family:         r.family,
		MinTTL:         r.config.MinTTL,
		MaxTTL:         r.config.MaxTTL,
		NegativeTTL:    r.config.NegativeTTL,
		Stale:          r.config.Stale,
		StaleWait:      r.config.StaleWait,
		Refresh:        r.config.Refresh,
		RefreshQueries: r.config.RefreshQueries,
		Preload:        preload,
		PreloadChanged: r.logPreload,
		Deadline:       r.config.Deadline,
		Size:           r.config.CacheSize,
		MaxLookups:     r.config.MaxLookups,
		NewNames:       r.config.NewNames,
		Restoring:      r.restoring,
		Now:            r.config.Now,
	}
	if r.config.RefreshAlways {
		config.Refresh = dnscache.Always
	}
	if len(r.preloadFiles) > 0 {
		config.MaxPreload = r.config.CacheSize // they may grow
	}
	if z == &r.zone && r.config.asksSystem() {
		config.Family, config.Sequential = r.systemFamily, r.systemSequential
	}
	return config
}

// Start begins to preload and refresh names, and to read files again when they change.
// It may be called many times.
func (r *Resolver) Start() {
	r.startOnce.Do(func() {
		r.remember()
		for z := range r.all {
			z.cache.Start()
		}
		r.watching.Go(r.watchFiles)
	})
}

// Close ends all lookups and waits until they are gone. What is known stays readable.
func (r *Resolver) Close() {
	close(r.stop)
	r.memory.saver.Close()
	for z := range r.all {
		z.cache.Close()
	}
	// after all caches, since an alias may lead to the client of another zone
	for z := range r.all {
		z.client.Close()
	}
	r.watching.Wait()
}

// Deadline returns how long one lookup may take.
func (r *Resolver) Deadline() time.Duration { return r.config.Deadline }

// CacheSize returns how many names are kept in each zone.
func (r *Resolver) CacheSize() int { return r.config.CacheSize }

// The values of [Answer.From].
const (
	Miss    = "miss"    // it was asked for just now
	Hit     = "hit"     // it was known and held
	Stale   = "stale"   // it was known but has expired
	Hosts   = "hosts"   // it is in the hosts file, or localhost
	Literal = "literal" // it is an address; no Resolver returns this
)

var fromState = [...]string{dnscache.Miss: Miss, dnscache.Hit: Hit, dnscache.Stale: Stale}

// Answer is what a resolver knows of a name.
type Answer struct {
	Addrs     []netip.Addr  // in the order in which to try them; shared: not to be written to
	Preferred int           // how many of Addrs, from the first, are of the preferred family
	From      string        // where they came from; set with an error, too
	Waited    time.Duration // how long the lookup took; set with an error, too
	Found     string        // the complete name, if search domains were tried
}

// Lookup returns the addresses of a name in normal form, as [guard.NormalizeHost]
// returns it. It may have to be completed by a search domain. The errors are those of
// [dnscache.Cache.Lookup].
func (r *Resolver) Lookup(ctx context.Context, name string) (Answer, error) {
	if s := r.search.Load(); s != nil {
		return r.lookupSearching(ctx, s, name)
	}
	return r.LookupComplete(ctx, name)
}

// LookupComplete is Lookup for a name that is complete: no search domains are tried.
func (r *Resolver) LookupComplete(ctx context.Context, name string) (Answer, error) {
	if addrs, ok := r.local(name); ok {
		if len(addrs) == 0 {
			return Answer{From: Hosts}, fmt.Errorf("%s has no address of the family %s in the hosts file", name, r.config.Family)
		}
		return Answer{Addrs: addrs, Preferred: len(addrs), From: Hosts}, nil
	}
	if isOutsideDNS(name) {
		return Answer{From: Miss}, errOutsideDNS(name)
	}
	a, err := r.zoneOf(name).cache.Lookup(ctx, name)
	if errors.Is(err, dnscache.ErrClosed) {
		other, release, err := r.reopen()
		if err != nil {
			return Answer{From: Miss}, err
		}
		defer release()
		return other.LookupComplete(ctx, name)
	}
	return Answer{Addrs: a.Addrs, Preferred: a.Preferred, From: fromState[a.State], Waited: a.Waited}, err
}

// LookupService returns the SRV records (RFC 2782) of a name in normal form, such as
// _http._tcp.example.com. They are shared: not to be written to.
func (r *Resolver) LookupService(ctx context.Context, name string) ([]net.SRV, error) {
	if isLocalhost(name) || isOutsideDNS(name) {
		return nil, errOutsideDNS(name)
	}
	a, err := r.zoneOf(name).cache.LookupSRV(ctx, name)
	if errors.Is(err, dnscache.ErrClosed) {
		other, release, err := r.reopen()
		if err != nil {
			return nil, err
		}
		defer release()
		return other.LookupService(ctx, name)
	}
	return a.Records, err
}

// reopen returns a resolver of the same configuration that is not closed.
func (r *Resolver) reopen() (other *Resolver, release func(), err error) {
	if r.config.Reopen == nil {
		return nil, nil, dnscache.ErrClosed
	}
	return r.config.Reopen()
}

// Renew returns the addresses of a name as they are now, for a caller that got an
// answer before and found that none of its addresses works. The name is asked for again,
// unless that was done just now or other addresses are known by now; see
// [dnscache.Cache.Renew]. From and Waited stay those of the answer before.
func (r *Resolver) Renew(ctx context.Context, name string, before Answer) (Answer, error) {
	if before.From == Hosts || before.From == Literal {
		return before, nil
	}
	name = cmp.Or(before.Found, name)
	a, err := r.zoneOf(name).cache.Renew(ctx, name, before.Addrs)
	before.Addrs, before.Preferred = a.Addrs, a.Preferred
	return before, err
}

// Watch returns a function that reports whether a name has other addresses now than the
// given one, if they are known. No search domains are tried for a name that is complete.
func (r *Resolver) Watch(name string, complete bool) func(netip.Addr) bool {
	name = strings.Clone(name) // it may be a part of something large
	peek := r.peek
	if complete {
		peek = r.peekComplete
	}
	return func(addr netip.Addr) bool {
		addrs, known := peek(name)
		return known && len(addrs) > 0 && addr.IsValid() && !slices.Contains(addrs, addr)
	}
}

// peek returns the addresses of a name if they are known.
func (r *Resolver) peek(name string) ([]netip.Addr, bool) {
	if s := r.search.Load(); s != nil {
		return r.peekSearching(s, name)
	}
	return r.peekComplete(name)
}

func (r *Resolver) peekComplete(name string) ([]netip.Addr, bool) {
	if addrs, ok := r.local(name); ok {
		return addrs, true
	}
	return r.zoneOf(name).cache.Peek(name)
}

// route returns the client to ask for the name that an alias leads to; nil if none
// may be asked.
func (r *Resolver) route(name string) *dnsclient.Client {
	if isOutsideDNS(name) || isLocalhost(name) {
		return nil
	}
	return r.zoneOf(name).client
}
