package dnsclient

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
	"syscall"
	"time"
)

// transport carries queries to one server. It chooses their IDs: random for a
// datagram, unique on a shared connection, zero over HTTPS. It is safe for
// concurrent use.
type transport interface {
	// exchange sends q and waits for the reply until the deadline or the end of
	// ctx. The reply is for q (see answeredBy) and belongs to the caller. Ignored
	// counts the messages that were no reply to q.
	exchange(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error)

	// close closes idle connections, and those in use at the end of their
	// exchange. It may be called during exchanges and before others. When it has
	// returned and no exchange is under way, no connection and no goroutine of the
	// transport is left.
	close()

	// String names the transport: "udp", "tcp", "tls", "https".
	String() string
}

// newTransports returns the transport for all queries to ns, and the one for
// what was truncated over the first, nil if there is none.
func newTransports(ns Nameserver, roots *x509.CertPool, mismatches *atomic.Uint64) (first, fallback transport) {
	switch ns.Network {
	case "tcp", "tls":
		return newStream(ns, roots, mismatches), nil
	case "https":
		return newHTTPS(ns, roots), nil
	default:
		tcp := ns
		tcp.Network = "tcp"
		return newUDP(ns.AddrPort, mismatches), newStream(tcp, nil, mismatches)
	}
}

const maxMessage = 65535

var (
	// errHungUp is the error of a connection that was established, and that the
	// server then closed or reset. The server is up, or was so a moment ago.
	errHungUp = errors.New("connection closed without a reply")

	// aLongTimeAgo is a deadline that interrupts reads and writes.
	aLongTimeAgo = time.Unix(1, 0)
)

// hungUp returns errHungUp for an error that means that the other side closed or
// reset the connection, and any other error as it is.
func hungUp(err error) error {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return errHungUp
		}
	}
	return err
}

// newID returns an ID that cannot be guessed (RFC 5452, section 4.3).
func newID() uint16 {
	var b [2]byte
	rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint16(b[:])
}
