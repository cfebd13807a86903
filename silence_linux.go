package caddytarget

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// limitSilence makes a connection fail when what was sent over it has not been
// acknowledged for maxSilence (TCP_USER_TIMEOUT, RFC 5482). Otherwise the kernel
// would go on for a quarter of an hour.
func limitSilence(conn net.Conn) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(maxSilence.Milliseconds()))
	})
}
