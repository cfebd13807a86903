package admin

import (
	"net/http"
	"time"

	"caddytarget/internal/dnsclient"
)

// Nameservers is the answer of /target/nameservers.
type Nameservers struct {
	Nameservers []Nameserver `json:"nameservers"`
}

// Nameserver is what one zone of one resolver knows of a nameserver. All times are
// in seconds.
type Nameserver struct {
	Resolver   string            `json:"resolver"`
	Zone       string            `json:"zone"`
	Nameserver string            `json:"nameserver"`
	Down       bool              `json:"down"`
	Changed    *float64          `json:"changed,omitempty"` // how long ago Down changed; nil if it never did
	Reason     string            `json:"reason,omitempty"`
	Failures   int               `json:"failures"` // in a row
	RTT        float64           `json:"rtt"`
	InFlight   int               `json:"in_flight"`
	Replies    map[string]uint64 `json:"replies"` // by rcode
	Truncated  uint64            `json:"truncated"`
	Timeouts   uint64            `json:"timeouts"`
	Refused    uint64            `json:"refused"`
	Network    uint64            `json:"network_errors"`
	Malformed  uint64            `json:"malformed"`
}

// getNameservers serves /target/nameservers.
func (a *API) getNameservers(*http.Request, params) (any, error) {
	all := Nameservers{[]Nameserver{}}
	for _, r := range a.Resolvers() {
		for _, zone := range r.Nameservers() {
			for i := range zone.Nameservers {
				all.Nameservers = append(all.Nameservers, newNameserver(r.ID(), zone.Zone, &zone.Nameservers[i]))
			}
		}
	}
	return all, nil
}

func newNameserver(id, zone string, s *dnsclient.NameserverStats) Nameserver {
	a := Nameserver{
		Resolver: id, Zone: zone, Nameserver: s.Nameserver.String(), Down: s.Down, Reason: s.Reason,
		Failures: s.Failures, RTT: precisely(s.RTT), InFlight: s.InFlight,
		Replies: s.Queries.Rcodes, Truncated: s.Queries.Truncated, Timeouts: s.Queries.Timeouts,
		Refused: s.Queries.Refused, Network: s.Queries.Network, Malformed: s.Queries.Malformed,
	}
	if !s.Since.IsZero() {
		a.Changed = new(inSeconds(time.Since(s.Since)))
	}
	return a
}
