//go:build !linux

package pool

import "time"

// A connection of HTTP/2 over which nothing has come for pingAfter is pinged, and
// ends if there is no answer within pingTimeout.
const (
	pingAfter   = 15 * time.Second
	pingTimeout = 5 * time.Second
)

type silence struct{}

// acked returns 0: how many octets the backend has acknowledged is not known here.
func (*rawConn) acked() uint64 { return 0 }

// isSilent returns false: pings end connections to silent backends over HTTP/2.
func (*conn) isSilent(time.Time) bool { return false }
