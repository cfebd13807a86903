package localnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
)

// listen listens in one of the ways in which a server may.
func listen(t testing.TB, network, address string, multipath bool) *net.TCPListener {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(multipath)
	l, err := config.Listen(context.Background(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func idOf(t testing.TB, c syscall.Conn) uint64 {
	t.Helper()
	id, err := connID(c)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func at(t testing.TB, l net.Listener, addr string) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.MustParseAddr(addr), l.Addr().(*net.TCPAddr).AddrPort().Port())
}

// TestHearing finds the sockets of this process by the addresses that lead to them.
func TestHearing(t *testing.T) {
	for _, test := range []struct {
		network, address string
		hears, not       []string
	}{
		{"tcp", "127.0.0.1:0", []string{"127.0.0.1"}, []string{"127.0.0.2", "::1"}},
		{"tcp", "[0:0::1]:0", []string{"::1"}, []string{"127.0.0.1"}},
		{"tcp", "[::ffff:7f00:1]:0", []string{"127.0.0.1"}, []string{"::1"}},
		{"tcp", ":0", []string{"127.0.0.1", "127.8.9.10", "::1"}, nil},
		{"tcp", "0.0.0.0:0", []string{"127.0.0.1", "::1"}, nil},
		{"tcp4", ":0", []string{"127.0.0.1"}, []string{"::1"}},
		{"tcp6", ":0", []string{"::1"}, []string{"127.0.0.1"}},
	} {
		for _, multipath := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %s multipath %t", test.network, test.address, multipath), func(t *testing.T) {
				l := listen(t, test.network, test.address, multipath)
				id := idOf(t, l)
				var s Sockets
				for range 2 { // found out, and remembered
					for _, a := range test.hears {
						if got, err := s.hearing(at(t, l, a)); err != nil || !slices.Contains(got, id) {
							t.Errorf("%s: %v, %v, want %d", a, got, err, id)
						}
					}
					for _, a := range test.not {
						if got, err := s.hearing(at(t, l, a)); err != nil || slices.Contains(got, id) {
							t.Errorf("%s: got %v, %v, want a list without %d", a, got, err, id)
						}
					}
				}
				l.Close()
				if got, err := s.hearing(at(t, l, test.hears[0])); err != nil || len(got) > 0 {
					t.Errorf("after the end: %v, %v", got, err)
				}
			})
		}
	}
}

// TestHearingLater opens a socket on a port that was found to be free, and then
// another one at the same address.
func TestHearingLater(t *testing.T) {
	var s Sockets
	first := listen(t, "tcp", "127.0.0.1:0", true)
	a := at(t, first, "127.0.0.1")
	first.Close()
	if got, err := s.hearing(a); err != nil || len(got) > 0 {
		t.Fatalf("before: got %v, %v, want none", got, err)
	}
	if s.mayHear(a.Port()) {
		t.Error("nothing was found on the port, but something may listen there")
	}
	var want []uint64
	reuse := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, 0xf, 1) // SO_REUSEPORT
		})
	}}
	for range 2 {
		l, err := reuse.Listen(t.Context(), "tcp", a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		want = append(want, idOf(t, l.(*net.TCPListener)))
		got, err := s.hearing(a)
		slices.Sort(got)
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) || !s.mayHear(a.Port()) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
}

// TestHearingDescriptors has a socket that is only there as a descriptor.
func TestHearingDescriptors(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0", false)
	id, a := idOf(t, l), at(t, l, "127.0.0.1")
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l.Close()
	got, err := new(Sockets).hearing(a)
	if err != nil || !slices.Equal(got, []uint64{id}) {
		t.Errorf("got %v, %v, want %d", got, err, id)
	}
}

// TestListingAndScan compares what the kernel lists with the descriptors.
func TestListingAndScan(t *testing.T) {
	l := listen(t, "tcp", ":0", true)
	id, port := idOf(t, l), at(t, l, "::1").Port()
	ids, err := listening(port)
	if err != nil || !slices.Contains(ids, id) {
		t.Errorf("the kernel lists %v, %v, want %d", ids, err, id)
	}
	own, err := ownListeners()
	if want := (listener{id, netip.AddrPortFrom(netip.IPv6Unspecified(), port), false}); err != nil || own[id] != want {
		t.Errorf("found %v, %v, want %v", own[id], err, want)
	}
	size, err := descriptorTableSize()
	if err != nil || size < 3 {
		t.Errorf("%d descriptors, %v, want at least 3", size, err)
	}
}

// TestRepliesAreChecked reads replies that are cut off or lie about their length.
func TestRepliesAreChecked(t *testing.T) {
	message := newRequest(1, 0, []byte{1, 2, 3, 4})
	for i := range len(message) {
		_, _ = readReply(message[:i], func(uint16, []byte) { t.Errorf("a message of %d octets", i) })
	}
	for size := range byte(20) {
		lie := slices.Clone(message)
		lie[0] = size + 21
		if _, err := readReply(lie, func(uint16, []byte) { t.Error("it was believed") }); err == nil {
			t.Errorf("length %d: got no error, want one", lie[0])
		}
		for range attributes([]byte{size + 9, 0, 1, 0, 1, 2, 3, 4}) {
			t.Error("an attribute longer than all")
		}
	}
}

func BenchmarkHearing(b *testing.B) {
	l := listen(b, "tcp", ":0", true)
	for _, open := range []int{0, 2000} {
		var files []*os.File
		for range open {
			f, err := os.Open(os.DevNull)
			if err != nil {
				break // as many as there may be
			}
			files = append(files, f)
		}
		a := at(b, l, "127.0.0.1")
		b.Run(fmt.Sprintf("listed/%d descriptors", len(files)), func(b *testing.B) {
			var s Sockets
			b.ReportAllocs()
			for b.Loop() {
				_, _ = s.hearing(a)
			}
		})
		b.Run(fmt.Sprintf("scanned/%d descriptors", len(files)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = ownListeners()
			}
		})
		for _, f := range files {
			f.Close()
		}
	}
}
