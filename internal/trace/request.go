package trace

import (
	"net/netip"
	"time"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
)

// Target is what a request calls, without the query and without what may identify a user.
type Target struct {
	Scheme string
	Host   string
	Port   uint16
	Path   string
}

// Request is what is recorded of a request. One goroutine uses it at a time.
type Request struct {
	Begun   time.Time
	Method  string // of the client
	Site    string // the Host header of the client
	Target  Target // the first one; zero: it could not be read
	Entries []*Entry

	lookup  Lookup // the last one, until an entry takes it
	leftOut int    // entries that are not kept
}

// Lookup is how the addresses of a target were found.
type Lookup struct {
	From string // as of resolver.Answer; empty: nothing was looked up
	Step pool.Step
}

// Entry is one attempt to send a request, or a lookup that ended the request.
type Entry struct {
	Target  Target
	Lookup  Lookup // before the attempt; zero: the attempt before has it
	Method  string
	Address netip.AddrPort // that was dialled; not valid: none
	Dial    string         // instead of Address, if that is no IP address
	Begun   time.Time      // without the lookup
	Ended   time.Time      // when the header of the response came, or the attempt failed
	Reused  bool           // the connection had been used before
	Timing  pool.Timing
	Status  int // of the response; 0: none
	Failure failure.Failure
	Err     error // nil: there was a response
}

// LookedUp records a lookup that ended at a time and was waited for.
func (r *Request) LookedUp(from string, ended time.Time, waited time.Duration) {
	r.lookup = Lookup{From: from}
	if waited > 0 {
		r.lookup.Step = pool.Step{Begin: ended.Add(-waited), End: ended}
	}
}

// maxEntries is how many entries of a request are kept.
const maxEntries = 64

// Begin adds the entry of an attempt. Beyond maxEntries it takes the place of the one
// before: the first ones and the last one are kept.
func (r *Request) Begin(e *Entry) {
	e.Lookup, r.lookup = r.lookup, Lookup{}
	if len(r.Entries) == maxEntries {
		r.Entries[maxEntries-1] = e
		r.leftOut++
		return
	}
	r.Entries = append(r.Entries, e)
}

// NotSent adds the entry of a lookup that no attempt follows, because it failed or because
// none of its addresses may be called. It returns nil if the
// addresses were known.
func (r *Request) NotSent(e *Entry) *Entry {
	if !r.lookup.Step.Happened() && e.Failure.Phase != failure.DNS {
		return nil
	}
	r.Begin(e)
	return e
}

// Start returns when the entry began, its lookup included.
func (e *Entry) Start() time.Time {
	if e.Lookup.Step.Happened() {
		return e.Lookup.Step.Begin
	}
	return e.Begun
}
