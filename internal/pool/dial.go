package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/pires/go-proxyproto"
)

// dial opens one connection, in two phases: Connect, and Handshake with TLS. shard.mu
// guards what changes. The connection goes to the request that has waited longest. An
// error goes to all requests that were assigned this dial.
type dial struct {
	order      *Order // its own copy
	assigned   int    // to how many waiters; 0: it is a probe, or they no longer wait
	phase      Phase
	phaseBegan time.Time
	connect    Step       // once Handshake has begun
	ended      time.Time  // zero: not yet
	pending    []*Pending // of requests that gave it up

	spare SpareObserver // nil: it was not begun by Spare

	ctx    context.Context // ends with the dial
	cancel context.CancelFunc
}

// startDial opens a connection in the background; shard.mu is held. spare is nil unless
// Spare begins it.
func (p *Pool) startDial(d *destination, o *Order, spare SpareObserver) *dial {
	order := *o // the original belongs to the request
	order.Pending, order.Reused, order.Timing = nil, nil, nil
	n := &dial{order: &order, phaseBegan: time.Now(), spare: spare}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	d.dials = append(d.dials, n)
	d.shard.count.dials[Connect]++
	go p.dial(d, n)
	return n
}

// dial opens a connection and delivers it, or the error.
func (p *Pool) dial(d *destination, n *dial) {
	defer n.cancel() // after the progress was set: see Pending.done
	c, err := p.connect(d, n)
	if err != nil {
		p.deliverError(d, n, err)
	} else {
		p.deliverConn(d, n, c)
	}
}

// deliverConn ends a dial that succeeded. The connection goes to the request that has
// waited longest, or becomes idle. The requests that this dial was assigned to and that
// did not get the connection are assigned another dial.
func (p *Pool) deliverConn(d *destination, n *dial, c *conn) {
	s := d.shard
	s.mu.Lock()
	d.endDial(n, Succeeded)
	if n.assigned == 0 && n.spare == nil { // a probe, or its request gave it up: no request will report that the address works
		p.health.Worked(n.order.Target, n.order.Key.Addr)
	}
	p.addConn(d, c)
	if n.spare != nil {
		c.spare.Store(&spare{n.spare})
		n.spare.Dialled(true)
	}
	surplus := false
	d.speaksHTTP2 = c.h2 != nil
	if c.h2 != nil {
		surplus = !p.serveWaiters(c, n) && (d.othersTakeRequests(c) || p.idleOrSurplus(c))
	} else if p.deliver(d, c, n) {
		c = nil
	}
	for _, w := range slices.Clone(d.waiters) {
		switch {
		case w.dial != n:
		case c != nil && c.h2 != nil && c.active > 0: // the connection may take more requests, see streamFreed
			w.dial = nil
		default: // another request took the connection
			w.dial = nil
			p.assignDial(d, w)
		}
	}
	s.mu.Unlock()
	switch {
	case c == nil:
	case surplus:
		p.discard(c)
	case c.h2 == nil:
		p.putConn(c, false)
	case c.gone.Load(): // it ended before it was added
		p.discard(c)
	}
	p.sweeper.start(p)
	p.closeSurplus()
}

// deliverError ends a dial that failed. All requests that it was assigned to get the
// error, unless it is that of Limits and they may wait: see waitsForFree. Others that wait
// may dial now.
func (p *Pool) deliverError(d *destination, n *dial, err *Error) {
	s := d.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	d.endDial(n, Failed)
	if n.spare != nil {
		n.spare.Dialled(false)
	}
	for _, w := range slices.Clone(d.waiters) {
		switch {
		case w.dial != n:
			continue
		case err.Err == ErrLimit && n.spare != nil: // a dial for a request may close what is idle
			w.dial = nil
			continue
		case err.Err == ErrLimit && p.waitsForFree(d, w, err, n):
			continue
		}
		p.removeWaiter(d, w)
		w.ready <- answer{err: err, dial: n}
	}
	p.assignDials(d)
	s.dropUnused(d)
}

// endDial removes a dial from its destination and sets the Pendings of the requests that
// gave it up; shard.mu is held.
func (d *destination) endDial(n *dial, progress Progress) {
	n.ended = time.Now()
	d.dials = slices.DeleteFunc(d.dials, func(other *dial) bool { return other == n })
	d.shard.count.dials[n.phase]--
	for _, pending := range n.pending {
		pending.progress.Store(int32(progress))
	}
}

// connect opens the connection, if that is allowed.
func (p *Pool) connect(d *destination, n *dial) (*conn, *Error) {
	group, err := p.admit(n.order, d.group, n.spare == nil)
	if err != nil {
		return nil, err
	}
	c, err := p.runPhases(d, n)
	if err == nil && c.gone.Load() { // the backend closed it at once, over HTTP/2
		err = &Error{Phase: Response, Err: errClosed}
	}
	if err != nil {
		p.limits.release(d.group)
		return nil, err
	}
	c.group = group
	return c, nil
}

// admit counts a connection that is about to be opened in the Limits, if the Owner
// permits the address and the Limits allow another connection, for which an idle one may be
// closed.
func (p *Pool) admit(o *Order, name string, mayClose bool) (*connGroup, *Error) {
	if o.Owner != nil {
		if err := o.Owner.Permit(o.Key.Addr); err != nil {
			return nil, &Error{Phase: Connect, Err: err}
		}
	}
	if g := p.limits.acquire(name, mayClose); g != nil {
		return g, nil
	}
	return nil, &Error{Phase: Connect, Err: ErrLimit}
}

// runPhases goes through the phases of a dial and reports to health what each shows of
// the address.
func (p *Pool) runPhases(d *destination, n *dial) (*conn, *Error) {
	o := n.order
	addr := o.Key.Addr
	begun := time.Now()
	raw, err := p.openTCP(n.ctx, o)
	if forbidden, ok := errors.AsType[*forbiddenError](err); ok {
		return nil, &Error{Phase: Connect, Err: forbidden.error}
	}
	switch {
	case err == nil:
		p.health.Reached(addr.Addr(), true)
	case IsTimeout(err) || isNoRoute(err):
		p.health.Reached(addr.Addr(), false)
	}
	if err != nil {
		return nil, p.reportFailure(n, "", &Error{Phase: Connect, Err: err})
	}
	c := newConn(p, d, raw)
	observer := p.config.Observer
	if observer != nil {
		observer.Connected(c.openedAt.Sub(begun))
	}
	if !o.Key.secure() {
		if o.Key.Protocol == HTTP2 {
			if err := c.startHTTP2(); err != nil {
				return nil, &Error{Phase: Connect, Err: err}
			}
		}
		return c, nil
	}
	d.shard.mu.Lock()
	now := time.Now()
	n.connect = Step{n.phaseBegan, now}
	n.phase, n.phaseBegan = Handshake, now
	d.shard.count.dials[Connect]--
	d.shard.count.dials[Handshake]++
	d.shard.mu.Unlock()
	if err := p.handshake(n, c); err != nil {
		return nil, p.reportFailure(n, o.Target, &Error{Phase: Handshake, Err: err})
	}
	if observer != nil {
		observer.Secured(time.Since(n.phaseBegan), c.tls.ConnectionState().DidResume)
	}
	return c, nil
}

// reportFailure reports to health that a dial failed, and returns the error. It does so
// whether or not a request still waits for the dial. The failure counts for one target, or
// for all if target is empty. A failure of this side is no failure of the address:
// resources that ran out, or a dial that Close cancelled before minTimeout was over.
func (p *Pool) reportFailure(n *dial, target string, e *Error) *Error {
	reason := e
	if n.ctx.Err() != nil {
		if time.Since(n.phaseBegan) < minTimeout[n.phase] {
			return e
		}
		reason = &Error{Phase: e.Phase, Err: errDialTimeout}
	}
	if !IsLocalExhaustion(e.Err) && e.Err != errNoClient && n.order.Target != "" {
		p.health.Failed(target, n.order.Key.Addr, false, reason)
	}
	return e
}

const (
	// maxExhausted is how many times a dial begins again when this machine has no
	// descriptors, ports or memory left, each time exhaustedPause later.
	maxExhausted   = 5
	exhaustedPause = 20 * time.Millisecond
)

// openTCP opens a TCP connection and announces the client over it. If this machine has
// no resources left for another connection, it closes idle ones.
func (p *Pool) openTCP(ctx context.Context, o *Order) (net.Conn, error) {
	network, address := o.Key.address()
	for try := 0; ; try++ {
		conn, err := p.dialOnce(ctx, network, address)
		if err == nil {
			err = o.confirm(conn)
		}
		if err == nil && p.config.ProxyProtocol != 0 {
			err = p.announce(conn, &o.Key)
		}
		if err == nil {
			return conn, nil
		}
		if forbidden, ok := errors.AsType[*forbiddenError](err); ok {
			return nil, forbidden
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !IsLocalExhaustion(err) || try == maxExhausted {
			return nil, err
		}
		p.closeIdle(p.open.Load() / 8 * 7)
		time.Sleep(exhaustedPause)
	}
}

// dialOnce calls Dial with the DialTimeout.
func (p *Pool) dialOnce(ctx context.Context, network, address string) (net.Conn, error) {
	if t := p.config.DialTimeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	conn, err := p.Dial(ctx, network, address)
	if err != nil && hasPassed(ctx) {
		return nil, errDialTimeout
	}
	return conn, err
}

// hasPassed reports whether the deadline of ctx has passed, even if its timer is late.
func hasPassed(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || ok && ctx.Err() == nil && !time.Now().Before(end)
}

// forbiddenError is the Owner's reason why a connection may not be used. It is no
// failure of the address.
type forbiddenError struct{ error }

func (e *forbiddenError) Unwrap() error { return e.error }

// confirm asks the owner about a connection that was opened, and closes it if it may
// not be used.
func (o *Order) confirm(conn net.Conn) error {
	if o.Owner == nil {
		return nil
	}
	remote := o.Key.Addr
	if a := addrPortOf(conn.RemoteAddr()); a.IsValid() {
		remote = a
	}
	err := o.Owner.Confirm(addrPortOf(conn.LocalAddr()), remote)
	if err == nil {
		return nil
	}
	_ = conn.Close()
	return &forbiddenError{err}
}

// addrPortOf returns the address of TCP that a is; the zero value if it is none.
func addrPortOf(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		addr := tcp.AddrPort()
		return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	}
	return netip.AddrPort{}
}

// announce sends the header of the PROXY protocol. The destination that the client
// called is not known: it is all zeros, as Caddy sends it.
func (p *Pool) announce(conn net.Conn, key *Key) error {
	client := key.Client
	var destination net.Addr
	switch {
	case client.Addr().Is4():
		destination = &net.TCPAddr{IP: net.IPv4zero}
	case client.Addr().Is6():
		destination = &net.TCPAddr{IP: net.IPv6zero}
	default:
		_ = conn.Close()
		return errNoClient
	}
	source := &net.TCPAddr{IP: client.Addr().AsSlice(), Port: int(client.Port()), Zone: client.Addr().Zone()}
	header := proxyproto.HeaderProxyFromAddrs(p.config.ProxyProtocol, source, destination)
	if _, err := header.WriteTo(conn); err != nil {
		_ = conn.Close()
		return err
	}
	return nil
}

// handshake does the TLS handshake, and resumes a session if there is one.
func (p *Pool) handshake(n *dial, c *conn) error {
	var prepare func(*tls.Config)
	if p.sessions != nil {
		prepare = p.sessions.configure
	}
	secured, err := p.startTLS(n.ctx, &n.order.Key, c.raw, prepare)
	if err != nil {
		return err
	}
	c.Conn, c.tls = secured, secured
	if secured.ConnectionState().NegotiatedProtocol == "h2" {
		return c.startHTTP2()
	}
	return nil
}

// startTLS does the TLS handshake over a connection, which it closes on an error. The
// certificate is verified for the name that is part of the key. prepare, if not nil,
// changes the configuration for this connection. The connection is returned with an error,
// too, for what is known of it.
func (p *Pool) startTLS(ctx context.Context, key *Key, raw net.Conn, prepare func(*tls.Config)) (*tls.Conn, error) {
	config := p.config.TLS.Clone()
	config.ServerName = key.ServerName
	if key.Protocol == TLSHTTP1 {
		config.NextProtos = []string{"http/1.1"}
	}
	if prepare != nil {
		prepare(config)
	}
	limited := ctx
	if t := p.config.HandshakeTimeout; t > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, t, errDialTimeout)
		defer cancel()
	}
	secured := tls.Client(raw, config)
	err := secured.HandshakeContext(limited)
	if err != nil {
		_ = raw.Close()
		if limited.Err() != nil && ctx.Err() == nil {
			err = errDialTimeout
		}
	}
	return secured, err
}
