package topk

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultK is the default of Config.K.
	DefaultK = 20
	// DefaultSize is the default of Config.Size.
	DefaultSize = 8192

	// MaxTarget is the length in octets of the longest target that is counted on its own.
	// A domain name (253 octets) and a port fit.
	MaxTarget = 253 + len(":65535")
)

const (
	// halfLife is the number of observations, per shard on average, after which scores are
	// halved: 8.4 million at the default size. In a flood of names that are seen once, the
	// estimate of such a name rises to about the number of observations that a counter of
	// the filter remembers, which is twice this number divided by filterSize. So what
	// counts for a target is its share of all requests: two in a million are enough to keep
	// its slot. A longer half-life makes scores more exact, a shorter one follows
	// changes sooner.
	halfLife = 8 * filterSize

	// batch is the number of observations after which a shard adds them to those of the
	// sketch, so that the shards do not all write to one word of memory.
	batch = 256
)

// Config describes a Sketch.
type Config struct {
	// K is how many of the busiest targets, and how many of the most failing ones,
	// Series selects. Zero means DefaultK.
	K int

	// Size is how many targets are counted on their own, half of them for being busy and
	// half for failing. It is raised to a multiple of 16 and to at least 16·K. Zero means
	// DefaultSize. A target takes about 850 octets, so the default takes 7 MB.
	Size int
}

// Observation is one request to a target.
type Observation struct {
	Failed  bool          // whether the request failed
	Latency time.Duration // how long it took; counted in whole microseconds, and 0 if negative
	NewConn bool          // whether a connection was opened for it
}

// Counts are sums of observations. None of them ever falls.
type Counts struct {
	Requests     uint64
	Failures     uint64
	Connections  uint64 // opened for requests
	Microseconds uint64 // of latency, each request rounded down
}

// Seconds returns the sum of the latencies in seconds.
func (c Counts) Seconds() float64 {
	return float64(c.Microseconds) / 1e6
}

func (c *Counts) observe(o Observation) {
	c.Requests++
	if o.Failed {
		c.Failures++
	}
	if o.NewConn {
		c.Connections++
	}
	if o.Latency > 0 {
		c.Microseconds += uint64(o.Latency) / uint64(time.Microsecond)
	}
}

func (c *Counts) add(d Counts) {
	c.Requests += d.Requests
	c.Failures += d.Failures
	c.Connections += d.Connections
	c.Microseconds += d.Microseconds
}

func (c *Counts) subtract(d Counts) {
	c.Requests -= d.Requests
	c.Failures -= d.Failures
	c.Connections -= d.Connections
	c.Microseconds -= d.Microseconds
}

// Entry is a target and what was counted for it.
type Entry struct {
	Target string
	Counts
}

// By is an order of targets: by one of their counts, the highest first.
type By int

// The orders of Top.
const (
	Requests    By = iota
	Failures       // the most failing first
	Latency        // the highest sum of latencies first
	Connections    // the most new connections first
)

func (b By) of(c *Counts) uint64 {
	switch b {
	case Failures:
		return c.Failures
	case Latency:
		return c.Microseconds
	case Connections:
		return c.Connections
	default:
		return c.Requests
	}
}

// Sketch counts requests per target. Its methods may be called concurrently.
type Sketch struct {
	k      int
	seed   maphash.Seed // random, so that clients cannot choose targets of one shard
	shards []shard

	observed atomic.Uint64 // observations, in batches
	halvings atomic.Uint32 // how often scores were halved, or are to be when a shard is used

	seriesMu sync.Mutex
	series   map[string]*series // by target
}

// New returns an empty Sketch. It allocates all memory that Observe will need.
func New(c Config) *Sketch {
	k, size := c.K, c.Size
	if k <= 0 {
		k = DefaultK
	}
	if size <= 0 {
		size = DefaultSize
	}
	size = max(size, 16*k)
	s := &Sketch{
		k:      k,
		seed:   maphash.MakeSeed(),
		shards: make([]shard, (size+slots-1)/slots),
		series: make(map[string]*series),
	}
	entries := make([][slots]entry, len(s.shards))
	filters := make([]filter, len(s.shards))
	for i := range s.shards {
		s.shards[i].entries, s.shards[i].filter = &entries[i], &filters[i]
	}
	return s
}

// Observe counts a request to a target. The target is compared octet by octet: its case
// is for the caller to normalize. It is copied when it is stored. An empty target, or one
// longer than MaxTarget, counts as "other".
func (s *Sketch) Observe(target string, o Observation) {
	hash := s.hash(target)
	i, _ := bits.Mul64(hash, uint64(len(s.shards)))
	sh := &s.shards[i]
	sh.mu.Lock()
	sh.halve(s.halvings.Load())
	sh.observe(target, hash, o)
	sh.observed++
	full := sh.observed%batch == 0
	sh.mu.Unlock()
	if full {
		s.observedBatch()
	}
}

func (s *Sketch) hash(target string) uint64 {
	return maphash.String(s.seed, target)
}

// observedBatch counts a batch of observations and lets scores be halved when it is time.
func (s *Sketch) observedBatch() {
	period := halfLife * uint64(len(s.shards))
	n := s.observed.Add(batch)
	if n/period != (n-batch)/period {
		s.halvings.Add(1)
	}
}

// Top returns the first n targets in an order, all that are counted on their own if n is
// not positive, and the counts of all others. Together they are all observations.
//
// The counts of a target are those since it got a slot. The targets in the list are other
// ones with each call, so a target's counts can move from "other" into the list; Series
// is for those who need counts that never fall.
func (s *Sketch) Top(by By, n int) (list []Entry, other Counts) {
	targets, other := s.snapshot()
	slices.SortFunc(targets, func(a, b stored) int {
		return cmp.Or(cmp.Compare(by.of(&b.Counts), by.of(&a.Counts)), strings.Compare(a.Target, b.Target))
	})
	if n <= 0 || n > len(targets) {
		n = len(targets)
	}
	list = make([]Entry, n)
	for i := range list {
		list[i] = targets[i].Entry
		other.subtract(list[i].Counts)
	}
	return list, other
}

// stored is a target with a slot, copied out of its shard.
type stored struct {
	Entry
	score     score
	admission uint32
	selected  bool // by Series
}

// snapshot returns all targets with a slot and the counts of all observations. It locks
// one shard at a time, for as long as copying it takes.
func (s *Sketch) snapshot() (targets []stored, all Counts) {
	targets = make([]stored, 0, slots*len(s.shards))
	var entries [slots]entry
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sh.halve(s.halvings.Load())
		entries = *sh.entries
		all.add(sh.other)
		sh.mu.Unlock()
		for j := range entries {
			e := &entries[j]
			if e.length == 0 {
				break
			}
			all.add(e.counts)
			name := string(e.target[:e.length])
			targets = append(targets, stored{Entry: Entry{name, e.counts}, score: e.score, admission: e.admission})
		}
	}
	return targets, all
}
