// Package testlab has the servers that the tests and the program in bench put
// around the code: nameservers, a certificate authority and backends. They listen on
// loopback only and end with the test.
//
//   - A [Nameserver] replies from a table of names. [ServeDNS] serves a dns.Handler, and
//     a [Script] leaves each message to a function.
//   - An [Authority] issues certificates.
//   - A [Backend] is a web server on one or more addresses that counts connections and
//     requests. A [RawBackend] leaves each connection to a function.
//   - A [Blackhole] is an address where connections are neither opened nor refused.
package testlab

import (
	"math/rand/v2"
	"net"
	"runtime"
	"time"
)

// T is what the servers need of a test; testing.TB has it.
type T interface {
	Helper()
	Cleanup(f func())
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	TempDir() string
}

// Timeout is how long [Eventually] waits. It is so long that a test fails only if the
// code is wrong, and not because the machine is busy.
const Timeout = time.Minute

// Eventually waits until ok returns true. What names that condition, for the error.
func Eventually(t T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Timeout); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not after %s: %s", Timeout, what)
		}
	}
}

// Heap returns how many octets of the heap are in use.
func Heap() int64 {
	runtime.GC()
	runtime.GC() // what pools keep outlives one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Listen listens on one TCP port of several addresses, on a free one if port is "".
func Listen(t T, port string, addrs ...string) (listeners []net.Listener) {
	t.Helper()
	for range 50 { // until a port is free at all addresses
		listeners = listeners[:0]
		want := port
		if want == "" {
			want = "0"
		}
		for _, addr := range addrs {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, want))
			if err != nil {
				break
			}
			listeners = append(listeners, l)
			want = portOf(l.Addr())
		}
		if len(listeners) == len(addrs) {
			return listeners
		}
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	t.Fatalf("no port %q on all of %v", port, addrs)
	return nil
}

// The ports from lowestPort on are for servers, those from localPorts on are given to
// connections to elsewhere.
const (
	lowestPort = 10_000
	localPorts = 32_768
)

// listenBoth listens on one port of 127.0.0.1 for UDP and TCP. Connections to elsewhere do
// not take it once it is free again.
func listenBoth(t T) (*net.UDPConn, net.Listener) {
	t.Helper()
	for range 500 {
		port := lowestPort + rand.N(localPorts-lowestPort)
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		if tcp, err := net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			return udp, tcp
		}
		_ = udp.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

// FreePort returns a port of 127.0.0.1 that no server listens on, over TCP or UDP.
func FreePort(t T) string {
	t.Helper()
	udp, tcp := listenBoth(t)
	_ = udp.Close()
	_ = tcp.Close()
	return portOf(tcp.Addr())
}

func portOf(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}
