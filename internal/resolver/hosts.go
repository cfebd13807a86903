package resolver

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"go.uber.org/zap"

	"caddytarget/internal/guard"
)

// hosts are the addresses of the names in a hosts file.
type hosts map[string][]netip.Addr

// CheckHosts returns an error unless a text can be [Config.Hosts].
func CheckHosts(path string) error {
	if path == "off" || path == "" {
		return nil
	}
	if err := checkFile(path); err != nil {
		return &OptionError{[]string{"hosts"}, fmt.Errorf("hosts: %w", err)}
	}
	return nil
}

// readHosts reads the hosts file. One that does not exist is empty; one that cannot
// be read now leaves all as it is.
func (r *Resolver) readHosts() {
	if r.config.Hosts == "off" {
		return
	}
	data, stamp, err := r.hostsFile.read()
	missing := errors.Is(err, fs.ErrNotExist)
	if r.hostsFile.hasFailed(err) && (!missing || r.config.Hosts != defaultHosts) {
		r.logger().Warn("reading the hosts file failed", zap.String("file", r.config.Hosts), zap.Error(err))
	}
	if err != nil && !missing {
		return
	}
	r.hostsFile.stamp = stamp
	parsed := parseHosts(string(data))
	r.hosts.Store(&parsed)
}

// parseHosts reads a hosts(5) file. Lines that are not an address with names are
// ignored.
func parseHosts(data string) hosts {
	h := make(hosts)
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
				h[name] = append(h[name], addr)
			}
		}
	}
	return h
}

// local answers for names that are not asked for: those of the hosts file and
// localhost.
func (r *Resolver) local(name string) ([]netip.Addr, bool) {
	if h := r.hosts.Load(); h != nil {
		if addrs, ok := (*h)[name]; ok {
			return r.ofFamily(addrs), true
		}
	}
	if isLocalhost(name) {
		return r.ofFamily(loopback), true
	}
	return nil, false
}
