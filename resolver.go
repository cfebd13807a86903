package caddytarget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

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
	// only. Default: those of /etc/resolv.conf, which is read again when it
	// changes.
	Nameservers []string `json:"nameservers,omitempty"`

	// How long one try may take. Default: `2s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many times a question is sent, each time to the next nameserver; at
	// most 3 times the number of nameservers (RFC 9520). Default: 3.
	Tries int `json:"tries,omitempty"`

	// How long one lookup may take in all. Default: `5s`.
	Deadline caddy.Duration `json:"deadline,omitempty"`

	// Which addresses are asked for and in which order they are used: `auto`
	// (IPv6 if this machine has a route for it, and IPv4; alternating),
	// `ipv4`, `ipv6`, `prefer_ipv4` or `prefer_ipv6` (the other family only
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
	// background before they expire. Negative: none are. Default: `5m`.
	Refresh caddy.Duration `json:"refresh,omitempty"`

	// How many names are kept. Default: 100000.
	CacheSize int `json:"cache_size,omitempty"`

	// How many lookups may be in flight for requests; as many again may wait
	// for their turn, and beyond that requests for unknown names get status
	// 503. Default: 1024.
	MaxLookups int `json:"max_lookups,omitempty"`

	// The hosts file, whose names are not asked for; it is read again when it
	// changes. `off`: none. Default: `/etc/hosts`.
	Hosts string `json:"hosts,omitempty"`
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
	setDefault(&r.Timeout, caddy.Duration(2*time.Second))
	setDefault(&r.Tries, 3)
	setDefault(&r.Deadline, caddy.Duration(5*time.Second))
	setDefault(&r.Family, "auto")
	setDefault(&r.MinTTL, caddy.Duration(time.Second))
	setDefault(&r.MaxTTL, caddy.Duration(time.Hour))
	setDefault(&r.NegativeTTL, caddy.Duration(30*time.Second))
	setDefault(&r.Stale, caddy.Duration(24*time.Hour))
	setDefault(&r.StaleWait, caddy.Duration(500*time.Millisecond))
	setDefault(&r.Refresh, caddy.Duration(5*time.Minute))
	setDefault(&r.CacheSize, 100_000)
	setDefault(&r.MaxLookups, 1024)
	setDefault(&r.Hosts, "/etc/hosts")
	return r
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

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
		return fmt.Errorf("min_ttl %s is longer than max_ttl %s", time.Duration(r.MinTTL), time.Duration(r.MaxTTL))
	}
	if err := r.checkFamily(); err != nil {
		return err
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"tries", r.Tries},
		{"cache_size", r.CacheSize},
		{"max_lookups", r.MaxLookups},
	} {
		if n.value < 1 {
			return fmt.Errorf("%s %d is not positive", n.name, n.value)
		}
	}
	servers, err := r.parseNameservers()
	if err != nil {
		return err
	}
	n := len(servers)
	setDefault(&n, 3) // the system's
	if r.Tries > 3*n {
		return fmt.Errorf("tries %d is more than 3 for each of %d nameservers (RFC 9520)", r.Tries, n)
	}
	return nil
}

func (r *Resolver) checkFamily() error {
	if _, ok := familyNames[r.Family]; !ok && r.Family != "auto" {
		return fmt.Errorf("unknown family %q: expecting auto, ipv4, ipv6, prefer_ipv4 or prefer_ipv6", r.Family)
	}
	return nil
}

func (r *Resolver) parseNameservers() ([]dnsclient.Nameserver, error) {
	servers := make([]dnsclient.Nameserver, 0, len(r.Nameservers))
	for _, s := range r.Nameservers {
		server, err := dnsclient.ParseNameserver(s)
		if err != nil {
			return nil, err
		}
		servers = append(servers, server)
	}
	return servers, nil
}

// resolvers are the resolvers in use, by configuration; they outlive a reload.
var resolvers = caddy.NewUsagePool()

// resolver is a running resolver: a client, a cache, and what needs neither.
type resolver struct {
	key    string
	config Resolver
	client *dnsclient.Client
	cache  *dnscache.Cache
	hosts  atomic.Pointer[hostsFile] // nil if there is none
	route6 routeProbe
	log    *zap.Logger

	resolvConf string // another one in tests

	// of the files as they were read; for newResolver, then watchFiles
	hostsStamp, confStamp stamp

	startOnce sync.Once
	stop      chan struct{}
	wg        sync.WaitGroup
}

// acquire returns the resolver of a configuration, a new one if there is none.
// It has to be released.
func (r Resolver) acquire() (*resolver, error) {
	r = r.defaults()
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	key, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	value, _, err := resolvers.LoadOrNew(string(key), func() (caddy.Destructor, error) {
		return newResolver(string(key), r)
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

func newResolver(key string, config Resolver) (*resolver, error) {
	r := &resolver{
		key:        key,
		config:     config,
		resolvConf: "/etc/resolv.conf",
		// not a config's logger: the resolver outlives it
		log:  caddy.Log().Named("target.resolver"),
		stop: make(chan struct{}),
	}
	servers, err := config.parseNameservers()
	if err != nil {
		return nil, err
	}
	if len(servers) == 0 {
		servers = r.systemNameservers()
	}
	r.client = dnsclient.New(servers, dnsclient.Config{
		Timeout: time.Duration(config.Timeout),
		Tries:   config.Tries,
	})
	family := r.autoFamily
	if fixed, ok := familyNames[config.Family]; ok {
		family = func() dnscache.Family { return fixed }
	}
	r.cache = dnscache.New(r.client, dnscache.Config{
		Family:      family,
		MinTTL:      time.Duration(config.MinTTL),
		MaxTTL:      time.Duration(config.MaxTTL),
		NegativeTTL: time.Duration(config.NegativeTTL),
		Stale:       time.Duration(config.Stale),
		StaleWait:   time.Duration(config.StaleWait),
		Refresh:     time.Duration(config.Refresh),
		Deadline:    time.Duration(config.Deadline),
		Size:        config.CacheSize,
		MaxLookups:  config.MaxLookups,
	})
	r.readHosts()
	return r, nil
}

// start begins what a resolver does on its own; it may be called many times.
func (r *resolver) start() {
	r.startOnce.Do(func() {
		r.cache.Start()
		r.wg.Go(r.watchFiles)
	})
}

// Destruct implements caddy.Destructor.
func (r *resolver) Destruct() error {
	close(r.stop)
	r.cache.Close()
	r.client.Close()
	r.wg.Wait()
	return nil
}

// answer is what a resolver knows of a name.
type answer struct {
	addrs     []netip.Addr // shared: not to be written to
	preferred int          // so many of addrs, from the first, are preferred
	lookup    string       // where it came from: the placeholder {http.target.lookup}
	waited    time.Duration
}

var lookupNames = [...]string{dnscache.Miss: "miss", dnscache.Hit: "hit", dnscache.Stale: "stale"}

// lookup returns the addresses of a name in normal form.
func (r *resolver) lookup(ctx context.Context, name string) (answer, error) {
	if addrs, ok := r.local(name); ok {
		if len(addrs) == 0 {
			return answer{lookup: "hosts"}, fmt.Errorf("%s has no address of the family %s in the hosts file", name, r.config.Family)
		}
		return answer{addrs: addrs, preferred: len(addrs), lookup: "hosts"}, nil
	}
	if neverAsked(name) {
		return answer{lookup: "miss"}, fmt.Errorf("%s does not exist in the DNS (RFC 6761, RFC 7686)", name)
	}
	a, err := r.cache.Lookup(ctx, name)
	if errors.Is(err, dnscache.ErrClosed) {
		return r.lookupAfterEnd(ctx, name)
	}
	return answer{addrs: a.Addrs, preferred: a.Preferred, lookup: lookupNames[a.State], waited: a.Waited}, err
}

// lookupAfterEnd returns the addresses of a name for a request that outlives
// the configuration, and so the resolver, that it came with.
func (r *resolver) lookupAfterEnd(ctx context.Context, name string) (answer, error) {
	again, err := r.config.acquire()
	if err != nil {
		return answer{lookup: "miss"}, err
	}
	defer func() { _ = again.release() }()
	return again.lookup(ctx, name)
}

// peek returns the addresses of a name if they are known.
func (r *resolver) peek(name string) ([]netip.Addr, bool) {
	if addrs, ok := r.local(name); ok {
		return addrs, true
	}
	return r.cache.Peek(name)
}

// local answers for names that are not asked for: those of the hosts file and
// localhost (RFC 6761, section 6.3).
func (r *resolver) local(name string) ([]netip.Addr, bool) {
	if h := r.hosts.Load(); h != nil {
		if addrs, ok := h.names[name]; ok {
			return r.ofFamily(addrs), true
		}
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return r.ofFamily(localhost), true
	}
	return nil, false
}

var localhost = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// neverAsked tells of names that have no place in the DNS.
func neverAsked(name string) bool {
	tld := name[strings.LastIndexByte(name, '.')+1:]
	return tld == "onion" || tld == "invalid"
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
	if len(r.config.Nameservers) == 0 && fileStamp(r.resolvConf) != r.confStamp {
		if servers := r.systemNameservers(); len(servers) > 0 {
			r.client.SetNameservers(servers)
		}
	}
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

// systemNameservers returns the nameservers of the system, none if they cannot
// be read now.
func (r *resolver) systemNameservers() []dnsclient.Nameserver {
	stamp := fileStamp(r.resolvConf)
	servers, err := dnsclient.SystemNameservers(r.resolvConf)
	if err != nil {
		r.log.Warn("reading the system's nameservers failed", zap.String("file", r.resolvConf), zap.Error(err))
		return nil
	}
	r.confStamp = stamp
	return servers
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
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.log.Warn("reading the hosts file failed", zap.String("file", r.config.Hosts), zap.Error(err))
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
var _ caddy.Destructor = (*resolver)(nil)
