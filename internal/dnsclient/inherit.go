package dnsclient

import "time"

// Inherit takes over what another client knows of nameservers that are the same: how
// long they take, whether they fail or are down. It holds for those of which nothing is
// known here. Same, if not nil, reports whether a nameserver proves who it is as before.
func (c *Client) Inherit(from *Client, same func(Nameserver) bool) {
	from.mu.Lock()
	old := from.servers
	from.mu.Unlock()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	servers := c.servers
	var down []*server
	for _, s := range servers {
		for _, o := range old {
			if s.Nameserver == o.Nameserver && (same == nil || same(s.Nameserver)) && s.health.inherit(o.health.copyState()) {
				down = append(down, s)
			}
		}
	}
	c.updateOutageLocked()
	for _, s := range down {
		c.running.Go(s.probeUntilUp)
	}
	c.mu.Unlock()
}

func (h *health) copyState() healthState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.healthState
}

// inherit sets what is known, unless something is known already. It reports whether the
// server is down and has to be watched, by server.probeUntilUp.
func (h *health) inherit(from healthState) (watch bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replies > 0 || h.failures > 0 || h.silent > 0 || h.watched {
		return false
	}
	h.healthState = from
	if from.down {
		h.watched, h.watchedAt = true, time.Now()
	}
	return from.down
}
