// Command bench runs the caddy binary of this repository against nameservers and
// backends of its own, all on loopback, and prints what it measures. It is run from the
// root of the repository:
//
//	go run ./build && go run ./bench compare    # with other proxies: see docs/measurements.md
//	go run ./bench -quick compare               # two minutes
//	go run ./bench -check                       # whether compare can run here
//	go run ./bench -minutes 120 soak
//	go run ./bench                              # all other scenarios, over an hour
//	go run ./bench flood outage                 # some of them
//	go run ./bench -requests 1000000 closing    # 30 minutes
//	go run ./bench -names 100000 -ttl 5m names  # 11 minutes
//	go run ./bench -seconds 40 idle             # 5 minutes
//	go run ./bench -targets 20000 many          # 1 minute
//	go run ./bench -reloads failover            # while the configuration changes each second
//
// The scenarios compare and https need wrk. What is compared runs interleaved, several
// times, and medians are printed: single runs on a busy machine mean little.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

var (
	caddyPath    = flag.String("caddy", "./caddy", "the `binary` to measure")
	rounds       = flag.Int("rounds", 7, "how many `times` each side of a comparison runs; in the scenario compare 5, and 3 with failures")
	profile      = flag.String("profile", "", "write a CPU profile of caddytarget in the scenario compare to this `file`")
	seconds      = flag.Int("seconds", 4, "`seconds` per run")
	nameCount    = flag.Int("names", 20_000, "how many `names` the scenario names keeps fresh")
	floodOptions = flag.String("flood-options", "", "`options` of the resolver in the scenario flood, such as \"new_names 200\"")
	nameTTL      = flag.Duration("ttl", 30*time.Second, "their `TTL`; in the scenario compare, which writes nothing down then, that of all names")
	targetCount  = flag.Int("targets", 5000, "how many `targets` there are in the scenario many")
	wrkConns     = flag.Int("connections", 32, "how many `connections` wrk has")
	requestCount = flag.Int("requests", 200_000, "how many `requests` the scenario closing sends each way")
	minutes      = flag.Int("minutes", 30, "`minutes` of the scenario soak")
	reloads      = flag.Bool("reloads", false, "change the configuration each second in the scenarios from failover on")
)

// Flags of the scenario compare; outDir is that of soak too.
var (
	quick          = flag.Bool("quick", false, "two minutes of the scenario compare; with -out, their figures are written down and marked")
	check          = flag.Bool("check", false, "check that the programs for the scenario compare are there and take their configurations")
	rewrite        = flag.Bool("report", false, "write measurements.md and its plots anew from the figures that are there")
	outDir         = flag.String("out", "docs", "`directory` for measurements.md and its plots, written by the scenarios compare and soak; none with -quick unless it is set")
	domainCounts   = flag.String("domains", "20,500,10000,100000", "`numbers` of domains")
	schemeList     = flag.String("schemes", "http,https", "`schemes`; h2 is https over HTTP/2")
	addresses      = flag.Int("addresses", 0, "how many `addresses` all domains have; 0: each has its own")
	caseList       = flag.String("cases", "healthy,deadnames,outage,deadaddress", "`cases`")
	contestantList = flag.String("contestants", "", "`names` of contestants, separated by commas; default: all")
	zipf           = flag.Bool("zipf", false, "the n-th domain is called 1/n times as often as the first; writes nothing down")
	rate           = flag.Int("rate", 2000, "`requests` a second where the rate is constant")
)

// scenarios, in the order in which they run.
var scenarios = []struct {
	name  string
	about string
	run   func(*lab)
}{
	{"compare", "other proxies, at 20 to 100 000 domains, http and https, with failures", compare},
	{"flood", "2 000 requests a second to names never seen before, half of them dead", flood},
	{"nameserver", "the first of two nameservers goes silent, and comes back: new names", oneNameserver},
	{"outage", "both nameservers go silent after warm-up, and come back", outage},
	{"names", "many names are kept fresh: queries a second, memory", names},
	{"beside", "requests while 100 000 names are listed, and while they are saved", beside},
	{"waiters", "10 000 clients wait for one new name, half of them leave", waiters},
	{"move", "a name moves to another address", move},
	{"restart", "a restart under load, with and without the option warm", restart},
	{"reload", "100 reloads under load", reload},
	{"reloads", "20 reloads under load, https and HTTP/2: connections, WebSockets, uploads", reloadsTLS},
	{"idlecost", "what 2 000 idle connections take", idleCost},
	{"sizing", "what Go's collector takes, by GOGC and GOMEMLIMIT, and a log", sizing},
	{"closing", "what remains of connections that are closed or refused", closing},
	{"https", "50 https domains on one address", https},
	{"total", "300 https domains over HTTP/2 under a total of 20 connections", total},
	{"failover", "names with four addresses, of which one works", failover},
	{"timeouts", "one of three addresses is silent or slow, and clients choose their timeouts", timeouts},
	{"alldead", "no address works, and then one does", allDead},
	{"idle", "backends close idle connections while requests come", idle},
	{"change", "a name moves to another address, while the old one works and when it dies", change},
	{"shared", "200 https domains on 4 addresses: whose connections are used for whom", shared},
	{"hostile", "a host poisons the connections to it, others have the same address and port", hostile},
	{"many", "more targets than caddy may have descriptors", many},
	{"soak", "all kinds of clients and backends at once, for long", soak},
}

// given returns what a flag was set to, or else something other than its default.
func given(name string, otherwise int) int {
	flag.Visit(func(f *flag.Flag) {
		if f.Name == name {
			otherwise = f.Value.(flag.Getter).Get().(int)
		}
	})
	return otherwise
}

// isSet reports whether a flag was given.
func isSet(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// usageError ends the program because of its arguments.
func usageError(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(2)
}

func main() {
	log.SetFlags(0)
	if spec := os.Getenv(loadVar); spec != "" {
		var k loadSpec
		must(json.Unmarshal([]byte(spec), &k))
		k.here()
		return
	}
	if spec := os.Getenv(backendVar); spec != "" {
		var b backendSpec
		must(json.Unmarshal([]byte(spec), &b))
		b.here()
		return
	}
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: go run ./bench [flags] [scenario...]\nWithout scenarios, all but compare and soak.")
		flag.PrintDefaults()
		for _, s := range scenarios {
			fmt.Fprintf(os.Stderr, "  %-12s %s\n", s.name, s.about)
		}
	}
	flag.Parse()
	for _, name := range flag.Args() {
		if !slices.ContainsFunc(scenarios, func(s struct {
			name  string
			about string
			run   func(*lab)
		}) bool {
			return s.name == name
		}) {
			flag.Usage()
			os.Exit(2)
		}
	}
	if *quick && !isSet("out") {
		*outDir = ""
	}
	if *rewrite {
		record(func(*measurements) {})
		return
	}
	if *check {
		l := newLab()
		err := checkAll(l)
		l.close()
		must(err)
		return
	}
	fmt.Printf("%s, %d CPUs, %s\n", runtime.Version(), runtime.NumCPU(), time.Now().UTC().Format(time.DateOnly))
	for _, s := range scenarios {
		if flag.NArg() > 0 && !slices.Contains(flag.Args(), s.name) {
			continue
		}
		if flag.NArg() == 0 && (s.name == "compare" || s.name == "soak") { // they take hours, and write into docs
			continue
		}
		fmt.Printf("\n%s: %s\n%s\n", s.name, s.about, strings.Repeat("-", 72))
		l := newLab()
		s.run(l)
		l.close()
	}
}
