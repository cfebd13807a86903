package dnsclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	messageType = "application/dns-message"

	// pingAfter is for how long an HTTP/2 connection may be silent before the
	// server is pinged, and within which it must reply to that.
	pingAfter = time.Second

	// maxDials is how many connections one exchange may begin. It needs a second
	// one after the server has closed the first. http.Transport has no limit.
	maxDials = 2
)

// https asks over HTTPS (RFC 8484). It uses POST, so that no HTTP cache serves a
// reply whose TTLs are out of date. http.Transport keeps the connection.
//
// A server must speak HTTP/2, as the RFC recommends and all public servers do.
// Over HTTP/1.1 each query in flight would take a connection of its own, and a
// burst of queries a burst of handshakes. Redirects are not followed, proxies of
// the environment not used, cookies not kept.
type https struct {
	url    string
	dialer *dialer
	http   *http.Transport

	mu        sync.Mutex // guards all below
	links     map[*link]struct{}
	unlinked  *sync.Cond // signaled when links loses one
	exchanges int        // under way
	closed    bool
}

// link is a connection, from the start of dialing until it is closed. It exists
// because http.Transport may dial after the exchange that needed the connection,
// and does not report which connections are open.
type link struct {
	https  *https
	cancel context.CancelFunc // interrupts dialing

	// Set under https.mu, by the goroutine that dials. Conn is set once, before
	// the link is read from or written to.
	net.Conn
	dialing bool
}

func newHTTPS(ns Nameserver, roots *x509.CertPool) *https {
	host := ns.identity()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := ns.AddrPort.Port(); port != defaultPorts["https"] {
		host = fmt.Sprintf("%s:%d", host, port)
	}
	h := &https{
		url:    "https://" + host + ns.Path,
		dialer: newDialer(ns, roots, "h2"),
		links:  make(map[*link]struct{}),
	}
	h.unlinked = sync.NewCond(&h.mu)
	h.http = &http.Transport{
		DialTLSContext:         h.dial,
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter, WriteByteTimeout: maxSilence},
		MaxConnsPerHost:        1, // other exchanges wait for it and do not dial
		IdleConnTimeout:        maxIdle,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
	}
	h.http.Protocols.SetHTTP2(true)
	return h
}

func (*https) String() string { return "https" }

func (h *https) exchange(ctx context.Context, deadline time.Time, q *question, edns bool) (reply []byte, ignored int, err error) {
	h.enter()
	defer h.leave()
	dials := &dials{deadline: dialDeadline(deadline)}
	ctx, cancel := context.WithDeadline(context.WithValue(ctx, dialsKey{}, dials), deadline)
	defer cancel()
	var connected, reused bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { connected, reused = true, info.Reused },
	})

	const id = 0 // RFC 8484, section 4.1
	query := q.appendQuery(nil, id, edns)
	resp, err := h.post(ctx, query)
	if err != nil && (reused || errors.Is(err, errHungUp)) && ctx.Err() == nil {
		connected = false
		resp, err = h.post(ctx, query) // the server may close a connection at any time
	}
	switch {
	case err != nil && connected:
		return nil, 0, http2HungUp(err)
	case err != nil:
		return nil, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	contentType := resp.Header.Get("Content-Type")
	if mediaType, _, _ := mime.ParseMediaType(contentType); mediaType != messageType {
		return nil, 0, malformed(fmt.Sprintf("content type %.100q", contentType))
	}
	reply, err = io.ReadAll(io.LimitReader(resp.Body, maxMessage+1))
	switch {
	case err != nil:
		return nil, 0, http2HungUp(unexpected(err))
	case len(reply) > maxMessage:
		return nil, 0, malformed("longer than any message")
	case !q.answeredBy(reply, id):
		return nil, 1, malformed("not a reply to the query")
	}
	return reply, 0, nil
}

// http2HungUp is hungUp for the errors of http.Transport over an established
// connection. Some of them can be recognized only by their text.
func http2HungUp(err error) error {
	for _, text := range []string{
		"http2: server sent GOAWAY",
		"http2: Transport received", // GOAWAY, in other words
		"http2: client conn ",       // is closed, not usable, could not be established
		"http2: client connection force closed",
	} {
		if strings.HasPrefix(err.Error(), text) {
			return errHungUp
		}
	}
	return hungUp(err)
}

// post sends query, once at most.
func (h *https) post(ctx context.Context, query []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(query))
	if err != nil {
		return nil, err
	}
	// http.Transport would send the query again for as long as the server refuses
	// it. This error keeps it from doing so, and is what it returns instead. The
	// server has not processed the query then.
	req.GetBody = func() (io.ReadCloser, error) { return nil, errHungUp }
	req.Header = http.Header{
		"Accept":       {messageType},
		"Content-Type": {messageType},
		"User-Agent":   nil, // none is sent
	}
	return h.http.RoundTrip(req)
}

// dials counts the connections that one exchange begins.
type dials struct {
	deadline time.Time
	begun    atomic.Int32
}

// dialsKey is the key of the context value that holds dials. The deadline cannot
// be that of the context: http.Transport removes it, since other requests may wait
// for the same connection.
type dialsKey struct{}

// dial connects for http.Transport.
func (h *https) dial(ctx context.Context, _, _ string) (secured net.Conn, err error) {
	dials := ctx.Value(dialsKey{}).(*dials)
	if dials.begun.Add(1) > maxDials {
		return nil, errHungUp // as all before it did
	}
	ctx, cancel := context.WithDeadline(ctx, dials.deadline)
	defer cancel()
	l := &link{https: h, cancel: cancel, dialing: true}
	h.mu.Lock()
	h.links[l] = struct{}{}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		l.dialing = false
		if err != nil {
			h.unlink(l)
		}
	}()

	conn, err := h.dialer.connect(ctx)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	l.Conn = conn
	h.mu.Unlock()
	secured, err = h.dialer.secure(ctx, l)
	if err != nil {
		return nil, err
	}
	if secured.(*tls.Conn).ConnectionState().NegotiatedProtocol != "h2" {
		_ = conn.Close()
		return nil, errors.New("the server does not speak HTTP/2")
	}
	return secured, nil
}

// Close closes the connection and removes it from the links.
func (l *link) Close() error {
	l.https.mu.Lock()
	if !l.dialing {
		l.https.unlink(l)
	}
	l.https.mu.Unlock()
	return l.Conn.Close()
}

// unlink removes l from the links. The caller holds h.mu.
func (h *https) unlink(l *link) {
	delete(h.links, l)
	h.unlinked.Broadcast()
}

func (h *https) enter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.exchanges++
}

func (h *https) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.exchanges--
	if h.closed {
		h.closeLinks()
	}
}

func (h *https) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.closeLinks()
}

// closeLinks closes all connections, unless an exchange is under way: then the
// last one to leave does it. The caller holds h.mu.
func (h *https) closeLinks() {
	for len(h.links) > 0 && h.exchanges == 0 {
		for l := range h.links {
			if l.cancel(); l.Conn != nil {
				_ = l.Conn.Close() // then http.Transport closes l
			}
		}
		h.unlinked.Wait()
	}
}
