package dnsclient

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A UDP socket is closed after this many queries, at this age, and after any
	// query without a reply or with other messages before it. So there is little
	// time to guess its port, and late replies arrive at a closed one.
	maxSocketQueries = 32
	maxSocketAge     = 10 * time.Second

	// maxIdleSockets bounds the sockets kept for the next queries to a server.
	maxIdleSockets = 64

	// maxQuery is the size of the largest query: the header, a question and an
	// OPT record.
	maxQuery = headerLen + maxName + 4 + 11
)

// buffers holds buffers for any message, so that a datagram that is larger than
// the size that was offered is not cut.
var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// queryBuffers holds buffers for any query.
var queryBuffers = sync.Pool{New: func() any { return new([maxQuery]byte) }}

// udp asks over connected sockets. A socket carries one query at a time.
type udp struct {
	addr       *net.UDPAddr
	mismatches *atomic.Uint64

	mu     sync.Mutex   // guards all below
	idle   []*udpSocket // the last one was used last
	sweep  *time.Timer  // closes idle sockets that are too old; nil while there are none
	closed bool
}

// udpSocket belongs to the exchange that has checked it out, or to udp.mu while
// it is idle.
type udpSocket struct {
	*net.UDPConn
	receiver
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
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(aLongTimeAgo) })
	defer func() { clean = stop() && clean }()

	id := newID()
	if err := socket.send(q, id, edns); err != nil {
		return nil, 0, err
	}
	for {
		msg, err := socket.receive(socket.UDPConn)
		if err != nil {
			return nil, ignored, err
		}
		if q.answeredBy(msg, id) {
			clean = ignored == 0
			return msg, ignored, nil
		}
		ignored++
		u.mismatches.Add(1)
	}
}

func (s *udpSocket) send(q *question, id uint16, edns bool) error {
	buffer := queryBuffers.Get().(*[maxQuery]byte)
	defer queryBuffers.Put(buffer)
	_, err := s.Write(q.appendQuery(buffer[:0], id, edns))
	return err
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
	if !clean || socket.queries >= maxSocketQueries || time.Since(socket.born) >= maxSocketAge || !u.keep(socket) {
		_ = socket.Close()
	}
}

// keep makes a socket idle, if there is room for it.
func (u *udp) keep(socket *udpSocket) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || len(u.idle) >= maxIdleSockets {
		return false
	}
	u.idle = append(u.idle, socket)
	if u.sweep == nil {
		u.sweep = time.AfterFunc(maxSocketAge, u.closeOld)
	}
	return true
}

// closeOld closes the idle sockets that are too old, and schedules the next run
// if there are others.
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
