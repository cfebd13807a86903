package caddytarget

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// dial opens a TCP connection for an attempt.
func (t *Transport) dial(ctx context.Context, network, address string) (net.Conn, error) {
	a, err := attemptAt(ctx)
	if err != nil {
		return nil, err
	}
	return t.connect(ctx, a, network, address)
}

// dialTLS opens a TLS connection for an attempt.
func (t *Transport) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	a, err := attemptAt(ctx)
	if err != nil {
		return nil, err
	}
	if conn := t.registry.adopt(a.pool, handshake); conn != nil {
		return conn, nil
	}
	conn, err := t.connect(ctx, a, network, address)
	if err != nil {
		return nil, err
	}
	return t.secure(ctx, a, conn.(*trackedConn))
}

// attemptAt returns the attempt for which a connection is to be opened, unless
// its address may not be called.
func attemptAt(ctx context.Context) (*attempt, error) {
	a := ctx.Value(attemptKey{}).(*attempt)
	if c := a.call; c != nil && c.judge != nil {
		if err := c.judge.dial(c, a.pool.addr); err != nil {
			return nil, caddyhttp.Error(http.StatusForbidden, err)
		}
	}
	if a.crowded && a.servedSoon() {
		return nil, errNotNeeded
	}
	a.dialled.Store(true)
	return a, nil
}

const (
	// A new connection is put off for a moment while others may become free: twice
	// as long as the last time if that was to the point, up to mostCrowdTime, else
	// half as long.
	firstCrowdTime = 4 * time.Millisecond
	leastCrowdTime = time.Millisecond
	mostCrowdTime  = 16 * time.Millisecond

	// crowdStep is how often it is looked.
	crowdStep = 500 * time.Microsecond
)

// errNotNeeded is the error of a dial that nobody waits for.
var errNotNeeded = errors.New("another connection has become free")

// servedSoon waits a little for the attempt to get another connection than the
// one that is about to be opened.
func (a *attempt) servedSoon() bool {
	before, crowd := a.got.Load(), &a.pool.crowdTime
	most := cmp.Or(time.Duration(crowd.Load()), firstCrowdTime)
	for range most / crowdStep {
		time.Sleep(crowdStep)
		if a.got.Load() != before {
			crowd.Store(int64(min(2*most, mostCrowdTime)))
			return true
		}
	}
	crowd.Store(int64(max(most/2, leastCrowdTime)))
	return false
}

// phase is a phase of opening a connection.
type phase int

const (
	connect phase = iota
	handshake
	phases
)

var (
	// firstTime is how long a phase may take while there is another address to try.
	firstTime = [phases]time.Duration{connect: 300 * time.Millisecond, handshake: time.Second}

	// leastTime is how long it may take at least where there is none. A SYN is sent
	// again after a second (RFC 6298).
	leastTime = [phases]time.Duration{connect: 1300 * time.Millisecond, handshake: 2 * time.Second}
)

// wholeTime returns how long a phase may take at all.
func (t *Transport) wholeTime(ph phase) time.Duration {
	if ph == handshake {
		return t.http.TLSHandshakeTimeout
	}
	return t.dialTimeout
}

// connect opens a TCP connection.
func (t *Transport) connect(ctx context.Context, a *attempt, network, address string) (net.Conn, error) {
	if conn := t.registry.adopt(a.pool, connect); conn != nil {
		return conn, nil
	}
	conn, err := t.stage(ctx, a, connect, func(ctx context.Context) (net.Conn, error) {
		conn, err := t.open(ctx, network, address)
		switch {
		case err == nil:
			t.health.reached(a.pool.addr.Addr())
			return t.registry.track(a.pool, conn)
		case isTimeout(err) || isNoRoute(err):
			t.health.unreached(a.pool.addr.Addr())
		}
		return nil, err
	})
	if err != nil {
		return nil, newDialError(a, err)
	}
	return conn, nil
}

// secure does the TLS handshake. The certificate is verified for the name that
// is part of the pool's key.
func (t *Transport) secure(ctx context.Context, a *attempt, conn *trackedConn) (net.Conn, error) {
	config := t.tlsConfig.Clone()
	config.ServerName = a.pool.key.name
	if a.pool.key.kind == upgrade {
		config.NextProtos = []string{"http/1.1"}
	}
	secured, err := t.stage(ctx, a, handshake, func(ctx context.Context) (net.Conn, error) {
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err
		}
		conn.pool.h2.Store(secured.ConnectionState().NegotiatedProtocol == "h2")
		return secured, nil
	})
	if err != nil {
		return nil, newDialError(a, fmt.Errorf("TLS handshake: %w", err))
	}
	return secured, nil
}

// errNoTime is why there is no connection.
var errNoTime = &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}

// cutError is the error of a phase that was cut, and goes on.
type cutError struct {
	addr     netip.AddrPort
	phase    phase
	progress atomic.Int32
	over     context.Context // ends when the phase does
}

// The values of cutError.progress.
const (
	underWay int32 = iota
	succeeded
	failed
)

func (*cutError) Error() string { return errNoTime.Error() }

// Timeout is looked for by those who want to know.
func (*cutError) Timeout() bool { return true }

// stage does a phase and tells health how that went. While there is another
// address to try it waits only a short time; where there is none, until one that
// was cut has come through. The phase goes on in the background then, and is a
// failure only if it fails. What comes of it is kept for a while.
func (t *Transport) stage(ctx context.Context, a *attempt, ph phase, do func(context.Context) (net.Conn, error)) (net.Conn, error) {
	whole, least := t.wholeTime(ph), leastTime[ph]
	id := healthID{addr: a.pool.addr}
	if ph == handshake && a.call != nil {
		id.host = a.call.host
	}
	tell := func(ctx context.Context, err error) {
		if err != nil && a.call != nil && ctx.Err() == nil && !isOurs(err) && err != errRetired {
			t.health.fail(id, false)
		}
	}
	if end := a.ends[ph]; a.last && !end.IsZero() {
		// all addresses together may take little longer than one
		if left := time.Until(end); left > 0 {
			whole = min(whole, max(left, least))
		} else {
			whole = min(whole, firstTime[ph])
		}
	}
	if a.last && len(a.cuts) == 0 {
		timed, cancel := context.WithTimeoutCause(ctx, whole, errNoTime)
		defer cancel()
		conn, err := do(timed)
		tell(ctx, err)
		return conn, err
	}

	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	cut, ended := make(chan struct{}), make(chan struct{})
	doCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	slow := &cutError{addr: a.pool.addr, phase: ph, over: doCtx}
	start := time.Now()
	t.registry.enterPhase(a.pool)
	go func() {
		defer close(ended)
		defer cancel()
		defer t.registry.leavePhase(a.pool)
		timed, cancel := context.WithTimeoutCause(doCtx, whole, errNoTime)
		defer cancel()
		conn, err := do(timed)
		tell(doCtx, err)
		select {
		case results <- result{conn, err}:
		case <-cut:
			switch {
			case err == nil:
				t.health.works(id.host, id.addr)
				t.registry.keep(a.pool, ph, conn)
				slow.progress.Store(succeeded)
				return
			case doCtx.Err() != nil && time.Since(start) >= least:
				t.health.fail(id, false) // its keeper has ended, and nothing has come back
			}
			slow.progress.Store(failed)
		}
	}()
	patience := whole
	if !a.last {
		patience = firstTime[ph]
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	through := make(chan *cutError, len(a.cuts))
	for _, other := range a.cuts {
		defer context.AfterFunc(other.over, func() {
			if other.progress.Load() == succeeded {
				through <- other
			}
		})()
	}
	var conn net.Conn
	err := error(slow)
	for waiting := true; waiting; {
		waiting = false
		select {
		case r := <-results:
			return r.conn, r.err
		case <-timer.C:
			t.health.suspect(id, whole-patience)
		case other := <-through:
			if conn = t.registry.adopt(a.pool, ph); conn != nil {
				err = nil
			} else {
				waiting = other.addr == a.pool.addr // it works: the connection will come
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	close(cut)
	if ph == connect { // it takes nothing of the configuration
		t.shared.keeper.adopt(cancel, ended)
	} else {
		t.keeper.adopt(cancel, ended)
	}
	return conn, err
}

// probe opens connections to addresses of an attempt's target that failed a while
// ago, as they would be opened for the attempt, to see whether they work again.
func (t *Transport) probe(a *attempt) {
	c := a.call
	if c == nil {
		return
	}
	t.probeFor(a, c)
	if c.service != nil {
		for i := range c.service.calls {
			t.probeFor(a, &c.service.calls[i].call)
		}
	}
}

// probeFor is probe for a call that might have been that of the attempt.
func (t *Transport) probeFor(a *attempt, c *call) {
	for _, addr := range c.probe {
		key := a.pool.key
		key.address = netip.AddrPortFrom(addr, c.port).String()
		if key.name == a.call.host {
			key.name = c.host
		}
		// nothing of the request, which may be over sooner
		p := &attempt{Context: t.keeper.ctx, transport: t, call: c, vars: a.vars, last: true}
		t.keeper.run(func() {
			p.pool, _ = t.registry.acquire(key, c)
			defer t.registry.release(p.pool)
			open, ph := t.dial, connect
			if key.name != "" {
				open, ph = t.dialTLS, handshake
			}
			if conn, err := open(p, "tcp", key.address); err == nil {
				t.health.works(c.host, p.pool.addr)
				t.registry.keep(p.pool, ph, conn)
			}
		})
	}
	c.probe = nil
}

// keeper keeps goroutines that nobody waits for, until its end.
type keeper struct {
	ctx    context.Context // ends with the keeper
	cancel context.CancelFunc
	mu     sync.Mutex // guards the end of ctx against others
	wg     sync.WaitGroup
}

func newKeeper() *keeper {
	ctx, cancel := context.WithCancel(context.Background())
	return &keeper{ctx: ctx, cancel: cancel}
}

// run runs f, unless the keeper has ended.
func (k *keeper) run(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ctx.Err() == nil {
		k.wg.Go(f)
	}
}

// adopt lets something go on that nobody waits for any more, until the keeper ends.
func (k *keeper) adopt(cancel context.CancelFunc, ended <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ctx.Err() != nil {
		cancel()
		return
	}
	stop := context.AfterFunc(k.ctx, cancel)
	k.wg.Go(func() {
		<-ended
		stop()
	})
}

// end ends all that is kept.
func (k *keeper) end() {
	k.mu.Lock()
	k.cancel()
	k.mu.Unlock()
	k.wg.Wait()
}

// open opens a TCP connection. If this machine has nothing left for another one,
// idle ones are closed.
func (t *Transport) open(ctx context.Context, network, address string) (net.Conn, error) {
	for try := 0; ; try++ {
		conn, err := t.dialTCP(ctx, network, address)
		switch {
		case err == nil:
			limitSilence(conn)
			return conn, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case isOurs(err) && try < maxShortages:
			t.registry.shrink()
			time.Sleep(shortagePause)
		case strings.HasSuffix(err.Error(), os.ErrDeadlineExceeded.Error()):
			return nil, timeoutError{err}
		default:
			return nil, err
		}
	}
}

// maxSilence is how long a backend may not acknowledge what was sent.
const maxSilence = 10 * time.Second

const (
	// maxShortages is how often a connection is tried to be opened again when
	// this machine has nothing left for it, and shortagePause how long others
	// have then to give something back.
	maxShortages  = 5
	shortagePause = 20 * time.Millisecond
)

// isOurs tells whether an error of a connection attempt speaks of this machine,
// not of the address. Why the embedded transport could not connect is not to be
// had from its error, which does not unwrap.
func isOurs(err error) bool {
	return endsWith(err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL)
}

// isNoRoute tells whether there is no way to an address.
func isNoRoute(err error) bool { return endsWith(err, syscall.ENETUNREACH, syscall.EHOSTUNREACH) }

func endsWith(err error, codes ...syscall.Errno) bool {
	text := err.Error()
	return slices.ContainsFunc(codes, func(code syscall.Errno) bool { return strings.HasSuffix(text, code.Error()) })
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func isDialError(err error) bool {
	_, ok := errors.AsType[*dialError](err)
	return ok
}

// timeoutError is an error that there was no time left.
type timeoutError struct{ error }

func (e timeoutError) Unwrap() error { return e.error }

// Timeout is looked for by those who want to know.
func (timeoutError) Timeout() bool { return true }

// dialError is a failure before anything of the request was sent. For
// reverse_proxy it is a reverseproxy.DialError, so that any request may be
// tried elsewhere, and a net.Error, so that a timeout becomes status 504.
type dialError struct {
	target string // target and address
	err    error
}

func newDialError(a *attempt, err error) error {
	target := a.pool.key.address
	if a.call != nil {
		target = a.call.host + " at " + target
	}
	return &dialError{target, err}
}

func (e *dialError) Error() string { return e.target + ": " + e.err.Error() }

func (e *dialError) Unwrap() error { return e.err }

// As makes e a reverseproxy.DialError for errors.As. Its value stays empty:
// only the type can be had outside of its package, and reverse_proxy looks at
// nothing else.
func (e *dialError) As(target any) bool {
	_, ok := target.(*reverseproxy.DialError)
	return ok
}

// Timeout implements net.Error.
func (e *dialError) Timeout() bool { return isTimeout(e.err) }

// Temporary implements net.Error.
func (e *dialError) Temporary() bool { return false }
