package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"caddytarget/internal/testlab"
)

// listenRaw leaves each connection to an address to serve, and returns what ends
// that.
func (l *lab) listenRaw(addr netip.AddrPort, serve func(net.Conn)) (stop func()) {
	return testlab.NewRawBackend(l, portOf(addr), addr.Addr().String(), nil, serve).Close
}

func portOf(addr netip.AddrPort) string { return strconv.Itoa(int(addr.Port())) }

// hang reads what comes and says nothing.
func hang(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// newBlackhole makes an address one where connections are neither opened nor refused.
func (l *lab) newBlackhole(addr netip.AddrPort) *testlab.Blackhole {
	return testlab.NewBlackhole(l, portOf(addr), addr.Addr().String())
}

// resetter is a backend that resets connections after a part of the request: its
// first byte, its header, some of its body, or all. Not at once: that looks as if
// the connection had not been opened.
type resetter struct {
	read sync.Map // X-Id → received
}

// received is what came of a request before its connection was reset.
type received string

const (
	firstByte  received = "its beginning at most"
	headerOnly received = "its header"
	someBody   received = "a part of its body"
	allBody    received = "all of it"
)

func (s *resetter) serve(conn net.Conn) {
	defer testlab.Reset(conn)
	r := bufio.NewReader(conn)
	_, err := r.Peek(1)
	how := rand.N(4)
	if err != nil || how == 0 {
		return
	}
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	id := req.Header.Get("X-Id")
	s.read.Store(id, headerOnly)
	switch how {
	case 2:
		n, _ := io.CopyN(io.Discard, req.Body, 1+rand.N(max(req.ContentLength-1, 1)))
		if n > 0 {
			s.read.Store(id, someBody)
		}
	case 3:
		n, _ := io.Copy(io.Discard, req.Body)
		switch n {
		case 0:
		case req.ContentLength:
			s.read.Store(id, allBody)
		default:
			s.read.Store(id, someBody)
		}
	}
}

// wrongName shows the certificate of a name that no target has.
func wrongName(ca *testlab.Authority) func(*tls.Config) {
	return func(config *tls.Config) {
		config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return ca.CertFor(wrongSubject) }
	}
}

const wrongSubject = "somebody.else.test"

// listenEverywhere makes the backends answer on all addresses of loopback, and on
// nothing else. Of some of these addresses blackholes may take the same port.
func (b *backends) listenEverywhere() {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) {
			err = errors.Join(unix.BindToDevice(int(fd), "lo"), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		})
		if failed != nil {
			return failed
		}
		return err
	}}
	listener, err := config.Listen(context.Background(), "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(b.port)).String())
	must(err)
	b.Serve(listener)
}
