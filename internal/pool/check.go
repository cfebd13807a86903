package pool

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"time"
)

// Check is what opening one connection has shown.
type Check struct {
	Connect   time.Duration // how long the connection took to open, or to fail
	Handshake time.Duration // the same of the TLS handshake; 0: there was none
	Local     netip.AddrPort

	// TLS is the state after the handshake; nil: there was none. If the handshake has
	// failed, it has what was known by then.
	TLS *tls.ConnectionState

	// CertificateWanted is whether the backend has asked for a client certificate.
	CertificateWanted bool

	// Certificates are those that the backend has shown, its own first, verified or not.
	Certificates []*x509.Certificate
}

// Check opens a connection as a request with this order would, and closes it. No request
// waits for it, nothing is sent but a header of the PROXY protocol and a TLS handshake, no TLS session is resumed or kept,
// and what happens is not reported to health. It asks the Owner and the Limits as any
// dial does, waits for the whole timeouts, and ends with ctx.
func (p *Pool) Check(ctx context.Context, o *Order) (Check, *Error) {
	var c Check
	group := p.limits.groupOf(o.Key.Host, o.Key.Addr)
	if _, err := p.admit(o, group, true); err != nil {
		return c, err
	}
	defer p.limits.release(group)
	began := time.Now()
	raw, err := p.openTCP(ctx, o)
	c.Connect = time.Since(began)
	if err != nil {
		if forbidden, ok := errors.AsType[*forbiddenError](err); ok {
			err = forbidden.error
		}
		return c, &Error{Phase: Connect, Err: endOf(ctx, err)}
	}
	defer func() { _ = raw.Close() }()
	c.Local = addrPortOf(raw.LocalAddr())
	if !o.Key.secure() {
		return c, nil
	}
	began = time.Now()
	secured, err := p.startTLS(ctx, &o.Key, raw, c.noteWanted)
	c.Handshake = time.Since(began)
	state := secured.ConnectionState()
	c.TLS, c.Certificates = &state, state.PeerCertificates
	switch {
	case err == nil && c.CertificateWanted:
		return c, awaitAlert(secured)
	case err == nil:
		return c, nil
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		c.Certificates = e.UnverifiedCertificates
	}
	return c, &Error{Phase: Handshake, Err: endOf(ctx, err)}
}

// endOf returns the end of ctx, if that has passed, and else err.
func endOf(ctx context.Context, err error) error {
	if !hasPassed(ctx) && ctx.Err() == nil {
		return err
	}
	<-ctx.Done() // its timer may be late
	return context.Cause(ctx)
}

// noteWanted makes a handshake note whether the backend asks for a client certificate. It
// gets the same one as without that.
func (c *Check) noteWanted(config *tls.Config) {
	get := config.GetClientCertificate
	config.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c.CertificateWanted = true
		if get != nil {
			return get(request)
		}
		for i := range config.Certificates {
			if request.SupportsCertificate(&config.Certificates[i]) == nil {
				return &config.Certificates[i], nil
			}
		}
		return new(tls.Certificate), nil
	}
}

// alertTime is how long Check waits for a backend to refuse a client certificate, or that
// there is none. In TLS 1.3 a backend refuses only after the handshake, and sends nothing
// if it accepts.
const alertTime = 500 * time.Millisecond

// awaitAlert returns why a backend has ended a connection just after the handshake, or nil.
func awaitAlert(secured *tls.Conn) *Error {
	_ = secured.SetReadDeadline(time.Now().Add(alertTime))
	if _, err := secured.Read(make([]byte, 1)); err != nil && !IsTimeout(err) {
		return &Error{Phase: Response, Err: err}
	}
	return nil
}

// Connections counts the connections of a Key.
type Connections struct {
	Open    int // all that are open
	Idle    int // those of HTTP/1.1 that no request uses
	HTTP2   int // those of HTTP/2 that take requests
	Dials   int // under way
	Waiting int // requests that wait for a connection
}

// Connections returns how many connections there are for a key.
func (p *Pool) Connections(key Key) (n Connections) {
	s := p.shard(&key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.destinations[key]; d != nil {
		n = Connections{len(d.conns), len(d.idle), len(d.h2Conns), len(d.dials), len(d.waiters)}
	}
	return n
}
