package caddytarget

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"caddytarget/internal/explain"
	"caddytarget/internal/pool"
)

// adminPoolList is the answer of /target/pools.
type adminPoolList struct {
	Pools []adminUsage `json:"pools"`
	Next  string       `json:"next,omitempty"` // the parameter after of the next page
}

// adminUsage is what there is for one key of a pool: all that a connection depends on. All
// times are in seconds.
type adminUsage struct {
	Pool       string     `json:"pool"`
	Draining   bool       `json:"draining,omitempty"` // no configuration uses it any more
	Target     string     `json:"target,omitempty"`
	Address    string     `json:"address"`
	ServerName string     `json:"server_name,omitempty"`
	Protocol   string     `json:"protocol,omitempty"`
	Client     string     `json:"client,omitempty"` // announced by the PROXY protocol
	Idle       int        `json:"idle"`
	InUse      int        `json:"in_use"`
	Requests   int        `json:"requests"`
	Waiting    int        `json:"waiting"`
	Dialling   int        `json:"dialling"`
	Oldest     float64    `json:"oldest,omitempty"`
	Newest     float64    `json:"newest,omitempty"`
	Unused     float64    `json:"unused,omitempty"`
	Dial       *adminDial `json:"dial,omitempty"` // nil: none is under way
}

// adminDial is the dial that is under way for longest.
type adminDial struct {
	Phase   string  `json:"phase"`
	Seconds float64 `json:"seconds"`
}

func newAdminUsage(p *usedPool, u *pool.Usage) adminUsage {
	a := adminUsage{
		Pool: p.name, Draining: p.Closed(), Target: u.Key.Host, ServerName: u.Key.ServerName, Protocol: u.Protocol(),
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
		a.Dial = &adminDial{dialPhases[u.Phase], secondsOf(u.DialPast)}
	}
	return a
}

// usageStates are what the parameter state may have.
var usageStates = []string{"idle", "in_use", "waiting", "dialling"}

// hasState reports whether there is something in one of some states; it is so without
// states.
func hasState(u *pool.Usage, states []string) bool {
	count := map[string]int{"idle": u.Idle, "in_use": u.InUse, "waiting": u.Waiting, "dialling": u.Dialling}
	return states == nil || slices.ContainsFunc(states, func(s string) bool { return count[s] > 0 })
}

// usedPool is one of the pools in use.
type usedPool struct {
	*sharedPool
	name string // short, and the same for as long as the settings of its transport
}

// usedPools returns the pools in use, by name.
func usedPools() (used []usedPool) {
	for s := range usedShared() {
		for _, p := range s.usedPools() {
			sum := sha256.Sum256(fmt.Appendf(nil, "%s%d", p.settings.text, p.settings.index))
			used = append(used, usedPool{p, hex.EncodeToString(sum[:4])})
		}
	}
	slices.SortFunc(used, func(a, b usedPool) int { return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.id, b.id)) })
	return used
}

// adminPool is how many connections a pool has.
type adminPool struct {
	ID       string `json:"pool"`
	Draining bool   `json:"draining,omitempty"`
	Idle     int    `json:"idle"`
	InUse    int    `json:"in_use"`
	Upgraded int    `json:"upgraded"` // their protocol was switched, as for a WebSocket
	Dialling int    `json:"dialling"`
}

// allPools returns how many connections the pools in use have.
func allPools() []adminPool {
	list := []adminPool{}
	for _, p := range usedPools() {
		of, n := p.Counts(), adminPool{ID: p.name, Draining: p.Closed()}
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

func adminGetPools(r *http.Request, params map[string]string) (any, error) {
	limit, err := pageLimit(params)
	if err != nil {
		return nil, err
	}
	from, err := cursorOf(params)
	if err != nil {
		return nil, err
	}
	filter, err := targetFilterOf(params)
	if err != nil {
		return nil, err
	}
	var states []string
	if text, ok := params["state"]; ok {
		states = strings.Split(text, ",")
		for _, s := range states {
			if !slices.Contains(usageStates, s) {
				return nil, adminErrorf(http.StatusBadRequest, "unknown state %q: expecting %s", s, strings.Join(usageStates, ", "))
			}
		}
	}
	key := func(k *pool.Key) bool { return filter.matches(k.Host, k.Addr) }
	rest := func(u *pool.Usage) bool { return hasState(u, states) }
	return poolsOf(r.Context(), usedPools(), from, limit, key, rest)
}

// poolsOf returns a page of what there is in pools, one pool after the other.
func poolsOf(ctx context.Context, used []usedPool, from cursor, limit int, key func(*pool.Key) bool, rest func(*pool.Usage) bool) (page adminPoolList, err error) {
	page = adminPoolList{Pools: []adminUsage{}}
	if from.list != 0 {
		i := slices.IndexFunc(used, func(p usedPool) bool { return p.id == from.list })
		if i < 0 {
			return page, errCursor()
		}
		used = used[i:]
	}
	for i := range used {
		p := &used[i]
		list, next, err := p.Usages(ctx, from.at, limit-len(page.Pools), key, rest)
		if err != nil {
			return page, err
		}
		for i := range list {
			page.Pools = append(page.Pools, newAdminUsage(p, &list[i]))
		}
		if next != 0 {
			page.Next = cursor{p.id, next}.String()
			break
		}
		from.at = 0
	}
	return page, nil
}

// showPools is the command `caddy target pools`.
func showPools(c *adminClient) error {
	return showPages(c, "pools", []string{"target", "ip", "state"}, func(page *adminPoolList) ([][]string, string) {
		rows := [][]string{{"TARGET", "ADDRESS", "PROTOCOL", "SERVER NAME", "IDLE", "IN USE", "REQUESTS", "WAITING", "DIALLING", "OLDEST", "NEWEST", "UNUSED", "POOL"}}
		for i := range page.Pools {
			u := &page.Pools[i]
			dialling, name := strconv.Itoa(u.Dialling), u.Pool
			if u.Dial != nil {
				dialling += " (" + u.Dial.Phase + " for " + explain.Shortly(u.Dial.Seconds) + ")"
			}
			if u.Draining {
				name += " (draining)"
			}
			rows = append(rows, []string{
				cmp.Or(u.Target, "(any)"), u.Address, cmp.Or(u.Protocol, "-"), cmp.Or(u.ServerName, "-"), strconv.Itoa(u.Idle), strconv.Itoa(u.InUse),
				strconv.Itoa(u.Requests), strconv.Itoa(u.Waiting), dialling, age(u.Oldest), age(u.Newest), age(u.Unused), name,
			})
		}
		return rows, page.Next
	})
}

// age returns a time in seconds for people; a dash if there is none.
func age(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return explain.Shortly(seconds)
}

// secondsOf returns a duration in seconds, to the millisecond, which is not 0 unless the
// duration is: 0 is left out.
func secondsOf(d time.Duration) float64 {
	if d > 0 {
		d = max(d, time.Millisecond)
	}
	return inSeconds(d)
}
