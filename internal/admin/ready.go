package admin

import (
	"net/http"
	"time"
)

// Ready is the answer of /target/ready when the process is ready.
type Ready struct {
	Ready bool `json:"ready"` // always true
}

// readyWithin is how long after its start a process is not ready, at most, once its
// configuration runs: neither a storage nor a backend may keep it from serving.
const readyWithin = 10 * time.Second

// getReady serves /target/ready: it returns an error until the configuration runs, what was
// saved of names was read, and a connection was opened to each of the targets that are kept
// warm, or could not be.
func (a *API) getReady(*http.Request, params) (any, error) {
	shared := a.Shared()
	if shared == nil || !a.Running() {
		return nil, errorf(http.StatusServiceUnavailable, "not ready: no configuration with targets runs")
	}
	if time.Since(shared.Began) > readyWithin {
		return Ready{true}, nil
	}
	for _, r := range a.Resolvers() {
		if r.IsLoading() {
			return nil, errorf(http.StatusServiceUnavailable, "not ready: what was saved of names is being read")
		}
	}
	if cold := shared.Warm.Cold(); cold > 0 {
		return nil, errorf(http.StatusServiceUnavailable, "not ready: %d targets that are to be kept warm have no connection yet", cold)
	}
	return Ready{true}, nil
}
