package gate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"caddytarget/internal/guard"
	"caddytarget/internal/localnet"
)

// newGate returns a gate of a machine with the address 192.0.2.1, where a site listens on
// port 80 and something else on port 81.
func newGate(t *testing.T, config guard.Config, report bool) Gate {
	t.Helper()
	rules, err := config.Compile()
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddr("192.0.2.1")
	return Gate{Rules: rules, Report: report, Listeners: localnet.NewListeners(localnet.Config{
		Addresses: func() ([]netip.Prefix, error) { return []netip.Prefix{netip.PrefixFrom(own, 32)}, nil },
		Account: func(a netip.AddrPort) localnet.Owner {
			switch {
			case a.Addr().Unmap() == own && a.Port() == 80:
				return localnet.OwnSite
			case a.Addr().Unmap() == own && a.Port() == 81:
				return localnet.OwnOther
			}
			return localnet.NotOwn
		},
	})}
}

// observed notes what a gate tells.
type observed []string

// Reported implements Observer.
func (o *observed) Reported(err error) { *o = append(*o, err.Error()) }

// LeftOut implements Observer.
func (o *observed) LeftOut(r *guard.Refusal, reported bool) {
	*o = append(*o, fmt.Sprintf("%s %s left out, only reported: %t", r.Value, r.Rule, reported))
}

// TestTarget checks what is said of a target: by the rules, and where they only report.
func TestTarget(t *testing.T) {
	config := guard.Config{Allow: []string{"*.example"}, Deny: []string{"bad.example"}, Ports: []string{"80"}}
	for _, test := range []struct {
		scheme, host string
		port         uint16
		refused      string // what the error is about; empty: none
		reported     int    // how many refusals are reported where refusals are
		always       bool   // it is refused even then
	}{
		{scheme: "http", host: "a.example", port: 80},
		{host: "a.example", port: 80},
		{scheme: "h2c", host: "a.example", port: 80, refused: "h2c", reported: 1},
		{scheme: "ftp", host: "a.example", port: 80, refused: "ftp", always: true},
		{scheme: "http", host: "a.test", port: 80, refused: "a.test", reported: 1},
		{scheme: "http", host: "bad.example", port: 80, refused: "bad.example", reported: 1},
		{scheme: "http", host: "a.example", port: 81, refused: "port 81", reported: 1},
		{scheme: "h2c", host: "a.test", port: 81, refused: "h2c", reported: 3},
	} {
		name := fmt.Sprintf("%s://%s:%d", test.scheme, test.host, test.port)
		var told observed
		err := newGate(t, config, false).CheckTarget(test.scheme, test.host, test.port, &told)
		if (err != nil) != (test.refused != "") || err != nil && !strings.Contains(err.Error(), test.refused) || len(told) > 0 {
			t.Errorf("%s: got %v, told %v, want a refusal of %q", name, err, told, test.refused)
		}
		err = newGate(t, config, true).CheckTarget(test.scheme, test.host, test.port, &told)
		if (err != nil) != test.always || len(told) != test.reported {
			t.Errorf("%s, only reported: got %v, told %v, want %d reports", name, err, told, test.reported)
		}
	}
}

// TestFound: a name that another one is short for may be denied, but need not be allowed.
func TestFound(t *testing.T) {
	g := newGate(t, guard.Config{Allow: []string{"a"}, Deny: []string{"a.bad.example"}}, false)
	for found, refused := range map[string]bool{"": false, "a": false, "a.example": false, "a.bad.example": true, "metadata.google.internal": true} {
		var told observed
		err := g.CheckFound("a", found, &told)
		if (err != nil) != refused || err != nil && !strings.HasPrefix(err.Error(), "a: ") {
			t.Errorf("%q: got %v, want a refusal: %t", found, err, refused)
		}
		g := g
		g.Report = true
		if err := g.CheckFound("a", found, &told); err != nil || (len(told) == 1) != refused {
			t.Errorf("%q, only reported: got %v, told %v, want a report: %t", found, err, told, refused)
		}
	}
}

// TestFilter checks which addresses remain, how many of them are preferred, and what is told.
func TestFilter(t *testing.T) {
	const public, other, private, own = "9.9.9.9", "8.8.8.8", "10.0.0.1", "192.0.2.1"
	for _, test := range []struct {
		addrs     string
		port      uint16
		report    bool
		preferred int
		want      string // the addresses and how many are preferred; empty: an error
		told      int
	}{
		{public + " " + other, 80, false, 1, public + " " + other + " 1", 0},
		{public + " " + private, 80, false, 2, public + " 1", 1},
		{private + " " + public, 80, false, 1, public + " 1", 1}, // no preferred one remains
		{private, 80, false, 1, "", 0},
		{own, 80, false, 1, "", 0},
		{private + " " + public, 80, true, 1, private + " " + public + " 1", 1},
		{private, 80, true, 1, private + " 1", 1},
		{own + " " + private, 81, true, 2, private + " 1", 1}, // all are refused: the one reason is told
		{own + " " + public, 81, true, 2, public + " 1", 1},
		{own, 81, true, 1, "", 0},
	} {
		g := newGate(t, guard.Config{}, test.report)
		var addrs []netip.Addr
		for text := range strings.FieldsSeq(test.addrs) {
			addrs = append(addrs, netip.MustParseAddr(text))
		}
		var told observed
		kept, preferred, err := g.Filter("a.example", test.port, addrs, test.preferred, &told)
		got := ""
		if err == nil {
			got = strings.Trim(fmt.Sprint(kept), "[]") + fmt.Sprint(" ", preferred)
		}
		if got != test.want || len(told) != test.told {
			t.Errorf("%s, only reported: %t: got %q, %v, told %v, want %q and %d reports", test.addrs, test.report, got, err, told, test.want, test.told)
		}
	}
}

// TestConnection checks what is said of a connection: before it is opened and when it is.
func TestConnection(t *testing.T) {
	self := netip.MustParseAddrPort("203.0.113.9:5000")
	for _, test := range []struct {
		addr            string
		refused, always bool
	}{
		{addr: "9.9.9.9:80"},
		{addr: "10.0.0.1:80", refused: true},
		{addr: "192.0.2.1:80", refused: true},
		{addr: "192.0.2.1:81", refused: true, always: true},
		{addr: "[::ffff:192.0.2.1]:81", refused: true, always: true},
	} {
		addr := netip.MustParseAddrPort(test.addr)
		for _, report := range []bool{false, true} {
			g, want := newGate(t, guard.Config{}, report), test.refused && !report || test.always
			if err := g.Permit("a.example", addr); (err != nil) != want {
				t.Errorf("%s, only reported: %t: before it is opened: %v, want a refusal: %t", addr, report, err, want)
			}
			if err := g.Confirm("a.example", self, addr); (err != nil) != want {
				t.Errorf("%s, only reported: %t: opened: %v, want a refusal: %t", addr, report, err, want)
			}
		}
	}
	if err := newGate(t, guard.Config{}, true).Permit("", netip.AddrPort{}); err == nil {
		t.Error("no address: no error, want one: it has not been checked")
	}
}

// TestCheckPassesFree: a check that passes allocates nothing.
func TestCheckPassesFree(t *testing.T) {
	g := newGate(t, guard.Config{}, false)
	addrs := []netip.Addr{netip.MustParseAddr("9.9.9.9")}
	told := new(observed)
	if n := testing.AllocsPerRun(100, func() {
		if g.CheckTarget("https", "a.example", 443, told) != nil || g.CheckFound("a.example", "a.example", told) != nil {
			t.Error("refused")
		}
		if _, _, err := g.Filter("a.example", 443, addrs, 1, told); err != nil {
			t.Error(err)
		}
		if g.Permit("a.example", netip.AddrPortFrom(addrs[0], 443)) != nil {
			t.Error("refused")
		}
	}); n != 0 {
		t.Errorf("got %g allocations, want none", n)
	}
}
