package dnsclient

import (
	"fmt"
	"slices"
	"testing"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// TestRotate: the first question goes to any of the nameservers, but not to one that fails.
func TestRotate(t *testing.T) {
	const lookups = 200
	ok := func(q *testlab.Query) {
		q.Reply(q.Answer(q.Question[0].Name + " 60 IN A 192.0.2.1"))
	}
	lookUp := func(c *Client) {
		t.Helper()
		for i := range lookups {
			if got, _, err := c.Lookup(t.Context(), fmt.Sprintf("n%d.example", i), dns.TypeA); err != nil || !slices.Equal(got, addrs("192.0.2.1")) {
				t.Fatalf("got %v, %v; want 192.0.2.1", got, err)
			}
		}
	}
	for _, rotate := range []bool{false, true} {
		all := []*script{newScript(t, ok, nil), newScript(t, ok, nil), newScript(t, ok, nil)}
		c := newClient(t, Config{Rotate: rotate, Tries: 3}, all...)
		lookUp(c)
		for i, s := range all {
			n := s.Count(false)
			switch {
			case !rotate && n != map[bool]int{true: lookups}[i == 0]:
				t.Errorf("%d queries to nameserver %d, want all to the first", n, i)
			case rotate && n < lookups/10:
				t.Errorf("with rotate, %d queries to nameserver %d, want %d at least", n, i, lookups/10)
			}
		}
	}

	bad := newScript(t, func(q *testlab.Query) { q.Reply(q.Fail(dns.RcodeServerFailure)) }, nil)
	c := newClient(t, Config{Rotate: true, Tries: 2}, bad, newScript(t, ok, nil))
	lookUp(c)
	if n := bad.Count(false); n > lookups/10 {
		t.Errorf("%d queries to the nameserver that fails, want %d at most", n, lookups/10)
	}
	// a change takes effect with the next lookup
	other := newScript(t, ok, nil)
	c.Change([]Nameserver{other.Nameserver}, Settings{Timeout: longTimeout, Tries: 1})
	lookUp(c)
	if n := other.Count(false); n != lookups {
		t.Errorf("%d queries to the new nameserver, want %d", n, lookups)
	}
}
