package admin

import (
	"net/http"

	"caddytarget/internal/topk"
)

// The limits of a list of targets.
const (
	DefaultTop = 20
	MaxTop     = 1000
)

// topOrders are the orders of the list of targets.
var topOrders = map[string]topk.By{
	"requests": topk.Requests, "failures": topk.Failures, "latency": topk.Latency, "connections": topk.Connections,
}

// Top is the answer of /target/top.
type Top struct {
	By      string   `json:"by"`
	Targets []Target `json:"targets"`
	Other   Target   `json:"other"` // all others together
}

// Target is what is counted for a target.
type Target struct {
	Host        string  `json:"host,omitempty"`
	Requests    uint64  `json:"requests"`
	Failures    uint64  `json:"failures"`
	Seconds     float64 `json:"seconds"` // the sum of the requests' durations
	Connections uint64  `json:"connections"`
}

func newTarget(host string, c topk.Counts) Target {
	return Target{host, c.Requests, c.Failures, c.Seconds(), c.Connections}
}

func (t *Target) add(other Target) {
	t.Requests += other.Requests
	t.Failures += other.Failures
	t.Seconds += other.Seconds
	t.Connections += other.Connections
}

// getTop serves /target/top.
func (a *API) getTop(_ *http.Request, p params) (any, error) {
	by := "requests"
	if text, ok := p["by"]; ok {
		by = text
	}
	order, ok := topOrders[by]
	if !ok {
		return nil, errorf(http.StatusBadRequest, "by %q is none of requests, failures, latency and connections", by)
	}
	n, err := p.number("limit", DefaultTop, MaxTop)
	if err != nil {
		return nil, err
	}
	answer := Top{By: by, Targets: []Target{}}
	s := a.Shared()
	if s == nil {
		return answer, nil
	}
	list, other := s.Top.Top(order, 0)
	answer.Other = newTarget("", other)
	for i, e := range list {
		if t := newTarget(e.Target, e.Counts); i < n {
			answer.Targets = append(answer.Targets, t)
		} else {
			answer.Other.add(t)
		}
	}
	return answer, nil
}
