package admin

import (
	"cmp"
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/resolver"
	"caddytarget/internal/snapshot"
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
	ID        string  `json:"resolver"`
	CacheSize int     `json:"cache_size"` // of each zone
	Persist   Persist `json:"persist"`
	Zones     []Zone  `json:"zones"`
}

// Persist is how it is with what is saved of a resolver. All times are in seconds.
type Persist struct {
	Interval float64   `json:"interval"`         // 0: nothing is saved
	Saved    *Transfer `json:"saved,omitempty"`  // the last time; nil: not yet
	Loaded   *Transfer `json:"loaded,omitempty"` // at the start; nil: there was nothing to load
	Error    string    `json:"error,omitempty"`  // why the last try failed
	ErrorAge *float64  `json:"error_age,omitempty"`
}

// Transfer is a file that was saved or loaded.
type Transfer struct {
	Age     float64 `json:"age"`      // since that was done
	FileAge float64 `json:"file_age"` // since the file was saved
	Names   int     `json:"names"`
	Octets  int     `json:"octets"`
}

func newPersist(p *resolver.Persistence) Persist {
	of := Persist{Interval: inSeconds(p.Interval), Saved: newTransfer(&p.Saved), Loaded: newTransfer(&p.Loaded)}
	if p.Err != nil {
		of.Error, of.ErrorAge = p.Err.Error(), new(inSeconds(time.Since(p.ErrAt)))
	}
	return of
}

// newTransfer returns nil if there was none.
func newTransfer(t *snapshot.Transfer) *Transfer {
	if t.At.IsZero() {
		return nil
	}
	return &Transfer{inSeconds(time.Since(t.At)), inSeconds(time.Since(t.From)), t.N, t.Size}
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
		persistence := r.Persistence()
		all := Resolver{ID: r.ID(), CacheSize: r.CacheSize(), Persist: newPersist(&persistence)}
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
