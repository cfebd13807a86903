package resolver

import "caddytarget/internal/testlab"

// searchTests are the names that are tried, and where that ends.
var searchTests = []struct {
	name   string
	config Config
	set    func(s *testlab.Nameserver)
	text   string // search a.test b.test; options ndots:2
	lookup string
	want   string
	asked  string
}{
	{
		name: "the first domain", lookup: "web", set: func(s *testlab.Nameserver) { s.Has("web.a.test", "192.0.2.1"); s.Has("web.b.test", "192.0.2.2") },
		want: "miss [192.0.2.1]", asked: "[web.a.test]",
	},
	{
		name: "NXDOMAIN goes on", lookup: "web", set: func(s *testlab.Nameserver) { s.Has("web.b.test", "192.0.2.2") },
		want: "miss [192.0.2.2]", asked: "[web.a.test web.b.test]",
	},
	{
		name: "no data goes on", lookup: "web", set: func(s *testlab.Nameserver) { s.Set("web.a.test", testlab.Reply{}); s.Has("web.b.test", "192.0.2.2") },
		want: "miss [192.0.2.2]", asked: "[web.a.test web.b.test]",
	},
	{
		name: "as it is, last", lookup: "web.dc", set: func(s *testlab.Nameserver) { s.Has("web.dc", "192.0.2.3") },
		want: "miss [192.0.2.3]", asked: "[web.dc.a.test web.dc.b.test web.dc]",
	},
	{
		name: "as it is, first", lookup: "web.dc.example", set: func(s *testlab.Nameserver) {
			s.Has("web.dc.example", "192.0.2.3")
			s.Has("web.dc.example.a.test", "192.0.2.1")
		},
		want: "miss [192.0.2.3]", asked: "[web.dc.example]",
	},
	{
		name: "as it is, first, then domains", lookup: "web.dc.example", set: func(s *testlab.Nameserver) { s.Has("web.dc.example.b.test", "192.0.2.2") },
		want: "miss [192.0.2.2]", asked: "[web.dc.example web.dc.example.a.test web.dc.example.b.test]",
	},
	{
		name: "nothing", lookup: "web", set: func(*testlab.Nameserver) {},
		want:  "looking up web (A): SERVER replied NXDOMAIN (nor is there web with one of the search domains a.test, b.test)",
		asked: "[web.a.test web.b.test web]",
	},
	{
		name: "nothing, as it is first", lookup: "web.dc.example", set: func(*testlab.Nameserver) {},
		want:  "looking up web.dc.example (A): SERVER replied NXDOMAIN (nor is there web.dc.example with one of the search domains a.test, b.test)",
		asked: "[web.dc.example web.dc.example.a.test web.dc.example.b.test]",
	},
	{
		name: "SERVFAIL goes on", lookup: "web", set: func(s *testlab.Nameserver) {
			s.Set("web.a.test", testlab.Reply{Rcode: 2})
			s.Has("web.b.test", "192.0.2.2")
		},
		want: "miss [192.0.2.2]", asked: "[web.a.test web.b.test]",
	},
	{
		name: "REFUSED goes on", lookup: "web", set: func(s *testlab.Nameserver) {
			s.Set("web.a.test", testlab.Reply{Rcode: 5})
			s.Has("web.b.test", "192.0.2.2")
		},
		want: "miss [192.0.2.2]", asked: "[web.a.test web.b.test]",
	},
	{
		name: "a timeout goes on", lookup: "web", set: func(s *testlab.Nameserver) {
			s.Set("web.a.test", testlab.Reply{Silent: true})
			s.Has("web.b.test", "192.0.2.2")
		},
		want: "miss [192.0.2.2]", asked: "[web.a.test web.b.test]",
	},
	{
		name: "a failure as it is goes on", lookup: "web.dc.example", set: func(s *testlab.Nameserver) {
			s.Set("web.dc.example", testlab.Reply{Rcode: 2})
			s.Has("web.dc.example.b.test", "192.0.2.2")
		},
		want: "miss [192.0.2.2]", asked: "[web.dc.example web.dc.example.a.test web.dc.example.b.test]",
	},
	{
		name: "a failure is no answer", lookup: "web", set: func(s *testlab.Nameserver) { s.Set("web.a.test", testlab.Reply{Rcode: 2}) },
		want: "looking up web.a.test (A): SERVER replied SERVFAIL", asked: "[web.a.test web.b.test web]",
	},
	{
		name: "the failure of the name as it is says most", lookup: "web",
		set: func(s *testlab.Nameserver) {
			s.Set("web.a.test", testlab.Reply{Rcode: 2})
			s.Set("web", testlab.Reply{Rcode: 5})
		},
		want: "looking up web (A): SERVER replied REFUSED", asked: "[web.a.test web.b.test web]",
	},
	{
		name: "no list", lookup: "web", text: "options ndots:2\n", set: func(s *testlab.Nameserver) { s.Has("web", "192.0.2.1") },
		want: "miss [192.0.2.1]", asked: "[web]",
	},
	{
		name: "localhost", lookup: "localhost", set: func(*testlab.Nameserver) {}, want: "hosts [127.0.0.1]", asked: "[]",
	},
	{
		name: "onion", lookup: "a.onion", set: func(*testlab.Nameserver) {}, want: "a.onion does not exist in the DNS (RFC 6761, RFC 7686)", asked: "[]",
	},
	{
		name: "hosts file", lookup: "web", config: Config{Hosts: "HOSTS"}, set: func(s *testlab.Nameserver) { s.Has("web.a.test", "192.0.2.1") },
		want: "hosts [192.0.2.9]", asked: "[]",
	},
}
