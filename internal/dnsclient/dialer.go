package dnsclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// maxIdle is how long a connection without a query in flight is kept.
	maxIdle = 10 * time.Second

	// minDial is how long dialing may take even if the query that needs the
	// connection has less time: then the next query finds the connection.
	minDial = 3 * time.Second

	// sessionsKept is how many TLS sessions with one server are kept for later
	// connections. One is not enough, since a ticket of TLS 1.3 is for one use.
	sessionsKept = 4
)

// dialer connects to one nameserver.
type dialer struct {
	address string
	tls     *tls.Config // nil without TLS
}

// newDialer returns the dialer to ns. With TLS it negotiates one of protocols by
// ALPN; it does not use ALPN if there are none.
func newDialer(ns Nameserver, roots *x509.CertPool, protocols ...string) *dialer {
	d := &dialer{address: ns.hostPort()}
	if ns.Network == "tls" || ns.Network == "https" {
		d.tls = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			ServerName:         ns.identity(),
			RootCAs:            roots,
			NextProtos:         protocols,
			ClientSessionCache: tls.NewLRUClientSessionCache(sessionsKept),
		}
	}
	return d
}

// dialDeadline returns the deadline of dialing for a query with this deadline.
func dialDeadline(deadline time.Time) time.Time {
	if earliest := time.Now().Add(minDial); deadline.Before(earliest) {
		return earliest
	}
	return deadline
}

func (d *dialer) dial(ctx context.Context) (net.Conn, error) {
	conn, err := d.connect(ctx)
	if err != nil || d.tls == nil {
		return conn, err
	}
	return d.secure(ctx, conn)
}

func (d *dialer) connect(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{KeepAlive: -1}
	return dialer.DialContext(ctx, "tcp", d.address)
}

// secure does the TLS handshake. There is no fallback: a nameserver whose
// certificate cannot be verified gets no query.
func (d *dialer) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	secured := tls.Client(conn, d.tls)
	err := secured.HandshakeContext(ctx)
	if err == nil {
		return secured, nil
	}
	_ = conn.Close()
	if errors.As(err, new(*tls.CertificateVerificationError)) {
		err = fmt.Errorf("cannot be trusted to be %s: %w", d.tls.ServerName, err)
	}
	return nil, err
}
