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
	idleSeq atomic.Uint64 // numbers the moments at which connections became idle
	seed    maphash.Seed
	shards  [32]shard

	closing sync.Mutex // held by who looks for what to close, so that not too much is

	sweeper sweeper
	watcher watcher
	closed  atomic.Bool
}

// shard is a part of the destinations, with a lock of its own.
type shard struct {
	mu           sync.Mutex
	destinations map[Key]*destination
	oldest       *conn // idle connections, the one longest idle first
	newest       *conn

	unwatched unwatched
}

// New returns a pool. It has to be closed.
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

func (p *Pool) shard(key *Key) *shard {
	return &p.shards[maphash.Comparable(p.seed, *key)%uint64(len(p.shards))]
}

// RoundTrip sends a request over a connection for the order's key and returns the
// response. If the connection turns out to be of no use, and the request may be
// sent again, it is sent over another one. The body of a request that may be sent
// again comes from GetBody. Errors are of type *Error.
func (p *Pool) RoundTrip(req *http.Request, o *Order) (*http.Response, error) {
	if err := validate(req); err != nil {
		closeBody(req)
		return nil, &Error{Phase: Prepare, Err: err}
	}
	for n := 0; ; {
		c, fresh, err := p.getConn(req, o)
		if err != nil {
			closeBody(req)
			return nil, err
		}
		var res *http.Response
		if c.h2 != nil {
			res, err = c.roundTripHTTP2(req)
		} else {
			res, err = c.roundTripHTTP1(req, fresh)
		}
		if err == nil {
			return res, nil
		}
		e := err.(*Error)
		e.Reused = !fresh
		if e.Err == errNotQuiet && req.Context().Err() == nil {
			continue // as if there were no such connection
		}
		if !e.bounced && (fresh || n >= maxStale) || n == maxBounced || !e.mayRetry(req) {
			return nil, e
		}
		if req = rewind(req); req == nil {
			return nil, e
		}
		n++
	}
}

// Probe opens a connection in the background, to see whether an address works
// again. It then waits to be used. Probe reports whether the limits let it.
func (p *Pool) Probe(o *Order) bool {
	s := p.shard(&o.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.destination(p, o)
	if limit := p.config.MaxPerKey; limit == 0 || len(d.conns)+len(d.dials) < limit {
		p.startDial(d, o)
		return true
	}
	s.dropUnused(d)
	return false
}

// Close closes what is idle, and lets what is in use be closed as soon as it is no
// longer. Requests may still come: they are served, and leave nothing behind.
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

// Open returns how many connections are open.
func (p *Pool) Open() int { return int(p.open.Load()) }
