package resolver

import (
	"cmp"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"caddytarget/internal/dnsclient"
)

const (
	// maxSystemNameservers is how many nameservers of resolv.conf are used (MAXNS).
	maxSystemNameservers = 3

	// maxSearch is how many search domains are used: as many as Kubernetes gives
	// to a pod. glibc has no limit since 2.26, but each one may cost a lookup.
	maxSearch = 32

	// The highest values of options of resolv.conf (RES_MAXNDOTS, RES_MAXRETRANS,
	// RES_MAXRETRY).
	maxDots          = 15
	maxSystemTimeout = 30
	maxAttempts      = 5

	// maxPerServer is how many times a question may be sent to one nameserver
	// (RFC 9520, section 3.1).
	maxPerServer = 3
)

// resolvConf is what a resolver takes from a resolv.conf(5) file. docs/resolver.md has a
// table of all lines and options.
type resolvConf struct {
	nameservers []netip.Addr // there is one at least
	search      []string     // in normal form
	ndots       int
	timeout     time.Duration // 0: the file does not say
	attempts    int           // 0: the file does not say

	rotate        bool
	useTCP        bool // use-vc
	singleRequest bool
	noAAAA        bool
	noTLDQuery    bool
	noReload      bool
}

// parseResolvConf reads a resolv.conf(5) file as the operating system's resolver
// does. Of the lines `search` and `domain` the last one counts. What cannot be read
// is ignored. If there is no nameserver, 127.0.0.1 and ::1 are asked.
func parseResolvConf(data string) *resolvConf {
	c := &resolvConf{ndots: 1}
	for line := range strings.Lines(data) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		switch args := fields[1:]; fields[0] {
		case "nameserver":
			if len(args) > 0 && len(c.nameservers) < maxSystemNameservers {
				if addr, err := netip.ParseAddr(args[0]); err == nil {
					c.nameservers = append(c.nameservers, addr.Unmap())
				}
			}
		case "search":
			c.setSearch(args)
		case "domain":
			if len(args) > 0 {
				c.setSearch(args[:1])
			}
		case "options":
			for _, option := range args {
				c.setOption(option)
			}
		}
	}
	if c.nameservers == nil {
		c.nameservers = slices.Clone(loopback)
	}
	return c
}

// setSearch sets the search list. Domains that are no names are ignored.
func (c *resolvConf) setSearch(list []string) {
	c.search = nil
	for _, text := range list {
		if domain, err := normalName(text); err == nil && !slices.Contains(c.search, domain) {
			c.search = append(c.search, domain)
		}
	}
}

func (c *resolvConf) setOption(option string) {
	name, value, _ := strings.Cut(option, ":")
	number := func(minimum, maximum int) (n int, ok bool) {
		u, err := strconv.ParseUint(value, 10, 31)
		return min(max(int(u), minimum), maximum), err == nil
	}
	switch name {
	case "ndots":
		if n, ok := number(0, maxDots); ok {
			c.ndots = n
		}
	case "timeout":
		if n, ok := number(1, maxSystemTimeout); ok {
			c.timeout = time.Duration(n) * time.Second
		}
	case "attempts":
		if n, ok := number(1, maxAttempts); ok {
			c.attempts = n
		}
	}
	switch option {
	case "rotate":
		c.rotate = true
	case "use-vc", "usevc", "tcp": // of Linux, FreeBSD and OpenBSD
		c.useTCP = true
	case "single-request":
		c.singleRequest = true
	case "no-aaaa":
		c.noAAAA = true
	case "no-tld-query":
		c.noTLDQuery = true
	case "no-reload":
		c.noReload = true
	}
}

// servers returns the nameservers, which listen on a port.
func (c *resolvConf) servers(port uint16) []dnsclient.Nameserver {
	network := "udp"
	if c.useTCP {
		network = "tcp"
	}
	list := make([]dnsclient.Nameserver, len(c.nameservers))
	for i, addr := range c.nameservers {
		list[i] = dnsclient.Nameserver{Network: network, AddrPort: netip.AddrPortFrom(addr, port)}
	}
	return list
}

// settings returns how the nameservers are asked. What the configuration of the
// resolver says comes first.
func (c *resolvConf) settings(config *Config) dnsclient.Settings {
	return dnsclient.Settings{
		Timeout: cmp.Or(config.Timeout, c.timeout),
		Tries:   cmp.Or(config.Tries, min(c.attempts, maxPerServer)*len(c.nameservers)),
		Rotate:  c.rotate,
	}
}

// environment returns the lines with which the environment amends resolv.conf.
func environment() string {
	lines := ""
	if search, ok := os.LookupEnv("LOCALDOMAIN"); ok {
		lines += "\nsearch " + search
	}
	if options, ok := os.LookupEnv("RES_OPTIONS"); ok {
		lines += "\noptions " + options
	}
	return lines
}

// readResolvConf reads resolv.conf, from which the search list and, if its
// nameservers are asked, the options for them are taken. A file that does not exist
// is empty. If it cannot be read now, readResolvConf returns nil, and all stays as
// it is.
func (r *Resolver) readResolvConf() *resolvConf {
	data, stamp, err := r.confFile.read()
	isNew := r.confFile.hasFailed(err)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if isNew {
			r.logger().Warn("reading resolv.conf failed", zap.String("file", r.confFile.path), zap.Error(err))
		}
		return nil
	}
	c := parseResolvConf(string(data) + environment())
	r.confFile.stamp = stamp
	if r.config.Search {
		r.setSearch(c)
	}
	if r.config.asksSystem() {
		r.system.Store(c)
	}
	r.noReload = c.noReload
	return c
}

// checkResolvConf reads resolv.conf again if it has changed.
func (r *Resolver) checkResolvConf() {
	if !r.config.readsResolvConf() || r.noReload || !r.confFile.changed() {
		return
	}
	if c := r.readResolvConf(); c != nil && r.config.asksSystem() {
		r.client.Change(c.servers(r.config.systemPort), c.settings(&r.config))
	}
}
