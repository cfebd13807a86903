package dnscache

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// What is known of a name has to be renewGap old before a reader may have it
// renewed. Each renewal in a row that brought nothing new doubles that, up to
// maxRenewals times: to 6.4 seconds.
const (
	renewGap    = 100 * time.Millisecond
	maxRenewals = 6
)

// Renew is Lookup for a reader for whom these addresses did not work. Unless
// others are known by now, it asks for them again and waits for the answer, at most
// for Config.StaleWait. It asks for nothing during an outage, while a failed name
// is not asked for, and for 100 ms after the last lookup; each renewal in a row
// that brings nothing new doubles that, up to 6.4 seconds. It returns what is known
// then.
func (c *Cache) Renew(ctx context.Context, name string, useless []netip.Addr) (Answer, error) {
	find := func() *entry {
		e := c.table.find(c.hash(name), name, uint16(len(name)))
		if e == nil || !slices.Equal(e.addrs(), useless) {
			return nil
		}
		return e
	}
	e := find()
	if e != nil && e.state.renewals == 0 {
		// an answer that came just now, for another reason, may be outdated
		c.pause(ctx, e.state.learnedAt()+renewGap-c.cfg.Now(), nil)
		e = find()
	}
	if e != nil {
		now := c.cfg.Now()
		if s := e.state; now-s.learnedAt() >= renewGap<<s.renewals && s.mayAsk(now) && c.ex.Outage() == nil {
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
