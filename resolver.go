package caddytarget

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/miekg/dns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/guard"
)

// Resolver configures how names are resolved. Equal configurations share one
// resolver with one cache, which a reload keeps.
//
// Durations are [Caddy durations](/docs/conventions#durations). Placeholders
// are not supported.
type Resolver struct {
	// The nameservers, in order of preference: an IP address with an optional
	// port, `10.0.0.53` or `[2001:db8::53]:5353`. Questions go over UDP, and
	// over TCP if a reply is truncated; `tcp://10.0.0.53` is asked over TCP
	// only. `tls://ADDRESS[:PORT][#NAME]` is asked over TLS (RFC 7858) and has
	// to prove NAME, or else its address; `https://ADDRESS[:PORT][/PATH][#NAME]`
	// over HTTPS (RFC 8484), PATH being /dns-query by default. Of these two, the
	// address may also be a host name without #NAME, which the operating system
	// looks up for each connection. Default: those of /etc/resolv.conf, asked as
	// its options say; the file is read again when it changes.
	Nameservers []string `json:"nameservers,omitempty"`

	// Names that have nameservers of their own: for each suffix, which stands
	// for itself and for all names below it, a list as in `nameservers`. The
	// longest suffix wins. Each zone has its own cache and its own lookups, to
	// which all limits apply anew, so that one whose nameservers are down
	// disturbs nothing else.
	Zones map[string][]string `json:"zones,omitempty"`

	// Files with the certificate authorities, in PEM, that nameservers with
	// `tls://` and `https://` have to lead to, instead of those of the system.
	// They are read when the configuration is loaded.
	TLSTrustedCACerts []string `json:"tls_trusted_ca_certs,omitempty"`

	// How long one try may take. Default: `2s`; for the nameservers of
	// /etc/resolv.conf what its option `timeout` says.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many times a question is sent, each time to the next nameserver; at
	// most 3 times the number of nameservers (RFC 9520). Default: 3; for the
	// nameservers of /etc/resolv.conf as many to each as its option `attempts` says.
	Tries int `json:"tries,omitempty"`

	// How long one lookup may take in all. Default: `5s`.
	Deadline caddy.Duration `json:"deadline,omitempty"`

	// Which addresses are asked for and in which order they are used: `auto`
	// (IPv6 if this machine has a route for it, and /etc/resolv.conf, where its
	// nameservers are asked, has no option `no-aaaa`; and IPv4; alternating), `ipv4`, `ipv6`, `prefer_ipv4` or `prefer_ipv6` (the other family only
	// if no address of the preferred one works). Default: `auto`.
	Family string `json:"family,omitempty"`

	// The least time an answer holds, whatever its TTL. Default: `1s`.
	MinTTL caddy.Duration `json:"min_ttl,omitempty"`

	// The longest time an answer holds, whatever its TTL. Default: `1h`.
	MaxTTL caddy.Duration `json:"max_ttl,omitempty"`

	// The longest time a negative answer (RFC 2308) holds. Default: `30s`.
	NegativeTTL caddy.Duration `json:"negative_ttl,omitempty"`

	// How long after it has expired a last good answer may serve while asking
	// again fails (RFC 8767). Negative: never. Default: `24h`.
	Stale caddy.Duration `json:"stale,omitempty"`

	// How long a request waits for a fresh answer first if the last good one
	// expired over a minute ago. Default: `500ms`.
	StaleWait caddy.Duration `json:"stale_wait,omitempty"`

	// Names that were used within this time are asked for again in the
	// background, before they expire or within a minute after that: see
	// `refresh_queries`. Negative: none are. Default: `5m`.
	Refresh caddy.Duration `json:"refresh,omitempty"`

	// How many DNS queries each request pays for, about, where the name is known.
	// A lookup takes two, for A and AAAA, or one if only one family is asked for.
	// If the requests to a name have paid for a lookup, the name is asked for
	// again before its answer expires. If not, the expired answer serves for a
	// minute, if `stale` lets it; a request in this minute that makes up what is
	// missing starts the lookup, and at the end of it there is one if there was
	// a request at all. So names that are used seldom and have a short TTL cost
	// no more than others, and are followed more slowly when they move: with 1,
	// the second request after that is the last to get the old address. A higher
	// number keeps them fresher. At most 1000. Default: 1.
	RefreshQueries int `json:"refresh_queries,omitempty"`

	// Whether all names in the cache are asked for again in the background,
	// however long ago they were used; instead of `refresh`.
	RefreshAlways bool `json:"refresh_always,omitempty"`

	// Names that are resolved at the start and kept fresh, used or not.
	Preload []string `json:"preload,omitempty"`

	// How many names are kept. Default: 100000.
	CacheSize int `json:"cache_size,omitempty"`

	// How many lookups may be in flight for requests; as many again may wait for
	// their turn, for which one that has taken over 1.5 seconds gives way. Beyond
	// that requests for unknown names get status 503, and those below one
	// registered domain beyond a quarter of what is still free. Default: 1024.
	MaxLookups int `json:"max_lookups,omitempty"`

	// How many names that are not in the cache may be asked for in a second;
	// beyond that requests for such names get status 503. Default: no limit.
	NewNames int `json:"new_names,omitempty"`

	// The hosts file, whose names are not asked for; it is read again when it
	// changes. `off`: none. Default: `/etc/hosts`.
	Hosts string `json:"hosts,omitempty"`

	// Whether names are tried with the search domains of /etc/resolv.conf too,
	// as the system's resolver does: before the name as it is if that has fewer
	// dots than the option ndots says, else after it. The next one is tried
	// if there is no such name, no address or, unless the name was found to be short
	// for another one before, no answer. Default: false.
	Search bool `json:"search,omitempty"`
}

var familyNames = map[string]dnscache.Family{
	"ipv4":        dnscache.IPv4,
	"ipv6":        dnscache.IPv6,
	"prefer_ipv4": dnscache.PreferIPv4,
	"prefer_ipv6": dnscache.PreferIPv6,
}

// defaults returns r with what is not set filled in, so that configurations
// that mean the same are equal.
func (r Resolver) defaults() Resolver {
	if len(r.Nameservers) > 0 { // else resolv.conf may say it
		setDefault(&r.Timeout, caddy.Duration(2*time.Second))
		setDefault(&r.Tries, 3)
	}
	setDefault(&r.Deadline, caddy.Duration(5*time.Second))
	setDefault(&r.Family, "auto")
	setDefault(&r.MinTTL, caddy.Duration(time.Second))
	setDefault(&r.MaxTTL, caddy.Duration(time.Hour))
	setDefault(&r.NegativeTTL, caddy.Duration(30*time.Second))
	setDefault(&r.Stale, caddy.Duration(24*time.Hour))
	setDefault(&r.StaleWait, caddy.Duration(500*time.Millisecond))
	if !r.RefreshAlways {
		setDefault(&r.Refresh, caddy.Duration(5*time.Minute))
	}
	if r.Refresh > 0 {
		setDefault(&r.RefreshQueries, 1)
	}
	setDefault(&r.CacheSize, 100_000)
	setDefault(&r.MaxLookups, 1024)
	setDefault(&r.Hosts, defaultHosts)
	return r
}

// defaultHosts is the hosts file where nothing else is configured; it may be
// missing.
const defaultHosts = "/etc/hosts"

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// normal returns a valid r with its names in normal form, for the same reason.
func (r Resolver) normal() Resolver {
	r.Nameservers = normalNameservers(r.Nameservers)
	zones := make(map[string][]string, len(r.Zones))
	for suffix, servers := range r.Zones {
		suffix, _ = normalName(suffix)
		zones[suffix] = normalNameservers(servers)
	}
	r.Zones = zones
	r.Preload = slices.Clone(r.Preload)
	for i, name := range r.Preload {
		r.Preload[i], _ = normalName(name)
	}
	slices.Sort(r.Preload)
	r.Preload = slices.Compact(r.Preload)
	return r
}

// normalNameservers returns valid nameservers in normal form, each once.
func normalNameservers(list []string) []string {
	servers, _ := parseNameservers(list)
	var normal []string
	for _, server := range servers {
		normal = append(normal, server.String())
	}
	return normal
}

// conflict is an error about options that do not go together.
type conflict struct {
	error
	options []string // the Caddyfile's names of them
}

func conflictf(options []string, format string, args ...any) error {
	return &conflict{fmt.Errorf(format, args...), options}
}

// maxNumber is the most that a number of the configuration may be: far more than
// makes sense, and little enough to be counted with.
const maxNumber = 100_000_000

// maxRefreshQueries is the most that refresh_queries may be.
const maxRefreshQueries = 1000

// validate checks a configuration whose defaults are filled in.
func (r *Resolver) validate() error {
	for _, d := range []struct {
		name  string
		value caddy.Duration
	}{
		{"timeout", r.Timeout},
		{"deadline", r.Deadline},
		{"min_ttl", r.MinTTL},
		{"max_ttl", r.MaxTTL},
		{"negative_ttl", r.NegativeTTL},
		{"stale_wait", r.StaleWait},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s is negative", d.name)
		}
	}
	if r.MinTTL > r.MaxTTL {
		return conflictf([]string{"min_ttl", "max_ttl"}, "min_ttl %s is longer than max_ttl %s",
			time.Duration(r.MinTTL), time.Duration(r.MaxTTL))
	}
	if r.RefreshAlways && r.Refresh != 0 {
		return errors.New("refresh and refresh_always exclude each other")
	}
	switch {
	case r.RefreshQueries < 0 || r.RefreshQueries > maxRefreshQueries:
		return conflictf([]string{"refresh_queries"}, "refresh_queries %d is not in 1 to %d", r.RefreshQueries, maxRefreshQueries)
	case r.RefreshQueries > 0 && r.RefreshAlways:
		return conflictf([]string{"refresh_queries", "refresh"}, "refresh_queries has no meaning where all names are refreshed")
	case r.RefreshQueries > 0 && r.Refresh < 0:
		return conflictf([]string{"refresh_queries", "refresh"}, "refresh_queries has no meaning where no name is refreshed")
	}
	if err := r.checkFamily(); err != nil {
		return err
	}
	tries := r.Tries
	if len(r.Nameservers) == 0 {
		setDefault(&tries, 1) // what resolv.conf says
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"tries", tries},
		{"cache_size", r.CacheSize},
		{"max_lookups", r.MaxLookups},
	} {
		switch {
		case n.value < 1:
			return fmt.Errorf("%s %d is not positive", n.name, n.value)
		case n.value > maxNumber:
			return fmt.Errorf("%s %d is more than %d", n.name, n.value, maxNumber)
		}
	}
	if r.NewNames < 0 || r.NewNames > maxNumber {
		return conflictf([]string{"new_names"}, "new_names %d is not in 0 to %d", r.NewNames, maxNumber)
	}
	if err := r.checkPreload(); err != nil {
		return err
	}
	servers, err := parseNameservers(r.Nameservers)
	if err != nil {
		return err
	}
	zones, err := r.parseZones()
	if err != nil {
		return err
	}
	n := len(servers)
	setDefault(&n, 3) // the system's
	if r.Tries > 3*n {
		return conflictf([]string{"tries", "nameservers"},
			"tries %d is more than 3 for each of %d nameservers (RFC 9520)", r.Tries, n)
	}
	for _, suffix := range slices.Sorted(maps.Keys(zones)) {
		if n := len(zones[suffix]); r.Tries > 3*n {
			return conflictf([]string{"tries", "zone"},
				"tries %d is more than 3 for each of %d nameservers of zone %s (RFC 9520)", r.Tries, n, suffix)
		}
		servers = append(servers, zones[suffix]...)
	}
	if len(r.TLSTrustedCACerts) > 0 && !slices.ContainsFunc(servers, hasCertificate) {
		return conflictf([]string{"tls_trusted_ca_certs"}, "tls_trusted_ca_certs without a nameserver with tls:// or https://")
	}
	return nil
}

// hasCertificate tells whether a nameserver has to prove who it is.
func hasCertificate(ns dnsclient.Nameserver) bool {
	return ns.Network == "tls" || ns.Network == "https"
}

func (r *Resolver) checkFamily() error {
	if _, ok := familyNames[r.Family]; !ok && r.Family != "auto" {
		return fmt.Errorf("unknown family %q: expecting auto, ipv4, ipv6, prefer_ipv4 or prefer_ipv6", r.Family)
	}
	return nil
}

// parseNameservers returns the nameservers of a list, each once.
func parseNameservers(list []string) ([]dnsclient.Nameserver, error) {
	servers := make([]dnsclient.Nameserver, 0, len(list))
	for _, s := range list {
		server, err := dnsclient.ParseNameserver(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return servers, nil
}

// parseZones returns the nameservers of each zone, by its suffix in normal form.
func (r *Resolver) parseZones() (map[string][]dnsclient.Nameserver, error) {
	zones := make(map[string][]dnsclient.Nameserver, len(r.Zones))
	for _, text := range slices.Sorted(maps.Keys(r.Zones)) {
		if text == "." {
			return nil, fmt.Errorf("zone %q: all names that are in no zone belong to nameservers", text)
		}
		suffix, err := normalName(text)
		if err != nil {
			return nil, fmt.Errorf("zone %q: %w", text, err)
		}
		if zones[suffix] != nil {
			return nil, fmt.Errorf("zone %s already specified", suffix)
		}
		if len(r.Zones[text]) == 0 {
			return nil, fmt.Errorf("zone %s has no nameservers", suffix)
		}
		if zones[suffix], err = parseNameservers(r.Zones[text]); err != nil {
			return nil, fmt.Errorf("zone %s: %w", suffix, err)
		}
	}
	return zones, nil
}

func (r *Resolver) checkPreload() error {
	for _, name := range r.Preload {
		if strings.HasPrefix(name, "_") {
			return fmt.Errorf("preload %q: a service cannot be preloaded, only names of hosts", name)
		}
		if _, err := normalName(name); err != nil {
			return fmt.Errorf("preload %q: %w", name, err)
		}
	}
	return nil
}

// normalName returns a name that nameservers may be asked for in normal form.
func normalName(text string) (string, error) {
	name, err := guard.NormalizeHost(text)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", errors.New("an IP address is not a name")
	}
	if isLocalhost(name) || neverAsked(name) {
		return "", errors.New("such names are never asked for (RFC 6761, RFC 7686)")
	}
	return name, nil
}

// roots returns the certificate authorities of nameservers, nil for those of
// the system, and what changes when the files do.
func (r *Resolver) roots() (pool *x509.CertPool, digest string, err error) {
	if len(r.TLSTrustedCACerts) == 0 {
		return nil, "", nil
	}
	pool = x509.NewCertPool()
	sum := sha256.New()
	for _, file := range r.TLSTrustedCACerts {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, "", fmt.Errorf("tls_trusted_ca_certs: %w", err)
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, "", fmt.Errorf("tls_trusted_ca_certs: %s has no certificate", file)
		}
		ofFile := sha256.Sum256(data)
		sum.Write(ofFile[:])
	}
	return pool, hex.EncodeToString(sum.Sum(nil)), nil
}

// resolvers are the resolvers in use, by configuration; they outlive a reload.
var resolvers = caddy.NewUsagePool()

// resolver is a running resolver: a client and a cache for each zone, and what
// needs neither.
type resolver struct {
	key    string
	config Resolver
	zone   // of the names that are in none of zones
	zones  map[string]*zone
	depth  int                        // the most labels that one of zones has
	hosts  atomic.Pointer[hostsFile]  // nil if there is none
	search atomic.Pointer[searchList] // nil if there is none
	system atomic.Pointer[resolvConf] // nil if its nameservers are not asked
	route6 routeProbe

	resolvConf string // another one in tests
	systemPort uint16 // of its nameservers; another one in tests

	// of the files as they were read; for newResolver, then watchFiles
	hostsStamp, confStamp stamp
	confStays             bool // resolv.conf is not read again

	startOnce sync.Once
	stop      chan struct{}
	wg        sync.WaitGroup
}

// zone is a part of all names, with what it takes to ask for them: what happens
// in one disturbs no other.
type zone struct {
	client *dnsclient.Client
	cache  *dnscache.Cache
}

// zoneOf returns the zone that a name is in, that with the longest suffix.
func (r *resolver) zoneOf(name string) *zone {
	z := &r.zone
	end := len(name)
	for i := 0; i < r.depth && end >= 0; i++ {
		end = strings.LastIndexByte(name[:end], '.')
		if longer := r.zones[name[end+1:]]; longer != nil {
			z = longer
		}
	}
	return z
}

// acquire returns the resolver of a configuration, a new one if there is none.
// It has to be released.
func (r Resolver) acquire() (*resolver, error) {
	r = r.defaults()
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	r = r.normal()
	roots, digest, err := r.roots()
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	key, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	key = append(key, digest...)
	value, _, err := resolvers.LoadOrNew(string(key), func() (caddy.Destructor, error) {
		return newResolver(string(key), r, roots)
	})
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	return value.(*resolver), nil
}

// release gives back what acquire returned; nil is allowed.
func (r *resolver) release() error {
	if r == nil {
		return nil
	}
	_, err := resolvers.Delete(r.key)
	return err
}

func newResolver(key string, config Resolver, roots *x509.CertPool) (*resolver, error) {
	r := &resolver{
		key:        key,
		config:     config,
		resolvConf: "/etc/resolv.conf",
		systemPort: 53,
		stop:       make(chan struct{}),
	}
	servers, err := parseNameservers(config.Nameservers)
	if err != nil {
		return nil, err
	}
	zones, err := config.parseZones()
	if err != nil {
		return nil, err
	}
	r.readHosts()
	settings := dnsclient.Settings{Timeout: time.Duration(config.Timeout), Tries: config.Tries}
	ofZones := settings
	if r.usesResolvConf() {
		if c := r.readResolvConf(); c != nil && r.asksSystem() {
			servers, settings = c.servers(r.systemPort), c.settings(&config)
		}
	}

	r.zones = make(map[string]*zone, len(zones))
	for suffix := range zones {
		r.zones[suffix] = new(zone)
		r.depth = max(r.depth, strings.Count(suffix, ".")+1)
	}
	preload := make(map[*zone][]string)
	for _, name := range config.Preload {
		if _, ok := r.local(name); !ok {
			z := r.zoneOf(name)
			preload[z] = append(preload[z], name)
		}
	}
	clientConfig := dnsclient.Config{
		Roots:  roots,
		Trace:  r.trace,
		Route:  r.route,
		Health: r.health,
		Traced: func() bool { return caddy.Log().Core().Enabled(zap.DebugLevel) },
	}
	cacheConfig := r.cacheConfig(preload[&r.zone])
	if r.asksSystem() {
		r.heedSystem(&cacheConfig)
	}
	r.zone = newZone(servers, settings, clientConfig, cacheConfig)
	for suffix, z := range r.zones {
		*z = newZone(zones[suffix], ofZones, clientConfig, r.cacheConfig(preload[z]))
	}
	return r, nil
}

func newZone(servers []dnsclient.Nameserver, settings dnsclient.Settings, clientConfig dnsclient.Config, cacheConfig dnscache.Config) zone {
	clientConfig.Timeout, clientConfig.Tries, clientConfig.Rotate = settings.Timeout, settings.Tries, settings.Rotate
	client := dnsclient.New(servers, clientConfig)
	return zone{client, dnscache.New(client, cacheConfig)}
}

// heedSystem makes a cache ask as the options of resolv.conf say.
func (r *resolver) heedSystem(c *dnscache.Config) {
	c.Sequential = func() bool {
		conf := r.system.Load()
		return conf != nil && conf.singleRequest
	}
	if r.config.Family == "auto" {
		c.Family = func() dnscache.Family {
			if conf := r.system.Load(); conf != nil && conf.noAAAA {
				return dnscache.IPv4
			}
			return r.autoFamily()
		}
	}
}

func (r *resolver) cacheConfig(preload []string) dnscache.Config {
	config := &r.config
	family := r.autoFamily
	if fixed, ok := familyNames[config.Family]; ok {
		family = func() dnscache.Family { return fixed }
	}
	refresh := time.Duration(config.Refresh)
	if config.RefreshAlways {
		refresh = dnscache.Always
	}
	return dnscache.Config{
		Family:         family,
		MinTTL:         time.Duration(config.MinTTL),
		MaxTTL:         time.Duration(config.MaxTTL),
		NegativeTTL:    time.Duration(config.NegativeTTL),
		Stale:          time.Duration(config.Stale),
		StaleWait:      time.Duration(config.StaleWait),
		Refresh:        refresh,
		RefreshQueries: config.RefreshQueries,
		Preload:        preload,
		Deadline:       time.Duration(config.Deadline),
		Size:           config.CacheSize,
		MaxLookups:     config.MaxLookups,
		NewNames:       config.NewNames,
	}
}

// start begins what a resolver does on its own; it may be called many times.
func (r *resolver) start() {
	r.startOnce.Do(func() {
		r.cache.Start()
		for _, z := range r.zones {
			z.cache.Start()
		}
		r.wg.Go(r.watchFiles)
	})
}

// Destruct implements caddy.Destructor.
func (r *resolver) Destruct() error {
	close(r.stop)
	r.cache.Close()
	for _, z := range r.zones {
		z.cache.Close()
	}
	// now that no alias leads from one zone to another any more
	r.client.Close()
	for _, z := range r.zones {
		z.client.Close()
	}
	r.wg.Wait()
	return nil
}

// logger returns the logger of resolvers: Caddy's current one, not that of a
// configuration, which a resolver outlives.
func (*resolver) logger() *zap.Logger { return caddy.Log().Named("target.resolver") }

// route returns the client to ask for what an alias leads to.
func (r *resolver) route(name string) *dnsclient.Client {
	if neverAsked(name) || isLocalhost(name) {
		return nil
	}
	return r.zoneOf(name).client
}

// health logs that a nameserver went down, or came up again.
func (r *resolver) health(server dnsclient.Nameserver, why string) {
	if why == "" {
		r.logger().Info("nameserver is up again", zap.Stringer("nameserver", server))
		return
	}
	r.logger().Warn("nameserver is down", zap.Stringer("nameserver", server), zap.String("reason", why))
}

// trace logs a lookup.
func (r *resolver) trace(t *dnsclient.Trace) {
	c := r.logger().Check(zap.DebugLevel, "lookup")
	if c == nil {
		return
	}
	answer := zap.Stringers("addresses", t.Addrs)
	if t.Type == dns.TypeSRV {
		answer = zap.Any("services", t.Services)
	}
	c.Write(
		zap.String("name", t.Name),
		zap.Stringer("type", dns.Type(t.Type)),
		zap.Duration("duration", t.Duration),
		zap.Error(t.Err),
		answer,
		zap.Duration("ttl", t.TTL),
		zap.Array("tries", tries(t.Tries)),
	)
}

// tries are the tries of a lookup, for a log.
type tries []dnsclient.Try

// MarshalLogArray implements zapcore.ArrayMarshaler.
func (t tries) MarshalLogArray(to zapcore.ArrayEncoder) error {
	for _, try := range t {
		err := to.AppendObject(zapcore.ObjectMarshalerFunc(func(to zapcore.ObjectEncoder) error {
			to.AddString("name", try.Name)
			to.AddString("server", try.Server.String())
			to.AddString("transport", try.Transport)
			to.AddDuration("duration", try.Duration)
			to.AddString("outcome", try.Outcome)
			if try.Ignored > 0 {
				to.AddInt("ignored", try.Ignored)
			}
			return nil
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// answer is what a resolver knows of a name.
type answer struct {
	addrs     []netip.Addr // shared: not to be written to
	preferred int          // so many of addrs, from the first, are preferred
	lookup    string       // where it came from: the placeholder {http.target.lookup}
	waited    time.Duration
	found     string // what the name was short for, if it was searched for
}

var lookupNames = [...]string{dnscache.Miss: "miss", dnscache.Hit: "hit", dnscache.Stale: "stale"}

// lookup returns the addresses of a name in normal form, which may have to be
// completed by a search domain.
func (r *resolver) lookup(ctx context.Context, name string) (answer, error) {
	if s := r.search.Load(); s != nil {
		return r.lookupSearching(ctx, s, name)
	}
	return r.lookupComplete(ctx, name)
}

// lookupComplete returns the addresses of a name in normal form.
func (r *resolver) lookupComplete(ctx context.Context, name string) (answer, error) {
	if addrs, ok := r.local(name); ok {
		if len(addrs) == 0 {
			return answer{lookup: "hosts"}, fmt.Errorf("%s has no address of the family %s in the hosts file", name, r.config.Family)
		}
		return answer{addrs: addrs, preferred: len(addrs), lookup: "hosts"}, nil
	}
	if neverAsked(name) {
		return answer{lookup: "miss"}, errNeverAsked(name)
	}
	a, err := r.zoneOf(name).cache.Lookup(ctx, name)
	if errors.Is(err, dnscache.ErrClosed) {
		again, err := r.again()
		if err != nil {
			return answer{lookup: "miss"}, err
		}
		defer func() { _ = again.release() }()
		return again.lookupComplete(ctx, name)
	}
	return answer{addrs: a.Addrs, preferred: a.Preferred, lookup: lookupNames[a.State], waited: a.Waited}, err
}

// renew returns the addresses of a name as they are now: they are asked for again
// unless that was done just now, or others are known than before.
func (r *resolver) renew(ctx context.Context, name string, before []netip.Addr) (answer, error) {
	a, err := r.zoneOf(name).cache.Renew(ctx, name, before)
	return answer{addrs: a.Addrs, preferred: a.Preferred}, err
}

// again acquires another resolver of the same configuration, for a request that
// outlives the one that it came with.
func (r *resolver) again() (*resolver, error) { return r.config.acquire() }

// watch returns a function that reports whether a name has other addresses now than
// the given one, if they are known. A name that is complete is not searched
// for.
func (r *resolver) watch(name string, complete bool) func(netip.Addr) bool {
	name = strings.Clone(name) // it may be a part of something large
	peek := r.peek
	if complete {
		peek = r.peekComplete
	}
	return func(addr netip.Addr) bool {
		// a target that is an address itself is not known here
		addrs, known := peek(name)
		return known && len(addrs) > 0 && addr.IsValid() && !slices.Contains(addrs, addr)
	}
}

// peek returns the addresses of a name if they are known.
func (r *resolver) peek(name string) ([]netip.Addr, bool) {
	if s := r.search.Load(); s != nil {
		return r.peekSearching(s, name)
	}
	return r.peekComplete(name)
}

func (r *resolver) peekComplete(name string) ([]netip.Addr, bool) {
	if addrs, ok := r.local(name); ok {
		return addrs, true
	}
	return r.zoneOf(name).cache.Peek(name)
}

// local answers for names that are not asked for: those of the hosts file and
// localhost (RFC 6761, section 6.3).
func (r *resolver) local(name string) ([]netip.Addr, bool) {
	if h := r.hosts.Load(); h != nil {
		if addrs, ok := h.names[name]; ok {
			return r.ofFamily(addrs), true
		}
	}
	if isLocalhost(name) {
		return r.ofFamily(localhost), true
	}
	return nil, false
}

var localhost = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// neverAsked tells of names that have no place in the DNS.
func neverAsked(name string) bool {
	tld := name[strings.LastIndexByte(name, '.')+1:]
	return tld == "onion" || tld == "invalid"
}

func errNeverAsked(name string) error {
	return fmt.Errorf("%s does not exist in the DNS (RFC 6761, RFC 7686)", name)
}

// ofFamily leaves out the addresses of a family that is not wanted.
func (r *resolver) ofFamily(addrs []netip.Addr) []netip.Addr {
	var wanted func(netip.Addr) bool
	switch r.config.Family {
	case "ipv4":
		wanted = netip.Addr.Is4
	case "ipv6":
		wanted = netip.Addr.Is6
	default:
		return addrs
	}
	var list []netip.Addr
	for _, a := range addrs {
		if wanted(a) {
			list = append(list, a)
		}
	}
	return list
}

// autoFamily asks for what this machine can reach.
func (r *resolver) autoFamily() dnscache.Family {
	if r.route6.exists() {
		return dnscache.Interleaved
	}
	return dnscache.IPv4
}

// routeProbe remembers for a while whether there is a route for IPv6.
type routeProbe struct {
	mu      sync.Mutex
	until   time.Time
	present bool
}

func (p *routeProbe) exists() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.After(p.until) {
		p.until = now.Add(30 * time.Second)
		// connecting a UDP socket looks up the route and sends nothing; the
		// address is one for documentation (RFC 3849)
		conn, err := net.Dial("udp6", "[2001:db8::1]:9")
		if p.present = err == nil; p.present {
			_ = conn.Close()
		}
	}
	return p.present
}

const fileCheckTime = 5 * time.Second

// watchFiles reads the hosts file and resolv.conf again when they change.
func (r *resolver) watchFiles() {
	ticker := time.NewTicker(fileCheckTime)
	defer ticker.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-ticker.C:
			r.checkFiles()
		}
	}
}

func (r *resolver) checkFiles() {
	if fileStamp(r.config.Hosts) != r.hostsStamp {
		r.readHosts()
	}
	r.checkResolvConf()
}

// stamp is what changes when a file is written or replaced.
type stamp struct {
	size  int64
	mtime time.Time
}

func fileStamp(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info.Size(), info.ModTime()}
}

// hostsFile is the content of a hosts file.
type hostsFile struct {
	names map[string][]netip.Addr
}

// readHosts reads the hosts file; one that is not there is empty.
func (r *resolver) readHosts() {
	if r.config.Hosts == "off" {
		return
	}
	stamp := fileStamp(r.config.Hosts)
	data, err := os.ReadFile(r.config.Hosts)
	if err != nil && (!errors.Is(err, os.ErrNotExist) || r.config.Hosts != defaultHosts) {
		r.logger().Warn("reading the hosts file failed", zap.String("file", r.config.Hosts), zap.Error(err))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return
	}
	r.hostsStamp = stamp
	r.hosts.Store(parseHosts(string(data)))
}

// parseHosts reads a hosts file as hosts(5) has it. What is not an address with
// names is passed over.
func parseHosts(data string) *hostsFile {
	h := &hostsFile{names: make(map[string][]netip.Addr)}
	for line := range strings.Lines(data) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || addr.Zone() != "" {
			continue
		}
		addr = addr.Unmap()
		for _, field := range fields[1:] {
			if name, err := guard.NormalizeHost(field); err == nil {
				h.names[name] = append(h.names[name], addr)
			}
		}
	}
	return h
}

// Interface guards
var (
	_ caddy.Destructor       = (*resolver)(nil)
	_ zapcore.ArrayMarshaler = (tries)(nil)
)
