package dnsclient

import (
	"testing"

	"caddytarget/internal/testlab"
)

// TestInherit: what is known of a nameserver is known to the next client, and nothing of
// others. One that is down sends nothing but probes, until it is up.
func TestInherit(t *testing.T) {
	slow, dead, other := newScript(t, answering, nil), newScript(t, nil, nil), newScript(t, answering, nil)
	old := newClient(t, Config{}, slow, dead)
	servers := func(c *Client) (list []healthState) {
		for _, s := range c.servers {
			list = append(list, s.health.copyState())
		}
		return list
	}
	old.servers[0].replied(longTimeout / 2)
	old.servers[1].health.observe(observation{outcome: failed, question: rootQuestion})
	c := newClient(t, Config{}, other, dead, slow)
	c.Inherit(old, nil)
	got, want := servers(c), servers(old)
	if got[0].replies != 0 || got[1].failures != 1 || got[2].rtt != want[0].rtt || got[2].rtt == 0 {
		t.Errorf("got %+v, want nothing of the first and that of the others of %+v", got, want)
	}
	c.servers[2].replied(0)
	c.Inherit(old, nil)
	if now := servers(c)[2]; now.replies != 2 {
		t.Errorf("got %+v, want what was found out here", now)
	}
	unproven := newClient(t, Config{}, slow)
	unproven.Inherit(old, func(Nameserver) bool { return false })
	if got := servers(unproven)[0]; got.replies != 0 {
		t.Errorf("got %+v of a nameserver that proves itself in another way, want nothing", got)
	}

	h := &old.servers[0].health
	h.mu.Lock()
	h.down = true
	h.mu.Unlock()
	next := newClient(t, Config{}, slow)
	next.Inherit(old, nil)
	if next.Outage() == nil || slow.Count(false) > 0 {
		t.Error("a nameserver that is down is not known to be")
	}
	testlab.Eventually(t, "it is up again", func() bool { return next.Outage() == nil })
	next.Close()
	next.Inherit(old, nil) // nothing is started
}
