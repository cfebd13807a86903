package dnscache

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// What is known of a name has to be renewGap old at least to be asked for again
// before its time; after each renewal that brought nothing new twice as old, up
// to maxRenewals times: 6.4 seconds.
const (
	renewGap    = 100 * time.Millisecond
	maxRenewals = 6
)

// Renew is Lookup for a reader who has found that these addresses are of no use:
// unless others are known by now, they are asked for again, if that was not done
// just now without bringing anything, and makes sense in spite of a failure or an
// outage. It waits for that as long as Config.StaleWait says, and returns what is
// known then.
func (c *Cache) Renew(ctx context.Context, name string, useless []netip.Addr) (Answer, error) {
	find := func() *entry {
		e := c.table.find(c.hash(name), name, uint16(len(name)))
		if e == nil || !slices.Equal(e.addrs(), useless) {
			return nil
		}
		return e
	}
	e := find()
	if e != nil && e.state.asked == 1 {
		// what has come only just now, for other reasons, may be out of date
		c.pause(ctx, e.state.learnedAt()+renewGap-c.cfg.Now(), nil)
		e = find()
	}
	if e != nil {
		now := c.cfg.Now()
		if s := e.state; now-s.learnedAt() >= renewGap<<(s.asked-1) && s.mayAsk(now) && c.ex.Outage() == nil {
			if cl := c.sched.request(s.node, now, true); cl != nil {
				c.pause(ctx, c.cfg.StaleWait, cl.done)
			}
		}
	}
	return c.Lookup(ctx, name)
}

// pause waits for some time, or until done is closed or ctx ends.
func (c *Cache) pause(ctx context.Context, d time.Duration, done <-chan struct{}) {
	if d <= 0 {
		return
	}
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
	case <-ctx.Done():
	}
}
