package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setting is what the contestants are compared in.
type setting struct {
	Scheme    string // or h2: https over HTTP/2
	Domains   int
	Addresses int `json:",omitempty"` // of all domains; 0: each has its own
	Case      string
}

// protocolOf returns how backends are called.
func (s setting) protocolOf() protocolOf {
	switch s.Scheme {
	case "http":
		return protocols[0]
	case "https":
		return protocols[1]
	}
	return protocols[2]
}

// address returns the address of a domain.
func (s setting) address(domain int) netip.Addr {
	if s.Addresses > 0 {
		domain %= s.Addresses
	}
	return loopback(domain + 1)
}

// domains writes which domains there are.
func (s setting) domains() string {
	text := fmt.Sprintf("%s, %s domains", s.Scheme, thousands(s.Domains))
	if s.Addresses > 0 {
		text += fmt.Sprintf(" on %d addresses", s.Addresses)
	}
	return text
}

// The cases.
const (
	healthy      = "healthy"
	deadNames    = "1 % dead names"
	noNameserver = "nameserver outage"
	deadAddress  = "one dead address of two"
)

// cases, with what flag -cases calls them and what they are.
var cases = []struct{ name, flag, about string }{
	{healthy, "healthy", "All names and addresses work. First wrk loads with as many requests as it gets answered (\"at full load\"), then requests come at a constant rate, as in the other cases."},
	{deadNames, "deadnames", "Beside the load, one request in a hundred is for one of 50 names that no nameserver answers for. What is measured are the others."},
	{noNameserver, "outage", "The nameserver answers nothing from the first measured request on, for longer than any TTL."},
	{deadAddress, "deadaddress", "Each name has two addresses. Connections to one of them are neither opened nor refused. There are at most 64 such addresses, which names share."},
}

func (s setting) String() string { return s.domains() + ", " + s.Case }

// settings returns what the flags ask for.
func settings() (list []setting) {
	for kind := range strings.SplitSeq(*caseList, ",") {
		i := slices.IndexFunc(cases, func(c struct{ name, flag, about string }) bool { return c.flag == kind })
		if i < 0 {
			usageError("-cases: unknown case %q", kind)
		}
		for scheme := range strings.SplitSeq(*schemeList, ",") {
			if !slices.Contains([]string{"http", "https", "h2"}, scheme) {
				usageError("-schemes: unknown scheme %q", scheme)
			}
			for size := range strings.SplitSeq(*domainCounts, ",") {
				n, err := strconv.Atoi(size)
				if err != nil || n < 1 {
					usageError("-domains: %q is no number of domains", size)
				}
				list = append(list, setting{scheme, n, *addresses, cases[i].name})
			}
		}
	}
	return list
}

// quickSettings are those of -quick.
var quickSettings = []setting{
	{"http", 500, 0, healthy},
	{"https", 20, 0, healthy},
	{"http", 20, 0, deadNames},
	{"http", 20, 0, noNameserver},
	{"http", 20, 0, deadAddress},
}

// row is what was found out about a contestant in a setting.
type row struct {
	Contestant string
	Missing    string               // why there is nothing else
	Figures    map[string][]float64 // one value a round
	Errors     map[string]int       // what failed at a constant rate
}

// comparison is what was found out in a setting.
type comparison struct {
	setting
	Machine, Date               string
	Rounds, Seconds, Rate, Conn int
	TTL                         time.Duration
	Quick                       bool
	Rows                        []row
}

// compareTTL is that of all records. A case with an outage lasts longer.
const compareTTL = 5 * time.Second

// Clients in a comparison give up after this time. They have at most so many
// connections.
const (
	compareTimeout = 3 * time.Second
	deadNameCount  = 50
	warmUp         = 20_000 // domains that are called before, at most,
	warmTime       = 20 * time.Second
)

// compare runs the comparison, and reports it setting by setting.
func compare(l *lab) {
	must(missingWrk())
	list := settings()
	if *quick {
		list = quickSettings
	}
	for i, s := range list {
		fmt.Printf("\n%s (%d of %d, %s)\n", s, i+1, len(list), time.Now().Format(time.TimeOnly))
		c := l.compareIn(s)
		c.print()
		if !*zipf && !isSet("ttl") {
			record(func(m *measurements) { m.add(c) })
		}
		l.restart()
	}
}

// runningContestant has a nameserver and backends of its own, so that what one costs is
// not counted for another.
type runningContestant struct {
	*contestant
	*process
	w            *world
	names        *nameserver
	backends     *backendProcess
	values, dead []string
	file         string // has the values
	row          *row
}

func (l *lab) compareIn(s setting) *comparison {
	c := &comparison{
		setting: s, Machine: machine(), Date: time.Now().UTC().Format(time.DateOnly), TTL: compareTTL,
		Rounds: given("rounds", 3), Seconds: *seconds, Rate: *rate, Conn: *wrkConns, Quick: *quick,
	}
	if s.Case == healthy {
		c.Rounds = given("rounds", 5)
	}
	if *quick {
		c.Rounds, c.Seconds, c.TTL = given("rounds", 1), given("seconds", 1), 2*time.Second
	}
	if isSet("ttl") {
		c.TTL = *nameTTL
	}
	wanted := strings.Split(*contestantList, ",")
	var running []*runningContestant
	for _, each := range contestants {
		if *contestantList != "" && !slices.Contains(wanted, each.name) {
			continue
		}
		r := row{Contestant: each.name, Figures: make(map[string][]float64), Errors: make(map[string]int)}
		if err := each.missing(); err != nil {
			r.Missing = err.Error()
			fmt.Println(err)
		} else if each.cannot != nil {
			r.Missing = each.cannot(s)
		}
		if each.name != sharing || r.Missing == "" { // else it is the same as the others
			c.Rows = append(c.Rows, r)
		}
	}
	for i := range c.Rows {
		if c.Rows[i].Missing == "" {
			running = append(running, l.start(c, &c.Rows[i]))
		}
	}
	for range c.Rounds {
		rand.Shuffle(len(running), func(i, j int) { running[i], running[j] = running[j], running[i] })
		for _, r := range running {
			r.measure(l, c)
		}
	}
	if *profile != "" {
		l.profileOurs(running)
	}
	return c
}

// profileOurs writes what -profile asks for.
func (l *lab) profileOurs(running []*runningContestant) {
	for _, r := range running {
		if r.name == ours {
			const start = 5 // seconds that wrk takes to read many targets
			go l.wrk("http://"+r.w.Address+"/path?q=1", "X-Target", r.values, *seconds+2*start)
			time.Sleep(start * time.Second)
			l.writeProfile(r.w.Admin)
		}
	}
}

// start starts a contestant and has it called for each domain once.
func (l *lab) start(c *comparison, to *row) *runningContestant {
	i := slices.IndexFunc(contestants, func(c *contestant) bool { return c.name == to.Contestant })
	w := &world{setting: c.setting, Address: address(freePort()), Admin: freePort(), CPUs: runtime.NumCPU(), TTL: c.TTL}
	if c.Case == deadAddress {
		w.DeadAddrs = min(c.Domains, 64)
	}
	r := &runningContestant{contestant: contestants[i], w: w, row: to, names: l.newNameserver()}
	r.backends = l.spawnBackends(c.protocolOf(), w.DeadAddrs)
	w.Backend, w.CA = r.backends.Port, r.backends.CA
	w.Nameserver = netip.MustParseAddrPort(r.names.addr)
	r.names.ttl = uint32(c.TTL.Seconds())
	for domain := range c.Domains {
		r.names.addrs = append(r.names.addrs, c.address(domain))
		r.values = append(r.values, r.value(w, domain))
	}
	for i := range w.DeadAddrs {
		r.names.deadAddrs = append(r.names.deadAddrs, deadAddr(i))
	}
	if c.Case == deadNames {
		for i := range deadNameCount {
			r.dead = append(r.dead, r.value(w, -1-i))
		}
	}
	r.file = l.valuesFile(r.values, r.dead)
	dir := r.write(l, w)
	r.process = l.run(r.command(dir, r.args), dir, w.Address)
	l.Cleanup(r.end)
	r.call(min(c.Domains, warmUp))
	return r
}

// call calls some of the domains once, as many as it can in warmTime.
func (r *runningContestant) call(n int) {
	conns := &conns{address: r.w.Address, limit: 64, timeout: 10 * time.Second}
	defer conns.close()
	from := rand.N(len(r.values))
	end := time.Now().Add(warmTime)
	get := func(target string) (int, string) {
		if time.Now().After(end) {
			return http.StatusOK, ""
		}
		return conns.get(target)
	}
	result := closedLoop(get, 32, n, func(i int) string { return r.values[(from+i)%len(r.values)] })
	if result.Failed > 0 {
		fmt.Printf("%s, each domain once: %s\n", r.name, result.failures())
	}
}

// measure runs the load of one round.
func (r *runningContestant) measure(l *lab, c *comparison) {
	found := func(what string, value float64) { r.row.Figures[what] = append(r.row.Figures[what], value) }
	load := func(duration time.Duration) *result {
		return loadSpec{Address: r.w.Address, Rate: c.Rate, Duration: duration, Values: r.file, Zipf: *zipf, Timeout: compareTimeout}.run()
	}
	second := time.Duration(c.Seconds) * time.Second
	// Names that were not called while others were measured are asked for again, or most
	// of them.
	lead := max(second/4, min(time.Second*time.Duration(2*c.Domains)/time.Duration(c.Rate), c.TTL))
	load(lead)
	if c.Case == healthy {
		cpu := r.cpu()
		n, _ := l.wrk("http://"+r.w.Address+"/path?q=1", "X-Target", r.values, c.Seconds)
		found(fullRate, float64(n)/float64(c.Seconds))
		found(fullCPU, float64((r.cpu()-cpu).Microseconds())/float64(max(n, 1)))
	}
	duration := second
	if c.Case == noNameserver {
		r.names.silent.Store(true)
		duration += c.TTL
	}
	cpu, opened, asked := r.cpu(), r.backends.count().Opened, r.names.queries.Load()
	result := load(duration)
	sent := float64(result.Sent)
	found(cpuTime, float64((r.cpu()-cpu).Microseconds())/sent)
	if result.Failed < result.Sent {
		found(p50, result.quantile(.5).Seconds()*1e3)
		found(p99, result.quantile(.99).Seconds()*1e3)
	}
	found(failed, 100*float64(result.Failed)/sent)
	found(opens, 1000*float64(r.backends.count().Opened-opened)/sent)
	found(queries, float64(r.names.queries.Load()-asked)/sent)
	found(memory, float64(r.pss())/1e6)
	found(late, quantile(result.Late, .99).Seconds()*1e3)
	for text, n := range result.Errors {
		r.row.Errors[text] += n
	}
	if c.Case == noNameserver {
		r.names.silent.Store(false)
		time.Sleep(time.Second) // what waits for the nameserver ends
		load(lead)
	}
}
