package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"caddytarget/internal/testlab"
)

// side is one of the things that are compared. Each has a caddy and backends of
// its own, so that the CPU time of one is not counted for another.
type side struct {
	name     string
	address  string
	admin    int
	header   string // in which values are sent, one with each request
	values   []string
	names    *nameserver // nil unless it has targets
	backends *backendProcess
	*process

	found        map[string][]float64 // what was measured, one value a round
	sent, failed int64
	opened       int64 // connections to backends, while it was measured
	asked        int64 // DNS queries
}

// The names of sides.
const (
	staticA  = "static A"
	staticB  = "static B"        // the same again: what it differs is noise
	byDomain = "stock by domain" // an address for each domain, which the request names: as many connections
	target   = "target"
	sharing  = "target with share_connections"
)

// sidesOf describes what is compared.
type sidesOf struct {
	protocolOf
	domains int
	ttl     time.Duration
	addrs   int // of the names of targets in all, and of static upstreams
	names   []string
}

// fewAddrs is how many addresses there are where it does not matter.
const fewAddrs = 8

// sides starts what is compared, and calls each domain once.
func (l *lab) sides(of sidesOf) []*side {
	l.options = fmt.Sprintf("timeout 500ms\n\t\t\tdeadline 2s\n\t\t\tcache_size %d", max(100_000, of.domains+1000))
	var list []*side
	for _, name := range of.names {
		s := &side{name: name, admin: freePort(), header: "X-Target", found: make(map[string][]float64)}
		s.backends = l.spawnBackends(of.protocol, of.scheme == "https")
		port := freePort()
		s.address = address(port)
		s.values = targets(of.scheme, of.domains, s.backends.Port)
		var config string
		switch name {
		case target, sharing:
			s.names = l.newNameserver()
			s.names.ttl = uint32(of.ttl.Seconds())
			for i := range of.addrs {
				s.names.addrs = append(s.names.addrs, loopback(i+1))
			}
			l.names = s.names
			more := "keepalive 10m\n\t\tkeepalive_idle_conns " + strconv.Itoa(openFiles()-1000)
			if s.backends.CA != "" {
				more += "\n\t\ttls_trust_pool file " + s.backends.CA
			}
			if name == sharing {
				more += "\n\t\tshare_connections"
			}
			config = l.gateway(port, s.admin, more)
			if name == sharing && !l.adapts(config) {
				fmt.Println("this caddy does not know share_connections")
				continue
			}
		case byDomain:
			s.header, s.values = "X-Upstream", nil
			for i := range of.domains {
				s.values = append(s.values, netip.AddrPortFrom(loopback(i+1), uint16(s.backends.Port)).String())
			}
			config = stock(port, s.admin, s.backends.CA, "", "{http.request.header.X-Upstream}")
		default:
			var upstreams []string
			for i := range of.addrs {
				upstreams = append(upstreams, netip.AddrPortFrom(loopback(i+1), uint16(s.backends.Port)).String())
			}
			config = stock(port, s.admin, s.backends.CA, "", upstreams...)
		}
		s.process = l.spawn(config, s.address)
		l.Cleanup(s.end)
		if s.names != nil || name == byDomain {
			s.callEach()
		}
		list = append(list, s)
	}
	return list
}

// callEach calls each domain once.
func (s *side) callEach() {
	c := &conns{address: s.address, limit: 64, header: s.header}
	defer c.close()
	r := closedLoop(c.get, 64, len(s.values), func(i int) string { return s.values[i] })
	if r.Failed > 0 {
		fmt.Printf("%s, each domain once: %s\n", s.name, r.failures())
	}
}

// stock is a Caddyfile with a site that has a reverse_proxy without targets, over
// TLS if there is a file with an authority.
func stock(port, admin int, ca, more string, upstreams ...string) string {
	tls := ""
	if ca != "" {
		tls = "\n\t\t\ttls\n\t\t\ttls_server_name static.test\n\t\t\ttls_trust_pool file " + ca
		more = "header_up Host static.test:1\n\t\t" + more
	}
	return fmt.Sprintf(`{
	admin 127.0.0.1:%d
	auto_https off
}
http://127.0.0.1:%d {
	reverse_proxy %s {
		transport http {
			keepalive 10m
			keepalive_idle_conns_per_host 512%s
		}
		%s
	}
}
`, admin, port, strings.Join(upstreams, " "), tls, more)
}

// adapts reports whether caddy knows all that a Caddyfile says.
func (l *lab) adapts(config string) bool {
	path := filepath.Join(l.dir, "Caddyfile.try")
	must(os.WriteFile(path, []byte(config), 0o600))
	return exec.Command(*caddyPath, "adapt", "--adapter", "caddyfile", "--config", path).Run() == nil
}

// openFiles returns how many descriptors a process may have.
func openFiles() int {
	var limit syscall.Rlimit
	must(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	return int(min(limit.Max, 1<<20))
}

// inTurn measures the sides again and again, each round in another order, after a
// round that does not count. measure returns what it found, and how many requests
// were sent and failed.
func inTurn(rounds int, sides []*side, measure func(*side) (found map[string]float64, sent, failed int64)) {
	for round := range rounds + 1 {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			opened, asked := s.backends.count().Opened, s.queries()
			found, sent, failed := measure(s)
			if round == 0 {
				continue
			}
			for what, value := range found {
				s.found[what] = append(s.found[what], value)
			}
			s.sent, s.failed = s.sent+sent, s.failed+failed
			s.opened, s.asked = s.opened+s.backends.count().Opened-opened, s.asked+s.queries()-asked
		}
	}
}

func (s *side) queries() int64 {
	if s.names == nil {
		return 0
	}
	return s.names.queries.Load()
}

// String returns how many requests there were.
func (s *side) String() string {
	text := fmt.Sprintf("%d of %d failed, %d connections opened, %d open", s.failed, s.sent, s.opened, s.backends.count().Open)
	if s.names != nil {
		text += fmt.Sprintf(", %d DNS queries", s.asked)
	}
	return text
}

// over returns what a measure of the other sides is over that of the first one: the
// median of the rounds, and the smallest and the greatest.
func over(what string, sides []*side) string {
	var parts []string
	for _, s := range sides[1:] {
		list := ratios(s.found[what], sides[0].found[what])
		parts = append(parts, fmt.Sprintf("%s %.3f (%.2f–%.2f)", s.name, median(list), slices.Min(list), slices.Max(list)))
	}
	return fmt.Sprintf("%s over that of %s: %s", what, sides[0].name, strings.Join(parts, ", "))
}

// cpuTime and perSecond are what compareCPU measures.
const (
	cpuTime   = "CPU a request"
	perSecond = "requests/s"
)

// compareCPU loads the sides with wrk, closed loop.
func (l *lab) compareCPU(of sidesOf) []*side {
	sides := l.sides(of)
	inTurn(*rounds, sides, func(s *side) (map[string]float64, int64, int64) {
		cpu := s.cpu()
		n, failed := l.wrk("http://"+s.address+"/path?q=1", s.header, s.values)
		used := s.cpu() - cpu
		return map[string]float64{cpuTime: float64(used.Microseconds()) / float64(n), perSecond: float64(n) / float64(*seconds)}, n, failed
	})
	fmt.Printf("%s, %d domains, TTL %s, %d connections of wrk, medians of %d interleaved runs of %d s:\n",
		of.protocolOf, of.domains, of.ttl, *wrkConns, *rounds, *seconds)
	for _, s := range sides {
		fmt.Printf("  %-29s %6.0f requests/s  %6.1f µs CPU a request  %s\n", s.name, median(s.found[perSecond]), median(s.found[cpuTime]), s)
	}
	fmt.Printf("  %s\n  %s\n", over(cpuTime, sides), over(perSecond, sides))
	return sides
}

// throughput compares 500 domains with static upstreams, and those with
// themselves.
func throughput(l *lab) {
	sides := l.compareCPU(sidesOf{protocols[0], 500, 5 * time.Second, fewAddrs, []string{staticA, staticB, target}})
	if *profile != "" {
		s := sides[len(sides)-1]
		go l.wrk("http://"+s.address+"/path?q=1", s.header, s.values)
		l.writeProfile(s.admin)
	}
}

// cpu compares the CPU time of a request at several numbers of domains and over
// several protocols.
func cpu(l *lab) {
	for _, p := range protocols {
		if !slices.Contains(strings.Split(*protocolList, ","), p.flag()) {
			continue
		}
		for size := range strings.SplitSeq(*domainCounts, ",") {
			n, err := strconv.Atoi(size)
			must(err)
			if p.scheme == "https" && n > 500 {
				continue
			}
			of := sidesOf{p, n, 5 * time.Second, fewAddrs, []string{staticA, staticB, byDomain, target, sharing}}
			if n > 10_000 {
				of.ttl = 5 * time.Minute
			}
			if n > openFiles()/2 { // caddy would run out of descriptors
				of.names = slices.DeleteFunc(of.names, func(name string) bool { return name == byDomain })
			}
			l.compareCPU(of)
			l.restart()
		}
	}
}

// openLoops compares how long requests take at a rate that is far from the highest.
func openLoops(l *lab) {
	const rate, domains = 1000, 500
	count, duration := given("rounds", 20), time.Duration(given("seconds", 3))*time.Second
	sides := l.sides(sidesOf{protocols[0], domains, 5 * time.Second, fewAddrs, []string{staticA, staticB, target, sharing}})
	measures := []struct {
		name string
		q    float64
	}{{"p50", .5}, {"p99", .99}, {"p99.9", .999}}
	inTurn(count, sides, func(s *side) (map[string]float64, int64, int64) {
		r := knownLoad{s.address, rate, duration, domains, s.backends.Port}.run()
		found := make(map[string]float64)
		for _, m := range measures {
			found[m.name] = r.quantile(m.q).Seconds() * 1e3
		}
		return found, int64(r.Sent), int64(r.Failed)
	})
	fmt.Printf("%d requests/s to %d domains, medians of %d interleaved runs of %s:\n", rate, domains, count, duration)
	for _, s := range sides {
		fmt.Printf("  %-29s", s.name)
		for _, m := range measures {
			fmt.Printf("  %s %.2f ms", m.name, median(s.found[m.name]))
		}
		fmt.Printf("  %s\n", s)
	}
	for _, m := range measures {
		base := median(sides[0].found[m.name])
		fmt.Printf("  ratio of medians, %s:", m.name)
		for _, s := range sides[1:] {
			fmt.Printf("  %s %.3f", s.name, median(s.found[m.name])/base)
		}
		fmt.Printf("; %s\n", over(m.name, sides))
	}
}

// backendSpec is what a process of backends is told.
type backendSpec struct {
	Dir      string
	Protocol string
	TLS      bool
}

// backendVar tells a process that it is one for backends.
const backendVar = "CADDYTARGET_BENCH_BACKENDS"

// backendProcess answers on all addresses of loopback, in a process of its own
// with descriptors of its own.
type backendProcess struct {
	Port int
	CA   string // file with the certificate of its authority, if it has TLS

	in  io.WriteCloser
	out *json.Decoder
}

// counts is what backends have counted.
type counts struct{ Opened, Open int64 }

func (l *lab) spawnBackends(protocol string, tls bool) *backendProcess {
	dir, err := os.MkdirTemp(l.dir, "backends-")
	must(err)
	spec, err := json.Marshal(backendSpec{dir, protocol, tls})
	must(err)
	self, err := os.Executable()
	must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), backendVar+"="+string(spec))
	cmd.Stderr = os.Stderr
	b := new(backendProcess)
	b.in, err = cmd.StdinPipe()
	must(err)
	out, err := cmd.StdoutPipe()
	must(err)
	must(cmd.Start())
	l.Cleanup(func() {
		b.in.Close()
		_ = cmd.Wait()
	})
	b.out = json.NewDecoder(out)
	must(b.out.Decode(b))
	return b
}

func (b *backendProcess) count() counts { return b.tell("") }

// tell tells the backends to do something, such as "close" all connections that are
// not in use.
func (b *backendProcess) tell(what string) (c counts) {
	_, err := io.WriteString(b.in, what+"\n")
	must(err)
	must(b.out.Decode(&c))
	return c
}

// here serves in this process until its standard input ends.
func (spec backendSpec) here() {
	l := &lab{dir: spec.Dir}
	p, ca := protocolOf{"http", spec.Protocol}, new(testlab.Authority)
	if spec.TLS {
		p.scheme, ca = "https", testlab.NewAuthority(l)
	}
	b := l.newBackends(p.backends(ca))
	b.listenEverywhere()
	say := json.NewEncoder(os.Stdout)
	must(say.Encode(backendProcess{Port: b.port, CA: ca.File}))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "close" {
			b.CloseIdle()
		}
		must(say.Encode(counts{b.Opened.Load(), b.Open.Load()}))
	}
}
