package pool

import (
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// Config says how a Pool opens and keeps connections. All durations of zero mean
// no limit, unless another default stands here.
type Config struct {
	// TLS is the configuration of TLS connections; the server name comes from the
	// Key. Its NextProtos has "h2" if HTTP/2 may be negotiated.
	TLS *tls.Config

	// SessionCache is how many TLS sessions are kept to be resumed; negative: none.
	SessionCache int

	Dialer           net.Dialer    // opens TCP connections; its Timeout is not used
	DialTimeout      time.Duration // for one TCP connection
	HandshakeTimeout time.Duration // for one TLS handshake
	ProxyProtocol    byte          // 1 or 2: the version that is sent; 0: none

	ReadTimeout           time.Duration // until something more comes from the backend
	WriteTimeout          time.Duration // until the backend takes something more
	ResponseHeaderTimeout time.Duration // from the end of the request to the end of the header
	ExpectContinueTimeout time.Duration // for 100 (Continue), before the body is sent anyway

	MaxResponseHeader  int64 // octets of a response's header; default: DefaultMaxResponseHeader
	ReadBuffer         int   // octets; default: 4096
	WriteBuffer        int   // octets; default: 4096
	DisableCompression bool  // do not ask for gzip where the client has not

	DisableKeepAlive bool
	MaxIdlePerKey    int           // idle connections of HTTP/1.1; 0: no limit
	MaxPerKey        int           // connections, idle or not, and dials; 0 or less: no limit
	MaxIdle          int           // open connections above which idle ones are closed; 0: no limit
	IdleTimeout      time.Duration // after which an idle connection is closed

	Observer Observer // is told of connections that are opened; nil: none

	// Interim is called with the header of each interim response (1xx) before the trace
	// of the request gets it, and may change it; nil: none.
	Interim func(header http.Header)
}

// Observer is told of connections that are opened. It must not block.
type Observer interface {
	// Connected is called when a TCP connection was opened, after so long.
	Connected(took time.Duration)

	// Secured is called when a TLS handshake has succeeded, after so long. resumed is true
	// if it resumed an earlier session.
	Secured(took time.Duration, resumed bool)
}

// interim passes the header of an interim response to Interim.
func (c *Config) interim(header http.Header) {
	if c.Interim != nil {
		c.Interim(header)
	}
}

const (
	// DefaultMaxResponseHeader is how many octets the header of a response may have.
	DefaultMaxResponseHeader = 256 << 10

	// maxFields is how many fields the header of a response may have, and
	// maxInterim how many interim responses (1xx) may come before it.
	maxFields  = 1000
	maxInterim = 100

	// maxStale is how many times one RoundTrip sends a request again after it was
	// sent over a connection that turned out to be closed.
	maxStale = 3

	// maxBounced is the same where each of these connections had served other
	// requests before it refused this one.
	maxBounced = 8
)
