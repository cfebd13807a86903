package caddytarget

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"caddytarget/internal/topk"
)

const (
	// The limits of a list of targets.
	defaultTop, maxTop = 20, 1000
)

// topOrders are the orders of the list of targets.
var topOrders = map[string]topk.By{
	"requests": topk.Requests, "failures": topk.Failures, "latency": topk.Latency, "connections": topk.Connections,
}

// adminTop is the answer of /target/top.
type adminTop struct {
	By      string        `json:"by"`
	Targets []adminTarget `json:"targets"`
	Other   adminTarget   `json:"other"` // all others together
}

// adminTarget is what is counted for a target.
type adminTarget struct {
	Host        string  `json:"host,omitempty"`
	Requests    uint64  `json:"requests"`
	Failures    uint64  `json:"failures"`
	Seconds     float64 `json:"seconds"` // the sum of the requests' durations
	Connections uint64  `json:"connections"`
}

func newAdminTarget(host string, c topk.Counts) adminTarget {
	return adminTarget{host, c.Requests, c.Failures, c.Seconds(), c.Connections}
}

func (t *adminTarget) add(other adminTarget) {
	t.Requests += other.Requests
	t.Failures += other.Failures
	t.Seconds += other.Seconds
	t.Connections += other.Connections
}

func adminGetTop(_ *http.Request, params map[string]string) (any, error) {
	by, n := "requests", defaultTop
	if text, ok := params["by"]; ok {
		by = text
	}
	order, ok := topOrders[by]
	if !ok {
		return nil, adminErrorf(http.StatusBadRequest, "by %q is none of requests, failures, latency and connections", by)
	}
	if text, ok := params["limit"]; ok {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > maxTop {
			return nil, adminErrorf(http.StatusBadRequest, "limit %q is not a number from 1 to %d", text, maxTop)
		}
	}
	answer := adminTop{By: by, Targets: []adminTarget{}}
	shareds.Range(func(_, value any) bool {
		list, other := value.(*shared).counters.top.Top(order, 0)
		answer.Other = newAdminTarget("", other)
		for i, e := range list {
			if t := newAdminTarget(e.Target, e.Counts); i < n {
				answer.Targets = append(answer.Targets, t)
			} else {
				answer.Other.add(t)
			}
		}
		return true
	})
	return answer, nil
}

// showTop is the command `caddy target top`.
func showTop(c *adminClient) error {
	query := url.Values{"limit": {strconv.Itoa(c.flags.Int("limit"))}}
	if by := c.flags.String("by"); by != "" {
		query.Set("by", by)
	}
	var top adminTop
	if err := c.request(http.MethodGet, "top?"+query.Encode(), nil, &top); err != nil || c.json {
		return err
	}
	rows := [][]string{{"TARGET", "REQUESTS", "FAILURES", "SECONDS EACH", "NEW CONNECTIONS"}}
	for _, t := range append(top.Targets, top.Other) {
		if t.Host == "" {
			t.Host = "(all others)"
		}
		each := "-"
		if t.Requests > 0 {
			each = fmt.Sprintf("%.4f", t.Seconds/float64(t.Requests))
		}
		rows = append(rows, []string{
			t.Host, strconv.FormatUint(t.Requests, 10), strconv.FormatUint(t.Failures, 10), each, strconv.FormatUint(t.Connections, 10),
		})
	}
	return c.table(rows)
}
