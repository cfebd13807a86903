package dnsclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSilence is how long a connection with queries in flight may bring no reply
	// before the next query goes over another connection.
	maxSilence = 2 * time.Second

	// minWait is how long a query must have waited for its timeout to retire the
	// connection. All timeouts of tries are longer, but a query may have spent most
	// of its own on connecting.
	minWait = 200 * time.Millisecond

	// maxIDs is how many IDs of one connection may be in use.
	maxIDs = 1 << 14

	// maxStrays is how many messages in a row a connection may bring that are no
	// replies.
	maxStrays = 1000

	// maxDedicated is how many queries at a time may have a connection of their
	// own.
	maxDedicated = 16
)

// stream asks over TCP or TLS. All queries share one connection, which is kept
// while it is used. They do not wait for each other: the replies come in any
// order, and are matched by ID (RFC 7766, section 6.2).
//
// A server may close a connection at any time. A query that fails for that reason
// is sent once more (RFC 7766, section 6.2.4), over a dedicated connection: some
// servers close after each reply, and some at one query that they do not like,
// and then the other queries must not fail with it.
//
// A query whose deadline passes leaves, and the connection continues without it.
// Only the two goroutines of the connection read and write, so the deadline of one
// query does not affect the others. The end of the connection interrupts them.
type stream struct {
	name       string
	dial       func(context.Context) (net.Conn, error)
	mismatches *atomic.Uint64
	dedicated  chan struct{} // holds one element for each dedicated connection

	mu         sync.Mutex // guards all below, and dialing, streamConn and pending where not noted
	conn       *streamConn
	dialing    *dialing
	exchanges  int // under way
	closed     bool
	goroutines int
	ended      *sync.Cond // signaled when a goroutine has ended
}

// dialing is a connection that is being established, for all queries that need
// one. It belongs to the stream: the query that began it may leave.
type dialing struct {
	cancel  context.CancelFunc
	waiters int           // how many queries have waited for it
	done    chan struct{} // closed when conn or err is set, which then never change
	conn    *streamConn
	err     error
}

// streamConn is one connection. It takes queries while it is stream.conn.
type streamConn struct {
	net.Conn // read by stream.read, written by stream.write, both without a lock

	pending  map[uint16]*pending // by ID; nil for one that left without its reply
	inFlight int                 // those that did not leave
	idle     *time.Timer         // runs while nothing is in flight
	retired  bool                // takes no queries, and is closed when nothing is in flight
	err      error               // why it is closed; nil while it is open

	asked       uint64
	replies     uint64
	ignored     int
	strays      int       // messages since the last reply to a query
	silentSince time.Time // when the first query after the last reply was sent; zero: none was

	out    []byte        // queries to be written
	wake   chan struct{} // capacity 1: out has grown
	closed chan struct{}
}

// pending is a query that waits for its reply.
type pending struct {
	// Set when the query is added, never changed.
	*question
	conn          *streamConn
	id            uint16
	sent          time.Time
	repliesBefore uint64 // of the connection
	ignoredBefore int    // by the connection
	own           bool   // the connection was established for this query, and no other has waited for it

	// Set by the goroutine that closes done, or by wait if the query leaves before
	// that. They do not change afterwards.
	done    chan struct{}
	reply   []byte
	ignored int
	err     error
	again   bool // to be sent again, over a dedicated connection
}

func newStream(ns Nameserver, roots *x509.CertPool, mismatches *atomic.Uint64) *stream {
	s := &stream{name: ns.Network, dial: newDialer(ns, roots).dial, mismatches: mismatches, dedicated: make(chan struct{}, maxDedicated)}
	s.ended = sync.NewCond(&s.mu)
	return s
}

func (s *stream) String() string { return s.name }

func (s *stream) exchange(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error) {
	left := time.Until(deadline)
	if left <= 0 {
		return nil, 0, os.ErrDeadlineExceeded
	}
	s.enter()
	defer s.leave()
	timer := time.NewTimer(left)
	defer timer.Stop()

	p, again, err := s.send(ctx, timer.C, deadline, q, edns)
	if err == nil {
		s.wait(ctx, timer.C, p)
		reply, ignored, again, err = p.reply, p.ignored, p.again, p.err
	}
	if again {
		var more int
		reply, more, err = s.exchangeDedicated(ctx, deadline, q, edns)
		ignored += more
	}
	return reply, ignored, err
}

// send adds q to the connection, or to a new one if there is none. Again is set if
// the new one ended before q could be added, maybe because of another query.
func (s *stream) send(ctx context.Context, timeout <-chan time.Time, deadline time.Time, q *question, edns bool) (p *pending, again bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn, own := s.usable(), false
	for conn == nil {
		d, joined := s.dialing, true
		if d == nil {
			d, joined = s.startDialing(deadline), false
		}
		d.waiters++
		s.mu.Unlock()
		var err error
		select {
		case <-d.done:
		case <-ctx.Done():
			err = ctx.Err()
		case <-timeout:
			err = os.ErrDeadlineExceeded
		}
		s.mu.Lock()

		var timedOut net.Error
		switch {
		case err != nil:
			return nil, false, err
		case joined && errors.As(d.err, &timedOut) && timedOut.Timeout():
			// The deadline of the dial was earlier than that of q: dial again.
		case d.err != nil:
			return nil, false, d.err
		case d.conn.err != nil:
			return nil, (d.conn.asked > 0 || d.waiters > 1) && d.conn.mayRetry(), d.conn.err
		default:
			conn, own = d.conn, d.waiters == 1
		}
	}
	return conn.add(q, edns, own), false, nil
}

// usable returns the connection if it takes queries, and retires it if it should
// not any more. The caller holds s.mu.
func (s *stream) usable() *streamConn {
	c := s.conn
	if c != nil && (len(c.pending) >= maxIDs || !c.silentSince.IsZero() && time.Since(c.silentSince) > maxSilence) {
		s.retire(c)
	}
	return s.conn
}

// startDialing begins to connect. The caller holds s.mu.
func (s *stream) startDialing(deadline time.Time) *dialing {
	ctx, cancel := context.WithDeadline(context.Background(), dialDeadline(deadline))
	d := &dialing{cancel: cancel, done: make(chan struct{})}
	s.dialing = d
	s.start(func() {
		defer cancel()
		conn, err := s.dial(ctx)

		s.mu.Lock()
		defer s.mu.Unlock()
		if d.err = err; err == nil {
			d.conn = s.keep(conn)
		}
		s.dialing = nil
		close(d.done)
	})
	return d
}

// keep makes conn the connection that takes queries. The caller holds s.mu.
func (s *stream) keep(conn net.Conn) *streamConn {
	c := &streamConn{
		Conn:    conn,
		pending: make(map[uint16]*pending),
		wake:    make(chan struct{}, 1),
		closed:  make(chan struct{}),
	}
	c.idle = time.AfterFunc(maxIdle, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if c.inFlight == 0 {
			s.end(c, errHungUp)
		}
	})
	s.conn = c
	s.start(func() { s.read(c) })
	s.start(func() { s.write(c) })
	if s.closed && s.exchanges == 0 {
		s.end(c, errHungUp)
	}
	return c
}

// add queues a query to be written. The caller holds stream.mu.
func (c *streamConn) add(q *question, edns, own bool) *pending {
	id := newID()
	for {
		if _, taken := c.pending[id]; !taken {
			break
		}
		id = newID()
	}
	p := &pending{
		question: q, conn: c, id: id, own: own,
		sent: time.Now(), repliesBefore: c.replies, ignoredBefore: c.ignored,
		done: make(chan struct{}),
	}
	c.pending[id] = p
	c.asked++
	if c.inFlight++; c.inFlight == 1 {
		c.idle.Stop()
	}
	if c.silentSince.IsZero() {
		c.silentSince = p.sent
	}

	start := len(c.out)
	c.out = q.appendQuery(append(c.out, 0, 0), id, edns)
	binary.BigEndian.PutUint16(c.out[start:], uint16(len(c.out)-start-2))
	select {
	case c.wake <- struct{}{}:
	default: // it is awake
	}
	return p
}

// wait returns when p has its reply or its error. At the timeout or the end of ctx
// it makes p leave.
func (s *stream) wait(ctx context.Context, timeout <-chan time.Time, p *pending) {
	var err error
	select {
	case <-p.done:
		return
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout:
		err = os.ErrDeadlineExceeded
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-p.done: // meanwhile
		return
	default:
	}
	c := p.conn
	c.pending[p.id] = nil
	p.err, p.ignored = err, c.ignored-p.ignoredBefore
	if err == os.ErrDeadlineExceeded && c.replies == p.repliesBefore && time.Since(p.sent) >= minWait {
		s.retire(c) // the server may be dead, or blocked
	}
	s.release(c)
}

// release notes that a query is no longer in flight. The caller holds s.mu.
func (s *stream) release(c *streamConn) {
	switch c.inFlight--; {
	case c.inFlight > 0:
	case c.retired:
		s.end(c, errHungUp)
	default:
		c.idle.Reset(maxIdle)
	}
}

// retire makes c take no more queries. The caller holds s.mu.
func (s *stream) retire(c *streamConn) {
	c.retired = true
	if s.conn == c {
		s.conn = nil
	}
	if c.inFlight == 0 {
		s.end(c, errHungUp)
	}
}

// end closes c for the reason err, which is the error of all that is in flight.
// The caller holds s.mu.
func (s *stream) end(c *streamConn, err error) {
	if c.err != nil {
		return
	}
	c.err = err
	if s.conn == c {
		s.conn = nil
	}
	c.idle.Stop()
	for _, p := range c.pending {
		if p != nil {
			p.err, p.ignored = err, c.ignored-p.ignoredBefore
			p.again = (c.asked > 1 || !p.own) && c.mayRetry()
			close(p.done)
		}
	}
	c.pending = nil
	_ = c.SetWriteDeadline(aLongTimeAgo)
	close(c.closed)
}

// mayRetry reports whether queries may be sent again after the end of c.
func (c *streamConn) mayRetry() bool { return !errors.As(c.err, new(malformed)) }

// write writes what is queued, until c is closed, and closes the socket.
func (s *stream) write(c *streamConn) {
	var out []byte
	for {
		select {
		case <-c.wake:
		case <-c.closed:
			_ = c.Close()
			return
		}
		s.mu.Lock()
		out, c.out = c.out, out[:0]
		s.mu.Unlock()
		if len(out) == 0 {
			continue // the query that woke it has been written with one before it
		}

		if _, err := c.Write(out); err != nil {
			s.mu.Lock()
			s.end(c, hungUp(err))
			s.mu.Unlock()
			abort(c.Conn)
			return
		}
	}
}

// abort closes conn without the alert close_notify of TLS, which could block.
func abort(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	_ = conn.Close()
}

// read delivers the replies, until c ends.
func (s *stream) read(c *streamConn) {
	r := bufio.NewReader(c.Conn)
	for {
		msg, err := readMessage(r)
		s.mu.Lock()
		if err != nil || c.err != nil {
			s.end(c, hungUp(err))
			s.mu.Unlock()
			return
		}
		s.deliver(c, msg)
		s.mu.Unlock()
	}
}

// deliver gives msg to the query that it is for. The caller holds s.mu.
func (s *stream) deliver(c *streamConn, msg []byte) {
	id := binary.BigEndian.Uint16(msg)
	p, known := c.pending[id]
	if known {
		delete(c.pending, id)
		c.replies++
		c.strays = 0
		c.silentSince = time.Time{}
	} else {
		c.strays++
	}
	if p == nil { // for no query, or for one that left
		c.ignored++
		s.mismatches.Add(1)
		if c.strays >= maxStrays {
			s.end(c, errStrays)
		}
		return
	}
	p.ignored = c.ignored - p.ignoredBefore
	if p.answeredBy(msg, id) {
		p.reply = msg
	} else {
		p.ignored++
		p.err = malformed("not a reply to the query")
	}
	close(p.done)
	s.release(c)
}

// errStrays ends a connection that brings messages that are no replies.
const errStrays = malformed("too many unsolicited messages")

// exchangeDedicated is exchange over a connection that carries only q.
func (s *stream) exchangeDedicated(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error) {
	caller := ctx
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	defer func() {
		switch {
		case err == nil:
		case caller.Err() != nil:
			err = caller.Err()
		case ctx.Err() != nil:
			err = os.ErrDeadlineExceeded
		}
	}()
	select {
	case s.dedicated <- struct{}{}:
		defer func() { <-s.dedicated }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}

	conn, err := s.dial(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer abort(conn)
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(aLongTimeAgo)
	})
	defer func() {
		if !stop() {
			<-interrupted
		}
	}()

	id := newID()
	query := q.appendQuery(make([]byte, 2), id, edns)
	binary.BigEndian.PutUint16(query, uint16(len(query)-2))
	if _, err := conn.Write(query); err != nil {
		return nil, 0, hungUp(err)
	}
	for r := bufio.NewReader(conn); ignored < maxStrays; ignored++ {
		msg, err := readMessage(r)
		switch {
		case err != nil:
			return nil, ignored, hungUp(err)
		case binary.BigEndian.Uint16(msg) != id:
			s.mismatches.Add(1)
		case q.answeredBy(msg, id):
			return msg, ignored, nil
		default:
			return nil, ignored + 1, malformed("not a reply to the query")
		}
	}
	return nil, ignored, errStrays
}

// readMessage reads a message with its length before it (RFC 1035, section
// 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	switch n, err := io.ReadFull(r, length[:]); {
	case n == 0 && err != nil:
		return nil, hungUp(err)
	case err != nil:
		return nil, unexpected(err)
	}
	n := binary.BigEndian.Uint16(length[:])
	if n < headerLen {
		return nil, malformed("shorter than a header")
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, unexpected(err)
	}
	return msg, nil
}

// unexpected returns a malformed for the end of a stream within a message, and any
// other error as it is.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("shorter than its length says")
	}
	return err
}

// start runs f in a goroutine of the stream. The caller holds s.mu.
func (s *stream) start(f func()) {
	s.goroutines++
	go func() {
		f()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.goroutines--
		s.ended.Broadcast()
	}()
}

func (s *stream) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exchanges++
}

func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exchanges--
	if s.closed {
		s.closeConn()
	}
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.closeConn()
}

// closeConn closes the connection and waits for the goroutines, unless an exchange
// is under way: then the last one to leave does it. The caller holds s.mu.
func (s *stream) closeConn() {
	if s.exchanges > 0 {
		return
	}
	if s.dialing != nil {
		s.dialing.cancel()
	}
	if s.conn != nil {
		s.end(s.conn, errHungUp)
	}
	for s.goroutines > 0 && s.exchanges == 0 {
		s.ended.Wait()
	}
}
