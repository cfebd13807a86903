package dnsclient

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// transport carries queries to one server. It owns what a query needs on its
// way, the ID above all, since that is a matter of the transport: random for a
// datagram, unique on a shared connection, zero over HTTPS.
type transport interface {
	// exchange sends q and waits for the reply until the deadline or the end of
	// ctx. The reply is for q (see answeredBy) and the caller's to keep. Ignored
	// counts the messages that were no reply to q.
	exchange(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error)

	// close closes idle sockets at once and others at the end of their exchange.
	close()

	// String names the transport: "udp", "tcp".
	String() string
}

const maxMessage = 65535

// buffers holds buffers that take any message, so that a reply that is larger
// than what was offered is seen whole.
var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

const (
	// A UDP socket is closed after this many queries, at this age, and after any
	// query that did not simply get its reply, so that nobody has much time to
	// guess its port, and late replies meet a closed one.
	maxSocketQueries = 32
	maxSocketAge     = 10 * time.Second

	// maxIdleSockets bounds the sockets kept for the next queries to a server.
	maxIdleSockets = 16
)

var (
	errHungUp = errors.New("connection closed without a reply")

	// longAgo is a deadline that interrupts whatever waits.
	longAgo = time.Unix(1, 0)
)

// newID returns an ID that cannot be guessed (RFC 5452, section 4.3).
func newID() uint16 {
	var b [2]byte
	rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint16(b[:])
}

// udp asks over connected sockets. A socket carries one query at a time.
type udp struct {
	addr       *net.UDPAddr
	mismatches *atomic.Uint64

	mu     sync.Mutex
	idle   []*udpSocket // the last one was used last
	sweep  *time.Timer  // closes idle sockets that are too old; nil while there are none
	closed bool
}

type udpSocket struct {
	*net.UDPConn
	born    time.Time
	queries int
}

func newUDP(addr netip.AddrPort, mismatches *atomic.Uint64) *udp {
	return &udp{addr: net.UDPAddrFromAddrPort(addr), mismatches: mismatches}
}

func (*udp) String() string { return "udp" }

func (u *udp) exchange(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error) {
	socket, err := u.checkOut()
	if err != nil {
		return nil, 0, err
	}
	clean := false
	defer func() { u.checkIn(socket, clean) }()

	if err := socket.SetDeadline(deadline); err != nil {
		return nil, 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(longAgo) })
	defer func() { clean = stop() && clean }()

	buffer := buffers.Get().(*[maxMessage]byte)
	defer buffers.Put(buffer)
	buf := buffer[:]

	id := newID()
	if _, err := socket.Write(q.appendQuery(buf[:0], id, edns)); err != nil {
		return nil, 0, err
	}
	for {
		n, err := socket.Read(buf)
		if err != nil {
			return nil, ignored, err
		}
		if q.answeredBy(buf[:n], id) {
			clean = ignored == 0
			return slices.Clone(buf[:n]), ignored, nil
		}
		ignored++
		u.mismatches.Add(1)
	}
}

// checkOut returns a socket for one query: the one used last, or a fresh one
// with a port of the kernel's choice.
func (u *udp) checkOut() (*udpSocket, error) {
	u.mu.Lock()
	if n := len(u.idle); n > 0 {
		socket := u.idle[n-1]
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if time.Since(socket.born) < maxSocketAge {
			return socket, nil
		}
		_ = socket.Close()
	} else {
		u.mu.Unlock()
	}

	conn, err := net.DialUDP("udp", nil, u.addr)
	if err != nil {
		return nil, err
	}
	return &udpSocket{UDPConn: conn, born: time.Now()}, nil
}

// checkIn takes a socket back after its query. Clean is whether the query got
// its reply and the socket nothing else.
func (u *udp) checkIn(socket *udpSocket, clean bool) {
	socket.queries++

	u.mu.Lock()
	defer u.mu.Unlock()
	if !clean || u.closed || socket.queries >= maxSocketQueries ||
		len(u.idle) >= maxIdleSockets || time.Since(socket.born) >= maxSocketAge {
		_ = socket.Close()
		return
	}
	u.idle = append(u.idle, socket)
	if u.sweep == nil {
		u.sweep = time.AfterFunc(maxSocketAge, u.closeOld)
	}
}

// closeOld closes the idle sockets that are too old, and comes again while
// there are others.
func (u *udp) closeOld() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.idle = slices.DeleteFunc(u.idle, func(socket *udpSocket) bool {
		if time.Since(socket.born) < maxSocketAge {
			return false
		}
		_ = socket.Close()
		return true
	})
	u.sweep = nil
	if len(u.idle) > 0 {
		u.sweep = time.AfterFunc(maxSocketAge, u.closeOld)
	}
}

func (u *udp) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.sweep != nil {
		u.sweep.Stop()
	}
	for _, socket := range u.idle {
		_ = socket.Close()
	}
	u.idle = nil
}

// tcp asks over a connection for each query (RFC 7766).
type tcp struct {
	addr string
}

func newTCP(addr netip.AddrPort) *tcp { return &tcp{addr: addr.String()} }

func (*tcp) String() string { return "tcp" }

func (t *tcp) exchange(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error) {
	dialer := net.Dialer{Deadline: deadline, KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, 0, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(longAgo) })()

	id := newID()
	var length [2]byte
	query := q.appendQuery(length[:], id, edns)
	binary.BigEndian.PutUint16(query, uint16(len(query)-2))
	if _, err := conn.Write(query); err != nil {
		return nil, 0, err
	}

	switch _, err := io.ReadFull(conn, length[:]); {
	case errors.Is(err, io.EOF):
		return nil, 0, errHungUp
	case err != nil:
		return nil, 0, unexpected(err)
	}
	reply = make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, 0, unexpected(err)
	}
	if !q.answeredBy(reply, id) {
		return nil, 1, malformed("not a reply to the query")
	}
	return reply, 0, nil
}

func (*tcp) close() {}

// unexpected names the end of a stream within a message.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("shorter than its length says")
	}
	return err
}
