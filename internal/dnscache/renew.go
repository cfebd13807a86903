package dnscache

import (
	"context"
	"time"
)

// What is known of a name has to be renewGap old at least to be asked for again
// before its time; after each renewal that brought nothing new twice as old, up
// to maxRenewals times: 6.4 seconds.
const (
	renewGap    = 100 * time.Millisecond
	maxRenewals = 6
)

// Renew is Lookup for a reader who has found that the known addresses are of no
// use: they are asked for again, unless that was done just now, or makes no sense
// because of a failure or an outage. It waits for that as long as Config.StaleWait
// says, and returns what is known then.
func (c *Cache) Renew(ctx context.Context, name string) (Answer, error) {
	if e := c.table.find(c.hash(name), name, uint16(len(name))); e != nil {
		now := c.cfg.Now()
		if s := e.more; now-s.learned >= renewGap<<s.renewals && now >= s.nextRetry() && c.ex.Outage() == nil {
			if cl := c.sched.request(s.node, now, true); cl != nil {
				timeout := time.NewTimer(c.cfg.StaleWait)
				defer timeout.Stop()
				select {
				case <-cl.done:
				case <-timeout.C:
				case <-ctx.Done():
				}
			}
		}
	}
	return c.Lookup(ctx, name)
}
