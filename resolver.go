package caddytarget

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"caddytarget/internal/resolver"
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

	// The shortest time an answer holds, whatever its TTL. Default: `1s`.
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

	// Names that are resolved at the start and kept fresh, used or not. An entry that
	// begins with `/`, `./` or `../` is a file with a name on each line, which is read
	// again within seconds when it changes; `#` begins a comment. Lines that are no name
	// of a host are ignored with a warning, and so are names beyond CacheSize.
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

	// How often what is known of names is saved in Caddy's storage, if there is something
	// new. It is also saved when Caddy stops, and loaded when it starts. Then it serves as
	// if there had been no stop: answers that have expired as `stale` lets them. A storage that
	// fails, is slow or has a damaged file holds up nothing, and is warned of. Negative: it is
	// neither saved nor loaded. At least `1s`. Default: `1m`.
	Persist caddy.Duration `json:"persist,omitempty"`

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

// config returns the configuration without its defaults, which are those of package
// resolver.
func (r *Resolver) config() resolver.Config {
	return resolver.Config{
		Nameservers:       r.Nameservers,
		Zones:             r.Zones,
		TLSTrustedCACerts: r.TLSTrustedCACerts,
		Timeout:           time.Duration(r.Timeout),
		Tries:             r.Tries,
		Deadline:          time.Duration(r.Deadline),
		Family:            r.Family,
		MinTTL:            time.Duration(r.MinTTL),
		MaxTTL:            time.Duration(r.MaxTTL),
		NegativeTTL:       time.Duration(r.NegativeTTL),
		Stale:             time.Duration(r.Stale),
		StaleWait:         time.Duration(r.StaleWait),
		Refresh:           time.Duration(r.Refresh),
		RefreshQueries:    r.RefreshQueries,
		RefreshAlways:     r.RefreshAlways,
		Preload:           r.Preload,
		CacheSize:         r.CacheSize,
		MaxLookups:        r.MaxLookups,
		NewNames:          r.NewNames,
		Hosts:             r.Hosts,
		Search:            r.Search,
		Persist:           time.Duration(r.Persist),
		Logger:            func() *zap.Logger { return caddy.Log().Named("target.resolver") },
	}
}

// resolvers are the resolvers in use, by configuration; they outlive a reload.
var resolvers = caddy.NewUsagePool()

// sharedResolver is one of resolvers.
type sharedResolver struct {
	*resolver.Resolver
	key    string
	shared *shared // for its metrics
}

func newSharedResolver(config *resolver.Compiled, key string) *sharedResolver {
	r := &sharedResolver{resolver.New(config), key, acquireShared()}
	r.shared.metrics.DNS.Add(r.Resolver)
	return r
}

// acquireResolver returns the resolver of a configuration, a new one if there is none.
// It has to be released.
func acquireResolver(config resolver.Config) (*sharedResolver, error) {
	// for a request that outlives its configuration
	again := config
	again.Predecessor = nil
	config.Reopen = func() (*resolver.Resolver, func(), error) {
		other, err := acquireResolver(again)
		if err != nil {
			return nil, nil, err
		}
		return other.Resolver, func() { _ = other.release() }, nil
	}
	compiled, err := config.Compile()
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	key := compiled.Key()
	value, _, err := resolvers.LoadOrNew(key, func() (caddy.Destructor, error) {
		return newSharedResolver(compiled, key), nil
	})
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	return value.(*sharedResolver), nil
}

// release gives back what acquireResolver returned.
func (r *sharedResolver) release() error {
	_, err := resolvers.Delete(r.key)
	return err
}

// Destruct implements caddy.Destructor.
func (r *sharedResolver) Destruct() error {
	r.Close()
	r.shared.metrics.DNS.Retire(r.Resolver)
	releaseShared()
	return nil
}

// Interface guards
var _ caddy.Destructor = (*sharedResolver)(nil)
