package pool

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caddytarget/internal/testlab"
)

// deaf makes the system drop all that comes over a connection: nothing is
// acknowledged any more.
func deaf(t *testing.T, c net.Conn) {
	t.Helper()
	control, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	err2 := control.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	})
	if err = errors.Join(err, err2); err != nil {
		t.Fatal("packets cannot be dropped:", err)
	}
}

// pair returns both ends of a connection, that of this side as a conn of a pool that
// does not know it.
func pair(t *testing.T) (*conn, net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn)
	done := make(chan struct{})
	b := newBackend(t, func(c net.Conn, _ *bufio.Reader) {
		accepted <- c
		<-done
	})
	raw, err := net.Dial("tcp", b.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	other := <-accepted
	t.Cleanup(func() {
		raw.Close()
		close(done)
	})
	return newConn(newPool(t, Config{}), new(destination), raw), other
}

// TestSilence: a backend that acknowledges is not silent, nor is one that takes no more
// octets and acknowledges that. One that acknowledges nothing is, after maxSilence.
func TestSilence(t *testing.T) {
	t.Run("acknowledges", func(t *testing.T) {
		c, _ := pair(t)
		_, _ = io.WriteString(c, "request")
		testlab.Eventually(t, "all is acknowledged", func() bool { return c.raw.tcpInfo().Unacked == 0 })
		for _, after := range []time.Duration{0, 2 * maxSilence, 4 * maxSilence} {
			if c.isSilent(time.Now().Add(after)) || !c.silence.since.IsZero() {
				t.Error("the backend is silent, want not silent")
			}
		}
	})
	t.Run("takes no more", func(t *testing.T) {
		c, _ := pair(t)
		_ = c.raw.Conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := io.CopyN(c.raw.Conn, zeros{}, 64<<20); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		testlab.Eventually(t, "the window is closed", func() bool { return c.raw.tcpInfo().Notsent_bytes > 0 && c.raw.tcpInfo().Unacked == 0 })
		for i := range 20 { // it is asked meanwhile whether the window is open
			for _, after := range []time.Duration{0, 2 * maxSilence, 4 * maxSilence} {
				if c.isSilent(time.Now().Add(after)) {
					t.Fatalf("the backend is silent in round %d, want not silent", i)
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Run("silent", func(t *testing.T) {
		c, other := pair(t)
		deaf(t, other)
		_, _ = io.WriteString(c, "request")
		time.Sleep(20 * time.Millisecond) // the clock of the system is coarse
		begun := time.Now()
		if c.isSilent(begun) || !c.silence.since.Equal(begun) {
			t.Errorf("silent since %v, want %v", c.silence.since, begun)
		}
		for range 3 {
			time.Sleep(100 * time.Millisecond)
			if c.isSilent(time.Now()) || !c.silence.since.Equal(begun) {
				t.Errorf("silent since %v, want %v as before", c.silence.since, begun)
			}
		}
		if os.Getenv("SLOW_TESTS") == "" { // the time depends on the coarse clock of TCP_INFO
			return
		}
		testlab.Eventually(t, "it is taken for silent", func() bool { return c.isSilent(time.Now()) })
		if d := time.Since(begun); d < maxSilence {
			t.Errorf("the backend is silent after %s, want %s or more", d, maxSilence)
		}
	})
}
