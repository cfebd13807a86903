package explain

import (
	"sync"

	"caddytarget/internal/dnsclient"
	"caddytarget/internal/failure"
	"caddytarget/internal/resolver"
)

// NewLookup describes the lookup of a host that is about to begin. end has to be called
// when it is over: it completes the description. answered reports whether there are
// addresses; err is the error if there are none.
func NewLookup(r *resolver.Resolver, host string) (l *Lookup, end func(answered bool, err error)) {
	l = &Lookup{Resolver: r.ID()}
	places := r.Places(host)
	observed := newObservation(places)
	stop := r.Observe(observed.add)
	return l, func(answered bool, err error) {
		stop()
		for _, lookup := range observed.end() {
			l.addQueries(lookup.Type, lookup.Tries)
		}
		known, _ := r.Name(host)
		l.addNames(places, known.Names)
		if !answered {
			l.addEarlier(err)
			l.Error = failure.Text(err)
		}
	}
}

// observation is the lookups that a resolver makes of some names.
type observation struct {
	mu      sync.Mutex
	names   map[string]bool
	lookups []*dnsclient.Trace
	ended   bool
}

func newObservation(places []resolver.Place) *observation {
	o := &observation{names: make(map[string]bool)}
	for _, p := range places {
		o.names[p.Name] = true
	}
	return o
}

func (o *observation) add(t *dnsclient.Trace) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names[t.Name] && !o.ended {
		o.lookups = append(o.lookups, t)
	}
}

// end returns all lookups until now.
func (o *observation) end() []*dnsclient.Trace {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	return o.lookups
}
