package pool

import (
	"time"

	"golang.org/x/sys/unix"
)

// HTTP/2 is not pinged: TCP_INFO shows whether the backend is there.
const pingAfter, pingTimeout = 0, 0

// silence is the time since which a backend has acknowledged nothing and sent nothing.
// A busy backend does acknowledge, even that it takes no more (a window of zero).
// TCP_USER_TIMEOUT would end such connections, too.
type silence struct {
	since           time.Time
	acked, received uint64
}

// isSilent reports whether the backend of a connection, for maxSilence, has not
// acknowledged what was sent and has sent nothing. The sweeper calls it again and again.
func (c *conn) isSilent(now time.Time) bool {
	info := c.raw.tcpInfo()
	if info == nil {
		return false
	}
	// Octets were sent after the last acknowledgement, or probes of a closed window
	// were not answered.
	unanswered := info.Unacked > 0 && info.Last_data_sent <= info.Last_ack_recv || info.Probes > 1
	l := &c.silence
	if !unanswered || l.since.IsZero() || info.Bytes_acked != l.acked || info.Bytes_received != l.received ||
		time.Duration(info.Last_ack_recv)*time.Millisecond < now.Sub(l.since) {
		*l = silence{acked: info.Bytes_acked, received: info.Bytes_received}
		if unanswered {
			l.since = now
		}
		return false
	}
	return now.Sub(l.since) >= maxSilence
}

// acked returns how many octets the backend has acknowledged, of this connection.
func (r *rawConn) acked() uint64 {
	if info := r.tcpInfo(); info != nil {
		return info.Bytes_acked
	}
	return 0
}

// tcpInfo returns the TCP_INFO of a connection, or nil.
func (r *rawConn) tcpInfo() (info *unix.TCPInfo) {
	if r.control == nil {
		return nil
	}
	_ = r.control.Control(func(fd uintptr) {
		info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info
}
