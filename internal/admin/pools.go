package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
)

// Pools is the answer of /target/pools.
type Pools struct {
	Pools []Usage `json:"pools"`
	Next  string  `json:"next,omitempty"` // the parameter after of the next page
}

// Usage is what there is for one key of a pool: all that a connection depends on. All
// times are in seconds.
type Usage struct {
	Pool       string  `json:"pool"`
	Draining   bool    `json:"draining,omitempty"` // no configuration uses it any more
	Target     string  `json:"target,omitempty"`
	Address    string  `json:"address"`
	ServerName string  `json:"server_name,omitempty"`
	Protocol   string  `json:"protocol,omitempty"`
	Client     string  `json:"client,omitempty"` // announced by the PROXY protocol
	Idle       int     `json:"idle"`
	InUse      int     `json:"in_use"`
	Requests   int     `json:"requests"`
	Waiting    int     `json:"waiting"`
	Dialling   int     `json:"dialling"`
	Oldest     float64 `json:"oldest,omitempty"`
	Newest     float64 `json:"newest,omitempty"`
	Unused     float64 `json:"unused,omitempty"`
	Dial       *Dial   `json:"dial,omitempty"` // nil: none is under way
}

// Dial is the dial that is under way for longest.
type Dial struct {
	Phase   string  `json:"phase"`
	Seconds float64 `json:"seconds"`
}

func newUsage(p *pool.Shared, u *pool.Usage) Usage {
	a := Usage{
		Pool: p.Name(), Draining: p.Closed(), Target: u.Key.Host, ServerName: u.Key.ServerName, Protocol: u.Protocol(),
		Idle: u.Idle, InUse: u.InUse, Requests: u.Requests, Waiting: u.Waiting, Dialling: u.Dialling,
		Oldest: secondsOf(u.Oldest), Newest: secondsOf(u.Newest), Unused: secondsOf(u.Unused),
	}
	if a.Address = u.Key.Dial; u.Key.Addr.IsValid() {
		a.Address = u.Key.Addr.String()
	}
	if u.Key.Client.IsValid() {
		a.Client = u.Key.Client.String()
	}
	if u.Dialling > 0 {
		a.Dial = &Dial{string(failure.PhaseOf(u.Phase)), secondsOf(u.DialPast)}
	}
	return a
}

// usageStates are what the parameter state may have.
var usageStates = []string{"idle", "in_use", "waiting", "dialling"}

// parseUsageState returns a word if it is one of usageStates.
func parseUsageState(word string) (string, error) {
	if !slices.Contains(usageStates, word) {
		return "", fmt.Errorf("unknown state %q: expecting %s", word, strings.Join(usageStates, ", "))
	}
	return word, nil
}

// hasState reports whether there is something in one of some states; it is so without
// states.
func hasState(u *pool.Usage, states []string) bool {
	count := map[string]int{"idle": u.Idle, "in_use": u.InUse, "waiting": u.Waiting, "dialling": u.Dialling}
	return states == nil || slices.ContainsFunc(states, func(s string) bool { return count[s] > 0 })
}

// usedPools returns the pools in use, and those that have connections still, by name.
func (a *API) usedPools() []*pool.Shared {
	s := a.Shared()
	if s == nil {
		return nil
	}
	list := s.Pools.All()
	slices.SortFunc(list, func(a, b *pool.Shared) int {
		return cmp.Or(strings.Compare(a.Name(), b.Name()), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// PoolCounts is how many connections a pool has.
type PoolCounts struct {
	ID       string `json:"pool"`
	Draining bool   `json:"draining,omitempty"`
	Idle     int    `json:"idle"`
	InUse    int    `json:"in_use"`
	Upgraded int    `json:"upgraded"` // their protocol was switched, as for a WebSocket
	Dialling int    `json:"dialling"`
}

// poolCounts returns how many connections the pools in use have.
func (a *API) poolCounts() []PoolCounts {
	list := []PoolCounts{}
	for _, p := range a.usedPools() {
		of, n := p.Counts(), PoolCounts{ID: p.Name(), Draining: p.Closed()}
		for protocol := range of.Idle {
			n.Idle += of.Idle[protocol]
			n.InUse += of.InUse[protocol]
		}
		for _, dials := range of.Dialling {
			n.Dialling += dials
		}
		n.Upgraded = of.Upgraded
		list = append(list, n)
	}
	return list
}

// getPools serves /target/pools.
func (a *API) getPools(r *http.Request, p params) (any, error) {
	q, err := p.listQuery()
	if err != nil {
		return nil, err
	}
	states, err := statesOf(p, parseUsageState)
	if err != nil {
		return nil, err
	}
	return poolsOf(r.Context(), a.usedPools(), q, states)
}

// poolsOf returns a page of what there is in pools, one pool after the other.
func poolsOf(ctx context.Context, used []*pool.Shared, q listQuery, states []string) (Pools, error) {
	page := Pools{Pools: []Usage{}}
	if q.from.list != 0 {
		i := slices.IndexFunc(used, func(p *pool.Shared) bool { return p.ID == q.from.list })
		if i < 0 {
			return page, errCursor()
		}
		used = used[i:]
	}
	key := func(k *pool.Key) bool { return q.filter.matches(k.Host, k.Addr) }
	rest := func(u *pool.Usage) bool { return hasState(u, states) }
	for _, p := range used {
		list, next, err := p.Usages(ctx, q.from.at, q.limit-len(page.Pools), key, rest)
		if err != nil {
			return page, err
		}
		for i := range list {
			page.Pools = append(page.Pools, newUsage(p, &list[i]))
		}
		if next != 0 {
			page.Next = cursor{p.ID, next}.String()
			break
		}
		q.from.at = 0
	}
	return page, nil
}
