package pool

import (
	"cmp"
	"context"
	"crypto/tls"
	"hash/maphash"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"caddytarget/internal/health"
)

// Pool keeps connections and sends requests over them. It is safe for concurrent
// use.
type Pool struct {
	// Dial opens a TCP connection. It may be replaced before the first request.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	config   Config
	health   *health.Tracker
	limits   *Limits
	sessions *sessions
	readers  sync.Pool        // of *bufio.Reader
	writers  sync.Pool        // of *bufio.Writer
	http2    *http2.Transport //nolint:staticcheck // see newHTTP2

	open    atomic.Int64  // connections
	idleSeq atomic.Uint64 // the last conn.idleSeq
	seed    maphash.Seed  // for shards
	shards  [32]shard

	closingIdle sync.Mutex // held by closeIdle, so that two calls do not close too many

	sweeper sweeper
	watcher watcher
	closed  atomic.Bool
}

// shard has the destinations whose keys have the same hash, with a lock of its own.
// Each connection and each idle one is in one shard.
type shard struct {
	mu           sync.Mutex
	destinations map[Key]*destination
	oldest       *conn // the list of idle connections begins with the one longest idle
	newest       *conn // and ends with this one
	slots        slots
	count        connCount

	unwatched unwatched
}

// New returns a pool, which has to be closed. It reports to tracker which addresses
// could be dialled. Pools of the same limits share them.
func New(config Config, tracker *health.Tracker, limits *Limits) *Pool {
	config.MaxResponseHeader = cmp.Or(config.MaxResponseHeader, DefaultMaxResponseHeader)
	config.ReadBuffer = cmp.Or(config.ReadBuffer, 4096)
	config.WriteBuffer = cmp.Or(config.WriteBuffer, 4096)
	config.MaxIdle = cmp.Or(config.MaxIdle, math.MaxInt)
	config.MaxIdlePerKey = cmp.Or(config.MaxIdlePerKey, math.MaxInt)
	if config.TLS == nil {
		config.TLS = new(tls.Config)
	}
	p := &Pool{config: config, health: tracker, limits: limits, seed: maphash.MakeSeed()}
	p.Dial = p.config.Dialer.DialContext
	if config.SessionCache >= 0 {
		p.sessions = newSessions(config.SessionCache)
	}
	for i := range p.shards {
		p.shards[i].destinations = make(map[Key]*destination)
	}
	p.watcher.timer = time.AfterFunc(math.MaxInt64, p.watchDue)
	p.http2 = p.newHTTP2()
	limits.addPool(p)
	return p
}

// shard returns the shard of a key.
func (p *Pool) shard(key *Key) *shard {
	return &p.shards[maphash.Comparable(p.seed, *key)%uint64(len(p.shards))]
}

// RoundTrip sends a request over a connection for the order's key and returns the
// response, whose body has to be closed. If a connection that was idle, or that others
// share, turns out to be closed, and the request may be sent again, RoundTrip sends it
// over another connection to the same address, with the body that GetBody returns.
// Other addresses are the caller's concern. Errors are of type *Error.
func (p *Pool) RoundTrip(req *http.Request, o *Order) (*http.Response, error) {
	if err := validate(req); err != nil {
		closeBody(req)
		return nil, &Error{Phase: Prepare, Err: err}
	}
	for retries := 0; ; {
		o.Timing.reset()
		c, fresh, err := p.getConn(req, o)
		if err != nil {
			closeBody(req)
			return nil, err
		}
		stamps := o.Timing.beginExchange(c.h2 != nil)
		var res *http.Response
		if c.h2 != nil {
			res, err = c.roundTripHTTP2(req, stamps)
		} else {
			res, err = c.roundTripHTTP1(req, fresh, stamps)
		}
		o.Timing.endExchange(stamps)
		if err == nil {
			c.taken()
			if o.Reused != nil {
				*o.Reused = !fresh
			}
			return res, nil
		}
		e := err.(*Error)
		e.Reused = !fresh
		if e.Err == errNotQuiet && req.Context().Err() == nil {
			continue // nothing was sent, and this connection is closed now
		}
		maxRetries := maxStale
		switch {
		case e.bounced:
			maxRetries = maxBounced
		case fresh: // it was the address that failed, not an old connection
			maxRetries = 0
		}
		if retries >= maxRetries || !e.mayRetry(req) {
			return nil, e
		}
		if req = rewind(req); req == nil {
			return nil, e
		}
		retries++
	}
}

// Probe opens a connection in the background, which shows whether an address works
// again: the pool reports that to health. The connection is idle then, until a request
// takes it. Probe reports whether MaxPerKey allows another connection.
func (p *Pool) Probe(o *Order) bool {
	s := p.shard(&o.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.destination(p, o)
	if !p.mayDial(d) {
		s.dropUnused(d)
		return false
	}
	p.startDial(d, o, nil)
	return true
}

// Close closes idle connections, and ends dials that no request waits for. Other
// connections are closed when their requests end. Requests may still come: they are
// served, and leave nothing behind.
func (p *Pool) Close() {
	p.closed.Store(true)
	p.limits.removePool(p)
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		for _, d := range s.destinations {
			for _, n := range d.dials {
				if n.assigned == 0 {
					n.cancel()
				}
			}
		}
		s.mu.Unlock()
	}
	p.closeIdle(0)
	p.sweeper.stop(p)
}

// Open returns how many connections are open, in use or idle.
func (p *Pool) Open() int { return int(p.open.Load()) }

// Closed reports whether Close was called.
func (p *Pool) Closed() bool { return p.closed.Load() }
