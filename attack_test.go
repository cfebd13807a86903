package caddytarget

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"caddytarget/internal/exchange"
	"caddytarget/internal/testlab"
)

// The attacks: targets and DNS answers that try to make the gateway call what
// it may not call, and how the gateway has to answer each. The table is played twice:
// TestAttackVerdicts stops where the first connection would be opened, TestAttacks
// opens it, on a machine of its own where every address is that machine.

// attack is one request, and how it has to be answered.
type attack struct {
	name   string
	target string        // X-Target, or at the site "query" ?to=
	raw    string        // the whole request instead; SITE stands for the Host
	h2     []string      // the whole request instead, as the fields of HTTP/2
	site   string        // other than that of the group
	set    string        // what the nameserver says from now on
	wait   time.Duration // before the request

	inOrder bool // set by play, from that of the group

	via string // an address that may be reached on the way

	// "200 ADDRESS HOST [URI]": the address that was reached, or one of several
	// with | between them, of which it may be any; the Host that was seen there.
	// "403 REASON": what {http.target.error} has; it is never empty. "400 !": it
	// is the web server that answers, before any handler sees the request. Of
	// statuses with | between them, each is right; 0 is none, but the end of the
	// connection or the stream. "302 LOCATION".
	want string

	// check looks at what the backend got
	check func(testlab.Request) error
}

// text is what is special about an attack, for a message.
func (at attack) text() string { return at.target + at.raw + strings.Join(at.h2, ", ") }

// attackGroup is what attacks have in common.
type attackGroup struct {
	kind    string
	site    string      // default: one with no rules
	dns     []string    // see parseDNSName
	proxied bool        // without a proxy it means nothing
	inOrder bool        // each attack builds on the one before
	plain   [][3]string // name, target, want
	attacks []attack
}

func (g *attackGroup) all() []attack {
	var list []attack
	for _, p := range g.plain {
		list = append(list, attack{name: p[0], target: p[1], want: p[2]})
	}
	return append(list, g.attacks...)
}

// attackSite is a site of the gateway.
type attackSite struct {
	name  string
	url   string // default: {header.X-Target}
	rules string // more of target
	whole string // the whole site, instead; then there are only attacks that are proxied
	bind  string // ADDRESS [PORT]; default: 127.0.0.1 and the port that attacks are sent to
}

// What stands for addresses that are globally routable: an honest host, and
// another one that only those who were told so may call.
const (
	goodAddr  = "93.184.215.14"
	goodAddr6 = "2606:2800:21f:cb07::14"
	evilAddr  = "45.33.32.156"
)

var attackSites = []attackSite{
	{name: "default"},
	{name: "query", url: "{query.to}"},
	{name: "allow", rules: "allow *.good.example good.example"},
	{name: "below", rules: "allow *.good.example"},
	{name: "suffix", url: "http://{header.X-Target}.good.example", rules: "allow *.good.example"},
	{name: "prefix", url: "http://good.example{header.X-Target}", rules: "allow good.example"},
	{name: "deny", rules: "deny evil.example *.evil.example bücher.example strasse.example " + evilAddr + " 2606:4700::bad"},
	{name: "deny-all-below", rules: "deny *.example"},
	{name: "private", rules: "allow_ips private_ranges"},
	{name: "any", rules: "allow_ips any"},
	{name: "ten", rules: "allow_ips 10.0.0.0/8\ndeny_ips 10.0.0.5"},
	{name: "loopback", rules: "allow_ips 127.0.0.0/8 ::1"},
	{name: "six", rules: "allow_ips ::/0"},
	{name: "deny-ips", rules: "deny_ips " + evilAddr + " 2606:4700::/32"},
	{name: "deny-private", rules: "allow_ips any\ndeny_ips private_ranges"},
	{name: "ports", rules: "ports 80 443"},
	{name: "https", rules: "schemes https"},
	{name: "h2c", rules: "schemes h2c"},
	{name: "path", rules: "path /fixed/{query.p}"},
	{name: "path-field", rules: "path /fixed/{header.X-P}"},
	{name: "path-two", rules: "path /fixed/{query.p}/and/{query.q}.json"},
	{name: "url-path", url: "http://good.example/fixed/{header.X-Target}"},
	{name: "url-query", url: "http://good.example/fixed?x={header.X-Target}"},
	{name: "host", rules: "host {query.h}"},
	{name: "host-field", rules: "host {header.X-Host}"},
	{name: "bad-ports", rules: "ports 22 25"},
	{name: "localhost", rules: "resolver <DNS> {\nhosts <HOSTS2>\n}"},
	{name: "search", rules: "resolver <DNS> {\nhosts <HOSTS>\nfamily ipv4\nsearch\n}"},
	{name: "search-deny", rules: "deny secret.corp.example\nresolver <DNS> {\nhosts <HOSTS>\nfamily ipv4\nsearch\n}"},
	{name: "rebind", rules: "resolver <DNS> {\nhosts off\nfamily ipv4\nmin_ttl 20ms\nrefresh off\nstale off\n}"},
	{name: "stale", rules: "resolver <DNS> {\nhosts off\nfamily ipv4\nmin_ttl 20ms\nrefresh off\nstale 1h\ntimeout 200ms\ntries 1\ndeadline 300ms\n}"},
	{name: "stale-any", rules: "allow_ips any\nresolver <DNS> {\nhosts off\nfamily ipv4\nmin_ttl 20ms\nrefresh off\nstale 1h\ntimeout 200ms\ntries 1\ndeadline 300ms\n}"},
	{name: "metadata-allowed", rules: "allow metadata.google.internal"},
	{name: "metadata-below", rules: "allow *.google.internal *.ec2.internal"},
	{name: "metadata-all", rules: "allow *"},
}

// attackHosts and attackHosts2 are hosts files.
const (
	attackHosts = `
127.0.0.1       hosts-loopback.example
169.254.169.254 hosts-metadata.example
10.9.9.9        hosts-private.example
::ffff:10.9.9.9 hosts-mapped.example
64:ff9b::a09:909 hosts-nat64.example
127.0.0.1       hosts-shadow.example
10.9.9.9        hosts-both.example
` + goodAddr + `   hosts-both.example
` + goodAddr + `   hosts-good.example
fe80::1%lo      hosts-zone.example
`
	attackHosts2 = goodAddr + " localhost\n10.9.9.9 private.localhost\n"
)

// req makes a request of its lines.
func req(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

// get makes a GET request of the site, with more header lines.
func get(uri string, lines ...string) string {
	return req(append([]string{"GET " + uri + " HTTP/1.1", "Host: SITE", "Connection: close"}, lines...)...)
}

// h2 makes the fields of a request of the default site over HTTP/2.
func h2(path string, fields ...string) []string {
	return append([]string{":method: GET", ":scheme: http", ":authority: client.example", ":path: " + path}, fields...)
}

// toGood and toGoodH2 name the honest host.
const (
	toGood   = "X-Target: http://good.example"
	toGoodH2 = "x-target: http://good.example"
)

// without checks that the backend did not get some header fields.
func without(names ...string) func(testlab.Request) error {
	return func(s testlab.Request) error {
		for _, name := range names {
			if s.Header[name] != nil {
				return fmt.Errorf("it got %s", name)
			}
		}
		return nil
	}
}

var attackGroups = []attackGroup{
	{kind: "IPv4 literals", plain: [][3]string{
		{"dotted", "http://127.0.0.1/", "403 loopback"},
		{"no scheme", "127.0.0.1", "403 loopback"},
		{"no scheme, a port", "127.0.0.1:8080", "403 loopback"},
		{"port 443", "127.0.0.1:443", "403 loopback"},
		{"https", "https://127.0.0.1/", "403 loopback"},
		{"elsewhere in 127/8", "http://127.255.255.254/", "403 loopback"},
		{"trailing dot", "http://127.0.0.1./", "403 loopback"},
		{"trailing ideographic full stop", "http://127.0.0.1。/", "403 loopback"},
		{"two trailing dots", "http://127.0.0.1../", "400 empty label"},
		{"decimal", "http://2130706433/", "400 IPv4"},
		{"decimal, trailing dot", "http://2130706433./", "400 IPv4"},
		{"decimal, over 32 bits", "http://6425673729/", "400 IPv4"},
		{"decimal, leading zeros", "http://00002130706433/", "400 IPv4"},
		{"hexadecimal", "http://0x7f000001/", "400 IPv4"},
		{"hexadecimal, upper case", "http://0X7F000001/", "400 IPv4"},
		{"hexadecimal, no digits", "http://0x/", "400 IPv4"},
		{"hexadecimal, two parts", "http://0x7f.1/", "400 IPv4"},
		{"hexadecimal, four parts", "http://0x7f.0x0.0x0.0x1/", "400 IPv4"},
		{"hexadecimal, the last part alone", "http://127.0.0.0x1/", "400 IPv4"},
		{"hexadecimal, over 32 bits", "http://0xff7f000001/", "400 IPv4"},
		{"octal", "http://017700000001/", "400 IPv4"},
		{"octal, four parts", "http://0177.0.0.1/", "400 IPv4"},
		{"octal, all parts", "http://0177.00.00.01/", "400 IPv4"},
		{"short", "http://127.1/", "400 IPv4"},
		{"short, three parts", "http://127.0.1/", "400 IPv4"},
		{"mixed", "http://0x7f.0.0.1/", "400 IPv4"},
		{"mixed, decimal tail", "http://0177.1/", "400 IPv4"},
		{"overlong", "http://0000127.0.0.1/", "400 IPv4"},
		{"padded", "http://127.000.000.001/", "400 IPv4"},
		{"five parts", "http://127.0.0.1.0/", "400 IPv4"},
		{"overflow", "http://383.0.0.1/", "400 IPv4"},
		{"zero", "http://0/", "400 IPv4"},
		{"hexadecimal zero", "http://0x0/", "400 IPv4"},
		{"negative", "http://-2130706433/", "502"},
		{"a name that begins like one", "http://127.0.0.1.example/", "403 loopback"},
		{"full-width digits", "http://１２７.０.０.１/", "403 loopback"},
		{"circled digits", "http://①②⑦.⓪.⓪.①/", "403 loopback"},
		{"superscript digits", "http://¹²⁷.⁰.⁰.¹/", "403 loopback"},
		{"mathematical digits", "http://𝟏𝟐𝟕.𝟎.𝟎.𝟏/", "403 loopback"},
		{"ideographic full stops", "http://127。0。0。1/", "403 loopback"},
		{"half-width full stops", "http://127｡0｡0｡1/", "403 loopback"},
		{"full-width full stops", "http://127．0．0．1/", "403 loopback"},
		{"soft hyphen within", "http://127.0.\u00ad0.1/", "403 loopback"},
		{"zero-width space within", "http://127.0.0.\u200b1/", "403 loopback"},
		{"full-width hexadecimal", "http://０ｘ７ｆ.１/", "400 IPv4"},
		{"full-width decimal", "http://２１３０７０６４３３/", "400 IPv4"},
		{"circled decimal", "http://②①③⓪⑦⓪⑥④③③/", "400 IPv4"},
		{"one character for digit and stop", "http://127.0.0⒈/", "400"},
		{"Arabic digits", "http://١٢٧.٠.٠.١/", "400"},
		{"percent-encoded digits", "http://%31%32%37.0.0.1/", "400 character"},
		{"percent-encoded dots", "http://127%2e0%2e0%2e1/", "400 character"},
		{"percent-encoded NUL after it", "http://127.0.0.1%00.good.example/", "400 character"},
		{"in brackets", "http://[127.0.0.1]/", "400 brackets"},
		{"as userinfo of another", "http://good.example:80@127.0.0.1/", "400"},
		{"spaces around it, which HTTP trims", "  http://127.0.0.1/  ", "403 loopback"},
	}},
	{kind: "IPv4 literals, odd octets", site: "query", plain: [][3]string{
		{"space before", " http://127.0.0.1/", "400 space"},
		{"space after", "http://127.0.0.1 ", "400 space"},
		{"space within", "http://127.0.0.1 .good.example/", "400 space"},
		{"tab", "http://127.0.0.1\t/", "400 control"},
		{"NUL", "http://127.0.0.1\x00.good.example/", "400 control"},
		{"CR LF", "http://127.0.0.1\r\n/", "400 control"},
		{"LF in the scheme", "ht\ntp://127.0.0.1/", "400 control"},
		{"not UTF-8", "http://127.0.0.1\xff/", "400 UTF-8"},
		{"overlong UTF-8 of a dot", "http://127\xc0\xae0.0.1/", "400 UTF-8"},
		{"byte order mark", "\ufeffhttp://127.0.0.1/", "400"},
		{"no-break space", "http://127.0.0.1\u00a0/", "400"},
	}},
	{kind: "IPv6 literals", plain: [][3]string{
		{"loopback", "http://[::1]/", "403 loopback"},
		{"loopback, in full", "http://[0:0:0:0:0:0:0:1]/", "403 loopback"},
		{"loopback, zeros", "http://[0000:0000:0000:0000:0000:0000:0000:0001]/", "403 loopback"},
		{"loopback, no scheme", "[::1]:8080", "403 loopback"},
		{"loopback, dotted tail", "http://[::0.0.0.1]/", "403 loopback"},
		{"mapped", "http://[::ffff:127.0.0.1]/", "403 loopback"},
		{"mapped, hexadecimal", "http://[::ffff:7f00:1]/", "403 loopback"},
		{"mapped, upper case", "http://[::FFFF:7F00:0001]/", "403 loopback"},
		{"mapped, in full", "http://[0:0:0:0:0:ffff:7f00:1]/", "403 loopback"},
		{"mapped, in full, dotted", "http://[0:0:0:0:0:ffff:127.0.0.1]/", "403 loopback"},
		{"mapped unspecified", "http://[::ffff:0.0.0.0]/", "403 unspecified"},
		{"mapped private", "http://[::ffff:10.0.0.1]/", "403 private"},
		{"mapped public", "http://[::ffff:93.184.215.14]/", "200 93.184.215.14 93.184.215.14"},
		{"compatible", "http://[::127.0.0.1]/", "403 transition"},
		{"compatible, public inside", "http://[::93.184.215.14]/", "403 transition"},
		{"translated", "http://[::ffff:0:127.0.0.1]/", "403 transition"},
		{"NAT64", "http://[64:ff9b::127.0.0.1]/", "403 embeds 127.0.0.1"},
		{"NAT64, hexadecimal", "http://[64:ff9b::7f00:1]/", "403 embeds 127.0.0.1"},
		{"NAT64, private", "http://[64:ff9b::a00:1]/", "403 embeds 10.0.0.1"},
		{"NAT64, unspecified", "http://[64:ff9b::]/", "403 embeds 0.0.0.0"},
		{"NAT64, public", "http://[64:ff9b::5db8:d70e]/", "200 64:ff9b::5db8:d70e [64:ff9b::5db8:d70e]"},
		{"NAT64, local use", "http://[64:ff9b:1::7f00:1]/", "403 transition"},
		{"NAT64, local use, public inside", "http://[64:ff9b:1::5db8:d70e]/", "403 transition"},
		{"6to4", "http://[2002:7f00:1::]/", "403 embeds 127.0.0.1"},
		{"6to4, private", "http://[2002:c0a8:101::1]/", "403 embeds 192.168.1.1"},
		{"6to4, public", "http://[2002:5db8:d70e::1]/", "200 2002:5db8:d70e::1 [2002:5db8:d70e::1]"},
		{"Teredo", "http://[2001:0:5ef5:79fd:0:0:80ff:fffe]/", "403 transition"},
		{"ISATAP, link-local", "http://[fe80::5efe:127.0.0.1]/", "403 link-local"},
		{"ISATAP, global prefix", "http://[2606:4700::5efe:10.0.0.1]/", "403 embeds 10.0.0.1"},
		{"ISATAP, global prefix, unique", "http://[2606:4700::200:5efe:a9fe:a9fe]/", "403 embeds 169.254.169.254"},
		{"ISATAP, public", "http://[2606:4700::200:5efe:5db8:d70e]/", "200 2606:4700::200:5efe:5db8:d70e [2606:4700::200:5efe:5db8:d70e]"},
		{"unspecified", "http://[::]/", "403 unspecified"},
		{"unspecified, in full", "http://[0:0:0:0:0:0:0:0]/", "403 unspecified"},
		{"unspecified, dotted", "http://[::0.0.0.0]/", "403 unspecified"},
		{"unique local", "http://[fd12:3456::1]/", "403 private"},
		{"unique local, the other half", "http://[fc00::1]/", "403 private"},
		{"site-local", "http://[fec0::1]/", "403 private"},
		{"link-local", "http://[fe80::1]/", "403 link-local"},
		{"link-local, last", "http://[febf:ffff::1]/", "403 link-local"},
		{"multicast", "http://[ff02::1]/", "403 multicast"},
		{"documentation", "http://[2001:db8::1]/", "403 documentation"},
		{"documentation, the new block", "http://[3fff::1]/", "403 documentation"},
		{"benchmarking", "http://[2001:2::1]/", "403 benchmarking"},
		{"ORCHID", "http://[2001:10::1]/", "403 protocol"},
		{"discard", "http://[100::1]/", "403 not a globally routable"},
		{"SRv6", "http://[5f00::1]/", "403 not a globally routable"},
		{"not assigned", "http://[4000::1]/", "403 not a globally routable"},
		{"public", "http://[2606:4700::1]/", "200 2606:4700::1 [2606:4700::1]"},
		{"public, in full", "http://[2606:4700:0000::0001]:8080/", "200 2606:4700::1 [2606:4700::1]:8080"},
		{"public, https", "https://[2606:4700::1]/", "200 2606:4700::1 [2606:4700::1]"},
		{"zone, encoded", "http://[fe80::1%25lo]/", "400 zone"},
		{"zone, bare", "http://[fe80::1%lo]/", "400 zone"},
		{"zone of loopback", "http://[::1%lo]/", "400 zone"},
		{"zone of a public one", "http://[2606:4700::1%25lo]/", "400 zone"},
		{"empty zone", "http://[::1%25]/", "400 zone"},
		{"zone, encoded twice", "http://[::1%2525lo]/", "400 zone"},
		{"IPvFuture", "http://[v1.x]/", "400 brackets"},
		{"IPvFuture with colons", "http://[v1.fe80::1]/", "400 colon"},
		{"no brackets", "http://::1/", "400"},
		{"no brackets, what could be a port", "http://fd00::1:80/", "400 without brackets"},
		{"no scheme, no brackets", "::1", "400"},
		{"one bracket", "http://[::1/", "400"},
		{"the other bracket", "http://::1]/", "400"},
		{"two pairs of brackets", "http://[[::1]]/", "400"},
		{"something after the brackets", "http://[::1].good.example/", "400"},
		{"digits after the brackets", "http://[::1]80/", "400"},
		{"something before the brackets", "http://good.example[::1]/", "400"},
		{"nothing in brackets", "http://[]/", "400"},
		{"short IPv4 inside", "http://[::ffff:127.1]/", "400"},
		{"octal IPv4 inside", "http://[::ffff:0177.0.0.1]/", "400"},
		{"hexadecimal IPv4 inside", "http://[::ffff:0x7f.0.0.1]/", "400"},
		{"full-width inside", "http://[：：１]/", "400"},
		{"full-width brackets", "http://［::1］/", "400"},
	}},
	{kind: "ranges", plain: [][3]string{
		{"10/8", "http://10.0.0.1/", "403 private"},
		{"172.16/12, first", "http://172.16.0.1/", "403 private"},
		{"172.16/12, last", "http://172.31.255.255/", "403 private"},
		{"192.168/16", "http://192.168.1.1/", "403 private"},
		{"link-local", "http://169.254.1.1/", "403 link-local"},
		{"carrier-grade NAT, first", "http://100.64.0.1/", "403 carrier-grade"},
		{"carrier-grade NAT, last", "http://100.127.255.254/", "403 carrier-grade"},
		{"benchmarking, first", "http://198.18.0.1/", "403 benchmarking"},
		{"benchmarking, last", "http://198.19.255.254/", "403 benchmarking"},
		{"documentation 1", "http://192.0.2.1/", "403 documentation"},
		{"documentation 2", "http://198.51.100.1/", "403 documentation"},
		{"documentation 3", "http://203.0.113.1/", "403 documentation"},
		{"multicast, first", "http://224.0.0.1/", "403 multicast"},
		{"multicast, UPnP", "http://239.255.255.250/", "403 multicast"},
		{"broadcast", "http://255.255.255.255/", "403 broadcast"},
		{"unspecified", "http://0.0.0.0/", "403 unspecified"},
		{"unspecified, trailing dot", "http://0.0.0.0./", "403 unspecified"},
		{"this network", "http://0.0.0.1/", "403 this network"},
		{"reserved", "http://240.0.0.1/", "403 not a globally routable"},
		{"protocol assignments", "http://192.0.0.1/", "403 protocol"},
		{"6to4 relays", "http://192.88.99.1/", "403 transition"},

		{"before 10/8", "http://9.255.255.255/", "200 9.255.255.255 9.255.255.255"},
		{"after 10/8", "http://11.0.0.1/", "200 11.0.0.1 11.0.0.1"},
		{"before carrier-grade NAT", "http://100.63.255.255/", "200 100.63.255.255 100.63.255.255"},
		{"after carrier-grade NAT", "http://100.128.0.1/", "200 100.128.0.1 100.128.0.1"},
		{"before loopback", "http://126.255.255.254/", "200 126.255.255.254 126.255.255.254"},
		{"after loopback", "http://128.0.0.1/", "200 128.0.0.1 128.0.0.1"},
		{"before link-local", "http://169.253.255.254/", "200 169.253.255.254 169.253.255.254"},
		{"after 172.16/12", "http://172.32.0.1/", "200 172.32.0.1 172.32.0.1"},
		{"before 192.168/16", "http://192.167.255.254/", "200 192.167.255.254 192.167.255.254"},
		{"after benchmarking", "http://198.20.0.1/", "200 198.20.0.1 198.20.0.1"},
		{"before multicast", "http://223.255.255.254/", "200 223.255.255.254 223.255.255.254"},
	}},
	{kind: "metadata", plain: [][3]string{
		{"dotted", "http://169.254.169.254/latest/meta-data/iam/", "403 metadata"},
		{"no scheme", "169.254.169.254", "403 metadata"},
		{"trailing dot", "http://169.254.169.254./", "403 metadata"},
		{"decimal", "http://2852039166/", "400 IPv4"},
		{"hexadecimal", "http://0xa9fea9fe/", "400 IPv4"},
		{"hexadecimal parts", "http://0xa9.0xfe.0xa9.0xfe/", "400 IPv4"},
		{"octal", "http://0251.0376.0251.0376/", "400 IPv4"},
		{"short", "http://169.254.43518/", "400 IPv4"},
		{"shorter", "http://169.16689662/", "400 IPv4"},
		{"overflow", "http://425.510.425.510/", "400 IPv4"},
		{"full-width", "http://１６９.２５４.１６９.２５４/", "403 metadata"},
		{"circled", "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/", "403 metadata"},
		{"ideographic", "http://169。254。169。254/", "403 metadata"},
		{"mapped", "http://[::ffff:169.254.169.254]/", "403 metadata"},
		{"mapped, hexadecimal", "http://[::ffff:a9fe:a9fe]/", "403 metadata"},
		{"compatible", "http://[::a9fe:a9fe]/", "403 transition"},
		{"NAT64", "http://[64:ff9b::a9fe:a9fe]/", "403 embeds 169.254.169.254"},
		{"6to4", "http://[2002:a9fe:a9fe::]/", "403 embeds 169.254.169.254"},
		{"AWS, IPv6", "http://[fd00:ec2::254]/", "403 metadata"},
		{"AWS, IPv6, in full", "http://[fd00:0ec2:0:0:0:0:0:0254]/", "403 metadata"},
		{"Google, IPv6", "http://[fd20:ce::254]/", "403 metadata"},
		{"OpenStack, IPv6", "http://[fe80::a9fe:a9fe]/", "403 metadata"},
		{"AWS, ECS", "http://169.254.170.2/v2/credentials", "403 metadata"},
		{"AWS, DNS", "http://169.254.169.253/", "403 link-local"},
		{"Azure", "http://168.63.129.16/", "403 metadata"},
		{"Azure, port", "http://168.63.129.16:32526/vmSettings", "403 metadata"},
		{"Alibaba", "http://100.100.100.200/", "403 metadata"},
		{"Oracle", "http://192.0.0.192/", "403 metadata"},
		{"by a name", "http://metadata.example/", "403 metadata"},
		{"by a name, https", "https://metadata.example/", "403 metadata"},
	}, dns: []string{"metadata.example 169.254.169.254", "127.0.0.1.example 127.0.0.1"}},

	{kind: "DNS answers", dns: []string{
		"good.example " + goodAddr, "good6.example " + goodAddr6, "evil.example " + evilAddr,
		"private.example 10.1.1.1", "loopback.example 127.0.0.1", "loopback6.example ::1",
		"zero.example 0.0.0.0", "zero6.example ::", "linklocal6.example fe80::1", "broadcast.example 255.255.255.255",
		"mapped.example ::ffff:10.0.0.1", "mapped-good.example ::ffff:" + goodAddr, "compatible.example ::10.0.0.1",
		"nat64.example 64:ff9b::10.0.0.1", "nat64-good.example 64:ff9b::" + goodAddr, "nat64-local.example 64:ff9b:1::10.0.0.1",
		"6to4.example 2002:a00:1::1", "teredo.example 2001:0:5ef5:79fd::80ff:fffe", "isatap.example 2606:4700::5efe:10.0.0.1",
		"translated.example ::ffff:0:10.0.0.1", "ula.example fd00:ec2::254",
		"mixed.example 10.1.1.1 " + goodAddr + " 169.254.169.254", "mixed6.example ::1 fd00::1 " + goodAddr6,
		"good-and-refused6.example " + goodAddr + " ::1", "refused-and-good6.example 10.1.1.1 " + goodAddr6,
		"mapped-and-good.example ::ffff:127.0.0.1 " + goodAddr,
		"refused.example 10.1.1.1 127.0.0.1 ::1 fd00::1 169.254.169.254", "both.example " + goodAddr + " " + goodAddr6,
		"alias.example >private.example", "alias-good.example >good.example", "alias-localhost.example >localhost",
		"alias-below.example >x.localhost", "alias-onion.example >x.onion", "alias-invalid.example >x.invalid",
		"alias-metadata.example >metadata.example", "alias-literal.example >127.0.0.1",
		"alias-hosts.example >hosts-good.example",
		"chain.example >alias.example",
		"whole.example =whole.example. 60 IN CNAME b.example. =b.example. 60 IN CNAME c.example. =c.example. 60 IN A 10.1.1.1",
		"whole-good.example =whole-good.example. 60 IN CNAME b.example. =b.example. 60 IN A " + goodAddr,
		"stranger.example =stranger.example. 60 IN A " + goodAddr + " =other.example. 60 IN A 10.1.1.1",
		"strange.example =other.example. 60 IN A " + evilAddr,
		"two-aliases.example =two-aliases.example. 60 IN CNAME b.example. =two-aliases.example. 60 IN CNAME c.example. =c.example. 60 IN A 10.1.1.1",
		"two-aliases-good.example =two-aliases-good.example. 60 IN CNAME b.example. =two-aliases-good.example. 60 IN CNAME c.example. =c.example. 60 IN A " + goodAddr,
		"beside.example =beside.example. 60 IN CNAME nowhere.example. =beside.example. 60 IN A 10.1.1.1",
		"beside-good.example =beside-good.example. 60 IN CNAME nowhere.example. =beside-good.example. 60 IN A " + goodAddr,
		"loop.example >loop.example", "wrong-class.example =wrong-class.example. 60 CH A " + evilAddr,
		"large.example*60 " + goodAddr, "huge.example*300 " + goodAddr, "huge-refused.example*300",
	}, plain: [][3]string{
		{"good", "http://good.example/", "200 93.184.215.14 good.example"},
		{"good, IPv6", "http://good6.example/", "200 2606:2800:21f:cb07::14 good6.example"},
		{"good, https", "https://good.example/", "200 93.184.215.14 good.example"},
		{"good, a port", "http://good.example:8080/", "200 93.184.215.14 good.example:8080"},
		{"private", "http://private.example/", "403 10.1.1.1"},
		{"private, https", "https://private.example/", "403 10.1.1.1"},
		{"two aliases", "http://two-aliases.example/", "403 10.1.1.1"},
		{"two aliases, good", "http://two-aliases-good.example/", "200 93.184.215.14 two-aliases-good.example"},
		{"an address beside an alias", "http://beside.example/", "403 10.1.1.1"},
		{"an address beside an alias, good", "http://beside-good.example/", "200 93.184.215.14 beside-good.example"},
		{"loopback", "http://loopback.example/", "403 127.0.0.1"},
		{"loopback, IPv6", "http://loopback6.example/", "403 ::1"},
		{"loopback behind a number of a name", "http://127.0.0.1.example/", "403 127.0.0.1"},
		{"unspecified", "http://zero.example/", "403 unspecified"},
		{"unspecified, IPv6", "http://zero6.example/", "403 unspecified"},
		{"link-local, IPv6", "http://linklocal6.example/", "403 link-local"},
		{"broadcast", "http://broadcast.example/", "403 broadcast"},
		{"mapped", "http://mapped.example/", "403 10.0.0.1"},
		{"mapped, good", "http://mapped-good.example/", "200 93.184.215.14 mapped-good.example"},
		{"compatible", "http://compatible.example/", "403 transition"},
		{"NAT64", "http://nat64.example/", "403 embeds 10.0.0.1"},
		{"NAT64, good", "http://nat64-good.example/", "200 64:ff9b::5db8:d70e nat64-good.example"},
		{"NAT64, local use", "http://nat64-local.example/", "403 transition"},
		{"6to4", "http://6to4.example/", "403 embeds 10.0.0.1"},
		{"Teredo", "http://teredo.example/", "403 transition"},
		{"ISATAP", "http://isatap.example/", "403 embeds 10.0.0.1"},
		{"translated", "http://translated.example/", "403 transition"},
		{"unique local metadata", "http://ula.example/", "403 metadata"},
		{"mixed", "http://mixed.example/", "200 93.184.215.14 mixed.example"},
		{"mixed, again", "http://mixed.example/", "200 93.184.215.14 mixed.example"},
		{"mixed, IPv6", "http://mixed6.example/", "200 2606:2800:21f:cb07::14 mixed6.example"},
		{"A good, AAAA refused", "http://good-and-refused6.example/", "200 93.184.215.14 good-and-refused6.example"},
		{"A refused, AAAA good", "http://refused-and-good6.example/", "200 2606:2800:21f:cb07::14 refused-and-good6.example"},
		{"AAAA mapped, A good", "http://mapped-and-good.example/", "200 93.184.215.14 mapped-and-good.example"},
		{"only refused ones", "http://refused.example/", "403"},
		{"both good", "http://both.example/", "200 93.184.215.14|2606:2800:21f:cb07::14 both.example"},
		{"alias to an internal name", "http://alias.example/", "403 10.1.1.1"},
		{"alias to a good name", "http://alias-good.example/", "200 93.184.215.14 alias-good.example"},
		{"alias to localhost", "http://alias-localhost.example/", "403|502"},
		{"alias below localhost", "http://alias-below.example/", "403|502"},
		{"alias to .onion", "http://alias-onion.example/", "502"},
		{"alias to .invalid", "http://alias-invalid.example/", "502"},
		{"alias to a name of metadata", "http://alias-metadata.example/", "403 metadata"},
		{"alias to what looks like an address", "http://alias-literal.example/", "502"},
		{"alias to a name of the hosts file", "http://alias-hosts.example/", "502"},
		{"chain, a reply for each", "http://chain.example/", "502 nowhere"},
		{"chain in one reply", "http://whole.example/", "403 10.1.1.1"},
		{"chain in one reply, good", "http://whole-good.example/", "200 93.184.215.14 whole-good.example"},
		{"a record of a stranger", "http://stranger.example/", "200 93.184.215.14 stranger.example"},
		{"only a record of a stranger", "http://strange.example/", "502"},
		{"a loop", "http://loop.example/", "502"},
		{"another class", "http://wrong-class.example/", "502"},
		{"large, the last is good", "http://large.example/", "200 93.184.215.14 large.example"},
		{"huge, the last is good, if it is among those that are kept", "http://huge.example/", "200|403 93.184.215.14 huge.example"},
		{"huge, none is good", "http://huge-refused.example/", "403"},
		{"no such name", "http://nowhere.example/", "502 NXDOMAIN"},
	}},

	{kind: "names", dns: []string{
		"localhost " + goodAddr, "x.localhost " + goodAddr, "x.onion " + evilAddr, "x.invalid " + evilAddr,
		"metadata 169.254.169.254", "kubernetes.default.svc 10.96.0.1", "kubernetes 10.96.0.1",
		"host.docker.internal 192.168.65.2", "127.0.0.1.nip.example 127.0.0.1", "7f000001.rbndr.example 127.0.0.1",
		"hosts-shadow.example " + goodAddr,
	}, plain: [][3]string{
		{"localhost", "http://localhost/", "403 127.0.0.1"},
		{"localhost, upper case", "http://LOCALHOST/", "403 127.0.0.1"},
		{"localhost, trailing dot", "http://localhost./", "403 127.0.0.1"},
		{"localhost, full-width", "http://ｌｏｃａｌｈｏｓｔ/", "403 127.0.0.1"},
		{"localhost, circled", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "403 127.0.0.1"},
		{"localhost, long s", "http://localhoſt/", "403 127.0.0.1"},
		{"localhost, soft hyphen", "http://local\u00adhost/", "403 127.0.0.1"},
		{"Kelvin sign", "http://\u212aubernetes/", "403 10.96.0.1"},
		{"localhost, no scheme", "localhost:8080", "403 127.0.0.1"},
		{"localhost, https", "https://localhost/", "403 127.0.0.1"},
		{"below localhost", "http://x.localhost/", "403 127.0.0.1"},
		{"below localhost, trailing dot", "http://a.b.LOCALHOST./", "403 127.0.0.1"},
		{"localhost, percent-encoded", "http://%6cocalhost/", "400 character"},
		{"localhost, Cyrillic", "http://lосalhost/", "502"},
		{"localhost.localdomain", "http://localhost.localdomain/", "502"},
		{"ip6-localhost", "http://ip6-localhost/", "502"},
		{"onion", "http://x.onion/", "502 does not exist"},
		{"invalid", "http://x.invalid/", "502 does not exist"},
		{"metadata", "http://metadata/", "403"},
		{"Kubernetes", "https://kubernetes.default.svc/", "403 10.96.0.1"},
		{"Docker", "http://host.docker.internal:2375/", "403 192.168.65.2"},
		{"a number of a name", "http://127.0.0.1.nip.example/", "403 127.0.0.1"},
		{"a hexadecimal number of a name", "http://7f000001.rbndr.example/", "403 127.0.0.1"},
		{"hosts file, loopback", "http://hosts-loopback.example/", "403 127.0.0.1"},
		{"hosts file, metadata", "http://hosts-metadata.example/", "403 metadata"},
		{"hosts file, private", "http://HOSTS-private.example./", "403 10.9.9.9"},
		{"hosts file, mapped", "http://hosts-mapped.example/", "403 10.9.9.9"},
		{"hosts file, NAT64", "http://hosts-nat64.example/", "403 embeds 10.9.9.9"},
		{"hosts file over DNS", "http://hosts-shadow.example/", "403 127.0.0.1"},
		{"hosts file, both", "http://hosts-both.example/", "200 93.184.215.14 hosts-both.example"},
		{"hosts file, good", "http://hosts-good.example/", "200 93.184.215.14 hosts-good.example"},
		{"hosts file, a zone", "http://hosts-zone.example/", "502"},
		{"a dot", "http://./", "400"},
		{"an empty label", "http://good..example/", "400 empty label"},
		{"a dot first", "http://.good.example/", "400 empty label"},
		{"two trailing dots", "http://good.example../", "400 empty label"},
		{"a long label", "http://" + strings.Repeat("a", 64) + ".example/", "400 label"},
		{"a long name", "http://" + strings.Repeat("a.", 126) + "example/", "400 longer"},
		{"a wildcard", "http://*.good.example/", "400 character"},
		{"two names", "http://good.example,private.example/", "400 character"},
		{"a placeholder", "http://{env.HOME}.good.example/", "400 character"},
		{"a placeholder in the port", "http://good.example:{server.port}/", "400 port"},
		{"a placeholder in the path", "http://good.example/{env.HOME}", "200 93.184.215.14 good.example /%7Benv.HOME%7D"},
		{"bad Punycode", "http://xn--a-.example/", "400"},
		{"Punycode of ASCII", "http://xn--good-.example/", "400"},
	}},
	{kind: "localhost in a hosts file", site: "localhost", plain: [][3]string{
		{"elsewhere", "http://localhost/", "200 93.184.215.14 localhost"},
		{"below it is still here", "http://x.localhost/", "403 127.0.0.1"},
		{"below it, private", "http://private.localhost/", "403 10.9.9.9"},
	}},
	{kind: "search domains", site: "search", dns: []string{
		"intranet.corp.example 10.2.2.2", "web.corp.example " + goodAddr, "localhost.corp.example " + goodAddr,
		"good.example.corp.example 10.2.2.2", "metadata.corp.example 169.254.169.254",
		"secret.corp.example " + evilAddr,
	}, plain: [][3]string{
		{"private", "http://intranet/", "403 10.2.2.2"},
		{"private, trailing dot", "http://intranet./", "403 10.2.2.2"},
		{"metadata", "http://metadata/", "403 169.254.169.254"},
		{"good", "http://web/", "200 93.184.215.14 web"},
		{"localhost is complete", "http://localhost/", "403 127.0.0.1"},
		{"a name with dots is taken as it is", "http://good.example/", "200 93.184.215.14 good.example"},
		{"onion is complete", "http://onion/", "502"},
	}},
	{kind: "search domains and deny", site: "search-deny", plain: [][3]string{
		{"the whole name", "http://secret.corp.example/", "403 deny"},
		{"what it is short for", "http://secret/", "403 deny"},
	}},

	{kind: "allow", site: "below", dns: []string{
		"a.good.example " + goodAddr, "evilgood.example " + evilAddr, "good.example.evil.example " + evilAddr,
		"a.good.example.evil.example " + evilAddr, "_x.good.example " + goodAddr, "private.good.example 10.1.1.1",
		"b.c.good.example " + goodAddr,
	}, plain: [][3]string{
		{"below", "http://a.good.example/", "200 93.184.215.14 a.good.example"},
		{"far below", "http://b.c.good.example/", "200 93.184.215.14 b.c.good.example"},
		{"itself", "http://good.example/", "403 allow"},
		{"underscore", "http://_x.good.example/", "200 93.184.215.14 _x.good.example"},
		{"upper case", "http://A.GOOD.EXAMPLE/", "200 93.184.215.14 a.good.example"},
		{"trailing dot", "http://a.good.example./", "200 93.184.215.14 a.good.example"},
		{"ideographic full stops", "http://a。good。example/", "200 93.184.215.14 a.good.example"},
		{"does not open addresses", "http://private.good.example/", "403 10.1.1.1"},
		{"the same ending", "http://evilgood.example/", "403 allow"},
		{"the same beginning", "http://good.example.evil.example/", "403 allow"},
		{"the same beginning, below", "http://a.good.example.evil.example/", "403 allow"},
		{"in the fragment", "http://evil.example#.good.example/", "403 allow"},
		{"in the query", "http://evil.example?.good.example/", "403 allow"},
		{"in the path", "http://evil.example/.good.example/", "403 allow"},
		{"in the port", "http://evil.example:80.good.example/", "400 port"},
		{"after a backslash", `http://evil.example\.good.example/`, "400 backslash"},
		{"after an encoded slash", "http://evil.example%2f.good.example/", "400 character"},
		{"after an encoded number sign", "http://evil.example%23.good.example/", "400 character"},
		{"after an encoded NUL", "http://evil.example%00.good.example/", "400 character"},
		{"after a full-width slash", "http://evil.example／.good.example/", "400"},
		{"after a division slash", "http://evil.example\u2215.good.example/", "502"},
		{"after a full-width question mark", "http://evil.example？.good.example/", "400"},
		{"after a full-width number sign", "http://evil.example＃.good.example/", "400"},
		{"after a full-width at sign", "http://evil.example＠a.good.example/", "400"},
		{"after account of", "http://evil.example℀.good.example/", "400"},
		{"a literal", "http://93.184.215.14/", "403 allow"},
		{"a literal below", "http://93.184.215.14.good.example/", "502"},
		{"as userinfo", "http://a.good.example@evil.example/", "400 userinfo"},
		{"as user and password", "http://a.good.example:80@evil.example/", "400 userinfo"},
		{"as userinfo of itself", "http://a.good.example@a.good.example/", "400 userinfo"},
		{"empty userinfo", "http://@a.good.example/", "400 userinfo"},
		{"several at signs", "http://a.good.example@x@evil.example/", "400 userinfo"},
		{"at sign after a number sign", "http://evil.example#@a.good.example/", "403 allow"},
		{"at sign after a question mark", "http://evil.example?@a.good.example/", "403 allow"},
		{"at sign after a slash", "http://evil.example/@a.good.example/", "403 allow"},
		{"at sign after a backslash", `http://a.good.example\@evil.example/`, "400"},
		{"encoded at sign", "http://a.good.example%40evil.example/", "400 character"},
		{"semicolon", "http://evil.example;a.good.example/", "400 character"},
		{"ampersand", "http://evil.example&@a.good.example/", "400 userinfo"},
		{"curl's glob", "http://{evil,a.good}.example/", "400 character"},
		{"soft hyphen", "http://a.go\u00adod.example/", "200 93.184.215.14 a.good.example"},
		{"right-to-left override", "http://a.good.example\u202e/", "400"},
	}},
	{kind: "a template before the name", site: "suffix", plain: [][3]string{
		{"as it is meant", "a", "200 93.184.215.14 a.good.example"},
		{"number sign", "evil.example#", "403 allow"},
		{"question mark", "evil.example?", "403 allow"},
		{"slash", "evil.example/", "403 allow"},
		{"a port", "evil.example:80", "400 port"},
		{"a port and a slash", "evil.example:80/", "403 allow"},
		{"at sign", "a@evil.example/", "400 userinfo"},
		{"backslash", `evil.example\`, "400 backslash"},
		{"brackets", "[::1]/", "403 allow"},
		{"nothing", "", "400 empty label"},
	}},
	{kind: "a template after the name", site: "prefix", plain: [][3]string{
		{"as it is meant", "/x", "200 93.184.215.14 good.example /x"},
		{"nothing", "", "200 93.184.215.14 good.example /"},
		{"at sign", "@evil.example/", "400 userinfo"},
		{"colon and at sign", ":80@evil.example/", "400 userinfo"},
		{"a longer name", ".evil.example/", "403 allow"},
		{"a longer label", "evil.example/", "403 allow"},
		{"a port", ":8080", "200 93.184.215.14 good.example:8080 /"},
		{"a backslash", `\@evil.example/`, "400"},
		{"another URL", "/http://evil.example/", "200 93.184.215.14 good.example /http://evil.example/"},
		{"two slashes", "//evil.example/", "200 93.184.215.14 good.example //evil.example/"},
	}},
	{kind: "deny", site: "deny", dns: []string{
		"www.evil.example " + evilAddr, "xn--bcher-kva.example " + evilAddr, "strasse.example " + evilAddr,
		"xn--strae-oqa.example " + goodAddr, "notevil.example " + goodAddr, "alias-evil.example >evil.example",
		"evil-by-address.example " + evilAddr, "xn--vil-qdd.example " + goodAddr,
	}, plain: [][3]string{
		{"itself", "http://evil.example/", "403 deny"},
		{"below", "http://www.evil.example/", "403 deny"},
		{"below, which does not exist", "http://x.y.evil.example/", "403 deny"},
		{"upper case", "http://EVIL.Example/", "403 deny"},
		{"trailing dot", "http://evil.example./", "403 deny"},
		{"two trailing dots", "http://evil.example../", "400 empty label"},
		{"trailing ideographic full stop", "http://evil.example。/", "403 deny"},
		{"both kinds of trailing dots", "http://evil.example.。/", "400"},
		{"full-width", "http://ｅｖｉｌ.example/", "403 deny"},
		{"full-width everything", "http://ｅｖｉｌ．ｅｘａｍｐｌｅ/", "403 deny"},
		{"circled", "http://ⓔⓥⓘⓛ.example/", "403 deny"},
		{"mathematical", "http://𝐞𝐯𝐢𝐥.example/", "403 deny"},
		{"soft hyphen", "http://ev\u00adil.example/", "403 deny"},
		{"zero-width space", "http://ev\u200bil.example/", "403 deny"},
		{"zero-width non-joiner", "http://ev\u200cil.example/", "400"},
		{"word joiner", "http://ev\u2060il.example/", "403 deny"},
		{"variation selector", "http://evil\ufe0f.example/", "403 deny"},
		{"byte order mark", "http://\ufeffevil.example/", "403 deny"},
		{"percent-encoded", "http://%65vil.example/", "400 character"},
		{"percent-encoded dot", "http://evil%2eexample/", "400 character"},
		{"Punycode of ASCII", "http://xn--evil-.example/", "400"},
		{"https", "https://evil.example/", "403 deny"},
		{"a port", "evil.example:8080", "403 deny"},
		{"IDN", "http://bücher.example/", "403 deny"},
		{"IDN, upper case", "http://BÜCHER.example/", "403 deny"},
		{"IDN, Punycode", "http://xn--bcher-kva.example/", "403 deny"},
		{"IDN, Punycode in upper case", "http://XN--BCHER-KVA.EXAMPLE/", "403 deny"},
		{"IDN, decomposed", "http://bu\u0308cher.example/", "403 deny"},
		{"sharp s is a letter of its own", "http://straße.example/", "200 93.184.215.14 xn--strae-oqa.example"},
		{"capital sharp s is ss", "http://STRAẞE.example/", "403 deny"},
		{"ss", "http://STRASSE.example/", "403 deny"},
		{"a letter that only looks alike", "http://еvil.example/", "200 93.184.215.14 xn--vil-qdd.example"},
		{"a longer label", "http://notevil.example/", "200 93.184.215.14 notevil.example"},
		{"a literal", "http://45.33.32.156/", "403 deny"},
		{"a literal, mapped", "http://[::ffff:45.33.32.156]/", "403 deny"},
		{"a literal, mapped, hexadecimal", "http://[::ffff:2d21:209c]/", "403 deny"},
		{"a literal, full-width", "http://４５.33.32.156/", "403 deny"},
		{"a literal, trailing dot", "http://45.33.32.156./", "403 deny"},
		{"IPv6 literal, in full", "http://[2606:4700:0:0:0:0:0:0bad]/", "403 deny"},
		{"names are checked, not where they lead", "http://evil-by-address.example/", "200 45.33.32.156 evil-by-address.example"},
		{"names are checked, not their aliases", "http://alias-evil.example/", "200 45.33.32.156 alias-evil.example"},
	}},
	{kind: "deny all below", site: "deny-all-below", plain: [][3]string{
		{"below", "http://good.example/", "403 deny"},
		{"far below", "http://b.c.good.example/", "403 deny"},
		{"a literal is not below", "http://93.184.215.14/", "200 93.184.215.14 93.184.215.14"},
	}},
	{kind: "deny_ips", site: "deny-ips", dns: []string{
		"some-denied.example " + evilAddr + " " + goodAddr, "denied6.example 2606:4700::9", "denied-nat64.example 64:ff9b::" + evilAddr,
	}, plain: [][3]string{
		{"a literal", "http://45.33.32.156/", "403 denied"},
		{"a name", "http://evil.example/", "403 denied"},
		{"an alias", "http://alias-evil.example/", "403 denied"},
		{"mapped", "http://[::ffff:45.33.32.156]/", "403 denied"},
		{"NAT64", "http://[64:ff9b::2d21:209c]/", "403 embeds 45.33.32.156"},
		{"NAT64, a name", "http://denied-nat64.example/", "403 embeds 45.33.32.156"},
		{"6to4", "http://[2002:2d21:209c::1]/", "403 embeds 45.33.32.156"},
		{"IPv6", "http://denied6.example/", "403 denied"},
		{"one of two", "http://some-denied.example/", "200 93.184.215.14 some-denied.example"},
		{"private ones still", "http://private.example/", "403 private"},
	}},
	{kind: "allow_ips private_ranges", site: "private", dns: []string{
		"private-and-metadata.example 10.1.1.1 169.254.169.254 fd00:ec2::254",
	}, plain: [][3]string{
		{"private", "http://10.1.1.1/", "200 10.1.1.1 10.1.1.1"},
		{"private, a name", "http://private.example/", "200 10.1.1.1 private.example"},
		{"loopback", "http://127.0.0.1/", "200 127.0.0.1 127.0.0.1"},
		{"loopback, IPv6", "http://[::1]/", "200 ::1 [::1]"},
		{"localhost", "http://localhost/", "200 127.0.0.1|::1 localhost"},
		{"unique local", "http://[fd00::1]/", "200 fd00::1 [fd00::1]"},
		{"public", "http://good.example/", "200 93.184.215.14 good.example"},
		{"metadata", "http://169.254.169.254/", "403 metadata"},
		{"metadata, IPv6", "http://[fd00:ec2::254]/", "403 metadata"},
		{"metadata beside private", "http://private-and-metadata.example/", "200 10.1.1.1 private-and-metadata.example"},
		{"link-local", "http://169.254.1.1/", "403 link-local"},
		{"carrier-grade NAT", "http://100.64.0.1/", "403 carrier-grade"},
		{"unspecified", "http://0.0.0.0/", "403 unspecified"},
		{"documentation", "http://192.0.2.1/", "403 documentation"},
		{"NAT64 of metadata", "http://[64:ff9b::a9fe:a9fe]/", "403 embeds 169.254.169.254"},
		{"decimal is still none", "http://2130706433/", "400 IPv4"},
	}},
	{kind: "allow_ips any", site: "any", plain: [][3]string{
		{"loopback", "http://127.0.0.1/", "200 127.0.0.1 127.0.0.1"},
		{"metadata", "http://169.254.169.254/", "200 169.254.169.254 169.254.169.254"},
		{"documentation", "http://[2001:db8::1]/", "200 2001:db8::1 [2001:db8::1]"},
		{"reserved", "http://240.0.0.1/", "200 240.0.0.1 240.0.0.1"},
		{"unspecified", "http://0.0.0.0/", "403 unspecified"},
		{"unspecified, IPv6", "http://[::]/", "403 unspecified"},
		{"unspecified, mapped", "http://[::ffff:0.0.0.0]/", "403 unspecified"},
		{"unspecified, NAT64", "http://[64:ff9b::]/", "403 embeds 0.0.0.0"},
		{"unspecified, a name", "http://zero.example/", "403 unspecified"},
		{"broadcast", "http://255.255.255.255/", "403 broadcast"},
		{"multicast", "http://224.0.0.1/", "403 multicast"},
		{"multicast, IPv6", "http://[ff02::1]/", "403 multicast"},
		{"zone", "http://[fe80::1%25lo]/", "400 zone"},
	}},
	{kind: "allow_ips and deny_ips", site: "ten", dns: []string{
		"ten.example 10.0.0.5 10.0.0.6", "ten-denied.example 10.0.0.5", "ten-nat64.example 64:ff9b::10.0.0.5",
	}, plain: [][3]string{
		{"open", "http://10.0.0.4/", "200 10.0.0.4 10.0.0.4"},
		{"mapped, open", "http://[::ffff:10.0.0.4]/", "200 10.0.0.4 10.0.0.4"},
		{"denied", "http://10.0.0.5/", "403 denied"},
		{"denied, mapped", "http://[::ffff:10.0.0.5]/", "403 denied"},
		{"denied, NAT64", "http://[64:ff9b::a00:5]/", "403 embeds 10.0.0.5"},
		{"denied, 6to4", "http://[2002:a00:5::]/", "403 embeds 10.0.0.5"},
		{"denied, a name", "http://ten-denied.example/", "403 denied"},
		{"denied, a NAT64 name", "http://ten-nat64.example/", "403 embeds 10.0.0.5"},
		{"one of two", "http://ten.example/", "200 10.0.0.6 ten.example"},
		{"NAT64, open", "http://[64:ff9b::a00:4]/", "200 64:ff9b::a00:4 [64:ff9b::a00:4]"},
		{"loopback", "http://127.0.0.1/", "403 loopback"},
		{"another private one", "http://192.168.0.1/", "403 private"},
		{"next to it", "http://11.0.0.1/", "200 11.0.0.1 11.0.0.1"},
	}},
	{kind: "allow_ips ::/0", site: "six", plain: [][3]string{
		{"loopback, IPv6", "http://[::1]/", "200 ::1 [::1]"},
		{"mapped loopback is IPv4", "http://[::ffff:127.0.0.1]/", "403 loopback"},
		{"NAT64 of private", "http://[64:ff9b::a00:1]/", "403 embeds 10.0.0.1"},
		{"compatible loopback", "http://[::127.0.0.1]/", "403 embeds 127.0.0.1"},
		{"6to4 of private", "http://[2002:a00:1::]/", "403 embeds 10.0.0.1"},
		{"Teredo of loopback", "http://[2001:0:5ef5:79fd:0:0:80ff:fffe]/", "403 embeds 127.0.0.1"},
		{"unspecified", "http://[::]/", "403 unspecified"},
		{"private", "http://10.0.0.1/", "403 private"},
	}},
	{kind: "allow_ips any and deny_ips private_ranges", site: "deny-private", plain: [][3]string{
		{"private", "http://10.0.0.1/", "403 denied"},
		{"loopback", "http://[::1]/", "403 denied"},
		{"NAT64", "http://[64:ff9b::a00:1]/", "403 embeds 10.0.0.1"},
		{"link-local is open", "http://169.254.1.1/", "200 169.254.1.1 169.254.1.1"},
	}},

	{kind: "ports", site: "ports", plain: [][3]string{
		{"by default", "http://good.example/", "200 93.184.215.14 good.example"},
		{"80", "http://good.example:80/", "200 93.184.215.14 good.example"},
		{"443", "https://good.example/", "200 93.184.215.14 good.example"},
		{"8080", "http://good.example:8080/", "403 port 8080"},
		{"22", "http://good.example:22/", "403 port 22"},
		{"6379", "good.example:6379", "403 port 6379"},
		{"0", "http://good.example:0/", "400 port"},
		{"00", "http://good.example:00/", "400 port"},
		{"080", "http://good.example:080/", "200 93.184.215.14 good.example"},
		{"+80", "http://good.example:+80/", "400 port"},
		{"-1", "http://good.example:-1/", "400 port"},
		{"65536", "http://good.example:65536/", "400 port"},
		{"65616, which is 80 in 16 bits", "http://good.example:65616/", "400 port"},
		{"4294967376, which is 80 in 32 bits", "http://good.example:4294967376/", "400 port"},
		{"of many digits", "http://good.example:" + strings.Repeat("9", 400) + "/", "400 port"},
		{"of many zeros", "http://good.example:" + strings.Repeat("0", 400) + "22/", "403 port 22"},
		{"hexadecimal", "http://good.example:0x50/", "400 port"},
		{"exponent", "http://good.example:8e1/", "400 port"},
		{"full-width", "http://good.example:８０/", "400 port"},
		{"two", "http://good.example:80:22/", "400"},
		{"empty", "http://good.example:/", "400 port"},
		{"encoded colon", "http://good.example%3a22/", "400 character"},
		{"a full-width colon", "http://good.example：22/", "400"},
		{"by name", "http://good.example:ssh/", "400 port"},
		{"space", "http://good.example: 80/", "400 space"},
		{"underscore", "http://good.example:8_0/", "400 port"},
	}},
	{kind: "schemes", plain: [][3]string{
		{"upper case", "HTTP://good.example/", "200 93.184.215.14 good.example"},
		{"file", "file:///etc/passwd", "400 no host"},
		{"file with a host", "file://good.example/etc/passwd", "403 scheme"},
		{"gopher", "gopher://good.example:6379/_INFO", "403 scheme"},
		{"ftp", "ftp://good.example/", "403 scheme"},
		{"dict", "dict://good.example:11211/stat", "403 scheme"},
		{"ldap", "ldap://good.example/", "403 scheme"},
		{"ws", "ws://good.example/", "403 scheme"},
		{"unix", "unix:///var/run/docker.sock", "400 no host"},
		{"http+unix", "http+unix://%2Fvar%2Frun%2Fdocker.sock/info", "400 character"},
		{"javascript", "javascript:alert(1)", "400"},
		{"javascript with slashes", "javascript://good.example/%0aalert(1)", "403 scheme"},
		{"data", "data:text/html,x", "400"},
		{"jar", "jar:http://good.example/!/", "400"},
		{"url", "url:http://good.example/", "400"},
		{"view-source", "view-source:http://good.example/", "400"},
		{"h2c by default", "h2c://good.example:8088/", "403 scheme"},
		{"fcgi", "fastcgi://good.example:9000/", "403 scheme"},
		{"one slash", "http:/good.example/", "400"},
		{"no slash", "http:good.example", "400"},
		{"no scheme", "//good.example/", "400"},
		{"a colon first", "://good.example/", "400"},
		{"three slashes", "http:///good.example/", "400 no host"},
		{"backslashes", `http:\\good.example\`, "400 backslash"},
		{"a slash and a backslash", `http:/\good.example/`, "400 backslash"},
		{"twice", "http://http://good.example/", "400"},
		{"long s", "httpſ://good.example/", "400"},
		{"full-width", "ｈｔｔｐ://good.example/", "400"},
		{"percent-encoded", "http%3a//good.example/", "400"},
		{"https of port 80 is TLS", "https://good.example:80/", "200|502 93.184.215.14 good.example:80"},
		{"path alone", "/", "400"},
		{"nothing", "", "400 no target"},
		{"very long", "http://good.example/" + strings.Repeat("x", 9000), "400 too long"},
	}},
	{kind: "schemes https", site: "https", plain: [][3]string{
		{"https", "https://good.example/", "200 93.184.215.14 good.example"},
		{"http", "http://good.example/", "403 scheme"},
		{"http on 443", "http://good.example:443/", "403 scheme"},
		{"no scheme", "good.example", "403 scheme"},
		{"no scheme, 443", "good.example:443", "200 93.184.215.14 good.example"},
		{"no scheme, 0443", "good.example:0443", "200 93.184.215.14 good.example"},
		{"private", "https://10.0.0.1/", "403 private"},
	}},
	{kind: "schemes h2c", site: "h2c", plain: [][3]string{
		{"h2c", "h2c://good.example:8088/", "200 93.184.215.14 good.example:8088"},
		{"private", "h2c://10.0.0.1:8088/", "403 private"},
		{"http", "http://good.example/", "403 scheme"},
	}},

	{kind: "odd octets", site: "query", plain: [][3]string{
		{"CR LF in the path", "http://good.example/\r\nX-Injected: 1", "400 control"},
		{"CR LF in the host", "http://good.example\r\nHost: evil.example/", "400 control"},
		{"LF", "http://good.example/\nX-Injected: 1", "400 control"},
		{"CR", "http://good.example/\rX-Injected: 1", "400 control"},
		{"NUL", "http://good.example/\x00", "400 control"},
		{"NUL in the host", "http://good.example\x00.evil.example/", "400 control"},
		{"tab in the host", "http://good\t.example/", "400 control"},
		{"tab before", "\thttp://good.example/", "400 control"},
		{"vertical tab", "http://good.example/\v", "400 control"},
		{"DEL", "http://good.example/\x7f", "400 control"},
		{"space and protocol", "http://good.example/ HTTP/1.1\r\nHost: x", "400"},
		{"line separator", "http://good.example/\u2028x", "200 93.184.215.14 good.example /%E2%80%A8x"},
		{"letters whose low octet is CR and LF", "http://good.example/\u010d\u010aX: 1", "400 space"},
		{"the same without a space", "http://good.example/\u010d\u010aX:1", "200 93.184.215.14 good.example /%C4%8D%C4%8AX:1"},
		{"the same in the host", "http://good\u010d\u010a.example/", "502"},
		{"encoded CR LF stays encoded", "http://good.example/%0d%0aX-Injected:%201", "200 93.184.215.14 good.example /%0d%0aX-Injected:%201"},
		{"encoded NUL stays encoded", "http://good.example/%00", "200 93.184.215.14 good.example /%00"},
		{"encoded twice", "http://good.example/%250d%250a", "200 93.184.215.14 good.example /%250d%250a"},
		{"encoded CR LF in the query", "http://good.example/?a=%0d%0ab", "200 93.184.215.14 good.example /?a=%0d%0ab"},
		{"encoded CR LF in the host", "http://good.example%0d%0a/", "400 character"},
		{"encoded tab in the host", "http://good%09.example/", "400 character"},
		{"encoded slashes", "http://good.example/..%2f..%2f", "200 93.184.215.14 good.example /..%2f..%2f"},
		{"dots", "http://good.example/../../x", "200 93.184.215.14 good.example /../../x"},
		{"a URL as path", "http://good.example//evil.example/", "200 93.184.215.14 good.example //evil.example/"},
		{"a quotation mark", "http://good.example/\"><", "200 93.184.215.14 good.example /%22%3E%3C"},
	}},
	{kind: "a template of the path", site: "path", attacks: []attack{
		{name: "as it is meant", raw: get("/?p=x", toGood+"/ignored"), want: "200 93.184.215.14 good.example /fixed/x"},
		{name: "CR LF", raw: get("/?p=x%0d%0aX-Injected:1", toGood), want: "400 control"},
		{name: "LF", raw: get("/?p=x%0aX", toGood), want: "400 control"},
		{name: "NUL", raw: get("/?p=x%00", toGood), want: "400 control"},
		{name: "space", raw: get("/?p=x+HTTP/1.1", toGood), want: "400 space"},
		{name: "backslash", raw: get("/?p=%5c..%5c", toGood), want: "400 backslash"},
		{name: "not UTF-8", raw: get("/?p=%ff", toGood), want: "400 UTF-8"},
		{name: "encoded CR LF", raw: get("/?p=x%250d%250a", toGood), want: "200 93.184.215.14 good.example /fixed/x%0d%0a"},
		{name: "a fragment", raw: get("/?p=x%23y", toGood), want: "200 93.184.215.14 good.example /fixed/x"},
		{name: "a query", raw: get("/?p=x%3fy", toGood), want: "200 93.184.215.14 good.example /fixed/x?y"},
		{name: "another host", raw: get("/?p=@evil.example", toGood), want: "200 93.184.215.14 good.example /fixed/@evil.example"},
		{name: "out of the folder", raw: get("/?p=../../x", toGood), want: "400 leaves the folder"},
		{name: "out of the folder, by the end alone", raw: get("/?p=..", toGood), want: "400 leaves the folder"},
		{name: "out of the folder, encoded", raw: get("/?p=%252e%252e/x", toGood), want: "400 leaves the folder"},
		{name: "out of the folder, encoded slashes", raw: get("/?p=a%252f..%252f..%252fx", toGood), want: "400 leaves the folder"},
		{name: "out of the folder, encoded twice", raw: get("/?p=%25252e%25252e/x", toGood), want: "400 leaves the folder"},
		{name: "out of the folder, with parameters", raw: get("/?p=..%3b/x", toGood), want: "400 leaves the folder"},
		{name: "out of the folder, before a query", raw: get("/?p=..%3fy", toGood), want: "400 leaves the folder"},
		{name: "within the folder", raw: get("/?p=a/../x", toGood), want: "200 93.184.215.14 good.example /fixed/a/../x"},
		{name: "dots in a query", raw: get("/?p=a%3f../../x", toGood), want: "200 93.184.215.14 good.example /fixed/a?../../x"},
		{name: "out of the folder, by a field", site: "path-field", raw: get("/", toGood, "X-P: ../../x"), want: "400 leaves the folder"},
		{name: "out of the second folder", site: "path-two", raw: get("/?p=a&q=../../../x", toGood), want: "400 leaves the folder"},
		{name: "out of the second folder alone", site: "path-two", raw: get("/?p=a&q=../x", toGood), want: "400 leaves the folder"},
		{name: "out of the first folder", site: "path-two", raw: get("/?p=..&q=x", toGood), want: "400 leaves the folder"},
		{name: "two values", site: "path-two", raw: get("/?p=a&q=x", toGood), want: "200 93.184.215.14 good.example /fixed/a/and/x.json"},
	}},
	{kind: "a template of the URL's path", site: "url-path", plain: [][3]string{
		{"as it is meant", "a/b", "200 93.184.215.14 good.example /fixed/a/b"},
		{"out of the folder", "../x", "400 leaves the folder"},
		{"out of the folder, encoded", "%2e%2e%2fx", "400 leaves the folder"},
		{"dots alone", "..", "400 leaves the folder"},
		{"another URL", "http://evil.example/", "200 93.184.215.14 good.example /fixed/http://evil.example/"},
	}, attacks: []attack{
		{name: "dots in a query", site: "url-query", target: "../../x", want: "200 93.184.215.14 good.example /fixed?x=../../x"},
	}},
	{kind: "a percent sign that is no escape", plain: [][3]string{
		{"a macro in a query", "http://good.example/?cb=%%CACHEBUSTER%%", "200 93.184.215.14 good.example /?cb=%%CACHEBUSTER%%"},
		{"at the end of a query", "http://good.example/?u=100%", "200 93.184.215.14 good.example /?u=100%"},
		{"one digit in a query", "http://good.example/?u=%4&v=%zz", "200 93.184.215.14 good.example /?u=%4&v=%zz"},
		{"escapes in a query", "http://good.example/?u=%41%2f%00", "200 93.184.215.14 good.example /?u=%41%2f%00"},
		{"in a path", "http://good.example/100%/%%A", "200 93.184.215.14 good.example /100%25/%25%25A"},
	}, attacks: []attack{
		{name: "in the query of the request", raw: get("/?cb=%%CACHEBUSTER%%&u=100%", toGood), want: "200 93.184.215.14 good.example /?cb=%%CACHEBUSTER%%&u=100%"},
	}},
	{kind: "ports of other protocols", plain: [][3]string{
		{"ftp", "http://good.example:21/", "403 another protocol"},
		{"ssh", "http://good.example:22/", "403 another protocol"},
		{"smtp", "http://good.example:25/", "403 another protocol"},
		{"smtp, https", "https://good.example:465/", "403 another protocol"},
		{"smtp, no scheme", "good.example:587", "403 another protocol"},
		{"irc", "http://good.example:6667/", "403 another protocol"},
		{"irc, leading zeros", "http://good.example:0006667/", "403 another protocol"},
		{"imap, an address", "http://93.184.215.14:143/", "403 another protocol"},
	}, attacks: []attack{
		{name: "listed", site: "bad-ports", target: "http://good.example:22/", want: "200 93.184.215.14 good.example:22"},
		{name: "not listed", site: "bad-ports", target: "http://good.example/", want: "403 port 80"},
	}},
	{kind: "a template of the Host", site: "host", attacks: []attack{
		{name: "as it is meant", raw: get("/?h=other.example", toGood+"/"), want: "200 93.184.215.14 other.example"},
		{name: "CR LF", raw: get("/?h=a%0d%0aX-Injected:1", toGood), want: "400 Host"},
		{name: "LF", raw: get("/?h=a%0ab", toGood), want: "400 Host"},
		{name: "NUL", raw: get("/?h=a%00", toGood), want: "400 Host"},
		{name: "space", raw: get("/?h=a+b", toGood), want: "400 Host"},
		{name: "slash", raw: get("/?h=a/b", toGood), want: "400 Host"},
		{name: "not ASCII", raw: get("/?h=b%c3%bccher.example", toGood), want: "400 Host"},
		{name: "nothing", raw: get("/", toGood), want: "400 Host"},
		{name: "it opens nothing", raw: get("/?h=good.example", "X-Target: http://10.0.0.1"), want: "403 private"},
		{name: "nor does it lead anywhere", raw: get("/?h=10.0.0.1", toGood+"/"), want: "200 93.184.215.14 10.0.0.1"},
	}},

	{kind: "odd requests", attacks: []attack{
		{name: "CR in the field", raw: get("/", "X-Target: http://good.example\rX-Injected: 1"), want: "400 !"},
		{name: "NUL in the field", raw: get("/", "X-Target: http://good.example\x00"), want: "400 !"},
		{name: "LF ends the field", raw: get("/", "X-Target: http://10.0.0.1\nX-Other: 1"), want: "403 private"},
		{name: "a folded field", raw: get("/", "X-Target: http://good.example", " .evil.example"), want: "400 space"},
		{name: "a space before the colon", raw: get("/", "X-Target : http://good.example"), want: "400 !"},
		{name: "two fields", raw: get("/", "X-Target: http://good.example", "X-Target: http://10.0.0.1"), want: "400"},
		{name: "two fields, the other way", raw: get("/", "X-Target: http://10.0.0.1", "X-Target: http://good.example"), want: "400"},
		{name: "two fields, a path first", raw: get("/", "X-Target: http://good.example/", "x-target: http://10.0.0.1/"), want: "400 2 times"},
		{name: "two fields, a query first", raw: get("/", "X-Target: http://good.example/?a=b", "X-Target: http://good.example/secret"), want: "400 2 times"},
		{name: "two fields, the same", raw: get("/", toGood+"/", toGood+"/"), want: "400 2 times"},
		{name: "two parameters", site: "query", raw: get("/?to=http://good.example/&to=http://10.0.0.1/"), want: "400 2 times"},
		{name: "two parameters, one encoded", site: "query", raw: get("/?to=http://good.example/&%74o=secret"), want: "400 2 times"},
		{name: "two fields for the path", site: "path-field", raw: get("/", toGood, "X-P: a", "X-P: b"), want: "400 2 times"},
		{name: "two fields for the host", site: "host-field", raw: get("/", toGood, "X-Host: a.example", "X-Host: b.example"), want: "400 2 times"},
		{name: "two other fields", raw: get("/", toGood+"/", "X-Other: a", "X-Other: b"), want: "200 93.184.215.14 good.example /"},
		{name: "two fields, one empty", raw: get("/", "X-Target:", "X-Target: http://10.0.0.1"), want: "400"},
		{name: "a list", raw: get("/", "X-Target: http://10.0.0.1, http://good.example"), want: "400 space"},
		{name: "the field in a trailer", raw: "POST / HTTP/1.1\r\nHost: SITE\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Target\r\n" + toGood + "\r\n\r\n0\r\nX-Target: http://10.0.0.1\r\n\r\n", want: "200 93.184.215.14 good.example"},
		{name: "underscores", raw: get("/", "X_Target: http://good.example"), want: "400 no target"},
		{name: "no Host", raw: req("GET / HTTP/1.1", toGood), want: "400 !"},
		{name: "two Hosts", raw: req("GET / HTTP/1.1", "Host: a.example", "Host: b.example", toGood), want: "400 !"},
		{name: "a bad Host", raw: req("GET / HTTP/1.1", "Host: a b", toGood), want: "400 !"},
		{name: "HTTP/1.0 without Host", raw: req("GET /x HTTP/1.0", toGood), want: "200 93.184.215.14 good.example /x"},
		{name: "an internal Host", raw: req("GET /x HTTP/1.1", "Host: 169.254.169.254", "Connection: close", toGood), want: "200 93.184.215.14 good.example /x"},
		{name: "absolute form", raw: get("http://evil.example/x", toGood), want: "200 93.184.215.14 good.example /x"},
		{name: "absolute form, internal", raw: get("http://169.254.169.254/latest", toGood), want: "200 93.184.215.14 good.example /latest"},
		{name: "absolute form, no path", raw: get("http://127.0.0.1", toGood), want: "200 93.184.215.14 good.example /"},
		{name: "absolute form, userinfo", raw: get("http://joe:secret@evil.example/x", toGood), want: "200 93.184.215.14 good.example /x", check: without("Authorization")},
		{name: "absolute form, no target", raw: get("http://good.example/x"), want: "400 no target"},
		{name: "absolute form, https", raw: get("https://evil.example/x", toGood), want: "200 93.184.215.14 good.example /x"},
		{name: "two slashes", raw: get("//evil.example/x", toGood), want: "200 93.184.215.14 good.example //evil.example/x"},
		{name: "opaque", raw: get("x:http://evil.example/", toGood), want: "400 no path"},
		{name: "opaque, one word", raw: get("x:y", toGood), want: "400 no path"},
		{name: "no slash", raw: get("evil.example", toGood), want: "400 !"},
		{name: "an at sign for a path", raw: get("@evil.example", toGood), want: "400 !"},
		{name: "a colon for a path", raw: get(":80@evil.example/", toGood), want: "400 !"},
		{name: "a fragment", raw: get("/x#@evil.example", toGood), want: "200 93.184.215.14 good.example /x%23@evil.example"},
		{name: "CONNECT", raw: req("CONNECT evil.example:80 HTTP/1.1", "Host: evil.example:80", "Connection: close", toGood), want: "400|403|405|501"},
		{name: "CONNECT, a path", raw: req("CONNECT /x HTTP/1.1", "Host: SITE", "Connection: close", toGood), want: "400|403|405|501"},
		{name: "CONNECT, a target with a path", raw: req("CONNECT evil.example:80 HTTP/1.1", "Host: evil.example:80", "Connection: close", toGood+"/x"), want: "400|403|405|501"},
		{name: "CONNECT to what may not be called", raw: req("CONNECT good.example:80 HTTP/1.1", "Host: good.example:80", "Connection: close", "X-Target: http://10.0.0.1"), want: "400|403|405|501"},
		{name: "OPTIONS *", raw: req("OPTIONS * HTTP/1.1", "Host: SITE", "Connection: close", toGood), want: "200 !"},
		{name: "OPTIONS *, refused", raw: req("OPTIONS * HTTP/1.1", "Host: SITE", "Connection: close", "X-Target: http://10.0.0.1"), want: "200 !"},
		{name: "an unknown method", raw: req("PURGE /x HTTP/1.1", "Host: SITE", "Connection: close", toGood), want: "200 93.184.215.14 good.example /x"},
		{name: "a method with a space", raw: req("GET /a /b HTTP/1.1", "Host: SITE", "Connection: close", toGood), want: "400 !"},
		{name: "HTTP/2 without a preface", raw: req("GET / HTTP/2.0", "Host: SITE", toGood), want: "505 !"},
		{name: "two lengths", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", toGood, "Content-Length: 1", "Content-Length: 2") + "xx", want: "400 !"},
		{name: "a length with a sign", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", toGood, "Content-Length: +1") + "x", want: "400 !"},
		{name: "an unknown coding", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", toGood, "Transfer-Encoding: xchunked") + "x", want: "501 !"},
		{name: "a coding after chunked", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", toGood, "Transfer-Encoding: chunked, identity") + "0\r\n\r\n", want: "501 !"},
		{name: "two codings", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", toGood, "Transfer-Encoding: chunked", "Transfer-Encoding: identity") + "0\r\n\r\n", want: "501 !"},
		{name: "a vertical tab in the coding", raw: req("POST / HTTP/1.1", "Host: SITE", "Connection: close", toGood, "Transfer-Encoding: \vchunked") + "0\r\n\r\n", want: "501|400 !"},
		{name: "a Connection that names the field", raw: get("/", toGood, "Connection: X-Target, close"), want: "200 93.184.215.14 good.example"},
		{name: "a Connection that names Host", raw: get("/", toGood, "Connection: Host"), want: "200 93.184.215.14 good.example"},
		{name: "a Connection that names the field, refused", raw: get("/", "X-Target: http://10.0.0.1", "Connection: X-Target"), want: "403 private"},
		{name: "X-Forwarded-Host", raw: get("/", toGood, "X-Forwarded-Host: 169.254.169.254", "Forwarded: host=169.254.169.254", "X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-Host: evil.example"), want: "200 93.184.215.14 good.example /"},
		{name: "X-HTTP-Method-Override", raw: get("/", "X-Target: http://10.0.0.1", "X-HTTP-Method-Override: PUT"), want: "403 private"},
	}},

	{kind: "HTTP/2 requests", attacks: []attack{
		{name: "as it is meant", h2: h2("/x", toGoodH2), want: "200 93.184.215.14 good.example /x"},
		{name: "refused", h2: h2("/x", "x-target: http://10.0.0.1"), want: "403 private"},
		{name: "an internal authority", h2: []string{":method: GET", ":scheme: http", ":authority: 169.254.169.254", ":path: /x", toGoodH2}, want: "200 93.184.215.14 good.example /x"},
		{name: "another Host", h2: h2("/x", "host: 169.254.169.254", toGoodH2), want: "0|200|400 93.184.215.14 good.example /x"},
		{name: "no authority", h2: []string{":method: GET", ":scheme: http", ":path: /x", toGoodH2}, want: "200|400 93.184.215.14 good.example /x"},
		{name: "userinfo in the authority", h2: []string{":method: GET", ":scheme: http", ":authority: x@169.254.169.254", ":path: /x", toGoodH2}, want: "0|200|400 93.184.215.14 good.example /x"},
		{name: "CR LF in the field", h2: h2("/", "x-target: http://good.example\r\nx-injected: 1"), want: "0 !"},
		{name: "LF in the field", h2: h2("/", "x-target: http://good.example\nx-injected: 1"), want: "0 !"},
		{name: "NUL in the field", h2: h2("/", "x-target: http://good.example\x00"), want: "0 !"},
		{name: "CR LF in the path", h2: h2("/x HTTP/1.1\r\nHost: evil.example\r\n\r\n", toGoodH2), want: "0|400 !"},
		{name: "space in the path", h2: h2("/x y", toGoodH2), want: "200|400 93.184.215.14 good.example /x%20y"},
		{name: "CR LF in another field", h2: h2("/", toGoodH2, "x-other: 1\r\nx-injected: 1"), want: "0 !"},
		{name: "a name of a field with a colon", h2: h2("/", toGoodH2, "x-other:x-injected: 1"), want: "200|0 93.184.215.14 good.example"},
		{name: "a name of a field in upper case", h2: h2("/", "X-Target: http://good.example"), want: "0 !"},
		{name: "opaque", h2: h2("x:http://evil.example/", toGoodH2), want: "400|0 no path"},
		{name: "absolute form", h2: h2("http://evil.example/x", toGoodH2), want: "200|0 93.184.215.14 good.example /x"},
		{name: "two slashes", h2: h2("//evil.example/x", toGoodH2), want: "200 93.184.215.14 good.example //evil.example/x"},
		{name: "no path", h2: h2("", toGoodH2), want: "0 !"},
		{name: "an asterisk", h2: h2("*", toGoodH2), want: "200|0|400 93.184.215.14 good.example"},
		{name: "Transfer-Encoding", h2: h2("/", toGoodH2, "transfer-encoding: chunked"), want: "0|400 !"},
		{name: "Connection", h2: h2("/", toGoodH2, "connection: x-target"), want: "0|400 !"},
		{name: "Upgrade", h2: h2("/", toGoodH2, "upgrade: h2c"), want: "0|400 !"},
		{name: "a length without a body", h2: h2("/", toGoodH2, "content-length: 5"), want: "0|200|400 93.184.215.14 good.example /", check: without("Content-Length")},
		{name: "CONNECT", h2: []string{":method: CONNECT", ":authority: evil.example:80", toGoodH2}, want: "400|403|405|501"},
		{name: "two methods", h2: []string{":method: GET", ":method: POST", ":scheme: http", ":authority: SITE", ":path: /", toGoodH2}, want: "0 !"},
		{name: "two paths", h2: h2("/", ":path: /other", toGoodH2), want: "0 !"},
		{name: "two fields", h2: h2("/", "x-target: http://good.example", "x-target: http://10.0.0.1"), want: "400"},
		{name: "two fields, a path first", h2: h2("/", "x-target: http://good.example/", "x-target: http://10.0.0.1"), want: "400 2 times"},
	}},

	{kind: "rebinding", site: "rebind", inOrder: true, attacks: []attack{
		{name: "public", set: "rebind.example ttl=0 " + goodAddr, target: "http://rebind.example/", want: "200 93.184.215.14 rebind.example"},
		{name: "then loopback", set: "rebind.example ttl=0 127.0.0.1", wait: 60 * time.Millisecond, target: "http://rebind.example/", want: "403 loopback"},
		{name: "again", target: "http://rebind.example/", want: "403 loopback"},
		{name: "then both", set: "rebind.example ttl=1 127.0.0.1 " + goodAddr, wait: 1100 * time.Millisecond, target: "http://rebind.example/", want: "200 93.184.215.14 rebind.example"},
		{name: "then metadata", set: "rebind.example ttl=0 169.254.169.254", wait: 1100 * time.Millisecond, target: "http://rebind.example/", want: "403 metadata"},
		{name: "each reply another", set: "flip.example ttl=0 " + goodAddr + " then flip.example ttl=0 10.1.1.1", target: "http://flip.example/", want: "200 93.184.215.14 flip.example"},
		{name: "each reply another, after its time", wait: 60 * time.Millisecond, target: "http://flip.example/", want: "403 private"},
		{name: "loopback first", set: "flop.example ttl=0 127.0.0.1 then flop.example ttl=0 " + goodAddr, target: "http://flop.example/", want: "403 loopback"},
		{name: "then public", wait: 60 * time.Millisecond, target: "http://flop.example/", want: "200 93.184.215.14 flop.example"},
		{name: "over https, public", set: "tls.example ttl=0 " + goodAddr, target: "https://tls.example/", want: "200 93.184.215.14 tls.example"},
		{name: "over https, private, with a connection to the first one left open", set: "tls.example ttl=0 10.1.1.1", wait: 60 * time.Millisecond, target: "https://tls.example/", want: "403 private"},
		{name: "an alias that moves", set: "moved.example ttl=0 >rebound.example", target: "http://moved.example/", want: "502"},
	}},
	{kind: "stale answers", site: "stale", inOrder: true, attacks: []attack{
		{name: "a private answer to a permissive site", site: "stale-any", set: "old.example ttl=0 10.1.1.1", target: "http://old.example/", want: "200 10.1.1.1 old.example"},
		{name: "to a strict one", target: "http://old.example/", want: "403 private"},
		{name: "stale, to a strict one", set: "old.example silent", wait: 100 * time.Millisecond, target: "http://old.example/", want: "403 private"},
		{name: "stale, to a permissive one", site: "stale-any", target: "http://old.example/", want: "200 10.1.1.1 old.example"},
		{name: "a public answer", set: "aged.example ttl=0 " + goodAddr, target: "http://aged.example/", want: "200 93.184.215.14 aged.example"},
		{name: "which stays while the nameserver is silent", set: "aged.example silent", wait: 100 * time.Millisecond, target: "http://aged.example/", want: "200 93.184.215.14 aged.example"},
	}},
	{kind: "a reply that has more than was asked for", inOrder: true, dns: []string{
		"poison.example =poison.example. 60 IN CNAME victim.example. =victim.example. 60 IN A " + evilAddr,
		"victim.example " + goodAddr,
	}, attacks: []attack{
		{name: "leads where it likes", target: "http://poison.example/", want: "200 45.33.32.156 poison.example"},
		{name: "but no other client", target: "http://victim.example/", want: "200 93.184.215.14 victim.example"},
	}},
	{kind: "one cache, two sites", inOrder: true, dns: []string{
		"shared.example 10.1.1.1", "shared-too.example 10.1.1.1", "shared-mixed.example 10.1.1.1 " + goodAddr, "shared-none.example",
	}, attacks: []attack{
		{name: "permissive first", site: "any", target: "http://shared.example/", want: "200 10.1.1.1 shared.example"},
		{name: "then strict", target: "http://shared.example/", want: "403 private"},
		{name: "strict first", target: "http://shared-too.example/", want: "403 private"},
		{name: "then permissive", site: "any", target: "http://shared-too.example/", want: "200 10.1.1.1 shared-too.example"},
		{name: "then strict again", target: "http://shared-too.example/", want: "403 private"},
		{name: "some, permissive", site: "any", target: "http://shared-mixed.example/", want: "200 10.1.1.1|93.184.215.14 shared-mixed.example"},
		{name: "some, strict", target: "http://shared-mixed.example/", want: "200 93.184.215.14 shared-mixed.example"},
		{name: "some, another strict one", site: "private", target: "http://shared-mixed.example/", want: "200 10.1.1.1|93.184.215.14 shared-mixed.example"},
		{name: "some, strict again", target: "http://shared-mixed.example/", want: "200 93.184.215.14 shared-mixed.example"},
		{name: "none", target: "http://shared-none.example/", want: "502"},
	}},
	{kind: "names of metadata services", dns: []string{
		"metadata.google.internal " + evilAddr, "metadata.goog " + evilAddr, "instance-data " + evilAddr,
		"instance-data.ec2.internal 169.254.169.254", "my-metadata.google.internal " + goodAddr, "metadata.google.internal.example " + goodAddr,
	}, plain: [][3]string{
		{"Google's", "http://metadata.google.internal/computeMetadata/v1/", "403"},
		{"Google's, upper case", "http://METADATA.Google.Internal/", "403"},
		{"Google's, trailing dot", "http://metadata.google.internal./", "403"},
		{"Google's, full-width", "http://ｍｅｔａｄａｔａ。google。internal/", "403"},
		{"Google's, soft hyphen", "http://meta\u00addata.google.internal/", "403"},
		{"Google's, https and a port", "https://metadata.google.internal:8443/", "403"},
		{"Google's, the short one", "http://metadata.goog/", "403"},
		{"EC2's", "http://instance-data/latest/meta-data/", "403"},
		{"EC2's, in full", "http://instance-data.ec2.internal/", "403"},
		{"Azure's, which does not exist", "http://metadata.azure.internal/", "403"},
		{"a name that ends like one", "http://my-metadata.google.internal/", "200 93.184.215.14 my-metadata.google.internal"},
		{"a name that begins like one", "http://metadata.google.internal.example/", "200 93.184.215.14 metadata.google.internal.example"},
	}, attacks: []attack{
		{name: "allowed by its name", site: "metadata-allowed", target: "http://metadata.google.internal/", want: "200 45.33.32.156 metadata.google.internal"},
		{name: "another one is not", site: "metadata-allowed", target: "http://metadata.goog/", want: "403"},
		{name: "a wildcard does not name it", site: "metadata-below", target: "http://metadata.google.internal/", want: "403"},
		{name: "a wildcard does not name the other", site: "metadata-below", target: "http://instance-data.ec2.internal/", want: "403"},
		{name: "nor does an asterisk", site: "metadata-all", target: "http://metadata.google.internal/", want: "403"},
		{name: "nor do all addresses", site: "any", target: "http://metadata.google.internal/", want: "403"},
	}},
}

// dnsRecord is what the nameserver says of a name.
type dnsRecord struct {
	name string
	testlab.Reply
}

// parseDNSName reads what the nameserver says of a name: NAME[*N], and its
// addresses, after N private ones; an alias, >NAME; other records, =RECORD;
// ttl=N instead of a minute; and what it says after that, then NAME …
func parseDNSName(text string) dnsRecord {
	text, next, more := strings.Cut(text, " then ")
	text, records, _ := strings.Cut(text, " =")
	fields := strings.Fields(text)
	r := dnsRecord{name: fields[0], Reply: testlab.Reply{TTL: 60}}
	if name, count, ok := strings.Cut(r.name, "*"); ok {
		r.name = name
		n, err := strconv.Atoi(count)
		if err != nil {
			panic(err)
		}
		for i := range n {
			r.Addrs = append(r.Addrs, fmt.Sprintf("10.1.%d.%d", i/250, i%250+1))
		}
	}
	for _, f := range fields[1:] {
		if alias, ok := strings.CutPrefix(f, ">"); ok {
			r.Alias = alias
		} else if ttl, ok := strings.CutPrefix(f, "ttl="); ok {
			n, err := strconv.ParseUint(ttl, 10, 32)
			if err != nil {
				panic(err)
			}
			r.TTL = uint32(n)
		} else if f == "silent" {
			r.Silent = true
		} else {
			r.Addrs = append(r.Addrs, netip.MustParseAddr(f).String())
		}
	}
	if records != "" {
		r.Records = strings.Split(records, " =")
	}
	if more {
		then := parseDNSName(next).Reply
		r.Then = &then
	}
	return r
}

// arena is where the attacks take place.
type arena struct {
	*world
	sites    []attackSite
	groups   []attackGroup
	proxied  bool
	backends []*testlab.Backend
	global   string // more of the global options
	values   *strings.Replacer

	// answered, if not nil, is called with the response to each attack.
	answered func(t *testing.T, at attack, res *http.Response, body []byte)
}

// newArena starts a nameserver that knows the names of the attacks.
func newArena(t testing.TB, sites []attackSite, groups []attackGroup) *arena {
	a := &arena{world: newWorld(t), sites: sites, groups: groups}
	known := make(map[string]string)
	for _, g := range groups {
		for _, text := range g.dns {
			r := parseDNSName(text)
			if other, ok := known[r.name]; ok && other != text {
				t.Fatalf("the nameserver is to say two things: %s, and %s", other, text)
			}
			known[r.name] = text
			a.dns.Set(r.name, r.Reply)
		}
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"hosts": attackHosts, "hosts2": attackHosts2, "resolv.conf": "search corp.example\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.values = strings.NewReplacer("<DNS>", a.dns.Addr, "<HOSTS2>", filepath.Join(dir, "hosts2"),
		"<HOSTS>", filepath.Join(dir, "hosts"), "<CA>", a.ca.File, "<SOCKET>", filepath.Join(dir, "socket"))

	// the sites with search find a resolver that reads another resolv.conf
	site := Resolver{Nameservers: []string{a.dns.Addr}, Hosts: filepath.Join(dir, "hosts"), Family: "ipv4", Search: true}
	config := site.config()
	asked, err := config.Compile()
	if err != nil {
		t.Fatal(err)
	}
	config.ResolvConf = filepath.Join(dir, "resolv.conf")
	other, err := config.Compile()
	if err != nil {
		t.Fatal(err)
	}
	r := newSharedResolver(other, asked.Key())
	if _, found, err := resolvers.LoadOrNew(r.key, func() (caddy.Destructor, error) { return r, nil }); err != nil || found {
		t.Fatalf("the resolver of the sites is there: %t, %v", found, err)
	}
	t.Cleanup(func() { _ = r.release() })
	return a
}

// caddyfile returns the configuration of the gateway.
func (a *arena) caddyfile() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{
		auto_https off
		persist_config off
		storage file_system %q
		log default {
			output discard
			level ERROR
		}
		%s
		target {
			resolver <DNS> {
				family prefer_ipv6
				hosts <HOSTS>
				timeout 1s
				tries 1
			}
		}
	}`, a.storage(), a.global)
	for i, s := range a.sites {
		address := "http://" + s.name + ".site:<GATEWAY>"
		if i == 0 {
			address = "http://:<GATEWAY>" // and whatever the Host is
		}
		whole := s.whole
		switch {
		case whole != "" && !a.proxied:
			continue
		case whole != "":
		case a.proxied:
			whole = fmt.Sprintf("target_proxy %s {\ntls_trust_pool file <CA>\n%s\n}", s.template(), s.rules)
		default:
			whole = fmt.Sprintf("route {\nattack_capture\ntarget %s {\n%s\n}\nattack_record\n}", s.template(), s.rules)
		}
		if !strings.Contains(whole, "handle_errors") {
			whole += "\nhandle_errors {\nheader Failure \"{http.target.phase} {http.target.failure} {http.target.rule}\"\nrespond \"{err.status_code} {http.target.error}\"\n}"
		}
		bind, port, own := strings.Cut(s.bind, " ")
		if own {
			address = "http://:" + port
		}
		fmt.Fprintf(&b, "\n%s {\n%s\nbind %s\n}", address, whole, cmp.Or(bind, "127.0.0.1"))
	}
	return a.fill(b.String())
}

func (s *attackSite) template() string {
	if s.url == "" {
		return "{header.X-Target}"
	}
	return s.url
}

// fill puts values in the place of what stands for them.
func (a *arena) fill(text string) string {
	return strings.ReplaceAll(a.values.Replace(text), "<GATEWAY>", a.port)
}

// start starts the gateway, on a port of its own: on that of the one before, a
// connection may still be in the queue of the listener that is being closed.
func (a *arena) start() {
	a.Helper()
	a.port = testlab.FreePort(a)
	config, err := adapt(a.caddyfile())
	if err != nil {
		a.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		a.Fatal(err)
	}
}

// play makes the attacks of all groups.
func (a *arena) play(t *testing.T) {
	rows := 0
	for _, g := range a.groups {
		if g.proxied && !a.proxied {
			continue
		}
		t.Run(g.kind, func(t *testing.T) {
			for _, at := range g.all() {
				if at.site == "" {
					at.site = g.site
				}
				rows++
				if at.inOrder = g.inOrder; at.inOrder {
					a.attack(t, at)
					continue
				}
				t.Run(at.name, func(t *testing.T) { a.attack(t, at) })
			}
		})
	}
	t.Logf("%d attacks", rows)
}

// request returns the octets of the request of an attack.
func (a *arena) request(at attack) string {
	host := "client.example"
	if at.site != "" && at.site != a.sites[0].name {
		host = at.site + ".site"
	}
	raw := at.raw
	switch {
	case raw != "":
	case at.site == "query":
		raw = get("/?to=" + url.QueryEscape(at.target))
	default:
		raw = get("/", "X-Target: "+at.target)
	}
	return a.fill(strings.ReplaceAll(raw, "SITE", host))
}

// attack makes one attack.
func (a *arena) attack(t *testing.T, at attack) {
	t.Helper()
	failed := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %.200q: "+format, append([]any{at.name, at.text()}, args...)...)
	}
	if at.set != "" {
		r := parseDNSName(at.set)
		a.dns.Set(r.name, r.Reply)
	}
	time.Sleep(at.wait)
	before := a.arrivals()

	res, body, err := a.exchange(at)
	if err != nil {
		failed("%v", err)
		return
	}
	if a.answered != nil {
		a.answered(t, at, res, body)
	}
	statuses, what, _ := strings.Cut(a.fill(at.want), " ")
	status := strconv.Itoa(res.StatusCode)
	if !slices.Contains(strings.Split(statuses, "|"), status) {
		failed("status %s, want %s: %.300s (from %s)", status, at.want, body, res.Header.Get("Backend"))
	}
	allowed := []string{at.via} // addresses that may have been reached
	if strings.Contains(statuses, "200") && what != "!" {
		allowed = append(allowed, strings.Split(strings.Fields(what)[0], "|")...)
	}
	for addr, n := range a.arrivals() {
		if n > before[addr] && !slices.Contains(allowed, addr) {
			failed("%s was reached", addr)
		}
	}
	switch {
	case !slices.Contains(strings.Split(statuses, "|"), status):
	case status == "302":
		if got := res.Header.Get("Location"); got != what {
			failed("Location %q, want %s", got, at.want)
		}
	case status == "0": // there is nothing to see
	case status != "200" || what == "!":
		a.checkRefusal(t, at, res, string(body), what)
	default:
		a.checkArrival(t, at, res, body, strings.Fields(what))
	}
}

// exchange sends the request of an attack and returns the response to it.
func (a *arena) exchange(at attack) (*http.Response, []byte, error) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+a.port)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(testlab.Timeout))
	if at.h2 != nil {
		return exchangeHTTP2(conn, at.h2)
	}
	if _, err := io.WriteString(conn, a.request(at)); err != nil {
		return nil, nil, err
	}
	method, _, _ := strings.Cut(at.raw, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

// exchangeHTTP2 sends a request whose fields no client of Go would send.
func exchangeHTTP2(conn net.Conn, fields []string) (*http.Response, []byte, error) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		i := strings.Index(f[1:], ":") + 1
		_ = encoder.WriteField(hpack.HeaderField{Name: f[:i], Value: strings.TrimPrefix(f[i+1:], " ")})
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, nil, err
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = framer.WriteSettings()
	err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	if err != nil {
		return nil, nil, err
	}
	res := &http.Response{Header: make(http.Header)}
	var body bytes.Buffer
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return nil, nil, err
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			res.StatusCode, err = strconv.Atoi(f.PseudoValue("status"))
			if err != nil {
				return nil, nil, err
			}
			for _, field := range f.RegularFields() {
				res.Header.Add(field.Name, field.Value)
			}
			if f.StreamEnded() {
				return res, body.Bytes(), nil
			}
		case *http2.DataFrame:
			body.Write(f.Data())
			if f.StreamEnded() {
				return res, body.Bytes(), nil
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return res, nil, nil
		}
	}
}

// checkRefusal checks what the client learns of a refusal.
func (a *arena) checkRefusal(t *testing.T, at attack, res *http.Response, body, want string) {
	t.Helper()
	if want == "!" {
		if got := res.Header.Get("Server"); got != "" {
			t.Errorf("%s: answered by %s, want the web server: %s", at.name, got, body)
		}
		return
	}
	if statuses, _, _ := strings.Cut(at.want, " "); strings.Contains(statuses, "200") {
		return // what is wanted is about that one
	}
	reason, ok := strings.CutPrefix(body, strconv.Itoa(res.StatusCode)+" ")
	if !ok || reason == "" || !strings.Contains(reason, want) {
		t.Errorf("%s: %q: body %q, want the status and a reason with %q", at.name, at.text(), body, want)
	}
}

// checkArrival checks where a request arrived, and as what.
func (a *arena) checkArrival(t *testing.T, at attack, res *http.Response, body []byte, want []string) {
	t.Helper()
	var got testlab.Request
	if err := json.Unmarshal(body, &got); err != nil {
		t.Errorf("%s: %v: %.300s", at.name, err, body)
		return
	}
	addrs := strings.Split(want[0], "|")
	if a.proxied && !slices.Contains(addrs, got.Address) {
		t.Errorf("%s: %q: reached %s, want %s", at.name, at.text(), got.Address, want[0])
	}
	if !a.proxied {
		called := strings.Split(got.Address, "|")
		slices.Sort(called)
		slices.Sort(addrs)
		if !slices.Equal(called, addrs) {
			t.Errorf("%s: %q: %s may be called, want %s", at.name, at.text(), called, addrs)
		}
	}
	if got.Host != want[1] {
		t.Errorf("%s: %q: Host %q, want %q", at.name, at.text(), got.Host, want[1])
	}
	if len(want) > 2 && got.URI != want[2] {
		t.Errorf("%s: %q: request URI %q, want %q", at.name, at.text(), got.URI, want[2])
	}
	if at.check != nil && a.proxied {
		if err := at.check(got); err != nil {
			t.Errorf("%s: %v; the backend got %+v", at.name, err, got)
		}
	}
	if got.Header["X-Injected"] != nil || got.Header["X-Target"] != nil && a.strips(at.site) {
		t.Errorf("%s: the backend got %v", at.name, got.Header)
	}
}

// strips reports whether the field that has the target is not sent on by a site.
func (a *arena) strips(site string) bool {
	i := max(0, slices.IndexFunc(a.sites, func(s attackSite) bool { return s.name == site }))
	return a.sites[i].url == "" && a.sites[i].whole == ""
}

// arrivals returns how often each address was connected to or sent a request.
func (a *arena) arrivals() map[string]int {
	sum := make(map[string]int)
	for _, b := range a.backends {
		for addr, n := range b.Arrivals() {
			sum[addr] += n
		}
	}
	return sum
}

// attackRecorder stands where reverse_proxy would. It tells what would be called.
type attackRecorder struct{}

// CaddyModule returns the Caddy module information.
func (attackRecorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.attack_record", New: func() caddy.Module { return new(attackRecorder) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (attackRecorder) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	c := exchange.CallOf(r.Context())
	var addrs []string
	for _, addr := range c.Addrs {
		addrs = append(addrs, addr.String())
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(testlab.Request{Address: strings.Join(addrs, "|"), Host: c.HostPort, URI: c.URI})
}

var registerRecorder = sync.OnceFunc(func() {
	caddy.RegisterModule(attackRecorder{})
	caddy.RegisterModule(attackCapture{})
	httpcaddyfile.RegisterHandlerDirective("attack_capture", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return attackCapture{}, nil
	})
	httpcaddyfile.RegisterHandlerDirective("attack_record", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return attackRecorder{}, nil
	})
})

// TestAttackVerdicts shows what would be called, or why nothing, before anything is.
// (docs/security.md names this test, so it keeps its name.)
func TestAttackVerdicts(t *testing.T) {
	registerRecorder()
	a := newArena(t, attackSites, attackGroups)
	a.global = "admin off"
	x := newExplainedArena(a)
	a.start()
	a.play(t)
	x.playAgain(t)
}

var reportSites = []attackSite{
	{name: "report", rules: "guard report"},
	{name: "report-rules", rules: "guard report\ndeny evil.example\nports 80\nschemes https http"},
	{name: "report-service", whole: `reverse_proxy {
		dynamic target _http._tcp.{header.X-Target} {
			ports 80
			guard report
		}
		transport target
	}`},
	{name: "report-static", whole: "target {header.X-Target} {\nguard report\n}\nreverse_proxy 127.0.0.1:80 {\ntransport target\n}"},
	{name: "report-static-name", whole: "target {header.X-Target} {\nguard report\n}\nreverse_proxy localhost:80 {\ntransport target\n}"},
	{name: "strict"},
}

var reportGroups = []attackGroup{
	{kind: "report", dns: []string{
		"good.example " + goodAddr, "evil.example " + evilAddr, "private.example 10.1.1.1", "mixed.example 10.1.1.1 " + goodAddr,
	}, plain: [][3]string{
		{"loopback", "http://127.0.0.1/", "200 127.0.0.1 127.0.0.1"},
		{"loopback, IPv6", "http://[::1]/", "200 ::1 [::1]"},
		{"metadata", "http://169.254.169.254/", "200 169.254.169.254 169.254.169.254"},
		{"a private name", "http://private.example/", "200 10.1.1.1 private.example"},
		{"mixed", "http://mixed.example/", "200 10.1.1.1|93.184.215.14 mixed.example"},
		{"localhost", "http://localhost/", "200 127.0.0.1|::1 localhost"},
		{"good", "http://good.example/", "200 93.184.215.14 good.example"},
		{"what cannot be read stays that", "http://2130706433/", "400 IPv4"},
		{"userinfo stays that", "http://a@good.example/", "400 userinfo"},
		{"what does not exist stays that", "http://nowhere.example/", "502 NXDOMAIN"},
	}, attacks: []attack{
		{name: "a denied name", site: "report-rules", target: "http://evil.example/", want: "200 45.33.32.156 evil.example"},
		{name: "a port", site: "report-rules", target: "http://good.example:8080/", want: "200 93.184.215.14 good.example:8080"},
		{name: "strict beside it, address", site: "strict", target: "http://127.0.0.1/", want: "403 loopback"},
		{name: "strict beside it, name", site: "strict", target: "http://private.example/", want: "403 private"},
	}},
	{kind: "report, proxied", proxied: true, dns: []string{
		"_http._tcp.s-private.example =_http._tcp.s-private.example. 60 IN SRV 0 0 80 private.example.",
		"_http._tcp.s-port.example =_http._tcp.s-port.example. 60 IN SRV 0 0 8080 good.example.",
	}, attacks: []attack{
		{name: "a service", site: "report-service", target: "s-private.example", want: "200 10.1.1.1 report-service.site"},
		{name: "a port of a service", site: "report-service", target: "s-port.example", want: "200 93.184.215.14 report-service.site"},
		{name: "a static upstream", site: "report-static", target: "http://good.example/", want: "200 127.0.0.1 good.example"},
		{name: "a static upstream that is no address", site: "report-static-name", target: "http://good.example/", want: "403 not a valid address"},
		{name: "a loop is no matter of the guard", target: "http://127.0.0.1:<GATEWAY>/", want: "508 already"},
	}},
}

// TestReportMode: with `guard report` all targets are called.
func TestReportMode(t *testing.T) {
	registerRecorder()
	a := newArena(t, reportSites, reportGroups)
	a.global = "admin off"
	a.start()
	a.play(t)
}
