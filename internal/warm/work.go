package warm

import (
	"context"
	"sync"
	"time"

	"caddytarget/internal/pool"
)

const (
	// rate is how many dials a second are begun at most, for all sites together.
	rate = 100

	// workers is how many dials and lookups are under way at a time, at most.
	workers = 16

	roundInterval = 250 * time.Millisecond // between two looks at all targets
	checkInterval = time.Second            // between two looks at one that lacks nothing
	retryInterval = 5 * time.Second        // the same if nothing could be opened
	findInterval  = 10 * time.Second       // for how long Found holds
	findTimeout   = 10 * time.Second

	// settled is the age at which a connection that no request has used was no waste, even
	// if the backend closes it: such as have a timeout of a minute or more may close
	// connections. Where this side closes them sooner, Site.Unused counts.
	settled = time.Minute
)

// job is a target that is to be looked at.
type job struct {
	site *Site
	*entry
	want int // how many connections it should have
}

// run keeps targets warm until ctx ends.
func (l *List) run(ctx context.Context) {
	var working sync.WaitGroup
	defer working.Wait()
	slots := make(chan struct{}, workers)
	for tidied := l.now(); ctx.Err() == nil; l.sleep(ctx, roundInterval) {
		if now := l.now(); now.Sub(tidied) >= checkInterval {
			tidied = now
			l.tidy()
		}
		for _, j := range l.due() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			j.busy.Store(true)
			working.Go(func() {
				l.workOn(ctx, j)
				j.busy.Store(false)
				<-slots
			})
		}
	}
}

// kept returns the targets that are kept warm, the busiest first: those of each site that
// were called of late.
func (l *List) kept(now time.Time) map[*Site][]*entry {
	bySite := make(map[*Site][]*entry)
	l.mu.RLock()
	for t, e := range l.entries {
		if s := l.sites[t.Site]; s != nil && e.unused(now) <= s.Unused {
			bySite[s] = append(bySite[s], e)
		}
	}
	l.mu.RUnlock()
	for s, list := range bySite {
		bySite[s] = busiest(list, s.Targets)
	}
	return bySite
}

// due returns the targets to look at now, the busiest first.
func (l *List) due() (jobs []job) {
	now := l.now()
	for s, list := range l.kept(now) {
		for _, e := range list {
			if e.busy.Load() || e.next.After(now) || e.debt.Load() >= int64(s.Connections) {
				continue
			}
			requests := max(1, e.score.Load())
			jobs = append(jobs, job{s, e, int(min(uint64(s.Connections), requests))})
		}
	}
	return jobs
}

// workOn opens one connection to a target if it lacks any, which is not cold then.
func (l *List) workOn(ctx context.Context, j job) {
	l.work(ctx, j)
	j.cold.Store(false)
}

// work opens one connection to a target if it lacks any.
func (l *List) work(ctx context.Context, j job) {
	now := l.now()
	j.next = now.Add(checkInterval)
	if j.keys != nil && now.Sub(j.at) < findInterval {
		if i, _ := lacking(j.site.Pool, j.keys, j.open, j.want); i < 0 {
			return
		}
	}
	limited, cancel := context.WithTimeout(ctx, findTimeout)
	found := j.site.Find(limited, j.target)
	cancel()
	if found == nil || len(found.Orders) == 0 {
		j.keys, j.next = nil, l.now().Add(retryInterval)
		return
	}
	j.keys, j.open, j.at = found.Keys, found.keys(), now
	i, most := lacking(j.site.Pool, j.keys, j.open, j.want)
	if i < 0 {
		return
	}
	if l.pace.wait(ctx); ctx.Err() != nil {
		return
	}
	watch := &watch{entry: j.entry, settled: min(settled, j.site.Unused), done: make(chan struct{})}
	if !j.site.Pool.Spare(found.Orders[i], most, watch) {
		return
	}
	select {
	case <-watch.done:
	case <-ctx.Done():
		return
	}
	if j.next = l.now(); !watch.opened {
		j.next = j.next.Add(retryInterval)
	}
}

// keys returns the keys of the orders.
func (f *Found) keys() []pool.Key {
	keys := make([]pool.Key, len(f.Orders))
	for i, o := range f.Orders {
		keys[i] = o.Key
	}
	return keys
}

// lacking returns at which of some keys of a target a connection is to be opened so that it
// has as many as wanted, and how many that key will have then. The index is negative if
// nothing is missing. A key that speaks HTTP/2 needs one connection, which all requests
// share; until its protocol is known, one over TLS gets no more either.
func lacking(p *pool.Pool, all, open []pool.Key, want int) (index, most int) {
	total := 0
	for _, key := range all {
		n := p.Connections(key)
		total += n.Open + n.Dials
	}
	index = -1
	if total >= want {
		return index, 0
	}
	for i, key := range open {
		n := p.Connections(key)
		count := n.Open + n.Dials
		switch {
		case n.HTTP2 > 0, key.Protocol == pool.HTTP2 && count > 0, key.Protocol == pool.TLS && n.Open == 0 && count > 0:
			continue
		case index < 0 || count+1 < most:
			index, most = i, count+1
		}
	}
	return index, most
}

// watch learns about a connection that was opened for a target.
type watch struct {
	entry   *entry
	settled time.Duration
	opened  bool // set before done is closed
	done    chan struct{}
}

// Dialled implements pool.SpareObserver.
func (w *watch) Dialled(opened bool) {
	if w.opened = opened; !opened {
		w.entry.debt.Add(1)
	}
	close(w.done)
}

// Taken implements pool.SpareObserver.
func (w *watch) Taken() { w.entry.repay() }

// Wasted implements pool.SpareObserver.
func (w *watch) Wasted(age time.Duration) {
	if age < w.settled {
		w.entry.debt.Add(1)
	}
}

// pace spaces dials in time.
type pace struct {
	list *List
	mu   sync.Mutex
	next time.Time // when the next dial may begin
}

// wait waits until a dial may begin, or ctx ends.
func (p *pace) wait(ctx context.Context) {
	p.mu.Lock()
	now := p.list.now()
	at := now
	if p.next.After(now) {
		at = p.next
	}
	p.next = at.Add(time.Second / rate)
	p.mu.Unlock()
	if at.After(now) {
		p.list.sleep(ctx, at.Sub(now))
	}
}

// Interface guards
var _ pool.SpareObserver = (*watch)(nil)
