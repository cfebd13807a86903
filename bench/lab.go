package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"caddytarget/internal/testlab"

	"github.com/miekg/dns"
)

// lab is the world around one caddy: nameserver, backends, and the process.
type lab struct {
	dir     string
	names   *nameserver
	second  *nameserver // nil unless a scenario wants it
	options string      // of the resolver
	site    string      // more directives of the site
	limit   int         // descriptors that caddy may have, if not 0
	reloads func()      // ends the reloads of startGateway
	closers []func()
	*process
}

// process is a caddy, or another proxy, that runs.
type process struct {
	cmd *exec.Cmd
	log *os.File
}

func newLab() *lab {
	dir, err := os.MkdirTemp("", "caddytarget-bench-")
	must(err)
	l := &lab{dir: dir, options: "timeout 500ms\n\t\t\tdeadline 2s"}
	l.names = l.newNameserver()
	return l
}

// addNameserver starts a second one that has the same names.
func (l *lab) addNameserver() {
	l.second = l.newNameserver()
	l.second.addrs = l.names.addrs
	l.second.ttl = l.names.ttl
}

func (l *lab) close() {
	l.stopCaddy()
	for _, f := range slices.Backward(l.closers) {
		f()
	}
	must(os.RemoveAll(l.dir))
}

// Helper, Cleanup, Fatal, Fatalf and TempDir implement testlab.T.
func (*lab) Helper()            {}
func (l *lab) Cleanup(f func()) { l.closers = append(l.closers, f) }

// Fatal implements testlab.T.
func (*lab) Fatal(args ...any) { log.Fatal(args...) }

// Fatalf implements testlab.T.
func (*lab) Fatalf(format string, args ...any) { log.Fatalf(format, args...) }

// TempDir implements testlab.T.
func (l *lab) TempDir() string {
	dir, err := os.MkdirTemp(l.dir, "")
	must(err)
	return dir
}

// restart makes everything new.
func (l *lab) restart() {
	l.close()
	*l = *newLab()
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// startCaddy runs the caddy of the lab.
func (l *lab) startCaddy(config, address string) { l.process = l.spawn(config, address) }

// spawn runs a caddy with a Caddyfile and waits until it listens on address.
func (l *lab) spawn(config, address string) *process {
	dir, err := os.MkdirTemp(l.dir, "caddy-")
	must(err)
	path := filepath.Join(dir, "Caddyfile")
	must(os.WriteFile(path, []byte(config), 0o600))
	args := []string{*caddyPath, "run", "--config", path}
	if l.limit > 0 { // both limits: Go raises the soft one to the hard one
		args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, l.limit), "sh"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // if this process dies
	return l.run(cmd, dir, address)
}

// run starts a command, whose output goes to a file in dir, and waits until it listens
// on address.
func (l *lab) run(cmd *exec.Cmd, dir, address string) *process {
	logFile, err := os.Create(filepath.Join(dir, "output.log"))
	must(err)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	must(cmd.Start())
	for range 100 {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return &process{cmd, logFile}
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := os.ReadFile(logFile.Name())
	log.Fatalf("%s does not listen on %s:\n%s", cmd.Path, address, text)
	return nil
}

// end stops the process.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
	p.log.Close()
}

// gatewayRun is a caddy that serves l.gateway.
type gatewayRun struct {
	*conns
	admin int
}

// startGateway starts a caddy with a gateway that says why a request failed, and
// with -reloads loads another configuration each second until it is stopped.
func (l *lab) startGateway(more string) *gatewayRun {
	l.site = "handle_errors {\n\t\trespond \"{http.target.error}\" {err.status_code}\n\t}"
	port, admin := freePort(), freePort()
	config := func(i int) string {
		return l.gateway(port, admin, fmt.Sprintf("header_up X-Reload %d\n\t\t%s", i, more))
	}
	l.startCaddy(config(0), address(port))
	if *reloads {
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for i := 1; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					l.reload(config(i), address(admin))
				}
			}
		}()
		l.reloads = func() {
			close(stop)
			<-ended
		}
	}
	return &gatewayRun{&conns{address: address(port), limit: floodConns}, admin}
}

// stop stops the caddy and prints what its client met.
func (l *lab) stop(g *gatewayRun) {
	l.stopCaddy()
	g.close()
	if n := g.repeated.Load(); n > 0 {
		fmt.Printf("  %d requests met a connection that the gateway had closed, and were sent again\n", n)
	}
}

// reload loads a Caddyfile into the running caddy.
func (l *lab) reload(config, admin string) {
	res, err := http.Post("http://"+admin+"/load", "text/caddyfile", strings.NewReader(config))
	must(err)
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var text bytes.Buffer
		_, _ = text.ReadFrom(res.Body)
		log.Fatalf("reload: %s: %s", res.Status, text.String())
	}
}

func (l *lab) stopCaddy() {
	if l.process == nil {
		return
	}
	if l.reloads != nil {
		l.reloads()
		l.reloads = nil
	}
	l.end()
	l.process = nil
}

// pids returns the process and its workers.
func (p *process) pids() []int {
	pids := []int{p.cmd.Process.Pid}
	for i := 0; i < len(pids); i++ {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pids[i]))
		must(err)
		for child := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(child)
			must(err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpu returns the CPU time that the process and its workers have used.
func (p *process) cpu() time.Duration {
	var ticks int64
	for _, pid := range p.pids() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(err)
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+2:]))
		for _, f := range fields[11:13] { // utime, stime
			n, err := strconv.ParseInt(f, 10, 64)
			must(err)
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

// pss returns the resident memory of the process and its workers. What they share is
// counted once.
func (p *process) pss() (bytes int64) {
	for _, pid := range p.pids() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		must(err)
		_, rest, _ := strings.Cut(string(data), "\nPss:")
		var kB int64
		_, err = fmt.Sscan(rest, &kB)
		must(err)
		bytes += kB << 10
	}
	return bytes
}

// pprof returns what caddy says of itself.
func pprof(admin int, query string) []byte {
	get := func() ([]byte, error) {
		res, err := http.Get("http://" + address(admin) + "/debug/pprof/" + query)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		return io.ReadAll(res.Body)
	}
	data, err := get()
	if err != nil && *reloads { // which end what is under way there
		time.Sleep(100 * time.Millisecond)
		data, err = get()
	}
	must(err)
	return data
}

// writeProfile writes what -profile asks for.
func (l *lab) writeProfile(admin int) {
	must(os.WriteFile(*profile, pprof(admin, "profile?seconds="+strconv.Itoa(*seconds)), 0o600))
}

// memory returns the resident memory of caddy and the bytes on its heap after a
// collection.
func (p *process) memory(admin int) (rss, heap int64) {
	rss = p.status("VmRSS:")
	_, value, _ := strings.Cut(string(pprof(admin, "heap?gc=1&debug=1")), "# HeapAlloc = ")
	_, err := fmt.Sscan(value, &heap)
	must(err)
	return rss, heap
}

// status returns an amount of memory as the kernel counts it for caddy.
func (p *process) status(field string) (bytes int64) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	must(err)
	_, rest, _ := strings.Cut(string(data), field)
	_, err = fmt.Sscan(rest, &bytes)
	must(err)
	return bytes << 10
}

// held returns how many goroutines and descriptors caddy has.
func (p *process) held(admin int) (goroutines, descriptors int) {
	_, err := fmt.Sscanf(string(pprof(admin, "goroutine?debug=1")), "goroutine profile: total %d", &goroutines)
	must(err)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	must(err)
	return goroutines, len(entries)
}

// freePort returns a port that is free on all of loopback now.
func freePort() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// nameserver answers A questions: dN.test has the N-th of addrs, modulo their
// number, unless it was moved; names below dead.test are never answered. Of names
// below .example and .com the first letter, www. apart, is for what the
// nameserver does: e, the name exists; m, it does not; s, there is no reply.
type nameserver struct {
	addr    string
	addrs   []netip.Addr
	ttl     uint32
	silent  atomic.Bool
	delay   atomic.Int64 // of replies, in nanoseconds
	queries atomic.Int64
	dead    atomic.Int64
	perSec  sync.Map // Unix second → *atomic.Int64
	moved   sync.Map // name → []netip.Addr
	last    sync.Map // name → time.Time of the last answer

	deadAddrs []netip.Addr // each name has one of them too, if there are any
}

func (l *lab) newNameserver() *nameserver {
	n := &nameserver{ttl: 5}
	n.addr = testlab.ServeDNS(l, n)
	return n
}

// ServeDNS implements dns.Handler.
func (n *nameserver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.queries.Add(1)
	second, _ := n.perSec.LoadOrStore(time.Now().Unix(), new(atomic.Int64))
	second.(*atomic.Int64).Add(1)
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	kind := kindOf(name)
	if kind == silent || strings.HasSuffix(name, ".dead.test") {
		n.dead.Add(1)
		return
	}
	if n.silent.Load() {
		return
	}
	time.Sleep(time.Duration(n.delay.Load()))
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	index, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(name, "d"), ".test"))
	switch {
	case kind == missing:
		m.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype != dns.TypeA:
	case kind == existing:
		m.Answer = answer(q, n.ttl, n.addrs[mathrand.N(len(n.addrs))])
	case err == nil:
		if to, ok := n.moved.Load(name); ok {
			m.Answer = answer(q, n.ttl, to.([]netip.Addr)...)
		} else {
			addrs := []netip.Addr{n.addrs[index%len(n.addrs)]}
			if len(n.deadAddrs) > 0 {
				addrs = append(addrs, n.deadAddrs[index%len(n.deadAddrs)])
				mathrand.Shuffle(2, func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
			}
			m.Answer = answer(q, n.ttl, addrs...)
		}
		n.last.Store(name, time.Now())
	}
	_ = w.WriteMsg(m)
}

func answer(q *dns.Msg, ttl uint32, addrs ...netip.Addr) []dns.RR {
	records := make([]dns.RR, len(addrs))
	for i, a := range addrs {
		records[i] = &dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl},
			A:   a.AsSlice(),
		}
	}
	return records
}

// The kinds of names below .example and .com.
const (
	existing = 'e'
	missing  = 'm'
	silent   = 's'
)

func kindOf(name string) byte {
	if strings.HasSuffix(name, ".example") || strings.HasSuffix(name, ".com") {
		return strings.TrimPrefix(name, "www.")[0]
	}
	return 0
}

// since returns the peak of queries in one second from a moment on, and their sum.
func (n *nameserver) since(from time.Time) (peak, sum int64) {
	n.perSec.Range(func(second, count any) bool {
		if second.(int64) > from.Unix() {
			c := count.(*atomic.Int64).Load()
			peak, sum = max(peak, c), sum+c
		}
		return true
	})
	return peak, sum
}

// backends answer on several addresses and one port.
type backends struct {
	*testlab.Backend
	port    int
	delay   time.Duration // of responses
	closing bool          // each response ends its connection
	begun   sync.Map      // X-Id of requests that came
}

// startBackends listens on n addresses from 127.0.1.1 on.
func (l *lab) startBackends(n int, config testlab.BackendConfig) *backends {
	b := l.newBackends(config)
	for i := range n {
		addr := loopback(i + 1)
		l.names.addrs = append(l.names.addrs, addr)
		b.listen(addr)
	}
	return b
}

// loopback returns the n-th of the addresses that are used for backends.
func loopback(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(n >> 16), 1 + byte(n>>8), byte(n)})
}

// newBackends returns backends that do not listen yet.
func (l *lab) newBackends(config testlab.BackendConfig) *backends {
	b := &backends{port: freePort()}
	config.Port = strconv.Itoa(b.port)
	if config.Handler == nil {
		config.Handler = http.HandlerFunc(b.serve)
	}
	b.Backend = testlab.NewUnstartedBackend(l, config)
	return b
}

// listen makes the backends answer on an address too.
func (b *backends) listen(addr netip.Addr) net.Listener {
	listener, err := net.Listen("tcp", netip.AddrPortFrom(addr, uint16(b.port)).String())
	must(err)
	b.Serve(listener)
	return listener
}

func (b *backends) serve(w http.ResponseWriter, r *http.Request) {
	delete(w.Header(), "Backend") // responses are as small as they can be
	if r.TLS != nil {
		if host, _, _ := net.SplitHostPort(r.Host); host != r.TLS.ServerName {
			w.WriteHeader(http.StatusMisdirectedRequest)
			return
		}
	}
	if id := r.Header["X-Id"]; id != nil {
		b.begun.Store(id[0], nil)
	}
	if r.Header["Upgrade"] != nil {
		echo(w)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	time.Sleep(b.delay)
	if b.closing {
		w.Header()["Connection"] = []string{"close"}
	}
	w.Header()["Content-Type"] = []string{"text/plain"}
	_, _ = w.Write([]byte("ok\n"))
}

// echo is a backend of WebSockets that echoes lines.
func echo(w http.ResponseWriter) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	_ = rw.Flush()
	_, _ = io.Copy(conn, rw)
}
