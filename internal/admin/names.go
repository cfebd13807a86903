package admin

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/guard"
	"caddytarget/internal/resolver"
)

// Names is the answer of /target/names.
type Names struct {
	Names []Name `json:"names"`
	Next  string `json:"next,omitempty"` // the parameter after of the next page
}

// Name is what is known of one name. All times are in seconds.
type Name struct {
	Resolver    string       `json:"resolver"`
	Zone        string       `json:"zone"`
	Name        string       `json:"name"`
	Service     bool         `json:"service,omitempty"`
	Preload     bool         `json:"preload,omitempty"`
	State       string       `json:"state"`
	Addresses   []netip.Addr `json:"addresses,omitempty"`
	Preferred   int          `json:"preferred,omitempty"`
	Records     []Record     `json:"records,omitempty"`
	TTL         float64      `json:"ttl"`
	StaleFor    float64      `json:"stale_for,omitempty"`
	Used        float64      `json:"used"`
	Types       []Type       `json:"types,omitempty"`
	Error       string       `json:"error,omitempty"`
	ErrorAge    *float64     `json:"error_age,omitempty"` // nil without an error
	Tries       []Try        `json:"tries,omitempty"`
	InFlight    bool         `json:"in_flight,omitempty"`
	NextRefresh *float64     `json:"next_refresh,omitempty"` // nil if none is planned
}

// Record is one SRV record.
type Record struct {
	Target   string `json:"target"`
	Port     uint16 `json:"port"`
	Priority uint16 `json:"priority"`
	Weight   uint16 `json:"weight"`
}

// Type is what is known of the records of one type.
type Type struct {
	Type     string   `json:"type"`
	Count    int      `json:"count"`
	TTL      float64  `json:"ttl,omitempty"`
	Failures int      `json:"failures,omitempty"`
	Retry    *float64 `json:"retry,omitempty"` // nil without failures
}

// Try is one query of a lookup that failed.
type Try struct {
	Name       string  `json:"name"`
	Nameserver string  `json:"nameserver"`
	Transport  string  `json:"transport"`
	Seconds    float64 `json:"seconds"`
	Outcome    string  `json:"outcome"`
	Ignored    int     `json:"ignored,omitempty"`
}

var typeNames = map[uint16]string{dnscache.TypeA: "A", dnscache.TypeAAAA: "AAAA", dnscache.TypeSRV: "SRV"}

func newName(n *resolver.Name) Name {
	a := Name{
		Resolver: n.Resolver, Zone: n.Zone, Name: n.Name.Name, Service: n.Service, Preload: n.Preload, State: n.State.String(),
		Addresses: n.Addrs, Preferred: n.Preferred, TTL: inSeconds(n.TTL), StaleFor: inSeconds(n.StaleFor), Used: inSeconds(n.Used),
		InFlight: n.InFlight,
	}
	for _, r := range n.Records {
		a.Records = append(a.Records, Record{r.Target, r.Port, r.Priority, r.Weight})
	}
	for _, t := range n.Types {
		of := Type{Type: typeNames[t.Type], Count: t.Count, TTL: inSeconds(t.TTL), Failures: t.Failures}
		if t.Failures > 0 {
			of.Retry = new(inSeconds(t.Retry))
		}
		a.Types = append(a.Types, of)
	}
	if n.Err != nil {
		a.Error, a.ErrorAge = n.Err.Error(), new(inSeconds(n.ErrAge))
	}
	for _, t := range n.Tries() {
		a.Tries = append(a.Tries, Try{t.Name, t.Server.String(), t.Transport, precisely(t.Duration), t.Outcome, t.Ignored})
	}
	if n.Scheduled {
		a.NextRefresh = new(inSeconds(n.NextRefresh))
	}
	return a
}

// getNames serves /target/names.
func (a *API) getNames(r *http.Request, p params) (any, error) {
	limit, err := p.pageLimit()
	if err != nil {
		return nil, err
	}
	states, err := statesOf(p, dnscache.ParseNameState)
	if err != nil {
		return nil, err
	}
	q := dnscache.Query{Prefix: strings.ToLower(p["prefix"]), States: states, After: p["after"], Limit: limit}
	page, err := resolver.Names(r.Context(), a.Resolvers(), q)
	switch {
	case errors.Is(err, dnscache.ErrCursor):
		return nil, errCursor()
	case err != nil:
		return nil, err
	}
	list := make([]Name, len(page.Names))
	for i := range page.Names {
		list[i] = newName(&page.Names[i])
	}
	return Names{list, page.Next}, nil
}

// NameReport is the answer of /target/names/NAME.
type NameReport struct {
	Name      string         `json:"name"` // in normal form
	Resolvers []ResolverName `json:"resolvers"`
}

// ResolverName is what one resolver knows of a name.
type ResolverName struct {
	Resolver   string       `json:"resolver"`
	Hosts      bool         `json:"hosts,omitempty"`
	Addresses  []netip.Addr `json:"addresses,omitempty"` // those of the hosts file
	OutsideDNS bool         `json:"outside_dns,omitempty"`
	Found      string       `json:"found,omitempty"`
	Names      []Name       `json:"names,omitempty"`
}

// getName serves /target/names/NAME.
func (a *API) getName(name string) (any, error) {
	normal, err := guard.NormalizeHost(name)
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "name %q: %v", name, err)
	}
	report := NameReport{Name: normal}
	for _, r := range a.Resolvers() {
		known, ok := r.Name(normal)
		if !ok {
			continue
		}
		of := ResolverName{Resolver: r.ID(), Hosts: known.Hosts, Addresses: known.Addrs, OutsideDNS: known.OutsideDNS, Found: known.Found}
		for i := range known.Names {
			of.Names = append(of.Names, newName(&known.Names[i]))
		}
		report.Resolvers = append(report.Resolvers, of)
	}
	if len(report.Resolvers) == 0 {
		return nil, errorf(http.StatusNotFound, "unknown name %s: no resolver has been asked for it, or it was evicted", normal)
	}
	return report, nil
}
