// Package pool keeps connections to backends that no configuration lists, and
// sends requests over them.
//
// A Key is all that a connection depends on: the address, the target's host, the
// TLS server name, the protocol. For each Key that is in use the Pool has a
// destination, with its connections, the requests that wait for one, and the dials
// under way. A request takes the connection that was used last. If there is none,
// it becomes a waiter and starts a dial; it gets whichever comes first, a
// connection that becomes free or a new one. A connection that no request waits
// for becomes idle. A dial may outlive its request, so it looks at nothing but its
// Order.
//
// A connection of HTTP/1.1 (conn, http1.go) has no goroutine: the request's own
// goroutine writes the request and reads the response, with buffers that it has
// only meanwhile. The standard library writes, parses and frames. A connection of
// HTTP/2 (http2.go) is an http2.ClientConn of golang.org/x/net. The sweeper
// (sweep.go) closes what has been idle for too long or was closed by the backend,
// and looks for backends that have gone silent. The watcher (watch.go) ends requests
// over HTTP/1.1 whose contexts end.
package pool

import (
	"cmp"
	"context"
	"crypto/tls"
	"hash/maphash"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"caddytarget/internal/health"
)

// Config says how a Pool opens and keeps connections. All durations of zero mean
// no limit, unless another default stands here.
type Config struct {
	// TLS is the configuration of TLS connections; the server name comes from the
	// Key. Its NextProtos has "h2" if HTTP/2 may be negotiated.
	TLS *tls.Config

	// SessionCache is how many TLS sessions are kept to be resumed; negative: none.
	SessionCache int

	Dialer           net.Dialer    // opens TCP connections; its Timeout is not used
	DialTimeout      time.Duration // for one TCP connection
	HandshakeTimeout time.Duration // for one TLS handshake
	ProxyProtocol    byte          // 1 or 2: the version that is sent; 0: none

	ReadTimeout           time.Duration // until something more comes from the backend
	WriteTimeout          time.Duration // until the backend takes something more
	ResponseHeaderTimeout time.Duration // from the end of the request to the end of the header
	ExpectContinueTimeout time.Duration // for 100 (Continue), before the body is sent anyway

	MaxResponseHeader  int64 // octets of a response's header; default: DefaultMaxResponseHeader
	ReadBuffer         int   // octets; default: 4096
	WriteBuffer        int   // octets; default: 4096
	DisableCompression bool  // do not ask for gzip where the client has not

	DisableKeepAlive bool
	MaxIdlePerKey    int           // idle connections
	MaxPerKey        int           // connections in all; 0: no limit
	MaxIdle          int           // open connections beyond which idle ones are closed
	IdleTimeout      time.Duration // after which an idle connection is closed
}

const (
	// DefaultMaxResponseHeader is how many octets the header of a response may have.
	DefaultMaxResponseHeader = 256 << 10

	// maxFields is how many fields the header of a response may have, and
	// maxInterim how many interim responses (1xx) may come before it.
	maxFields  = 1000
	maxInterim = 100

	// maxStale is how many connections that turn out to be closed one RoundTrip
	// may meet.
	maxStale = 3

	// maxBounced is how many there may be if each of them took other requests before
	// it refused this one.
	maxBounced = 8
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

// Protocol is what is spoken over a connection.
type Protocol uint8

// The protocols.
const (
	HTTP1    Protocol = iota // HTTP/1.1 without TLS
	HTTP2                    // HTTP/2 without TLS, with prior knowledge
	TLS                      // over TLS, HTTP/1.1 or HTTP/2 as negotiated
	TLSHTTP1                 // HTTP/1.1 over TLS, for requests that change the protocol
)

// Key is all that a connection depends on, beside the Config.
type Key struct {
	Addr       netip.AddrPort // where it leads to; not valid: see Dial
	Dial       string         // network and address, separated by a space, if that is no IP address
	Host       string         // of the target; empty where targets share connections
	ServerName string         // that the backend proves to have, with TLS
	Protocol   Protocol
	Client     netip.AddrPort // announced by the PROXY protocol
}

// address returns network and address, as net.Dial has them.
func (k *Key) address() (network, address string) {
	if k.Addr.IsValid() {
		return "tcp", k.Addr.String()
	}
	network, address, _ = strings.Cut(k.Dial, " ")
	return network, address
}

func (k *Key) secure() bool { return k.Protocol >= TLS }

// Order is what a request wants of a Pool. It does not change: it is all that a
// dial may look at, which may outlive the request.
type Order struct {
	Key    Key
	Target string // the host, for health and errors; empty: nobody's
	Owner  Owner  // nil: nobody has to permit anything

	Last      bool                      // there is no other address to try
	Deadlines [dialPhaseCount]time.Time // when the time for a phase is over; zero: each dial has all of it
	Pending   []*Pending                // dials for the same request that are under way
}

// Owner stands behind an Order. Its methods may be called after the request has
// ended.
type Owner interface {
	// Permit returns why an address may not be dialled, or nil. It is asked just
	// before the connection is opened.
	Permit(addr netip.AddrPort) error

	// Confirm returns why a connection that was just opened may not be used, or nil.
	// Nothing has been sent. Addresses that are not of TCP are zero values.
	Confirm(local, remote netip.AddrPort) error

	// Guard returns what Permit goes by, for comparison.
	Guard() any

	// Source returns where the target's addresses come from, for comparison.
	Source() any

	// Watch returns a function that reports whether the target has other addresses
	// now than that of the connection, according to Source; nil: that is never so.
	Watch() func(addr netip.Addr) (moved bool)
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

// rewind returns the request with its body from the beginning, or nil if there is
// no such thing.
func rewind(req *http.Request) *http.Request {
	if !hasBody(req) {
		return req
	}
	if req.GetBody == nil {
		return nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil
	}
	again := *req // the one before may still be looked at
	again.Body = body
	return &again
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
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
