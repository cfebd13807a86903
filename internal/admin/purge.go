package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/guard"
	"caddytarget/internal/purge"
)

const maxPurgeBody = 4096 // octets

// PurgeRequest is the body of a request to /target/purge: one of the names, and
// whether to ask again.
type PurgeRequest struct {
	Name     string `json:"name,omitempty"`
	Suffix   string `json:"suffix,omitempty"`
	Address  string `json:"address,omitempty"`
	AskAgain bool   `json:"ask_again,omitempty"`
}

// Purged is the answer of /target/purge.
type Purged struct {
	Names       int              `json:"names"`
	Ejections   int              `json:"ejections"`   // that were ended
	Connections int              `json:"connections"` // that were closed
	Resolvers   []ResolverPurged `json:"resolvers"`
}

// ResolverPurged is how many names of one resolver were purged.
type ResolverPurged struct {
	Resolver string `json:"resolver"`
	Names    int    `json:"names"`
}

// purge serves /target/purge.
func (a *API) purge(r *http.Request, _ params) (any, error) {
	var request PurgeRequest
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxPurgeBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&request); err != nil {
		return nil, errorf(http.StatusBadRequest, "reading the request: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errorf(http.StatusBadRequest, "reading the request: expecting one JSON object and nothing after it")
	}
	scope, err := request.Scope()
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "%v", err)
	}
	purged := Purged{Resolvers: []ResolverPurged{}}
	for _, r := range a.Resolvers() {
		n := scope.Names(r)
		purged.Names += n
		purged.Resolvers = append(purged.Resolvers, ResolverPurged{r.ID(), n})
	}
	if s := a.Shared(); s != nil {
		purged.Ejections = scope.Ejections(s.Health)
	}
	for _, p := range a.usedPools() {
		purged.Connections += scope.Connections(p.Pool)
	}
	return purged, nil
}

// Scope returns what is to be purged.
func (r *PurgeRequest) Scope() (*purge.Scope, error) {
	p := dnscache.Purge{AskAgain: r.AskAgain}
	var err error
	given := 0
	for _, text := range []string{r.Name, r.Suffix, r.Address} {
		if text != "" {
			given++
		}
	}
	switch {
	case given != 1:
		err = fmt.Errorf("expecting one of name, suffix and address, got %d", given)
	case r.Name != "":
		if p.Name, err = guard.NormalizeHost(r.Name); err != nil {
			err = fmt.Errorf("name %q: %w", r.Name, err)
		}
	case r.Suffix == ".":
		p.Suffix = r.Suffix
	case r.Suffix != "":
		if p.Suffix, err = guard.NormalizeHost(r.Suffix); err != nil {
			err = fmt.Errorf("suffix %q: %w", r.Suffix, err)
		}
	default:
		if p.Addr, err = netip.ParseAddr(r.Address); err != nil || p.Addr.Zone() != "" {
			err = fmt.Errorf("address %q is not an IP address", r.Address)
		}
		p.Addr = p.Addr.Unmap()
	}
	if err != nil {
		return nil, err
	}
	return purge.New(p), nil
}
