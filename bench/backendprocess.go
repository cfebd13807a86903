package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"caddytarget/internal/testlab"
)

// backendSpec is what a process of backends is told.
type backendSpec struct {
	Dir      string
	Protocol string
	TLS      bool
	Dead     int // that many of deadAddr are addresses where no connection is opened
}

// backendVar tells a process that it is one for backends.
const backendVar = "CADDYTARGET_BENCH_BACKENDS"

// backendProcess answers on all addresses of loopback, in a process of its own
// with descriptors of its own.
type backendProcess struct {
	Port int
	CA   string // file with the certificate of its authority, if it has TLS

	in  io.WriteCloser
	out *json.Decoder
}

// counts is what backends have counted.
type counts struct{ Opened, Open int64 }

func (l *lab) spawnBackends(p protocolOf, dead int) *backendProcess {
	dir, err := os.MkdirTemp(l.dir, "backends-")
	must(err)
	spec, err := json.Marshal(backendSpec{dir, p.protocol, p.scheme == "https", dead})
	must(err)
	self, err := os.Executable()
	must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), backendVar+"="+string(spec))
	cmd.Stderr = os.Stderr
	b := new(backendProcess)
	b.in, err = cmd.StdinPipe()
	must(err)
	out, err := cmd.StdoutPipe()
	must(err)
	must(cmd.Start())
	l.Cleanup(func() {
		b.in.Close()
		_ = cmd.Wait()
	})
	b.out = json.NewDecoder(out)
	must(b.out.Decode(b))
	return b
}

func (b *backendProcess) count() counts { return b.tell("") }

// tell tells the backends to do something, such as "close" all connections that are
// not in use.
func (b *backendProcess) tell(what string) (c counts) {
	_, err := io.WriteString(b.in, what+"\n")
	must(err)
	must(b.out.Decode(&c))
	return c
}

// here serves in this process until its standard input ends.
func (spec backendSpec) here() {
	l := &lab{dir: spec.Dir}
	p, ca := protocolOf{"http", spec.Protocol}, new(testlab.Authority)
	if spec.TLS {
		p.scheme, ca = "https", testlab.NewAuthority(l)
	}
	b := l.newBackends(p.backends(ca))
	b.listenEverywhere()
	blackholes(b.port, spec.Dead)
	say := json.NewEncoder(os.Stdout)
	must(say.Encode(backendProcess{Port: b.port, CA: ca.File}))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "close" {
			b.CloseIdle()
		}
		must(say.Encode(counts{b.Opened.Load(), b.Open.Load()}))
	}
}

// deadAddr returns the n-th of the addresses that a backendSpec makes dead.
func deadAddr(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 200, byte(n >> 8), byte(n)})
}

// blackholes makes addresses on a port, where backends listen on all others, ones where
// connections are neither opened nor refused. They stay so until the process ends.
func blackholes(port, n int) {
	var filling sync.WaitGroup
	for i := range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(err)
		must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		must(unix.Bind(fd, &unix.SockaddrInet4{Addr: deadAddr(i).As4(), Port: port}))
		must(unix.Listen(fd, 0))
		filling.Go(func() { // until its queue of connections is full
			for {
				conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(deadAddr(i), uint16(port)).String(), 500*time.Millisecond)
				if err != nil {
					return
				}
				queued.Store(conn, nil)
			}
		})
	}
	filling.Wait()
}

// queued holds the connections in the queues of blackholes, so that they stay open.
var queued sync.Map
