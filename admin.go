package caddytarget

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/explain"
	"caddytarget/internal/guard"
	"caddytarget/internal/resolver"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI serves what is below /target/ in the admin API: what the resolvers in use
// know of names and nameservers. Nothing in it holds up a lookup.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.target",
		New: func() caddy.Module { return adminAPI{} },
	}
}

const (
	adminPath = "/target/"

	maxErrorLength = 500 // octets, of a text that quotes the request
)

// Routes returns the route of all endpoints.
func (a adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: adminPath, Handler: caddy.AdminHandlerFunc(a.serve)}}
}

// adminEndpoint is one endpoint of the admin API.
type adminEndpoint struct {
	method string
	params []string // the parameters that its query may have
	list   string   // the one of them that it may have several times; empty: none

	// serve returns what is sent as JSON. The parameters are those of the request.
	serve func(r *http.Request, params map[string]string) (any, error)

	// stream, if not nil, sends the response itself, in place of serve.
	stream func(w http.ResponseWriter, r *http.Request, params map[string]string) error
}

// endpoint returns the endpoint of a path below adminPath; nil if there is none.
func (adminAPI) endpoint(path string) *adminEndpoint {
	if name, ok := strings.CutPrefix(path, "names/"); ok {
		return &adminEndpoint{method: http.MethodGet, serve: func(*http.Request, map[string]string) (any, error) { return adminGetName(name) }}
	}
	switch path {
	case "":
		return &adminEndpoint{method: http.MethodGet, serve: adminGetOverview}
	case "names":
		return &adminEndpoint{method: http.MethodGet, params: []string{"prefix", "state", "after", "limit"}, serve: adminGetNames}
	case "nameservers":
		return &adminEndpoint{method: http.MethodGet, serve: adminGetNameservers}
	case "explain":
		return &adminEndpoint{method: http.MethodGet, params: []string{"url", "site", "method", "uri", "header", "connect"}, list: "header", serve: adminGetExplain}
	case "pools":
		return &adminEndpoint{method: http.MethodGet, params: []string{"target", "address", "state", "after", "limit"}, serve: adminGetPools}
	case "addresses":
		return &adminEndpoint{method: http.MethodGet, params: []string{"target", "address", "state", "after", "limit"}, serve: adminGetAddresses}
	case "top":
		return &adminEndpoint{method: http.MethodGet, params: []string{"by", "limit"}, serve: adminGetTop}
	case "trace":
		return &adminEndpoint{method: http.MethodGet, params: []string{"target", "limit", "seconds"}, stream: adminGetTrace}
	case "purge":
		return &adminEndpoint{method: http.MethodPost, serve: adminPurge}
	default:
		return nil
	}
}

// serve implements caddy.AdminHandler.
func (a adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	e := a.endpoint(strings.TrimPrefix(r.URL.Path, adminPath))
	if e == nil {
		return adminErrorf(http.StatusNotFound, "unknown endpoint %s", r.URL.Path)
	}
	if r.Method != e.method && (r.Method != http.MethodHead || e.method != http.MethodGet) {
		w.Header().Set("Allow", e.method)
		return adminErrorf(http.StatusMethodNotAllowed, "method %s is not allowed: expecting %s", r.Method, e.method)
	}
	params, err := adminParams(r, e.params, e.list)
	if err != nil {
		return err
	}
	if e.stream != nil {
		return e.stream(w, r, params)
	}
	response, err := e.serve(r, params)
	if err != nil {
		return err
	}
	text, err := json.Marshal(response)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(asciiJSON(text), '\n')) // it fails only if the client is gone
	return nil
}

// adminParams returns the parameters of a request's query. list is the one of which the
// first value is returned, if there are several.
func adminParams(r *http.Request, allowed []string, list string) (map[string]string, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, adminErrorf(http.StatusBadRequest, "reading the query: %v", err)
	}
	params := make(map[string]string, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch {
		case len(allowed) == 0:
			return nil, adminErrorf(http.StatusBadRequest, "unknown parameter %q: this endpoint has none", name)
		case !slices.Contains(allowed, name):
			return nil, adminErrorf(http.StatusBadRequest, "unknown parameter %q: expecting %s", name, strings.Join(allowed, ", "))
		case len(values[name]) > 1 && name != list:
			return nil, adminErrorf(http.StatusBadRequest, "parameter %s already specified", name)
		}
		params[name] = values[name][0]
	}
	return params, nil
}

// adminErrorf returns an error with a status, whose text any terminal may show.
func adminErrorf(status int, format string, args ...any) error {
	text := printable(fmt.Sprintf(format, args...))
	if len(text) > maxErrorLength {
		text = text[:maxErrorLength] + "..."
	}
	return caddy.APIError{HTTPStatus: status, Err: errors.New(text)}
}

// printable returns a text in which all but printable ASCII is escaped as in Go, so
// that it cannot control a terminal.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r < ' ' || r > '~':
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
		s = s[size:]
	}
	return b.String()
}

// asciiJSON escapes all but printable ASCII in valid JSON, where it can only be in
// strings. encoding/json leaves DEL and the control characters of ISO 8859 as they are.
func asciiJSON(text []byte) []byte {
	if !slices.ContainsFunc(text, func(b byte) bool { return b > '~' }) {
		return text
	}
	ascii := make([]byte, 0, 2*len(text))
	for _, r := range string(text) {
		switch {
		case r <= '~':
			ascii = append(ascii, byte(r))
		case r <= 0xffff:
			ascii = fmt.Appendf(ascii, `\u%04x`, r)
		default:
			r -= 0x10000
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	return ascii
}

// usedResolver is one of the resolvers in use.
type usedResolver struct {
	*sharedResolver
	id string // short, and the same for as long as its configuration
}

// usedResolvers returns the resolvers in use, by id.
func usedResolvers() (used []usedResolver) {
	resolvers.Range(func(_, value any) bool {
		r := value.(*sharedResolver)
		used = append(used, usedResolver{r, r.ID()})
		return true
	})
	slices.SortFunc(used, func(a, b usedResolver) int { return strings.Compare(a.id, b.id) })
	return used
}

// adminOverview is the answer of /target/.
type adminOverview struct {
	Version   string          `json:"version"` // of caddytarget
	Caddy     string          `json:"caddy"`
	Go        string          `json:"go"`
	Sites     []adminSite     `json:"sites"`
	Resolvers []adminResolver `json:"resolvers"`
	Pools     []adminPool     `json:"pools"`
	Addresses map[string]int  `json:"addresses"` // that are not healthy, by state
}

// adminResolver is what is known of one resolver.
type adminResolver struct {
	ID        string      `json:"resolver"`
	CacheSize int         `json:"cache_size"` // of each zone
	Zones     []adminZone `json:"zones"`
}

// adminZone is what is known of one zone of a resolver.
type adminZone struct {
	Zone        string            `json:"zone"`
	Nameservers []string          `json:"nameservers"`
	Outage      bool              `json:"outage"`
	Mismatches  uint64            `json:"mismatches"`
	Names       map[string]int    `json:"names"`   // by state
	Lookups     map[string]uint64 `json:"lookups"` // by result
	Refreshes   uint64            `json:"refreshes"`
	Evictions   uint64            `json:"evictions"`
}

func adminGetOverview(*http.Request, map[string]string) (any, error) {
	caddyVersion, _ := caddy.Version()
	o := adminOverview{Version: version(), Caddy: caddyVersion, Go: runtime.Version(), Sites: newAdminSites(), Resolvers: []adminResolver{}}
	for _, r := range usedResolvers() {
		all := adminResolver{ID: r.id, CacheSize: r.CacheSize()}
		stats := r.Stats()
		for i, servers := range r.Nameservers() { // both have the zones in the same order
			all.Zones = append(all.Zones, newAdminZone(&stats[i], &servers))
		}
		o.Resolvers = append(o.Resolvers, all)
	}
	o.Pools, o.Addresses = allPools(), unhealthyAddresses()
	return o, nil
}

func newAdminZone(stats *resolver.ZoneStats, servers *resolver.ZoneNameservers) adminZone {
	z := adminZone{
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

// adminNames is the answer of /target/names.
type adminNames struct {
	Names []adminName `json:"names"`
	Next  string      `json:"next,omitempty"` // the parameter after of the next page
}

// adminName is what is known of one name. All times are in seconds.
type adminName struct {
	Resolver    string        `json:"resolver"`
	Zone        string        `json:"zone"`
	Name        string        `json:"name"`
	Service     bool          `json:"service,omitempty"`
	Preload     bool          `json:"preload,omitempty"`
	State       string        `json:"state"`
	Addresses   []netip.Addr  `json:"addresses,omitempty"`
	Preferred   int           `json:"preferred,omitempty"`
	Records     []adminRecord `json:"records,omitempty"`
	TTL         float64       `json:"ttl"`
	StaleFor    float64       `json:"stale_for,omitempty"`
	Used        float64       `json:"used"`
	Types       []adminType   `json:"types,omitempty"`
	Error       string        `json:"error,omitempty"`
	ErrorAge    *float64      `json:"error_age,omitempty"` // nil without an error
	Tries       []adminTry    `json:"tries,omitempty"`
	InFlight    bool          `json:"in_flight,omitempty"`
	NextRefresh *float64      `json:"next_refresh,omitempty"` // nil if none is planned
}

// adminRecord is one SRV record.
type adminRecord struct {
	Target   string `json:"target"`
	Port     uint16 `json:"port"`
	Priority uint16 `json:"priority"`
	Weight   uint16 `json:"weight"`
}

// adminType is what is known of the records of one type.
type adminType struct {
	Type     string   `json:"type"`
	Count    int      `json:"count"`
	TTL      float64  `json:"ttl,omitempty"`
	Failures int      `json:"failures,omitempty"`
	Retry    *float64 `json:"retry,omitempty"` // nil without failures
}

// adminTry is one query of a lookup that failed.
type adminTry struct {
	Name       string  `json:"name"`
	Nameserver string  `json:"nameserver"`
	Transport  string  `json:"transport"`
	Seconds    float64 `json:"seconds"`
	Outcome    string  `json:"outcome"`
	Ignored    int     `json:"ignored,omitempty"`
}

// inSeconds returns a duration in seconds, to the millisecond.
func inSeconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

// precisely returns a duration in seconds, to the microsecond.
func precisely(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

var typeNames = map[uint16]string{dnscache.TypeA: "A", dnscache.TypeAAAA: "AAAA", dnscache.TypeSRV: "SRV"}

func newAdminName(id string, n *resolver.Name) adminName {
	a := adminName{
		Resolver: id, Zone: n.Zone, Name: n.Name.Name, Service: n.Service, Preload: n.Preload, State: n.State.String(),
		Addresses: n.Addrs, Preferred: n.Preferred, TTL: inSeconds(n.TTL), StaleFor: inSeconds(n.StaleFor), Used: inSeconds(n.Used),
		InFlight: n.InFlight,
	}
	for _, r := range n.Records {
		a.Records = append(a.Records, adminRecord{r.Target, r.Port, r.Priority, r.Weight})
	}
	for _, t := range n.Types {
		of := adminType{Type: typeNames[t.Type], Count: t.Count, TTL: inSeconds(t.TTL), Failures: t.Failures}
		if t.Failures > 0 {
			of.Retry = new(inSeconds(t.Retry))
		}
		a.Types = append(a.Types, of)
	}
	if n.Err != nil {
		a.Error, a.ErrorAge = n.Err.Error(), new(inSeconds(n.ErrAge))
	}
	for _, t := range n.Tries() {
		a.Tries = append(a.Tries, adminTry{t.Name, t.Server.String(), t.Transport, precisely(t.Duration), t.Outcome, t.Ignored})
	}
	if n.Scheduled {
		a.NextRefresh = new(inSeconds(n.NextRefresh))
	}
	return a
}

func adminGetNames(r *http.Request, params map[string]string) (any, error) {
	limit, err := pageLimit(params)
	if err != nil {
		return nil, err
	}
	q := dnscache.Query{Prefix: strings.ToLower(params["prefix"]), After: params["after"], Limit: limit}
	if text, ok := params["state"]; ok {
		for word := range strings.SplitSeq(text, ",") {
			state, err := dnscache.ParseNameState(word)
			if err != nil {
				return nil, adminErrorf(http.StatusBadRequest, "%v", err)
			}
			q.States = append(q.States, state)
		}
	}
	page, err := namesOf(r.Context(), usedResolvers(), q)
	if errors.Is(err, dnscache.ErrCursor) {
		return nil, adminErrorf(http.StatusBadRequest, "after: %v", err)
	}
	return page, err
}

// namesOf returns a page of the names of resolvers, one resolver after the other.
func namesOf(ctx context.Context, used []usedResolver, q dnscache.Query) (adminNames, error) {
	page := adminNames{Names: []adminName{}}
	var err error
	if q.After != "" {
		err = dnscache.ErrCursor
	}
	for _, r := range used {
		var of resolver.Page
		of, err = r.Names(ctx, q)
		if errors.Is(err, dnscache.ErrCursor) {
			continue // it is that of a later resolver
		}
		if err != nil {
			return adminNames{}, err
		}
		for i := range of.Names {
			page.Names = append(page.Names, newAdminName(r.id, &of.Names[i]))
		}
		if of.Next != "" {
			page.Next = of.Next
			break
		}
		q.After, q.Limit = "", q.Limit-len(of.Names)
	}
	return page, err
}

// adminNameReport is the answer of /target/names/NAME.
type adminNameReport struct {
	Name      string              `json:"name"` // in normal form
	Resolvers []adminResolverName `json:"resolvers"`
}

// adminResolverName is what one resolver knows of a name.
type adminResolverName struct {
	Resolver   string       `json:"resolver"`
	Hosts      bool         `json:"hosts,omitempty"`
	Addresses  []netip.Addr `json:"addresses,omitempty"` // those of the hosts file
	OutsideDNS bool         `json:"outside_dns,omitempty"`
	Found      string       `json:"found,omitempty"`
	Names      []adminName  `json:"names,omitempty"`
}

func adminGetName(name string) (any, error) {
	normal, err := guard.NormalizeHost(name)
	if err != nil {
		return nil, adminErrorf(http.StatusBadRequest, "name %q: %v", name, err)
	}
	report := adminNameReport{Name: normal}
	for _, r := range usedResolvers() {
		known, ok := r.Name(normal)
		if !ok {
			continue
		}
		of := adminResolverName{Resolver: r.id, Hosts: known.Hosts, Addresses: known.Addrs, OutsideDNS: known.OutsideDNS, Found: known.Found}
		for i := range known.Names {
			of.Names = append(of.Names, newAdminName(r.id, &known.Names[i]))
		}
		report.Resolvers = append(report.Resolvers, of)
	}
	if len(report.Resolvers) == 0 {
		return nil, adminErrorf(http.StatusNotFound, "unknown name %s: no resolver has been asked for it, or it was evicted", normal)
	}
	return report, nil
}

// adminNameservers is the answer of /target/nameservers.
type adminNameservers struct {
	Nameservers []adminNameserver `json:"nameservers"`
}

// adminNameserver is what one zone of one resolver knows of a nameserver. All times are
// in seconds.
type adminNameserver struct {
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

func adminGetNameservers(*http.Request, map[string]string) (any, error) {
	all := adminNameservers{[]adminNameserver{}}
	for _, r := range usedResolvers() {
		for _, zone := range r.Nameservers() {
			for i := range zone.Nameservers {
				all.Nameservers = append(all.Nameservers, newAdminNameserver(r.id, zone.Zone, &zone.Nameservers[i]))
			}
		}
	}
	return all, nil
}

func newAdminNameserver(id, zone string, s *dnsclient.NameserverStats) adminNameserver {
	a := adminNameserver{
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

// adminGetExplain serves /target/explain: how a request would be treated.
func adminGetExplain(r *http.Request, params map[string]string) (any, error) {
	in, err := explain.NewInput(params, r.URL.Query()["header"])
	if err != nil {
		return nil, adminErrorf(http.StatusBadRequest, "%v", err)
	}
	site, err := selectSite(targetSites(), params["site"])
	if err != nil {
		return nil, err
	}
	in.Request = in.Request.WithContext(r.Context())
	in.Request.RemoteAddr = r.RemoteAddr
	return newExplanation(site, in).run(), nil
}

// Interface guards
var (
	_ caddy.Module      = adminAPI{}
	_ caddy.AdminRouter = adminAPI{}
)
