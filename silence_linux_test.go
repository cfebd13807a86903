package caddytarget

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSilenceIsLimited: the kernel gives up on what is not acknowledged.
func TestSilenceIsLimited(t *testing.T) {
	w := newWorld(t)
	b := newBackend(t, backendConfig{addrs: []string{"127.0.0.2"}})
	w.dns.has("name.example", "127.0.0.2")
	w.run(w.proxy("read_timeout 1m")) // which wraps the connection
	var dialled net.Conn
	w.hookConns(func(conn net.Conn) { dialled = conn })
	w.mustGet("/", "http://name.example:"+b.port)
	raw, err := dialled.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var limit int
	if ctlErr := raw.Control(func(fd uintptr) { limit, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); ctlErr != nil || err != nil {
		t.Fatal(ctlErr, err)
	}
	if limit != int(maxSilence.Milliseconds()) {
		t.Errorf("%d ms", limit)
	}
}
