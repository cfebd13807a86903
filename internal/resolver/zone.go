package resolver

import (
	"strings"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
)

// zone asks for the names that end in one suffix, and keeps the answers. Zones share
// no limits and no state, so that one whose nameservers are down disturbs no other.
type zone struct {
	client *dnsclient.Client
	cache  *dnscache.Cache
}

// zones finds the zone of a name.
type zones struct {
	zone      // of the names that are in none of bySuffix
	bySuffix  map[string]*zone
	maxLabels int // of a suffix
}

// makeZones returns zones whose clients and caches are still to be made.
func makeZones(suffixes map[string][]dnsclient.Nameserver) zones {
	z := zones{bySuffix: make(map[string]*zone, len(suffixes))}
	for suffix := range suffixes {
		z.bySuffix[suffix] = new(zone)
		z.maxLabels = max(z.maxLabels, strings.Count(suffix, ".")+1)
	}
	return z
}

// zoneOf returns the zone with the longest suffix that a name ends in.
func (z *zones) zoneOf(name string) *zone {
	found := &z.zone
	end := len(name)
	for i := 0; i < z.maxLabels && end >= 0; i++ {
		end = strings.LastIndexByte(name[:end], '.')
		if longer := z.bySuffix[name[end+1:]]; longer != nil {
			found = longer
		}
	}
	return found
}

// all yields each zone.
func (z *zones) all(yield func(*zone) bool) {
	if !yield(&z.zone) {
		return
	}
	for _, other := range z.bySuffix {
		if !yield(other) {
			return
		}
	}
}
