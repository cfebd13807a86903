package resolver

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
)

// Config is how a resolver asks and what it keeps. A field that is zero means
// the default.
type Config struct {
	// Nameservers are asked in this order of preference, as
	// [dnsclient.ParseNameserver] reads them. Default: those of ResolvConf,
	// asked as its options say.
	Nameservers []string

	// Zones are the nameservers of the names that end in a suffix. The longest
	// suffix wins.
	Zones map[string][]string

	// TLSTrustedCACerts are files with the certificate authorities, in PEM, that
	// certificates of nameservers must lead to. Default: those of the system.
	TLSTrustedCACerts []string

	// Timeout is how long one try may take, and Tries how many times a question is
	// sent. Default: 2s and 3; for the nameservers of ResolvConf what it says.
	Timeout time.Duration
	Tries   int

	// Deadline is how long one lookup may take, a search included. Default: 5s.
	Deadline time.Duration

	// Family is auto, ipv4, ipv6, prefer_ipv4 or prefer_ipv6. Default: auto, which
	// is both, alternating, if this machine has a route for IPv6, or else ipv4.
	Family string

	MinTTL         time.Duration // how long an answer holds at least; default 1s
	MaxTTL         time.Duration // how long an answer holds at most; default 1h
	NegativeTTL    time.Duration // how long a negative answer holds at most; default 30s
	Stale          time.Duration // how long an expired answer may serve while asking fails; default 24h, negative: never
	StaleWait      time.Duration // how long a lookup waits before it gets an answer that expired over a minute ago; default 500ms
	Refresh        time.Duration // names that were used within this time are refreshed; default 5m, negative: none
	RefreshQueries int           // how many queries each use of a name pays for; default 1
	RefreshAlways  bool          // all names are refreshed, instead of Refresh
	Preload        []string      // names that are resolved at the start and kept fresh, and files of them
	CacheSize      int           // how many names are kept, in each zone; default 100000
	MaxLookups     int           // how many lookups may be in flight, in each zone; default 1024
	NewNames       int           // how many unknown names may be asked for in a second, in each zone; default any number

	// Hosts is the hosts file; off: none. Default: /etc/hosts.
	Hosts string

	// Search makes names be tried with the search domains of ResolvConf too.
	Search bool

	// Persist is how often what is known is saved, if a store is set, and whether what was
	// saved is loaded. Default: 1m; negative: neither.
	Persist time.Duration

	// ResolvConf is the resolv.conf(5) file. Default: /etc/resolv.conf.
	ResolvConf string

	// Logger returns the logger to use now. It is called for each message, because
	// the resolver may outlive a logger. Default: nothing is logged.
	Logger func() *zap.Logger `json:"-"`

	// Reopen returns a resolver of the same configuration that is not closed, and
	// what releases it. Lookups that go on when the resolver is closed use it.
	// Default: they fail with [dnscache.ErrClosed].
	Reopen func() (r *Resolver, release func(), err error) `json:"-"`

	// Predecessor returns the resolver that a new one replaces, nil if there is none. What
	// that one knows is taken over. It is called once, at the start or before the first reader
	// has to wait.
	Predecessor func(*Resolver) *Resolver `json:"-"`

	// PersistByDefault says that it was not configured that anything is saved, so that it
	// is no failure if nothing can be.
	PersistByDefault bool `json:"-"`

	// Now is the clock of the cache, and Exchanger is asked in place of all
	// nameservers. Both are for tests.
	Now       func() time.Duration `json:"-"`
	Exchanger dnscache.Exchanger   `json:"-"`

	systemPort uint16 // of the nameservers of ResolvConf, for tests; 0 means 53
}

// defaultHosts and defaultResolvConf may be missing without a warning.
const (
	defaultHosts      = "/etc/hosts"
	defaultResolvConf = "/etc/resolv.conf"
)

const (
	// maxNumber is the highest number in a configuration: far more than makes
	// sense, and small enough for sums and products.
	maxNumber = 100_000_000

	// maxRefreshQueries is the highest Config.RefreshQueries.
	maxRefreshQueries = 1000
)

// withDefaults returns c with what is not set filled in.
func (c Config) withDefaults() Config {
	if len(c.Nameservers) > 0 { // else resolv.conf may say it
		c.Timeout = cmp.Or(c.Timeout, 2*time.Second)
		c.Tries = cmp.Or(c.Tries, 3)
	}
	c.Deadline = cmp.Or(c.Deadline, 5*time.Second)
	c.Family = cmp.Or(c.Family, autoFamily)
	c.MinTTL = cmp.Or(c.MinTTL, time.Second)
	c.MaxTTL = cmp.Or(c.MaxTTL, time.Hour)
	c.NegativeTTL = cmp.Or(c.NegativeTTL, 30*time.Second)
	c.Stale = cmp.Or(c.Stale, 24*time.Hour)
	c.StaleWait = cmp.Or(c.StaleWait, 500*time.Millisecond)
	if !c.RefreshAlways {
		c.Refresh = cmp.Or(c.Refresh, 5*time.Minute)
	}
	if c.Refresh > 0 {
		c.RefreshQueries = cmp.Or(c.RefreshQueries, 1)
	}
	c.CacheSize = cmp.Or(c.CacheSize, 100_000)
	c.MaxLookups = cmp.Or(c.MaxLookups, 1024)
	c.Hosts = cmp.Or(c.Hosts, defaultHosts)
	c.Persist = cmp.Or(max(c.Persist, -1), time.Minute)
	c.ResolvConf = cmp.Or(c.ResolvConf, defaultResolvConf)
	c.systemPort = cmp.Or(c.systemPort, 53)
	return c
}

// OptionError is an error in one option, or in options that contradict each other.
type OptionError struct {
	Options []string // their names in a Caddyfile
	err     error
}

func (e *OptionError) Error() string { return e.err.Error() }

// Unwrap returns the error without the names of the options.
func (e *OptionError) Unwrap() error { return e.err }

func optionErrorf(options []string, format string, args ...any) error {
	return &OptionError{options, fmt.Errorf(format, args...)}
}

// Validate returns what is wrong with c, without reading any file; but hosts, and a file of
// names to preload, must not be something else than a file. An error in how options go
// together is an [OptionError].
func (c Config) Validate() error {
	_, err := c.parse()
	return err
}

// Compiled is a valid configuration in normal form.
type Compiled struct {
	config  Config
	servers []dnsclient.Nameserver
	zones   map[string][]dnsclient.Nameserver // by suffix in normal form
	roots   *x509.CertPool                    // nil: those of the system
	digest  string                            // of roots
	key     string
}

// Compile checks c and reads the certificate authorities.
func (c Config) Compile() (*Compiled, error) {
	compiled, err := c.parse()
	if err != nil {
		return nil, err
	}
	digest, err := compiled.readRoots()
	if err != nil {
		return nil, err
	}
	compiled.digest = digest
	compiled.normalize()
	key, err := json.Marshal(compiled.config)
	if err != nil {
		return nil, err
	}
	compiled.key = string(key) + digest
	return compiled, nil
}

// Key returns a text that is equal for configurations that mean the same, and for
// no others. The contents of the files of certificate authorities are a part of it.
func (c *Compiled) Key() string { return c.key }

// id returns a short text that is the same for the same Key.
func (c *Compiled) id() string {
	sum := sha256.Sum256([]byte(c.key))
	return hex.EncodeToString(sum[:4])
}

// parse fills in defaults, checks c and parses the nameservers.
func (c Config) parse() (*Compiled, error) {
	c = c.withDefaults()
	for _, check := range []func() error{c.checkDurations, c.checkRefresh, c.checkFamily, c.checkNumbers, c.checkPreload, c.checkHosts} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	servers, err := parseNameservers(c.Nameservers)
	if err != nil {
		return nil, err
	}
	zones, err := parseZones(c.Zones)
	if err != nil {
		return nil, err
	}
	compiled := &Compiled{config: c, servers: servers, zones: zones}
	return compiled, compiled.checkNameservers()
}

func (c *Config) checkDurations() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"timeout", c.Timeout},
		{"deadline", c.Deadline},
		{"min_ttl", c.MinTTL},
		{"max_ttl", c.MaxTTL},
		{"negative_ttl", c.NegativeTTL},
		{"stale_wait", c.StaleWait},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s %s is not a positive duration", d.name, d.value)
		}
	}
	if c.MinTTL > c.MaxTTL {
		return optionErrorf([]string{"min_ttl", "max_ttl"}, "min_ttl %s is longer than max_ttl %s", c.MinTTL, c.MaxTTL)
	}
	return CheckPersist(c.Persist)
}

func (c *Config) checkRefresh() error {
	switch {
	case c.RefreshAlways && c.Refresh != 0:
		return errors.New("refresh and refresh_always exclude each other")
	case c.RefreshQueries < 0 || c.RefreshQueries > maxRefreshQueries:
		return optionErrorf([]string{"refresh_queries"}, "refresh_queries %d is not a number from 1 to %d", c.RefreshQueries, maxRefreshQueries)
	case c.RefreshQueries > 0 && c.RefreshAlways:
		return optionErrorf([]string{"refresh_queries", "refresh"}, "refresh_queries has no meaning where all names are refreshed")
	case c.RefreshQueries > 0 && c.Refresh < 0:
		return optionErrorf([]string{"refresh_queries", "refresh"}, "refresh_queries has no meaning where no name is refreshed")
	}
	return nil
}

func (c *Config) checkFamily() error { return CheckFamily(c.Family) }

// CheckFamily returns an error unless there is such a [Config.Family].
func CheckFamily(name string) error {
	if _, ok := families[name]; !ok && name != autoFamily {
		return fmt.Errorf("unknown family %q: expecting auto, ipv4, ipv6, prefer_ipv4 or prefer_ipv6", name)
	}
	return nil
}

func (c *Config) checkNumbers() error {
	tries := c.Tries
	if c.asksSystem() {
		tries = cmp.Or(tries, 1) // what resolv.conf says
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"tries", tries},
		{"cache_size", c.CacheSize},
		{"max_lookups", c.MaxLookups},
	} {
		if n.value < 1 || n.value > maxNumber {
			return fmt.Errorf("%s %d is not a number from 1 to %d", n.name, n.value, maxNumber)
		}
	}
	if c.NewNames < 0 || c.NewNames > maxNumber {
		return optionErrorf([]string{"new_names"}, "new_names %d is not a number from 1 to %d", c.NewNames, maxNumber)
	}
	return nil
}

func (c *Config) checkPreload() error { return CheckPreload(c.Preload) }

func (c *Config) checkHosts() error { return CheckHosts(c.Hosts) }

// CheckNameservers returns an error unless a list can be [Config.Nameservers].
func CheckNameservers(list []string) error {
	_, err := parseNameservers(list)
	return err
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

// CheckZones returns an error unless zones can be [Config.Zones].
func CheckZones(zones map[string][]string) error {
	_, err := parseZones(zones)
	return err
}

// parseZones returns the nameservers of each zone, by its suffix in normal form.
func parseZones(zones map[string][]string) (map[string][]dnsclient.Nameserver, error) {
	parsed := make(map[string][]dnsclient.Nameserver, len(zones))
	for _, text := range slices.Sorted(maps.Keys(zones)) {
		if text == "." {
			return nil, fmt.Errorf("zone %q: all names that are in no zone belong to nameservers", text)
		}
		suffix, err := normalName(text)
		if err != nil {
			return nil, fmt.Errorf("zone %q: %w", text, err)
		}
		if parsed[suffix] != nil {
			return nil, fmt.Errorf("zone %s already specified", suffix)
		}
		if len(zones[text]) == 0 {
			return nil, fmt.Errorf("zone %s has no nameservers", suffix)
		}
		if parsed[suffix], err = parseNameservers(zones[text]); err != nil {
			return nil, fmt.Errorf("zone %s: %w", suffix, err)
		}
	}
	return parsed, nil
}

// checkNameservers checks what depends on how many nameservers there are, and on
// how they are asked.
func (c *Compiled) checkNameservers() error {
	tries, n := c.config.Tries, len(c.servers)
	if c.config.asksSystem() {
		n = maxSystemNameservers
	}
	if tries > maxPerServer*n {
		return optionErrorf([]string{"tries", "nameservers"},
			"tries %d is more than %d for each of %d nameservers (RFC 9520)", tries, maxPerServer, n)
	}
	withTLS := slices.ContainsFunc(c.servers, hasCertificate)
	for _, suffix := range slices.Sorted(maps.Keys(c.zones)) {
		servers := c.zones[suffix]
		if n := len(servers); tries > maxPerServer*n {
			return optionErrorf([]string{"tries", "zone"},
				"tries %d is more than %d for each of %d nameservers of zone %s (RFC 9520)", tries, maxPerServer, n, suffix)
		}
		withTLS = withTLS || slices.ContainsFunc(servers, hasCertificate)
	}
	if len(c.config.TLSTrustedCACerts) > 0 && !withTLS {
		return optionErrorf([]string{"tls_trusted_ca_certs"}, "tls_trusted_ca_certs without a nameserver with tls:// or https://")
	}
	return nil
}

// hasCertificate reports whether a nameserver has to prove who it is.
func hasCertificate(ns dnsclient.Nameserver) bool {
	return ns.Network == "tls" || ns.Network == "https"
}

// readRoots reads the certificate authorities. The digest changes with the contents of
// their files.
func (c *Compiled) readRoots() (digest string, err error) {
	if len(c.config.TLSTrustedCACerts) == 0 {
		return "", nil
	}
	c.roots = x509.NewCertPool()
	sum := sha256.New()
	for _, file := range c.config.TLSTrustedCACerts {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("tls_trusted_ca_certs: %w", err)
		}
		if !c.roots.AppendCertsFromPEM(data) {
			return "", fmt.Errorf("tls_trusted_ca_certs: %s has no certificate", file)
		}
		ofFile := sha256.Sum256(data)
		sum.Write(ofFile[:])
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// normalize brings the names and nameservers of the configuration into normal form,
// so that configurations that mean the same are equal.
func (c *Compiled) normalize() {
	c.config.Nameservers = texts(c.servers)
	zones := make(map[string][]string, len(c.zones))
	for suffix, servers := range c.zones {
		zones[suffix] = texts(servers)
	}
	c.config.Zones = zones
	preload := slices.Clone(c.config.Preload)
	for i, name := range preload {
		if !isPreloadFile(name) {
			preload[i], _ = normalName(name)
		}
	}
	slices.Sort(preload)
	c.config.Preload = slices.Compact(preload)
}

// texts returns nameservers as [dnsclient.ParseNameserver] reads them.
func texts(servers []dnsclient.Nameserver) (list []string) {
	for _, server := range servers {
		list = append(list, server.String())
	}
	return list
}

// asksSystem reports whether the nameservers of resolv.conf are asked.
func (c *Config) asksSystem() bool { return len(c.Nameservers) == 0 }

// readsResolvConf reports whether resolv.conf matters.
func (c *Config) readsResolvConf() bool { return c.asksSystem() || c.Search }

// settings returns the settings by name.
func (c *Config) settings() (settings map[string]json.RawMessage) {
	text, _ := json.Marshal(c) // as Compile could
	_ = json.Unmarshal(text, &settings)
	return settings
}
