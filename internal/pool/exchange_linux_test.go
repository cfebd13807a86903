package pool

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// whileSending calls a function once, when the header of a request is about to be
// sent over its connection.
func whileSending(req *http.Request, do func()) *http.Request {
	var once sync.Once
	trace := &httptrace.ClientTrace{WroteHeaderField: func(string, []string) { once.Do(do) }}
	return req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
}

// TestDropped: a POST that came when the backend had closed the connection already,
// and that its system has answered with a reset, is sent over another one. If the
// backend had only ended its side, it may have acted upon the request.
func TestDropped(t *testing.T) {
	for _, half := range []bool{false, true} {
		for _, body := range []string{"", "body"} {
			var posts atomic.Int64
			var raw atomic.Pointer[rawConn] // of this side
			var before atomic.Uint64        // what was acknowledged
			ending, ended := make(chan struct{}), make(chan struct{})
			b := newBackend(t, func(c net.Conn, r *bufio.Reader) {
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					if req.Method == http.MethodPost {
						posts.Add(1)
					}
					if half && req.Method == http.MethodPost { // it acknowledges, and crashes
						// with a delay: the system may wait for more to acknowledge
						eventually(t, "it is acknowledged", func() bool { return raw.Load().acked() != before.Load() })
						_ = c.(*net.TCPConn).SetLinger(0)
						return
					}
					if _, err := io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil || req.Method == http.MethodPost {
						return
					}
					<-ending
					if half {
						_ = c.(*net.TCPConn).CloseWrite()
					} else {
						_ = c.Close()
					}
					close(ended)
				}
			})
			p := newPool(t, Config{})
			o := b.order("a.example")
			if _, err := get(t, p, o, "/"); err != nil {
				t.Fatal(err)
			}
			s := p.shard(&o.Key)
			s.mu.Lock()
			raw.Store(s.destinations[o.Key].idle[0].raw)
			s.mu.Unlock()
			var r io.Reader
			if body != "" {
				r = strings.NewReader(body)
			}
			req := whileSending(request(t, http.MethodPost, "/", r), func() {
				before.Store(raw.Load().acked())
				close(ending)
				<-ended
				eventually(t, "the end has come", func() bool { return raw.Load().tcpInfo().State == tcpCloseWait })
			})
			res, err := p.RoundTrip(req, o)
			if err == nil {
				res.Body.Close()
			}
			// a body is sent in the background: the end may be seen before anything is sent
			exact := body == "" || !half
			if e, ok := errors.AsType[*Error](err); exact && half && (!ok || e.Sent != All || !e.Reused) || !half && err != nil {
				t.Errorf("body %q, half closed %t: %v", body, half, err)
			}
			if n := posts.Load(); n > 1 || exact && n != 1 {
				t.Errorf("body %q, half closed %t: executed %d times", body, half, n)
			}
		}
	}
}

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
		t.Skip("packets cannot be dropped:", err)
	}
}

// pair returns both ends of a connection; that of this side as in a pool, but nobody
// else looks at it.
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

// TestSilence: a backend that acknowledges is not silent, nor is one that takes no
// more and says so; one that does not is, after a while.
func TestSilence(t *testing.T) {
	t.Run("acknowledges", func(t *testing.T) {
		c, _ := pair(t)
		_, _ = io.WriteString(c, "request")
		eventually(t, "all is acknowledged", func() bool { return c.raw.tcpInfo().Unacked == 0 })
		for _, after := range []time.Duration{0, 2 * maxSilence, 4 * maxSilence} {
			if c.isSilent(time.Now().Add(after)) || !c.silence.since.IsZero() {
				t.Error("it is taken for silent")
			}
		}
	})
	t.Run("takes no more", func(t *testing.T) {
		c, _ := pair(t)
		_ = c.raw.Conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := io.CopyN(c.raw.Conn, zeros{}, 64<<20); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		eventually(t, "the window is closed", func() bool { return c.raw.tcpInfo().Notsent_bytes > 0 && c.raw.tcpInfo().Unacked == 0 })
		for i := range 20 { // it is asked meanwhile whether the window is open
			for _, after := range []time.Duration{0, 2 * maxSilence, 4 * maxSilence} {
				if c.isSilent(time.Now().Add(after)) {
					t.Fatalf("it is taken for silent in round %d", i)
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
			t.Error("its silence does not begin")
		}
		for range 3 {
			time.Sleep(100 * time.Millisecond)
			if c.isSilent(time.Now()) || !c.silence.since.Equal(begun) {
				t.Error("its silence does not go on")
			}
		}
		if os.Getenv("SLOW_TESTS") == "" { // the system says when something was acknowledged, and its clock goes as it goes
			return
		}
		eventually(t, "it is taken for silent", func() bool { return c.isSilent(time.Now()) })
		if d := time.Since(begun); d < maxSilence {
			t.Errorf("it is taken for silent after %s", d)
		}
	})
}
