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
	// maxSilence is how long a connection may owe replies without one before the
	// next query goes over another connection.
	maxSilence = 2 * time.Second

	// minWait is how long a query without a reply must have waited to speak
	// against its connection. It is below all timeouts of tries, but a query may
	// have spent most of its own on connecting.
	minWait = 200 * time.Millisecond

	// maxIDs is how many IDs of one connection may be taken.
	maxIDs = 1 << 14

	// maxStrays is how many messages in a row a connection may bring that nobody
	// asked for.
	maxStrays = 1000

	// maxAlone is how many queries at a time may have a connection each.
	maxAlone = 16
)

// stream asks over TCP or TLS. All queries share one connection, which is kept
// while it is used, and need not wait for each other: the replies come in any
// order, and the ID tells whose they are (RFC 7766, section 6.2).
//
// A server may close a connection at any time, so a query that comes to nothing
// that way is asked once more (RFC 7766, section 6.2.4), over a connection of its
// own: some servers close after each reply, and some at one query that they do
// not like, which is nothing to the others.
//
// A query that cannot wait leaves, and the connection goes on without it. Only
// the goroutines of the connection read and write, so that nobody's deadline is
// in the way of others; what interrupts them is the end of the connection.
type stream struct {
	name       string
	dial       func(context.Context) (net.Conn, error)
	mismatches *atomic.Uint64
	alone      chan struct{} // has one for each connection of a query's own

	mu         sync.Mutex // guards all below, and streamConn and pending where not noted
	conn       *streamConn
	dialing    *dialing
	exchanges  int // under way
	closed     bool
	goroutines int
	ended      *sync.Cond // a goroutine has
}

// dialing is a connection that comes about, for all that want one. It belongs to
// the stream: whoever began it may leave.
type dialing struct {
	cancel context.CancelFunc
	wanted int           // by so many queries
	done   chan struct{} // closed when conn or err is set
	conn   *streamConn
	err    error
}

// streamConn is one connection. It takes queries while it is stream.conn.
type streamConn struct {
	net.Conn // without a lock

	pending  map[uint16]*pending // by ID; nil for one that left without its reply
	inFlight int                 // those that did not leave
	idle     *time.Timer         // runs while nothing is in flight
	retired  bool                // closes when nothing is in flight any more
	err      error               // why it is closed; nil while it is open

	asked   uint64
	replies uint64
	ignored int
	strays  int       // since the last message that was asked for
	quiet   time.Time // when the first query was sent since the last reply; zero if none was

	out    []byte        // queries to be written
	wake   chan struct{} // capacity 1: out has grown
	closed chan struct{}
}

// pending is a query that waits for its reply.
type pending struct {
	*question
	conn    *streamConn
	id      uint16
	sent    time.Time
	own     bool   // the connection was made for this query, and no other wanted it
	replies uint64 // of the connection, when this query was sent
	passed  int    // ignored by the connection until then

	done    chan struct{} // closed when the rest is set
	reply   []byte
	ignored int
	err     error
	again   bool // worth asking again over a connection of its own
}

func newStream(ns Nameserver, roots *x509.CertPool, mismatches *atomic.Uint64) *stream {
	s := &stream{name: ns.Network, dial: newDialer(ns, roots).dial, mismatches: mismatches, alone: make(chan struct{}, maxAlone)}
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
		reply, more, err = s.askAlone(ctx, deadline, q, edns)
		ignored += more
	}
	return reply, ignored, err
}

// send has q sent over the connection, or a new one if there is none. Again is
// set if the new one ended too early for q, and others may be to blame.
func (s *stream) send(ctx context.Context, timeout <-chan time.Time, deadline time.Time, q *question, edns bool) (p *pending, again bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn, own := s.usable(), false
	for conn == nil {
		d, joined := s.dialing, true
		if d == nil {
			d, joined = s.startDialing(deadline), false
		}
		d.wanted++
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
			// It had less time than there is.
		case d.err != nil:
			return nil, false, d.err
		case d.conn.err != nil:
			return nil, (d.conn.asked > 0 || d.wanted > 1) && d.conn.worthAnother(), d.conn.err
		default:
			conn, own = d.conn, d.wanted == 1
		}
	}
	p = conn.add(q, edns)
	p.own = own
	return p, false, nil
}

// usable returns the connection if it takes queries. The caller holds s.mu.
func (s *stream) usable() *streamConn {
	c := s.conn
	if c != nil && (len(c.pending) >= maxIDs || !c.quiet.IsZero() && time.Since(c.quiet) > maxSilence) {
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

// add puts a query into the queue. The caller holds stream.mu.
func (c *streamConn) add(q *question, edns bool) *pending {
	id := newID()
	for {
		if _, taken := c.pending[id]; !taken {
			break
		}
		id = newID()
	}
	p := &pending{
		question: q, conn: c, id: id,
		sent: time.Now(), replies: c.replies, passed: c.ignored,
		done: make(chan struct{}),
	}
	c.pending[id] = p
	c.asked++
	if c.inFlight++; c.inFlight == 1 {
		c.idle.Stop()
	}
	if c.quiet.IsZero() {
		c.quiet = p.sent
	}

	start := len(c.out)
	c.out = q.appendQuery(append(c.out, 0, 0), id, edns)
	binary.BigEndian.PutUint16(c.out[start:], uint16(len(c.out)-start-2))
	select {
	case c.wake <- struct{}{}:
	default: // is awake
	}
	return p
}

// wait returns when p has its reply or its error. It gives up at the timeout or
// the end of ctx.
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
	p.err, p.ignored = err, c.ignored-p.passed
	if err == os.ErrDeadlineExceeded && c.replies == p.replies && time.Since(p.sent) >= minWait {
		s.retire(c) // the server may be gone, or stuck
	}
	s.release(c)
}

// release notes that one query less is in flight. The caller holds s.mu.
func (s *stream) release(c *streamConn) {
	switch c.inFlight--; {
	case c.inFlight > 0:
	case c.retired:
		s.end(c, errHungUp)
	default:
		c.idle.Reset(maxIdle)
	}
}

// retire keeps further queries from c. The caller holds s.mu.
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
			p.err, p.ignored = err, c.ignored-p.passed
			p.again = (c.asked > 1 || !p.own) && c.worthAnother()
			close(p.done)
		}
	}
	c.pending = nil
	_ = c.SetWriteDeadline(longAgo)
	close(c.closed)
}

// worthAnother reports whether the end of c is a reason to ask again.
func (c *streamConn) worthAnother() bool { return !errors.As(c.err, new(malformed)) }

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
			continue // what woke it has gone out with what was before it
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

// abort closes conn without a farewell, which might have to wait.
func abort(conn net.Conn) {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	_ = conn.Close()
}

// read hands the replies out, until c ends.
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
		c.quiet = time.Time{}
	} else {
		c.strays++
	}
	if p == nil { // for nobody, or for one that left
		c.ignored++
		s.mismatches.Add(1)
		if c.strays >= maxStrays {
			s.end(c, errStrays)
		}
		return
	}
	p.ignored = c.ignored - p.passed
	if p.answeredBy(msg, id) {
		p.reply = msg
	} else {
		p.ignored++
		p.err = malformed("not a reply to the query")
	}
	close(p.done)
	s.release(c)
}

// errStrays ends a connection whose messages nobody asked for.
const errStrays = malformed("too many messages that nobody asked for")

// askAlone asks over a connection that carries nothing but q.
func (s *stream) askAlone(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error) {
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
	case s.alone <- struct{}{}:
		defer func() { <-s.alone }()
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
		_ = conn.SetDeadline(longAgo)
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

// unexpected names the end of a stream within a message.
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
		s.settle()
	}
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.settle()
}

// settle ends what is left of a closed stream, unless an exchange is under way,
// which will do it. The caller holds s.mu.
func (s *stream) settle() {
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
