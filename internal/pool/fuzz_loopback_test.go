//go:build linux

package pool

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a backend's end of a TCP connection.
type socket struct{ *net.TCPConn }

// Write returns when the other end has what was written.
func (s socket) Write(p []byte) (int, error) {
	n, err := s.TCPConn.Write(p)
	if err != nil {
		return n, err
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return n, err
	}
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Microsecond) {
		there := true // or the connection is no more
		_ = raw.Control(func(fd uintptr) {
			left, _ := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			there = left == 0 || err != nil || info.State == unix.BPF_TCP_CLOSE
		})
		if there {
			break
		}
	}
	return n, err
}

// FuzzResponseLoopback is FuzzResponse over sockets: what comes unasked is found by
// a real poll. It is slower.
func FuzzResponseLoopback(f *testing.F) {
	for i, reply := range replies() {
		if len(reply) > 5000 {
			continue
		}
		if n := surplusAt(reply); n > 0 {
			cuts := append(bytes.Repeat([]byte{0x3f}, n/64), byte(n%64-1)&0x3f)
			f.Add([]byte(reply), cuts, uint16(0))
			f.Add([]byte(reply), append(bytes.Clone(cuts[:len(cuts)-1]), cuts[len(cuts)-1]|0x80), uint16(flagPost))
		}
		f.Add([]byte(reply), []byte{0x7f, 0x80}[:i%3%2], uint16(1+i%(ends-1))<<flagEnd|uint16(i%4))
	}
	f.Fuzz(func(t *testing.T, octets, cuts []byte, flags uint16) {
		pl := newPlan(octets, cuts, flags)
		pl.together = false // it could not be known what is there by then
		pl.cuts = bytes.ReplaceAll(pl.cuts, []byte{0xff}, []byte{0xfe})
		if pl.cuts = pl.cuts[:min(len(pl.cuts), 50)]; pl.end == endLose {
			pl.end = endReset
		}
		s := newStage(t, pl)
		s.real = true
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var dialing sync.Mutex
		s.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialing.Lock()
			defer dialing.Unlock()
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			backend, err := l.Accept()
			if err != nil {
				_ = c.Close()
				return nil, err
			}
			s.accept(socket{backend.(*net.TCPConn)})
			return c, nil
		}
		key := memKey
		key.Addr = netip.MustParseAddrPort(l.Addr().String())
		s.play(fuzzConfig(), key)
	})
}
