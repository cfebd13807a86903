package caddytarget

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"caddytarget/internal/health"
)

// adminAddressList is the answer of /target/addresses.
type adminAddressList struct {
	Families  []adminFamily  `json:"families"` // those that failed
	Addresses []adminAddress `json:"addresses"`
	Next      string         `json:"next,omitempty"` // the parameter after of the next page
}

// adminFamily is what is known of IPv4 or IPv6. All times are in seconds.
type adminFamily struct {
	Family   string  `json:"family"`
	State    string  `json:"state"`
	Networks int     `json:"networks"` // that could not be reached
	Last     float64 `json:"last"`
	Left     float64 `json:"left,omitempty"`
}

// adminAddress is what is known of failures of an address. All times are in seconds.
type adminAddress struct {
	Address  string  `json:"address"`
	Target   string  `json:"target,omitempty"`
	Limit    string  `json:"limit,omitempty"`
	State    string  `json:"state"`
	Failures int     `json:"failures"`
	Last     float64 `json:"last,omitempty"`
	Left     float64 `json:"left,omitempty"`
	Since    float64 `json:"since,omitempty"`
	Phase    string  `json:"phase,omitempty"`
	Failure  string  `json:"failure,omitempty"`
	Error    string  `json:"error,omitempty"`
	Claimed  bool    `json:"claimed,omitempty"`
	Dialling float64 `json:"dialling,omitempty"`
}

func newAdminAddress(r *health.Record) adminAddress {
	return adminAddress{
		Address: r.Addr.String(), Target: r.Target, Limit: string(r.Limit), State: r.State.String(), Failures: r.Failures,
		Last: secondsOf(r.Last), Left: secondsOf(r.Left), Since: secondsOf(r.Since),
		Phase: r.Reason.Phase, Failure: r.Reason.Token, Error: r.Reason.Text, Claimed: r.Claimed, Dialling: secondsOf(r.Dialling),
	}
}

// unhealthyAddresses returns how many addresses are not healthy, by state.
func unhealthyAddresses() map[string]int {
	count := make(map[string]int)
	for s := range usedShared() {
		for state, n := range s.health.States() {
			if state := health.State(state); state != health.Healthy {
				count[state.String()] = n
			}
		}
	}
	return count
}

func adminGetAddresses(_ *http.Request, params map[string]string) (any, error) {
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
	var states []health.State
	if text, ok := params["state"]; ok {
		for word := range strings.SplitSeq(text, ",") {
			state, err := health.ParseState(word)
			if err != nil {
				return nil, adminErrorf(http.StatusBadRequest, "%v", err)
			}
			states = append(states, state)
		}
	}
	inState := func(state health.State) bool { return states == nil || slices.Contains(states, state) }
	page := adminAddressList{Families: []adminFamily{}, Addresses: []adminAddress{}}
	for s := range usedShared() {
		if from.list != 0 && from.list != s.id {
			return nil, errCursor()
		}
		for i, f := range s.health.Families() {
			if f.Networks > 0 && inState(f.State) {
				page.Families = append(page.Families, adminFamily{
					[]string{"ipv4", "ipv6"}[i], f.State.String(), f.Networks, secondsOf(f.Last), secondsOf(f.Left),
				})
			}
		}
		list, next := s.health.Records(from.at, limit, func(r *health.Record) bool {
			return filter.matches(r.Target, r.Addr) && inState(r.State)
		})
		for i := range list {
			page.Addresses = append(page.Addresses, newAdminAddress(&list[i]))
		}
		page.Next = cursor{s.id, next}.String()
	}
	return page, nil
}

// showAddresses is the command `caddy target addresses`.
func showAddresses(c *adminClient) error {
	return showPages(c, "addresses", []string{"target", "ip", "state"}, func(page *adminAddressList) ([][]string, string) {
		rows := [][]string{{"ADDRESS", "TARGET", "STATE", "LEFT", "SINCE", "FAILURES", "LAST", "LIMIT", "FAILURE", "ERROR"}}
		for _, f := range page.Families {
			rows = append(rows, []string{
				"(all " + f.Family + ")", "(any)", f.State, age(f.Left), "-", strconv.Itoa(f.Networks), age(f.Last), "-", "-",
				"could not be reached in " + strconv.Itoa(f.Networks) + " networks",
			})
		}
		for i := range page.Addresses {
			a := &page.Addresses[i]
			rows = append(rows, []string{
				a.Address, cmp.Or(a.Target, "(any)"), a.state(), age(a.Left), age(a.Since), strconv.Itoa(a.Failures), age(a.Last),
				cmp.Or(a.Limit, "-"), cmp.Or(a.Failure, "-"), cmp.Or(a.Error, "-"),
			})
		}
		return rows, page.Next
	})
}

// state returns the state of an address, and why it is ejected if that is not a failure.
func (a *adminAddress) state() string {
	switch {
	case a.Dialling > 0:
		return a.State + " (dialling)"
	case a.Claimed:
		return a.State + " (claimed)"
	}
	return a.State
}
