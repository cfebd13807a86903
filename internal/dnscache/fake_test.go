package dnscache

import (
	"context"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// failure is an error with the methods that Exchanger documents.
type failure struct {
	text     string
	ttl      time.Duration
	negative bool
	notFound bool
	outage   bool
}

func (e *failure) Error() string                   { return e.text }
func (e *failure) Negative() (time.Duration, bool) { return e.ttl, e.negative }
func (e *failure) NotFound() bool                  { return e.notFound }
func (e *failure) Outage() bool                    { return e.outage }

var (
	errServfail = &failure{text: "servfail"}
	errOutage   = &failure{text: "outage", outage: true}
)

func nxdomain(ttl time.Duration) error {
	return &failure{text: "nxdomain", ttl: ttl, negative: true, notFound: true}
}

func nodata(ttl time.Duration) error {
	return &failure{text: "nodata", ttl: ttl, negative: true}
}

// script is what the fake replies to a question.
type script struct {
	addrs []netip.Addr
	srv   []net.SRV
	ttl   time.Duration
	err   error
	delay time.Duration // before the reply
	hang  bool          // until the question is given up
	late  time.Duration // to notice that
}

type question struct {
	name  string
	qtype uint16
	at    time.Duration // since the fake was made
}

// fake is an Exchanger that follows a script.
type fake struct {
	mu          sync.Mutex
	start       time.Time
	scripts     map[string]script // by "name A", "name AAAA"; else by "A", "AAAA"; else NODATA
	asked       []question
	inFlight    map[string]int // questions in flight, by name and type
	maxInFlight int            // of inFlight, of any name and type
	down        chan struct{}
}

func newFake() *fake {
	return &fake{start: time.Now(), scripts: make(map[string]script), inFlight: make(map[string]int)}
}

func (f *fake) set(key string, s script) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scripts[key] = s
}

// a sets the A records, and NODATA for AAAA.
func (f *fake) a(name string, ttl time.Duration, addrs ...string) {
	f.set(name+" A", script{addrs: ips(addrs...), ttl: ttl})
	f.set(name+" AAAA", script{err: nodata(-1)})
}

// fail sets an error for both families.
func (f *fake) fail(name string, err error) {
	f.set(name+" A", script{err: err})
	f.set(name+" AAAA", script{err: err})
}

func (f *fake) setOutage(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !down {
		close(f.down)
		f.down = nil
	} else {
		f.down = make(chan struct{})
	}
}

func (f *fake) Outage() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down
}

func (f *fake) Ask(ctx context.Context, name string, qtype uint16, done func([]netip.Addr, time.Duration, error)) {
	go func() {
		s, err := f.reply(ctx, name, qtype)
		done(s.addrs, s.ttl, err)
	}()
}

func (f *fake) AskSRV(ctx context.Context, name string, done func([]net.SRV, time.Duration, error)) {
	go func() {
		s, err := f.reply(ctx, name, TypeSRV)
		done(s.srv, s.ttl, err)
	}()
}

func (f *fake) reply(ctx context.Context, name string, qtype uint16) (script, error) {
	kind := map[uint16]string{TypeA: "A", TypeAAAA: "AAAA", TypeSRV: "SRV"}[qtype]
	key := name + " " + kind
	f.mu.Lock()
	if f.down != nil {
		f.mu.Unlock()
		return script{}, errOutage
	}
	s, ok := f.scripts[key]
	if !ok {
		s, ok = f.scripts[kind]
	}
	if !ok {
		s = script{err: nodata(-1)}
	}
	f.asked = append(f.asked, question{name, qtype, time.Since(f.start)})
	f.inFlight[key]++
	f.maxInFlight = max(f.maxInFlight, f.inFlight[key])
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.inFlight[key]--
		f.mu.Unlock()
	}()
	switch {
	case s.hang:
		<-ctx.Done()
		time.Sleep(s.late)
		return script{}, ctx.Err()
	case s.delay > 0:
		select {
		case <-time.After(s.delay):
		case <-ctx.Done():
			return script{}, ctx.Err()
		}
	}
	return s, s.err
}

// questions returns when questions of one type were asked since the last call
// of forget.
func (f *fake) questions(name string, qtype uint16) []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var at []time.Duration
	for _, q := range f.asked {
		if q.name == name && q.qtype == qtype {
			at = append(at, q.at)
		}
	}
	return at
}

// all returns all questions that were asked since the last forget.
func (f *fake) all() []question {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func (f *fake) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = nil
}

func ips(s ...string) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range s {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs
}

// world is a cache and its nameservers in a bubble of synctest: time only passes when
// all goroutines wait, and a goroutine that outlives the test fails it.
type world struct {
	*testing.T
	*Cache
	fake *fake
}

func run(t *testing.T, cfg Config, f func(w world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake := newFake()
		c := New(fake, cfg)
		t.Cleanup(c.Close)
		f(world{t, c, fake})
	})
}

// want looks a name up and compares what comes back, at once, with a text such
// as "hit 192.0.2.1 192.0.2.2" or "hit servfail".
func (w world) want(name, want string) {
	w.Helper()
	w.wantAfter(name, 0, want)
}

// wantAfter is want where the reader has to wait for so long.
func (w world) wantAfter(name string, wait time.Duration, want string) {
	w.Helper()
	start := time.Now()
	got := w.get(name)
	if got != want {
		w.Errorf("%s: got %q, want %q", name, got, want)
	}
	if took := time.Since(start); took != wait {
		w.Errorf("%s: took %v, want %v", name, took, wait)
	}
	synctest.Wait()
}

// wantLater is want for a reader on a goroutine of its own, who may have to wait.
func (w world) wantLater(name, want string) {
	if got := w.get(name); got != want {
		w.Errorf("%s: got %q, want %q", name, got, want)
	}
}

// putNew inserts a name without a lookup.
func (c *Cache) putNew(name string) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.put(c.hash(name), name, uint16(len(name)), nil)
}

// nodes returns all nodes.
func (c *Cache) nodes() iter.Seq[*node] {
	return func(yield func(*node) bool) {
		for e := range c.table.all() {
			if !yield(e.state.node) {
				return
			}
		}
	}
}

// all returns all entries.
func (t table) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for i := range t {
			for at := range t[i].slots {
				if e := t[i].slots[at].Load(); e != nil && !yield(e) {
					return
				}
			}
		}
	}
}

func (n *node) name() string { return n.entry.Load().name() }

func (w world) get(name string) string {
	return text(w.Lookup(w.Context(), name))
}

func text(a Answer, err error) string {
	s := [...]string{Miss: "miss", Hit: "hit", Stale: "stale"}[a.State]
	for _, addr := range a.Addrs {
		s += " " + addr.String()
	}
	if err != nil {
		s += " " + err.Error()
	}
	return s
}

func (w world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wantAsked compares how often a name was asked for since the last time.
func (w world) wantAsked(name string, a, aaaa int) {
	w.Helper()
	if got := len(w.fake.questions(name, TypeA)); got != a {
		w.Errorf("%s: asked %d times for A, want %d", name, got, a)
	}
	if got := len(w.fake.questions(name, TypeAAAA)); got != aaaa {
		w.Errorf("%s: asked %d times for AAAA, want %d", name, got, aaaa)
	}
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	w.fake.asked = slices.DeleteFunc(w.fake.asked, func(q question) bool { return q.name == name })
}

// counts returns how many names are parked, and how many are in the wheel.
func (w world) counts() (parked, wheel int) {
	w.sched.mu.Lock()
	defer w.sched.mu.Unlock()
	return w.sched.parked.len, w.sched.forecast.total
}

// refreshes returns how many are in flight, by class, and how many names are due.
func (w world) refreshes() (inFlight [2]int, due int) {
	w.sched.mu.Lock()
	defer w.sched.mu.Unlock()
	return w.sched.inFlight, w.sched.due[fastClass].len + w.sched.due[slowClass].len
}

// names returns names, each below a domain of its own.
func names(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("name-%06d-own.example", i)
	}
	return list
}
