package warm

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/snapshot"
	"caddytarget/internal/testlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a list whose time a test sets, a site and a backend that accepts connections.
type lab struct {
	*testing.T
	*List
	site *Site
	pool *pool.Pool

	mu     sync.Mutex
	clock  time.Time
	sleeps []time.Duration

	addr    netip.AddrPort
	backend net.Listener
	conns   []net.Conn
	opened  atomic.Int32
	close   atomic.Bool // connections are closed at once
	none    atomic.Bool // Find finds nothing
}

func newLab(t *testing.T, connections, targets int) *lab {
	l := &lab{T: t, List: New(), clock: time.Unix(1e9, 0)}
	l.pool = pool.New(pool.Config{}, health.New(), pool.NewLimits(0, nil))
	l.now = func() time.Time {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.clock
	}
	l.sleep = func(_ context.Context, d time.Duration) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sleeps = append(l.sleeps, d)
	}
	var err error
	if l.backend, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l.addr = l.backend.Addr().(*net.TCPAddr).AddrPort()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.backend.Accept()
			if err != nil {
				return
			}
			l.opened.Add(1)
			if l.close.Load() {
				_ = c.Close()
				continue
			}
			l.conns = append(l.conns, c)
		}
	}()
	t.Cleanup(func() {
		l.pool.Close()
		_ = l.backend.Close()
		<-done
		for _, c := range l.conns {
			_ = c.Close()
		}
	})
	l.site = &Site{Name: "site", Connections: connections, Targets: targets, Unused: time.Minute, Group: 1, Pool: l.pool, Find: l.find}
	l.site.list = l.List
	l.sites = map[string]*Site{"site": l.site}
	l.halved = l.clock
	return l
}

func (l *lab) find(_ context.Context, t Target) *Found {
	if l.none.Load() {
		return nil
	}
	o := &pool.Order{Key: pool.Key{Addr: l.addr, Host: t.Host}, Target: t.Host, Last: true}
	return &Found{Keys: []pool.Key{o.Key}, Orders: []*pool.Order{o}}
}

// pass lets time pass.
func (l *lab) pass(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock = l.clock.Add(d)
}

// call counts requests to a host.
func (l *lab) call(host string, n int, opened bool) {
	for range n {
		l.site.Used("http", host, 80, opened)
	}
}

// hosts returns the hosts that are due, and how many connections they want.
func (l *lab) hosts() (list []string) {
	for _, j := range l.due() {
		list = append(list, fmt.Sprint(j.target.Host, " ", j.want))
	}
	return list
}

// round works on all that is due.
func (l *lab) round() {
	for _, j := range l.due() {
		l.workOn(context.Background(), j)
	}
}

// closeAll closes all connections, once they are idle.
func (l *lab) closeAll() {
	l.Helper()
	testlab.Eventually(l, "all connections are closed", func() bool {
		l.pool.CloseIdle(func(*pool.Key) bool { return true })
		return l.pool.Open() == 0
	})
}

// TestBusiest: the targets that were called most of late are due, each for no more
// connections than it had requests.
func TestBusiest(t *testing.T) {
	l := newLab(t, 3, 2)
	l.call("a", 1, true)
	l.call("b", 2, true)
	l.call("c", 9, true)
	if got, want := l.hosts(), []string{"c 3", "b 2"}; !slices.Equal(got, want) {
		t.Errorf("due: %v, want %v", got, want)
	}
	l.pass(30 * time.Second)
	l.call("a", 1, false)
	l.pass(31 * time.Second)
	if got, want := l.hosts(), []string{"a 2"}; !slices.Equal(got, want) {
		t.Errorf("due after c and b were not called for a minute: %v, want %v", got, want)
	}
	l.call("c", 1, false)
	l.call("b", 1, false)
	l.pass(halfLife)
	l.tidy()
	l.call("b", 1, false)
	l.call("a", 5, false)
	if got, want := l.hosts(), []string{"a 3", "b 2"}; !slices.Equal(got, want) {
		t.Errorf("due after scores were halved: %v, want %v", got, want)
	}
}

// TestCold: what was saved is cold until it was looked at or called, if it is to be kept warm.
func TestCold(t *testing.T) {
	l := newLab(t, 3, 2)
	l.call("never saved", 1, true)
	l.restore([]saved{
		{Target{"site", "http", "a", 80}, 9}, {Target{"site", "http", "b", 80}, 8},
		{Target{"site", "http", "too many", 80}, 7}, {Target{"another", "http", "c", 80}, 9},
	}, 1)
	if n := l.Cold(); n != 2 {
		t.Errorf("%d targets are cold after the start, want 2", n)
	}
	l.call("a", 1, true)
	if n := l.Cold(); n != 1 {
		t.Errorf("%d targets are cold after one was called, want 1", n)
	}
	l.none.Store(true) // where it is cannot be found
	l.round()
	if n := l.Cold(); n != 0 {
		t.Errorf("%d targets are cold after all were looked at, want none", n)
	}
}

// TestRoom: new names do not push out a target that is called more often, and take a
// limited amount of memory.
func TestRoom(t *testing.T) {
	l := newLab(t, 2, 10)
	l.call("busy", 3, true)
	for round := range 20 {
		for i := range 1000 {
			l.call(fmt.Sprintf("n%d-%d", round, i), 1, true)
		}
		if n := len(l.entries); n > 2*10+spareEntries {
			t.Fatalf("%d entries, want at most %d", n, 2*10+spareEntries)
		}
		l.tidy()
	}
	if got := l.hosts(); len(got) != 10 || got[0] != "busy 2" {
		t.Errorf("due: %v, want ten, busy first", got)
	}
	l.pass(2 * halfLife)
	l.tidy()
	l.pass(2 * halfLife)
	l.tidy()
	if n := len(l.entries) + len(l.counts); n != 0 {
		t.Errorf("%d entries are left of targets that are not called, want none", n)
	}
}

// TestWork: connections are opened until there are as many as wanted, then no more. What a
// request has opened counts.
func TestWork(t *testing.T) {
	l := newLab(t, 3, 10)
	l.call("a", 5, true)
	l.call("b", 1, true)
	for range 6 {
		l.round()
		l.pass(checkInterval)
	}
	testlab.Eventually(t, "the connections are accepted", func() bool { return l.opened.Load() == 4 })
	if n := l.pool.Open(); n != 4 {
		t.Errorf("%d connections, want 3 and 1", n)
	}
	l.none.Store(true)
	l.closeAll()
	for range 3 {
		l.pass(findInterval)
		l.round()
	}
	if n := l.pool.Open(); n != 0 {
		t.Errorf("%d connections were opened where no address may be called, want none", n)
	}
}

// TestDebt: a backend that closes connections that no request has used gets no more than
// the configured number, and then one for each that a request opens.
func TestDebt(t *testing.T) {
	l := newLab(t, 3, 10)
	l.close.Store(true)
	l.call("a", 100, false)
	rounds := func(want int32) {
		t.Helper()
		before := l.opened.Load()
		for range 10 {
			l.round()
			l.closeAll() // as the sweeper does, later
			l.pass(5 * time.Second)
		}
		testlab.Eventually(t, "the connections are accepted", func() bool { return l.opened.Load()-before >= want })
		if n := l.opened.Load() - before; n != want {
			t.Errorf("%d connections were opened, want %d", n, want)
		}
		l.call("a", 1, false)
	}
	rounds(3)
	rounds(0)
	l.call("a", 2, true)
	rounds(2)
	rounds(0)
}

// TestSettledConnections: a connection that was open for a minute was no waste.
func TestSettledConnections(t *testing.T) {
	e := new(entry)
	w := &watch{entry: e, settled: settled}
	w.Wasted(settled)
	if n := e.debt.Load(); n != 0 {
		t.Errorf("debt %d after a minute, want 0", n)
	}
	w.Wasted(settled - 1)
	if n := e.debt.Load(); n != 1 {
		t.Errorf("debt %d, want 1", n)
	}
	w.Taken()
	w.Taken()
	if n := e.debt.Load(); n != 0 {
		t.Errorf("debt %d after connections were used, want 0", n)
	}
}

// TestPace: dials begin one after the other, at the rate.
func TestPace(t *testing.T) {
	l := newLab(t, 1, 10)
	const dials = 3 * rate
	for range dials {
		l.pace.wait(context.Background())
	}
	if len(l.sleeps) != dials-1 {
		t.Fatalf("%d of %d dials waited, want all but the first one", len(l.sleeps), dials)
	}
	for i, d := range l.sleeps {
		if want := time.Duration(i+1) * time.Second / rate; d != want {
			t.Fatalf("dial %d waits for %v, want %v", i+2, d, want)
		}
	}
	l.sleeps = nil
	l.pass(time.Hour)
	l.pace.wait(context.Background())
	l.pace.wait(context.Background())
	if !slices.Equal(l.sleeps, []time.Duration{time.Second / rate}) {
		t.Errorf("after a pause, dials wait for %v, want no wait and then one", l.sleeps)
	}
}

// TestWorkWaits: each connection has its turn at the pace.
func TestWorkWaits(t *testing.T) {
	l := newLab(t, 1, 100)
	for i := range 50 {
		l.call(fmt.Sprint("n", i), 1, true)
	}
	l.round()
	if n := l.pool.Open(); n != 50 || len(l.sleeps) != 49 {
		t.Errorf("%d connections, %d of them waited; want 50 and 49", n, len(l.sleeps))
	}
}

// owner counts how many dials are under way.
type owner struct {
	mu        sync.Mutex
	now, most int
	hold      chan struct{}
}

func (o *owner) Permit(netip.AddrPort) error {
	o.mu.Lock()
	o.now++
	o.most = max(o.most, o.now)
	o.mu.Unlock()
	<-o.hold
	o.mu.Lock()
	o.now--
	o.mu.Unlock()
	return nil
}
func (o *owner) Confirm(_, _ netip.AddrPort) error    { return nil }
func (o *owner) Guard() any                           { return nil }
func (o *owner) Source() any                          { return nil }
func (o *owner) Watch() func(netip.Addr) (moved bool) { return nil }
func (o *owner) underway() int                        { o.mu.Lock(); defer o.mu.Unlock(); return o.now }

// TestWorkers: few dials are under way at a time, and the end of Use waits for none.
func TestWorkers(t *testing.T) {
	l := newLab(t, 1, 100)
	l.sleep = sleep
	hold := &owner{hold: make(chan struct{})}
	l.site.Find = func(_ context.Context, t Target) *Found {
		found := l.find(context.Background(), t)
		found.Orders[0].Owner = hold
		return found
	}
	for i := range 3 * workers {
		l.call(fmt.Sprint("n", i), 1, true)
	}
	l.pace.next = time.Time{}
	l.Use(1, []*Site{l.site})
	testlab.Eventually(t, "all workers dial", func() bool { return hold.underway() == workers })
	l.Release(2) // another owner's
	if l.halt == nil {
		t.Error("another owner has ended it")
	}
	l.Release(1)
	close(hold.hold)
	testlab.Eventually(t, "the dials have ended", func() bool { return hold.underway() == 0 })
	if hold.most != workers {
		t.Errorf("%d dials at a time, want %d", hold.most, workers)
	}
}

// write writes the section of a list, and returns it.
func (l *lab) write() []snapshot.Section {
	w := snapshot.NewWriter(time.Now(), 0)
	l.Part(1).Write(w)
	f, err := snapshot.Parse(w.Finish(), time.Now())
	if err != nil {
		l.Fatal(err)
	}
	return f.Sections
}

// TestSaved: a list is read as it was written, for the same site and group, unless it is
// old.
func TestSaved(t *testing.T) {
	before := newLab(t, 2, 2)
	if got := before.write(); len(got) != 0 {
		t.Errorf("an empty list has the section %v, want none", got)
	}
	changes := before.Part(1).Changes()
	before.call("a", 1, true)
	before.call("b", 2, true)
	before.call("c", 9, true)
	if before.Part(1).Changes() == changes {
		t.Error("requests are no change")
	}
	sections := before.write()
	if len(sections) != 1 || sections[0].Name != "warm" {
		t.Fatalf("got the sections %v", sections)
	}
	for _, test := range []struct {
		name  string
		group any
		age   time.Duration
		site  string
		late  bool // the sites are known later
		want  []string
	}{
		{"again", 1, time.Hour, "site", false, []string{"c 2", "b 2"}},
		{"before the sites", 1, time.Hour, "site", true, []string{"c 2", "b 2"}},
		{"another group", 2, time.Hour, "site", false, nil},
		{"another group, before the sites", 2, time.Hour, "site", true, nil},
		{"another site", 1, time.Hour, "other", false, nil},
		{"another site, later", 1, time.Hour, "other", true, nil},
		{"old", 1, maxAge, "site", false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, 2, 10)
			l.site.Name = test.site
			l.none.Store(true)
			if l.sites = map[string]*Site{test.site: l.site}; test.late {
				l.sites = nil
			}
			if err := l.Part(test.group).Read(&sections[0], test.age); err != nil {
				t.Fatal(err)
			}
			if test.late {
				l.sleep = sleep
				l.Use(1, []*Site{l.site})
				l.control.Lock()
				l.stop()
				l.control.Unlock()
				for _, e := range l.entries {
					e.next = time.Time{}
				}
			}
			if got := l.hosts(); !slices.Equal(got, test.want) {
				t.Errorf("due: %v, want %v", got, test.want)
			}
		})
	}
}

// FuzzRead: whatever a section has, it is read or refused, and nothing of a refused one is
// taken over.
func FuzzRead(f *testing.F) {
	w := snapshot.NewWriter(time.Now(), 0)
	w.Begin(section)
	for _, text := range []string{"site", "http", "a.example"} {
		w.Text(text)
	}
	w.Uint(80)
	w.Uint(7)
	file, err := snapshot.Parse(w.Finish(), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	content := file.Sections[0].Content
	f.Add(content)
	f.Add(content[:len(content)-1])
	f.Add([]byte(strings.Repeat("\x00", 16)))
	f.Fuzz(func(t *testing.T, content []byte) {
		l := New()
		err := l.Part(1).Read(&snapshot.Section{Name: section, Content: content}, 0)
		if err != nil && len(l.entries) > 0 {
			t.Errorf("%d targets of a section that was refused: %v", len(l.entries), err)
		}
		for target := range l.entries {
			if strings.ContainsAny(target.Host+target.Scheme, "/?#@ ") {
				t.Errorf("%+v was taken over", target)
			}
		}
	})
}
