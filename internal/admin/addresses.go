package admin

import (
	"net/http"
	"slices"

	"caddytarget/internal/health"
)

// Addresses is the answer of /target/addresses.
type Addresses struct {
	Families  []Family  `json:"families"` // those that failed; on the first page
	Addresses []Address `json:"addresses"`
	Next      string    `json:"next,omitempty"` // the parameter after of the next page
}

// Family is what is known of IPv4 or IPv6. All times are in seconds.
type Family struct {
	Family   string  `json:"family"`
	State    string  `json:"state"`
	Networks int     `json:"networks"` // that could not be reached
	Last     float64 `json:"last"`
	Left     float64 `json:"left,omitempty"`
}

// Address is what is known of failures of an address. All times are in seconds.
type Address struct {
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

func newAddress(r *health.Record) Address {
	return Address{
		Address: r.Addr.String(), Target: r.Target, Limit: string(r.Limit), State: r.State.String(), Failures: r.Failures,
		Last: secondsOf(r.Last), Left: secondsOf(r.Left), Since: secondsOf(r.Since),
		Phase: r.Reason.Phase, Failure: r.Reason.Token, Error: r.Reason.Text, Claimed: r.Claimed, Dialling: secondsOf(r.Dialling),
	}
}

// unhealthyAddresses returns how many addresses are not healthy, by state.
func (a *API) unhealthyAddresses() map[string]int {
	count := make(map[string]int)
	s := a.Shared()
	if s == nil {
		return count
	}
	for state, n := range s.Health.States() {
		if state := health.State(state); state != health.Healthy {
			count[state.String()] = n
		}
	}
	return count
}

// getAddresses serves /target/addresses.
func (a *API) getAddresses(_ *http.Request, p params) (any, error) {
	q, err := p.listQuery()
	if err != nil {
		return nil, err
	}
	states, err := statesOf(p, health.ParseState)
	if err != nil {
		return nil, err
	}
	page := Addresses{Families: []Family{}, Addresses: []Address{}}
	s := a.Shared()
	if s == nil {
		return page, nil
	}
	if q.from.list != 0 && q.from.list != s.ID {
		return nil, errCursor()
	}
	inState := func(state health.State) bool { return states == nil || slices.Contains(states, state) }
	if q.from.at == 0 {
		page.Families = append(page.Families, failedFamilies(s.Health, inState)...)
	}
	list, next := s.Health.Records(q.from.at, q.limit, func(r *health.Record) bool {
		return q.filter.matches(r.Target, r.Addr) && inState(r.State)
	})
	for i := range list {
		page.Addresses = append(page.Addresses, newAddress(&list[i]))
	}
	page.Next = cursor{s.ID, next}.String()
	return page, nil
}

// failedFamilies returns what is known of the families that failed and are in a state.
func failedFamilies(t *health.Tracker, inState func(health.State) bool) (list []Family) {
	for i, f := range t.Families() {
		if f.Networks > 0 && inState(f.State) {
			list = append(list, Family{[]string{"ipv4", "ipv6"}[i], f.State.String(), f.Networks, secondsOf(f.Last), secondsOf(f.Left)})
		}
	}
	return list
}
