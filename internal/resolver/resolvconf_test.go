package resolver

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// TestParseResolvConf has all that may stand in a resolv.conf(5) file. TestParseSearch
// has the search list.
func TestParseResolvConf(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       resolvConf // ndots 1 and 192.0.2.1 if there is nothing else
	}{
		{name: "a nameserver", text: "nameserver 192.0.2.1\n"},
		{
			name: "usual", text: "# made by hand\nsearch a.test\nnameserver 192.0.2.1\n  nameserver\tfe80::1%eth0 # second\noptions edns0 trust-ad\n",
			want: resolvConf{nameservers: parseAddrs("192.0.2.1", "fe80::1%eth0"), search: []string{"a.test"}},
		},
		{
			name: "no newline at the end, CRLF", text: "nameserver 192.0.2.1\r\noptions use-vc\r\nnameserver 192.0.2.2",
			want: resolvConf{nameservers: parseAddrs("192.0.2.1", "192.0.2.2"), useTCP: true},
		},
		{
			name: "three count", text: "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
			want: resolvConf{nameservers: parseAddrs("192.0.2.1", "192.0.2.2", "192.0.2.3")},
		},
		{
			name: "what cannot be read is ignored",
			text: "nameserver\nnameserver ns.example\n#nameserver 192.0.2.7\n;nameserver 192.0.2.7\nnameservers 192.0.2.7\nnameserver 192.0.2.7:53\n" +
				"nameserver ::ffff:192.0.2.1\noptions\noptions rotation use-vcs timeout: attempts:x ndots\nlookup file bind\n",
		},
		{name: "empty", text: "", want: resolvConf{nameservers: parseAddrs("127.0.0.1", "::1")}},
		{name: "no nameserver", text: "options rotate\n", want: resolvConf{nameservers: parseAddrs("127.0.0.1", "::1"), rotate: true}},
		{
			name: "all options that say something here",
			text: "nameserver 192.0.2.1\noptions timeout:3 attempts:2 ndots:5\noptions rotate use-vc single-request no-aaaa no-tld-query no-reload\n",
			want: resolvConf{
				timeout: 3 * time.Second, attempts: 2, ndots: 5,
				rotate: true, useTCP: true, singleRequest: true, noAAAA: true, noTLDQuery: true, noReload: true,
			},
		},
		{
			name: "all others",
			text: "nameserver 192.0.2.1\nsortlist 192.0.2.0/255.255.255.0\noptions debug no-check-names inet6 ip6-bytestring ip6-dotint no-ip6-dotint\n" +
				"options edns0 single-request-reopen trust-ad\n",
		},
		{name: "as FreeBSD spells it", text: "nameserver 192.0.2.1\noptions usevc\n", want: resolvConf{useTCP: true}},
		{name: "as OpenBSD spells it", text: "nameserver 192.0.2.1\noptions tcp\n", want: resolvConf{useTCP: true}},
		{name: "too much", text: "nameserver 192.0.2.1\noptions timeout:99 attempts:99 ndots:99\n", want: resolvConf{timeout: 30 * time.Second, attempts: 5, ndots: 15}},
		{name: "too little", text: "nameserver 192.0.2.1\noptions timeout:0 attempts:0\n", want: resolvConf{timeout: time.Second, attempts: 1}},
		{name: "no numbers", text: "nameserver 192.0.2.1\noptions timeout:-1 attempts:99999999999 timeout:1s\n"},
		{name: "the last one counts", text: "nameserver 192.0.2.1\noptions timeout:3\noptions timeout:2 timeout:x\n", want: resolvConf{timeout: 2 * time.Second}},
	} {
		if test.want.nameservers == nil {
			test.want.nameservers = parseAddrs("192.0.2.1")
		}
		test.want.ndots = cmp.Or(test.want.ndots, 1)
		if got := parseResolvConf(test.text); fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", test.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", test.name, *got, test.want)
		}
	}
}

func parseAddrs(list ...string) (addrs []netip.Addr) {
	for _, text := range list {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

// TestSettingsOfResolvConf: what the configuration says comes before what
// resolv.conf says.
func TestSettingsOfResolvConf(t *testing.T) {
	const two = "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"
	for _, test := range []struct {
		text   string
		config Config
		want   string
	}{
		{"nameserver 192.0.2.1\n", Config{}, "[192.0.2.1:53] 0s 0 false"},
		{two + "options use-vc rotate\n", Config{}, "[tcp://192.0.2.1:53 tcp://192.0.2.2:53] 0s 0 true"},
		{two + "options timeout:1 attempts:2\n", Config{}, "[192.0.2.1:53 192.0.2.2:53] 1s 4 false"},
		{two + "options attempts:5\n", Config{}, "[192.0.2.1:53 192.0.2.2:53] 0s 6 false"}, // RFC 9520
		{two + "options timeout:1 attempts:2\n", Config{Timeout: 4 * time.Second, Tries: 5}, "[192.0.2.1:53 192.0.2.2:53] 4s 5 false"},
	} {
		c := parseResolvConf(test.text)
		s := c.settings(&test.config)
		if got := fmt.Sprint(c.servers(53), " ", s.Timeout, " ", s.Tries, " ", s.Rotate); got != test.want {
			t.Errorf("%q: %s, want %s", test.text, got, test.want)
		}
	}
}

// ofSystem returns a resolver that asks a nameserver on loopback because a
// resolv.conf says so, which has more lines; and what changes these.
func ofSystem(t *testing.T, config Config, s *testlab.Nameserver, more string) (r *Resolver, change func(more string)) {
	t.Helper()
	at := netip.MustParseAddrPort(s.Addr)
	config.systemPort = at.Port()
	first := "nameserver " + at.Addr().String() + "\n"
	r, changeFile := withResolvConf(t, config, first+more)
	return r, func(more string) {
		t.Helper()
		changeFile(first + more)
	}
}

// TestUseVC: where nothing gets through by UDP, the option use-vc makes names
// resolve.
func TestUseVC(t *testing.T) {
	leaktest.Check(t)
	s := testlab.NewNameserver(t)
	s.SetTCPOnly()
	s.Has("a.example", "192.0.2.1")
	r, _ := ofSystem(t, Config{Deadline: testlab.Timeout}, s, "options use-vc\n")
	wantLookup(t, r, "a.example", "miss [192.0.2.1]")
}

// TestSystemOptions: the options of resolv.conf take effect, and so do changes;
// those of a resolver with nameservers of its own stay as they are.
func TestSystemOptions(t *testing.T) {
	s := testlab.NewNameserver(t)
	s.Has("a.example", "192.0.2.1", "2001:db8::1")
	s.Has("b.example", "192.0.2.1", "2001:db8::1")
	r, change := ofSystem(t, Config{Family: "auto"}, s, "options no-aaaa single-request\n")
	config := r.cacheConfig(&r.zone, nil)
	if config.Family() != dnscache.IPv4 || !config.Sequential() {
		t.Errorf("got family %d, sequential %t, want %d, true", config.Family(), config.Sequential(), dnscache.IPv4)
	}
	if got := mustLookup(t, r, "a.example"); got != "miss [192.0.2.1]" || s.Asked("AAAA a.example") != 0 {
		t.Errorf("got %s and %d queries for AAAA, want miss [192.0.2.1] and none", got, s.Asked("AAAA a.example"))
	}
	r.ipv6Route.present, r.ipv6Route.until = true, time.Now().Add(time.Hour)
	change("")
	if config.Family() != dnscache.Interleaved || config.Sequential() {
		t.Errorf("without options: got family %d, sequential %t, want %d, false", config.Family(), config.Sequential(), dnscache.Interleaved)
	}
	testlab.Eventually(t, "AAAA is asked for", func() bool {
		mustLookup(t, r, "b.example")
		return s.Asked("AAAA b.example") > 0
	})

	// the family of the configuration counts
	r, _ = ofSystem(t, Config{Family: "prefer_ipv6"}, s, "options no-aaaa\n")
	config = r.cacheConfig(&r.zone, nil)
	if config.Family() != dnscache.PreferIPv6 {
		t.Errorf("got family %d, want %d", config.Family(), dnscache.PreferIPv6)
	}

	// and nothing of this holds for other nameservers
	r, _ = ofSystem(t, Config{Family: "auto", Nameservers: []string{s.Addr}, Search: true}, s, "options no-aaaa use-vc\nsearch a.test\n")
	if got := fmt.Sprint(r.client.Nameservers()); r.system.Load() != nil || got != "["+s.Addr+"]" || r.search.Load() == nil {
		t.Errorf("got nameservers %s, options %v, search list %v, want [%s], none and one", got, r.system.Load(), r.search.Load(), s.Addr)
	}
}

// TestNoReload: with no-reload the file is read once.
func TestNoReload(t *testing.T) {
	s := testlab.NewNameserver(t)
	r, change := ofSystem(t, Config{}, s, "options use-vc\n")
	want := func(servers string) {
		t.Helper()
		if got := fmt.Sprint(r.client.Nameservers()); got != "["+servers+"]" {
			t.Errorf("nameservers %s, want %s", got, servers)
		}
	}
	want("tcp://" + s.Addr)
	change("")
	want(s.Addr)
	change("options use-vc no-reload\n")
	change("")
	want("tcp://" + s.Addr)
}

// TestEnvironment: RES_OPTIONS and LOCALDOMAIN amend resolv.conf.
func TestEnvironment(t *testing.T) {
	t.Setenv("RES_OPTIONS", "use-vc ndots:3")
	t.Setenv("LOCALDOMAIN", "b.test c.test")
	s := testlab.NewNameserver(t)
	r, _ := ofSystem(t, Config{Search: true}, s, "search a.test\noptions ndots:2 rotate")
	list := r.search.Load()
	want := "[tcp://" + s.Addr + "] [b.test c.test] 3 true"
	if got := fmt.Sprint(r.client.Nameservers(), list.domains, list.ndots, r.system.Load().rotate); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	t.Setenv("LOCALDOMAIN", "")
	r, _ = ofSystem(t, Config{Search: true}, s, "search a.test\n")
	if list := r.search.Load(); list != nil {
		t.Errorf("got the search domains %v, want none", list.domains)
	}
}

// TestNoTLDQuery: a name without dots is not asked for as it is.
func TestNoTLDQuery(t *testing.T) {
	for _, test := range []struct {
		text, name, want string
	}{
		{"search a.test\n", "web", "[web.a.test web]"},
		{"search a.test\noptions no-tld-query\n", "web", "[web.a.test]"},
		{"search a.test\noptions no-tld-query ndots:2\n", "web.dc", "[web.dc.a.test web.dc]"},
	} {
		var got []string
		for name := range newSearchList(parseResolvConf(test.text)).candidates(test.name) {
			got = append(got, name)
		}
		if fmt.Sprint(got) != test.want {
			t.Errorf("%q: %s: %s, want %s", test.text, test.name, got, test.want)
		}
	}
	s := testlab.NewNameserver(t)
	s.Has("web", "192.0.2.1")
	r, _ := ofSystem(t, Config{Search: true}, s, "search a.test\noptions no-tld-query\n")
	if got := mustLookup(t, r, "web"); !strings.Contains(got, "NXDOMAIN") || s.Asked("web") != 0 {
		t.Errorf("got %s and %d queries, want NXDOMAIN and none", got, s.Asked("web"))
	}
}

// TestNoResolvConf: without a file there are the nameservers of this machine; one
// that cannot be read changes nothing.
func TestNoResolvConf(t *testing.T) {
	s := testlab.NewNameserver(t)
	r, _ := ofSystem(t, Config{}, s, "")
	if err := os.Remove(r.config.ResolvConf); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.config.ResolvConf, 0o700); err != nil {
		t.Fatal(err)
	}
	r.checkFiles()
	if got := fmt.Sprint(r.client.Nameservers()); got != "["+s.Addr+"]" {
		t.Errorf("unreadable: got nameservers %s, want [%s]", got, s.Addr)
	}
	if err := os.Remove(r.config.ResolvConf); err != nil {
		t.Fatal(err)
	}
	r.checkFiles()
	port := netip.MustParseAddrPort(s.Addr).Port()
	want := []dnsclient.Nameserver{
		{Network: "udp", AddrPort: netip.AddrPortFrom(loopback[0], port)},
		{Network: "udp", AddrPort: netip.AddrPortFrom(loopback[1], port)},
	}
	if got := r.client.Nameservers(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("no file: got nameservers %v, want %v", got, want)
	}
}
