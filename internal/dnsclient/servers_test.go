//go:build linux

package dnsclient_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/dnsclient"
	"caddytarget/internal/testlab"
)

// These tests ask the nameservers that people run: Debian's knot, unbound,
// bind9, dnsmasq-base and dnsdist. knotd is the authority that unbound, one named
// and dnsdist ask; dnsmasq asks unbound. Each is started for the test, on free
// ports of 127.0.0.1, and asks no server but these.

// longTimeout is how long a test waits for something that has to happen.
const longTimeout = 60 * time.Second

// serverName is the name in the certificate of all servers.
const serverName = "dns.example"

// missing skips a test for want of something that CI has to have.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s, and CI is set", what)
	}
	t.Skip(what)
}

// --- zones ---

// Numbers of addresses, by the transport that an answer with so many needs.
const (
	fitsEDNS = 50   // more than 512 octets, less than 1232
	needsTCP = 400  // more than 1232
	nearMax  = 3900 // nearly 65535
)

// longest is a name of 255 octets on the wire.
var longest = strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 53) + ".example"

// numbered returns so many addresses.
func numbered(n int) []netip.Addr {
	addrs := make([]netip.Addr, n)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	}
	return addrs
}

const soa = "$TTL 300\n@ 120 SOA ns root 1 3600 600 86400 30\n@ NS ns\nns A 127.0.0.1\n"

// zones are by name, which is also that of the file.
var zones = map[string]string{
	"example": soa + `
one       A     192.0.2.1
MiXed     A     192.0.2.2
six       AAAA  2001:db8::1
six       AAAA  2001:db8::2
count     A     192.0.2.4
text      TXT   "no address"
*.wild    A     192.0.2.9
chain 200 CNAME C1
c1    100 CNAME c2
C2    150 CNAME one
dangling  CNAME nowhere
totext    CNAME text
outside   CNAME www.plain.
loop      CNAME pool
pool      CNAME loop
` + longest + ". A 192.0.2.5\n" + many("edns", fitsEDNS) + many("tcp", needsTCP),
	"plain":   soa + "www A 192.0.2.20\n" + many("max", nearMax), // too many to be signed
	"bogus":   soa + "www A 192.0.2.66\n",
	"refused": soa + "www A 192.0.2.66\n",
}

func many(name string, n int) string {
	var b strings.Builder
	for _, a := range numbered(n) {
		fmt.Fprintf(&b, "%s A %s\n", name, a)
	}
	return b.String()
}

// --- servers ---

// server is a real nameserver.
type server struct {
	name    string
	binary  string
	args    func(s *server) []string
	config  string            // with {dir}, {port} and so on to be replaced
	schemes []string          // of its transports
	caches  bool              // TTLs count down
	checks  bool              // DNSSEC
	ports   map[string]uint16 // by scheme
	dir     string
	cmd     *exec.Cmd
	log     *lockedBuffer
	ended   chan struct{} // closed when the process is
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

var everything = []string{"udp", "tcp", "tls", "https"}

func knot() *server {
	config := `
server:
    rundir: {dir}
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: {dir}
log:
  - target: stderr
    any: info
template:
  - id: default
    storage: {dir}
    zonefile-sync: -1
    file: "%s.zone"
policy:
  - id: sign
    algorithm: ecdsap256sha256
zone:
  - domain: plain
  - domain: dead
  - domain: example
    dnssec-signing: on
    dnssec-policy: sign
  - domain: bogus
    dnssec-signing: on
    dnssec-policy: sign
`
	return &server{
		name: "knotd", binary: "knotd", schemes: []string{"udp", "tcp"}, config: config,
		args: func(s *server) []string { return []string{"-c", s.dir + "/config"} },
	}
}

func unbound() *server {
	return &server{
		name: "unbound", binary: "unbound", schemes: everything, caches: true, checks: true,
		args: func(s *server) []string { return []string{"-d", "-p", "-c", s.dir + "/config"} },
		config: `
server:
    username: ""
    chroot: ""
    directory: "{dir}"
    use-syslog: no
    interface: 127.0.0.1@{port}
    interface: 127.0.0.1@{tls}
    interface: 127.0.0.1@{https}
    tls-port: {tls}
    https-port: {https}
    tls-service-pem: "{certificate}"
    tls-service-key: "{private key}"
    incoming-num-tcp: 100
    do-not-query-localhost: no
    module-config: "validator iterator"
    trust-anchor: "example. {key}"
    trust-anchor: "bogus. {wrongkey}"
    local-zone: "refused." refuse
stub-zone:
    name: "."
    stub-addr: 127.0.0.1@{knotd}
stub-zone:
    name: "example"
    stub-addr: 127.0.0.1@{knotd}
stub-zone:
    name: "plain"
    stub-addr: 127.0.0.1@{knotd}
stub-zone:
    name: "bogus"
    stub-addr: 127.0.0.1@{knotd}
forward-zone:
    name: "dead"
    forward-addr: 127.0.0.1@{knotd}
`,
	}
}

const namedOptions = `
tls local { cert-file "{certificate}"; key-file "{private key}"; };
http local { endpoints { "/dns-query"; }; };
controls { };
options {
	directory "{dir}";
	pid-file none;
	session-keyfile none;
	listen-on port {port} { 127.0.0.1; };
	listen-on port {tls} tls local { 127.0.0.1; };
	listen-on port {https} tls local http local { 127.0.0.1; };
	listen-on-v6 { none; };
	empty-zones-enable no;
	notify no;
	max-records-per-type 0;
`

func named() *server {
	config := namedOptions + "\trecursion no;\n\tdnssec-validation no;\n};\n" + `
zone "example" { type primary; file "example.zone"; };
zone "plain" { type primary; file "plain.zone"; };
zone "dead" { type primary; file "dead.zone"; };
zone "refused" { type primary; file "refused.zone"; allow-query { none; }; };
`
	return &server{name: "named", binary: "named", schemes: everything, config: config, args: namedArgs}
}

func namedForwarding() *server {
	config := namedOptions + `
	recursion yes;
	forward only;
	forwarders { 127.0.0.1 port {knotd}; };
	dnssec-validation yes;
	validate-except { "plain"; "dead"; };
};
trust-anchors { example. static-key {key quoted}; bogus. static-ds {wrongds quoted}; };
zone "refused" { type primary; file "refused.zone"; allow-query { none; }; };
`
	return &server{name: "named forwarding", binary: "named", schemes: everything, caches: true, checks: true, config: config, args: namedArgs}
}

func namedArgs(s *server) []string { return []string{"-g", "-n", "1", "-c", s.dir + "/config"} }

func dnsmasq() *server {
	return &server{
		name: "dnsmasq", binary: "dnsmasq", schemes: []string{"udp", "tcp"}, caches: true,
		args: func(s *server) []string { return []string{"-k", "-C", s.dir + "/config"} },
		config: `
user=root
group=root
port={port}
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
pid-file=
log-facility=-
# what comes over TCP goes into the cache without links of CNAME chains, and
# NXDOMAIN as NODATA
cache-size=0
server=/example/127.0.0.1#{unbound}
server=/plain/127.0.0.1#{unbound}
server=/dead/127.0.0.1#{unbound}
`,
	}
}

func dnsdist() *server {
	return &server{
		name: "dnsdist", binary: "dnsdist", schemes: everything, caches: true,
		args: func(s *server) []string { return []string{"--supervised", "--disable-syslog", "-C", s.dir + "/config"} },
		config: `
setSecurityPollSuffix("")
setLocal("127.0.0.1:{port}")
addTLSLocal("127.0.0.1:{tls}", "{certificate}", "{private key}")
addDOHLocal("127.0.0.1:{https}", "{certificate}", "{private key}", "/dns-query")
newServer("127.0.0.1:{knotd}"):setUp()
getPool(""):setCache(newPacketCache(10000))
`,
	}
}

// start runs s with a configuration in a new folder until the test is over.
func (s *server) start(t testing.TB, ca *testlab.Authority, others ...*server) {
	t.Helper()
	path, err := exec.LookPath(s.binary)
	if err != nil {
		missing(t, "the nameserver "+s.binary+" is not installed")
	}
	s.dir = t.TempDir()
	s.binary = path
	for name, text := range zones {
		s.write(t, name+".zone", "$ORIGIN "+name+".\n"+text)
	}

	certFile, keyFile := ca.Files(t, serverName)
	pairs := []string{"{dir}", s.dir, "{certificate}", certFile, "{private key}", keyFile}
	for _, other := range others {
		pairs = append(pairs, "{"+other.name+"}", fmt.Sprint(other.ports["udp"]))
		if other.name == "knotd" {
			pairs = append(pairs, other.anchors(t)...)
		}
	}
	// another process may take a port before the server does
	for try := 1; ; try++ {
		p := freePorts(t, 3)
		s.ports = map[string]uint16{"udp": p[0], "tcp": p[0], "tls": p[1], "https": p[2]}
		ports := strings.NewReplacer(append([]string{
			"{port}", fmt.Sprint(p[0]), "{tls}", fmt.Sprint(p[1]), "{https}", fmt.Sprint(p[2]),
		}, pairs...)...)
		s.write(t, "config", ports.Replace(s.config))
		err := s.run(t)
		if err == nil {
			break
		}
		if try == 3 || !errors.Is(err, errEnded) {
			t.Fatalf("%s: %v\n%s", s.name, err, s.log)
		}
	}
	t.Cleanup(s.kill)
}

func (s *server) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

var errEnded = errors.New("it has ended")

// run starts the process and waits until it answers everywhere.
func (s *server) run(t testing.TB) error {
	t.Helper()
	s.log = new(lockedBuffer)
	cmd := exec.Command(s.binary, s.args(s)...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.Dir = s.dir
	// a group, since dnsmasq forks; and the end of this process, however it
	// comes, is the end of the server
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	s.cmd, s.ended = cmd, make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the end of this thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(s.ended)
	}()
	if err := <-started; err != nil {
		return err
	}

	for deadline := time.Now().Add(longTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
			return errEnded
		default:
		}
		if s.answers() {
			return nil
		}
	}
	s.kill()
	return errors.New("it does not answer")
}

// answers reports whether s is ready.
func (s *server) answers() bool {
	for _, scheme := range s.schemes {
		address := fmt.Sprint("127.0.0.1:", s.ports[scheme])
		if scheme != "udp" {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return false
			}
			conn.Close()
			continue
		}
		client := dns.Client{Timeout: time.Second}
		reply, _, err := client.Exchange(new(dns.Msg).SetQuestion("one.example.", dns.TypeA), address)
		if err != nil || len(reply.Answer) == 0 {
			return false
		}
	}
	return true
}

// kill ends the process and waits for it.
func (s *server) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.ended
}

// anchors returns the trust anchors for the configurations of validating servers:
// the key of s for example, and a wrong one for bogus.
func (s *server) anchors(t testing.TB) []string {
	t.Helper()
	client := dns.Client{Net: "tcp", Timeout: longTimeout}
	reply, _, err := client.Exchange(new(dns.Msg).SetQuestion("example.", dns.TypeDNSKEY), fmt.Sprint("127.0.0.1:", s.ports["tcp"]))
	if err != nil {
		t.Fatal(err)
	}
	for _, rr := range reply.Answer {
		if key, ok := rr.(*dns.DNSKEY); ok && key.Flags == 257 {
			wrong := strings.Repeat("00", 32)
			return []string{
				"{key}", fmt.Sprintf("DNSKEY %d %d %d %s", key.Flags, key.Protocol, key.Algorithm, key.PublicKey),
				"{key quoted}", fmt.Sprintf("%d %d %d %q", key.Flags, key.Protocol, key.Algorithm, key.PublicKey),
				"{wrongkey}", "DS 1 13 2 " + wrong,
				"{wrongds quoted}", fmt.Sprintf("1 13 2 %q", wrong),
			}
		}
	}
	t.Fatalf("got %v, want a key for signing keys in it", reply)
	return nil
}

// freePorts returns ports that are free for UDP and TCP, below those that the
// system gives to clients.
func freePorts(t testing.TB, n int) (ports []uint16) {
	t.Helper()
	for range 10_000 {
		port := uint16(10_000 + rand.IntN(20_000))
		address := fmt.Sprint("127.0.0.1:", port)
		udp, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		udp.Close()
		tcp, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		tcp.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	t.Fatal("no port is free")
	return nil
}

// --- taps ---

// tap forwards between a client and one port of a server, and records messages
// and connections.
type tap struct {
	port uint16

	mu      sync.Mutex
	queries [][]byte // that came in datagrams
	replies [][]byte // that went in datagrams
	conns   int      // over TCP
}

func newTap(t testing.TB, server uint16) *tap {
	t.Helper()
	p := &tap{port: freePorts(t, 1)[0]}
	address := fmt.Sprint("127.0.0.1:", p.port)
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	to := fmt.Sprint("127.0.0.1:", server)

	var running sync.WaitGroup
	var open []io.Closer
	hold := func(c ...io.Closer) {
		p.mu.Lock()
		defer p.mu.Unlock()
		open = append(open, c...)
	}
	running.Go(func() { p.relayPackets(packets, to, &running, hold) })
	running.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			hold(from)
			p.mu.Lock()
			p.conns++
			p.mu.Unlock()
			conn, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				continue
			}
			hold(conn)
			for _, pair := range [][2]net.Conn{{from, conn}, {conn, from}} {
				running.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					from.Close()
					conn.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		packets.Close()
		listener.Close()
		for range 2 { // a connection may have been accepted in the meantime
			p.mu.Lock()
			for _, c := range open {
				c.Close()
			}
			p.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
		running.Wait()
	})
	return p
}

func (p *tap) relayPackets(packets net.PacketConn, to string, running *sync.WaitGroup, hold func(...io.Closer)) {
	clients := make(map[string]net.Conn)
	buf := make([]byte, 65535)
	for {
		n, from, err := packets.ReadFrom(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.queries = append(p.queries, bytes.Clone(buf[:n]))
		p.mu.Unlock()
		conn := clients[from.String()]
		if conn == nil {
			if conn, err = net.Dial("udp", to); err != nil {
				continue
			}
			hold(conn)
			clients[from.String()] = conn
			running.Go(func() {
				buf := make([]byte, 65535)
				for {
					n, err := conn.Read(buf)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err != nil {
						continue // the server does not listen now
					}
					p.mu.Lock()
					p.replies = append(p.replies, bytes.Clone(buf[:n]))
					p.mu.Unlock()
					_, _ = packets.WriteTo(buf[:n], from)
				}
			})
		}
		_, _ = conn.Write(buf[:n])
	}
}

func (p *tap) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns
}

// datagrams returns the messages that went in datagrams.
func (p *tap) datagrams(t testing.TB) (queries, replies []*dns.Msg) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	unpack := func(all [][]byte) (msgs []*dns.Msg) {
		for _, b := range all {
			m := new(dns.Msg)
			if err := m.Unpack(b); err != nil {
				t.Errorf("got %x, %v; want a DNS message", b, err)
			}
			msgs = append(msgs, m)
		}
		return msgs
	}
	return unpack(p.queries), unpack(p.replies)
}

// nameserver returns a server, behind a port, as a user would write it.
func nameserver(t testing.TB, scheme, name string, port uint16) dnsclient.Nameserver {
	t.Helper()
	ns, err := dnsclient.ParseNameserver(uri(scheme, name, port))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func uri(scheme, name string, port uint16) string {
	s := fmt.Sprintf("%s://127.0.0.1:%d", scheme, port)
	switch scheme {
	case "tls":
		s += "#" + name
	case "https":
		s += "/dns-query#" + name
	}
	return s
}

// newClient returns a client with a long timeout that ends with the test.
func newClient(t testing.TB, ca *testlab.Authority, servers ...dnsclient.Nameserver) *dnsclient.Client {
	t.Helper()
	c := dnsclient.New(servers, dnsclient.Config{Timeout: longTimeout / 3, Roots: ca.Pool()})
	t.Cleanup(c.Close)
	return c
}

// lookup asks for one name. An error must be an *Error.
func lookup(t testing.TB, c *dnsclient.Client, name string, qtype uint16) ([]netip.Addr, time.Duration, *dnsclient.Error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longTimeout)
	defer cancel()
	addrs, ttl, err := c.Lookup(ctx, name, qtype)
	slices.SortFunc(addrs, netip.Addr.Compare)
	if err == nil {
		return addrs, ttl, nil
	}
	e, ok := errors.AsType[*dnsclient.Error](err)
	if !ok {
		t.Fatalf("%s: got an error of type %T, want an *Error: %v", name, err, err)
	}
	return nil, 0, e
}

// --- tests ---

// endpoint is a server and one of its transports.
type endpoint struct {
	*server
	scheme string
}

func (e endpoint) String() string { return e.name + "/" + e.scheme }

// expectation is what a lookup has to find, on every server and transport.
type expectation struct {
	about string
	name  string
	qtype uint16 // default A

	addrs []netip.Addr
	ttl   time.Duration // of the addresses or their absence; less from a cache
	kinds []dnsclient.Kind
	rcode int // for ServerFailure

	overTCP bool // UDP does not take the answer
	only    func(*server) bool
}

func addrs(all ...string) (parsed []netip.Addr) {
	for _, s := range all {
		parsed = append(parsed, netip.MustParseAddr(s))
	}
	return parsed
}

func validates(s *server) bool { return s.checks }

var (
	notFound = []dnsclient.Kind{dnsclient.NotFound}
	noData   = []dnsclient.Kind{dnsclient.NoData}
	failure  = []dnsclient.Kind{dnsclient.ServerFailure}
)

var expectations = []expectation{
	{about: "one address", name: "one.example", addrs: addrs("192.0.2.1"), ttl: 300 * time.Second},
	{about: "AAAA", name: "six.example", qtype: dns.TypeAAAA, addrs: addrs("2001:db8::1", "2001:db8::2"), ttl: 300 * time.Second},
	{about: "mixed case in the zone", name: "mixed.example", addrs: addrs("192.0.2.2"), ttl: 300 * time.Second},
	{about: "mixed case in the question", name: "oNe.EXAMPLE", addrs: addrs("192.0.2.1"), ttl: 300 * time.Second},
	{about: "name of 255 octets", name: longest, addrs: addrs("192.0.2.5"), ttl: 300 * time.Second},
	{about: "wildcard", name: "any.thing.wild.example", addrs: addrs("192.0.2.9"), ttl: 300 * time.Second},
	{about: "zone without signatures", name: "www.plain", addrs: addrs("192.0.2.20"), ttl: 300 * time.Second},

	{about: "more than 512 octets", name: "edns.example", addrs: numbered(fitsEDNS), ttl: 300 * time.Second},
	{about: "more than 1232 octets", name: "tcp.example", addrs: numbered(needsTCP), ttl: 300 * time.Second, overTCP: true},
	{about: "nearly 65535 octets", name: "max.plain", addrs: numbered(nearMax), ttl: 300 * time.Second, overTCP: true},

	{about: "CNAME chain", name: "chain.example", addrs: addrs("192.0.2.1"), ttl: 100 * time.Second},
	{about: "CNAME to another zone", name: "outside.example", addrs: addrs("192.0.2.20"), ttl: 300 * time.Second},
	{about: "CNAME to a name that does not exist", name: "dangling.example", kinds: notFound, ttl: 30 * time.Second},
	{about: "CNAME to a name without address", name: "totext.example", kinds: noData, ttl: 30 * time.Second},
	{about: "CNAME loop", name: "loop.example", kinds: []dnsclient.Kind{dnsclient.Malformed, dnsclient.ServerFailure}, rcode: -1},

	{about: "NXDOMAIN", name: "nowhere.example", kinds: notFound, ttl: 30 * time.Second},
	{about: "NXDOMAIN below a name", name: "no.where.at.all.example", kinds: notFound, ttl: 30 * time.Second},
	{about: "NODATA", name: "one.example", qtype: dns.TypeAAAA, kinds: noData, ttl: 30 * time.Second},
	{about: "NODATA of a wildcard", name: "x.wild.example", qtype: dns.TypeAAAA, kinds: noData, ttl: 30 * time.Second},
	{about: "NODATA of an empty non-terminal", name: "wild.example", kinds: noData, ttl: 30 * time.Second},

	{about: "SERVFAIL", name: "www.dead", kinds: failure, rcode: dns.RcodeServerFailure},
	{about: "SERVFAIL of bad signatures", name: "www.bogus", kinds: failure, rcode: dns.RcodeServerFailure, only: validates},
	{about: "REFUSED", name: "www.refused", kinds: failure, rcode: dns.RcodeRefused},
}

func TestRealServers(t *testing.T) {
	ca := testlab.NewAuthority(t)
	var servers []*server
	for _, s := range []*server{knot(), unbound(), named(), namedForwarding(), dnsmasq(), dnsdist()} {
		s.start(t, ca, servers...)
		servers = append(servers, s)
	}
	t.Run("servers", func(t *testing.T) {
		for _, s := range servers {
			for _, scheme := range s.schemes {
				e := endpoint{s, scheme}
				t.Run(e.String(), func(t *testing.T) {
					t.Parallel()
					for _, x := range expectations {
						if x.only == nil || x.only(s) {
							t.Run(x.about, func(t *testing.T) { x.check(t, ca, e) })
						}
					}
					t.Run("second server", func(t *testing.T) { secondServer(t, ca, e) })
					if e.scheme == "udp" { // the other transports do not depend on it
						t.Run("EDNS", func(t *testing.T) { seesEDNS(t, ca, e) })
					}
					t.Run("2000 names", func(t *testing.T) { manyNames(t, ca, e) })
					if e.scheme == "tls" || e.scheme == "https" {
						t.Run("another name in the certificate", func(t *testing.T) { otherName(t, ca, e) })
					}
					t.Run("TTL counts down", func(t *testing.T) { ttlCounts(t, ca, e) })
				})
			}
		}
	})
}

// check looks a name up with a client of its own.
func (x expectation) check(t *testing.T, ca *testlab.Authority, e endpoint) {
	p := newTap(t, e.ports[e.scheme])
	c := newClient(t, ca, nameserver(t, e.scheme, serverName, p.port))
	qtype := x.qtype
	if qtype == 0 {
		qtype = dns.TypeA
	}
	addrs, ttl, err := lookup(t, c, x.name, qtype)

	switch {
	case x.kinds == nil && err != nil:
		t.Fatal(err)
	case x.kinds == nil && !slices.Equal(addrs, x.addrs):
		t.Errorf("got %d addresses, want %d: %.300s", len(addrs), len(x.addrs), fmt.Sprint(addrs))
	case x.kinds != nil && err == nil:
		t.Fatalf("got %v, want an error", addrs)
	case x.kinds != nil && !slices.Contains(x.kinds, err.Kind):
		t.Errorf("got kind %d, want one of %d: %v", err.Kind, x.kinds, err)
	case x.kinds != nil && err.Kind == dnsclient.ServerFailure && x.rcode >= 0 && err.Rcode != x.rcode:
		t.Errorf("got %s, want %s: %v", dns.RcodeToString[err.Rcode], dns.RcodeToString[x.rcode], err)
	}
	if err != nil {
		ttl, _ = err.Negative()
		if last := err.Tries[len(err.Tries)-1]; last.Transport != e.scheme {
			t.Errorf("the last try was over %s, want %s", last.Transport, e.scheme)
		}
	}
	if x.kinds != nil && ttl < 0 || ttl > x.ttl || !e.caches && ttl < x.ttl {
		t.Errorf("TTL %s, want %s", ttl, x.ttl)
	}
	if n := p.connections(); e.scheme == "udp" && n > 0 != x.overTCP {
		t.Errorf("%d connections over TCP, want some: %v", n, x.overTCP)
	}
	if queries, _ := p.datagrams(t); e.scheme != "udp" && len(queries) > 0 {
		t.Errorf("%d queries over UDP, want 0", len(queries))
	}
}

// secondServer: if a server refuses, the next one is asked.
func secondServer(t *testing.T, ca *testlab.Authority, e endpoint) {
	other := testlab.NewScript(t, func(q *testlab.Query) { q.Reply(q.Answer(q.Question[0].Name + " 60 A 192.0.2.77")) }, nil)
	second := nameserver(t, "udp", "", netip.MustParseAddrPort(other.Addr).Port())
	c := newClient(t, ca, nameserver(t, e.scheme, serverName, e.ports[e.scheme]), second)
	for _, name := range []string{"www.refused", "www.dead"} {
		got, _, err := lookup(t, c, name, dns.TypeA)
		if err != nil || !slices.Equal(got, addrs("192.0.2.77")) {
			t.Errorf("%s: got %v, %v; want 192.0.2.77", name, got, err)
		}
	}
}

// seesEDNS: queries offer 1232 octets, and the server knows what that means.
func seesEDNS(t *testing.T, ca *testlab.Authority, e endpoint) {
	p := newTap(t, e.ports[e.scheme])
	c := newClient(t, ca, nameserver(t, e.scheme, serverName, p.port))
	if _, _, err := lookup(t, c, "edns.example", dns.TypeA); err != nil {
		t.Fatal(err)
	}
	queries, replies := p.datagrams(t)
	if len(queries) != 1 || len(replies) != 1 {
		t.Fatalf("%d queries, %d replies; want 1 and 1", len(queries), len(replies))
	}
	if opt := queries[0].IsEdns0(); opt == nil || opt.UDPSize() != 1232 || opt.Version() != 0 || opt.Do() {
		t.Errorf("asked with %v, want EDNS with a size of 1232", opt)
	}
	if replies[0].IsEdns0() == nil || replies[0].Truncated || len(replies[0].Answer) != fitsEDNS {
		t.Errorf("got %v, want EDNS and %d addresses", replies[0], fitsEDNS)
	}
}

// manyNames asks for many names at the same time, over one connection if the
// transport has connections.
func manyNames(t *testing.T, ca *testlab.Authority, e endpoint) {
	p := newTap(t, e.ports[e.scheme])
	c := newClient(t, ca, nameserver(t, e.scheme, serverName, p.port))
	names, atOnce := 2000, 50
	if e.name == "dnsmasq" {
		names = 500 // it forks for each connection, and closes it after 100 queries
	}
	var wg sync.WaitGroup
	for worker := range atOnce {
		wg.Go(func() {
			for i := worker; i < names; i += atOnce {
				name := fmt.Sprintf("n%d.%s.wild.example", i, strings.ReplaceAll(e.scheme+e.name, " ", "-"))
				if got, _, err := lookup(t, c, name, dns.TypeA); err != nil || !slices.Equal(got, addrs("192.0.2.9")) {
					t.Errorf("%s: got %v, %v; want 192.0.2.9", name, got, err)
				}
			}
		})
	}
	wg.Wait()
	want := 2 // the second in case that the server loses a query
	for _, ns := range c.Stats() {
		want += 2 * int(ns.Queries.Timeouts) // each may cost the connection, and the query goes over one of its own
	}
	if e.name == "dnsmasq" {
		want = names / 100 * (1 + atOnce) // each end costs all in flight one of their own
	}
	if n := p.connections(); e.scheme != "udp" && n > want {
		t.Errorf("%d connections, want %d at most", n, want)
	}
}

// otherName: a certificate for another name is no answer, and nothing else is
// tried instead of TLS.
func otherName(t *testing.T, ca *testlab.Authority, e endpoint) {
	p := newTap(t, e.ports[e.scheme])
	for about, c := range map[string]*dnsclient.Client{
		"another name":      newClient(t, ca, nameserver(t, e.scheme, "other.example", p.port)),
		"another authority": newClient(t, testlab.NewAuthority(t), nameserver(t, e.scheme, serverName, p.port)),
	} {
		got, _, err := lookup(t, c, "one.example", dns.TypeA)
		if err == nil || err.Kind != dnsclient.Network {
			t.Errorf("%s: got %v, %v; want an error of kind Network", about, got, err)
		}
	}
	if queries, _ := p.datagrams(t); len(queries) > 0 {
		t.Errorf("%d queries over UDP, want 0", len(queries))
	}
}

// ttlCounts: the TTLs of answers from a cache decrease.
func ttlCounts(t *testing.T, ca *testlab.Authority, e endpoint) {
	c := newClient(t, ca, nameserver(t, e.scheme, serverName, e.ports[e.scheme]))
	_, before, err := lookup(t, c, "count.example", dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 2*time.Second || e.caches && time.Since(start) < longTimeout; {
		time.Sleep(200 * time.Millisecond) // the clock is the server's
		_, ttl, err := lookup(t, c, "count.example", dns.TypeA)
		switch {
		case err != nil:
			t.Fatal(err)
		case e.caches && ttl < before:
			return
		case !e.caches && ttl != before:
			t.Fatalf("got TTL %s, and then %s; want the same", before, ttl)
		}
	}
	if e.caches {
		t.Errorf("got TTL %s for %s, want it to count down", before, longTimeout)
	}
}

// TestRealServerRestarts: a server that stops and starts again is used again, and
// a restart between two lookups fails no lookup.
func TestRealServerRestarts(t *testing.T) {
	ca := testlab.NewAuthority(t)
	authority := knot()
	authority.start(t, ca)
	for _, s := range []*server{named(), unbound(), dnsdist()} {
		s.start(t, ca, authority)
		clients := make(map[string]*dnsclient.Client)
		for _, scheme := range s.schemes {
			t.Run(endpoint{s, scheme}.String(), func(t *testing.T) { nameserver(t, scheme, serverName, 1) }) // skips if it is missing
			if ns, err := dnsclient.ParseNameserver(uri(scheme, serverName, s.ports[scheme])); err == nil {
				clients[scheme] = newClient(t, ca, ns)
			}
		}
		one := func(c *dnsclient.Client) error {
			if got, _, err := lookup(t, c, "one.example", dns.TypeA); err != nil || !slices.Equal(got, addrs("192.0.2.1")) {
				return fmt.Errorf("got %v, want 192.0.2.1: %w", got, err)
			}
			return nil
		}
		all := func(when string) {
			for scheme, c := range clients {
				if err := one(c); err != nil {
					t.Errorf("%s over %s, %s: %v", s.name, scheme, when, err)
				}
			}
		}

		all("at first")
		s.kill()
		if err := s.run(t); err != nil {
			t.Fatalf("%s: %v\n%s", s.name, err, s.log)
		}
		all("after a restart")

		s.kill()
		for scheme, c := range clients {
			if err := one(c); err == nil {
				t.Errorf("%s over %s answers after its end, want an error", s.name, scheme)
			}
		}
		if err := s.run(t); err != nil {
			t.Fatalf("%s: %v\n%s", s.name, err, s.log)
		}
		for scheme, c := range clients {
			start := time.Now()
			var err error
			for err = one(c); err != nil && time.Since(start) < longTimeout; err = one(c) {
				time.Sleep(10 * time.Millisecond)
			}
			if err != nil {
				t.Errorf("%s over %s: %v; it has been back for %s, want an answer", s.name, scheme, err, longTimeout)
			}
			t.Logf("%s over %s: used again after %s", s.name, scheme, time.Since(start).Round(time.Millisecond))
		}
		s.kill()
	}
}
