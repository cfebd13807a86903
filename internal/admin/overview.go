package admin

import (
	"cmp"
	"net/http"
	"runtime"
	"runtime/debug"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/resolver"
)

// Overview is the answer of /target/.
type Overview struct {
	Version   string         `json:"version"` // of caddytarget
	Caddy     string         `json:"caddy"`
	Go        string         `json:"go"`
	Sites     []*Site        `json:"sites"`
	Resolvers []Resolver     `json:"resolvers"`
	Pools     []PoolCounts   `json:"pools"`
	Addresses map[string]int `json:"addresses"` // that are not healthy, by state
}

// Resolver is what is known of one resolver.
type Resolver struct {
	ID        string `json:"resolver"`
	CacheSize int    `json:"cache_size"` // of each zone
	Zones     []Zone `json:"zones"`
}

// Zone is what is known of one zone of a resolver.
type Zone struct {
	Zone        string            `json:"zone"`
	Nameservers []string          `json:"nameservers"`
	Outage      bool              `json:"outage"`
	Mismatches  uint64            `json:"mismatches"`
	Names       map[string]int    `json:"names"`   // by state
	Lookups     map[string]uint64 `json:"lookups"` // by result
	Refreshes   uint64            `json:"refreshes"`
	Evictions   uint64            `json:"evictions"`
}

// getOverview serves /target/.
func (a *API) getOverview(*http.Request, params) (any, error) {
	o := Overview{Version: version(), Caddy: a.CaddyVersion(), Go: runtime.Version(), Sites: append([]*Site{}, a.Sites()...), Resolvers: []Resolver{}}
	for _, r := range a.Resolvers() {
		all := Resolver{ID: r.ID(), CacheSize: r.CacheSize()}
		stats := r.Stats()
		for i, servers := range r.Nameservers() { // both have the zones in the same order
			all.Zones = append(all.Zones, newZone(&stats[i], &servers))
		}
		o.Resolvers = append(o.Resolvers, all)
	}
	o.Pools, o.Addresses = a.poolCounts(), a.unhealthyAddresses()
	return o, nil
}

func newZone(stats *resolver.ZoneStats, servers *resolver.ZoneNameservers) Zone {
	z := Zone{
		Zone: stats.Zone, Nameservers: make([]string, len(servers.Nameservers)), Outage: servers.Outage, Mismatches: servers.Mismatches,
		Names: make(map[string]int), Lookups: make(map[string]uint64), Refreshes: stats.Refreshes, Evictions: stats.Evictions,
	}
	for i := range servers.Nameservers {
		z.Nameservers[i] = servers.Nameservers[i].Nameserver.String()
	}
	for state, n := range stats.Names {
		z.Names[dnscache.NameState(state).String()] = n
	}
	for result, n := range stats.Lookups {
		z.Lookups[dnscache.Result(result).String()] = n
	}
	return z
}

// version returns the version of caddytarget that this program was built with.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path != "caddytarget" {
				continue
			}
			if m.Replace != nil {
				m = m.Replace
			}
			return cmp.Or(m.Version, "(devel)") // a folder has no version
		}
	}
	return "unknown"
}
