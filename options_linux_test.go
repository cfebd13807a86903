package caddytarget

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caddytarget/internal/testlab"
)

func init() {
	optionTests = append(optionTests,
		optionTest{option: "read_buffer", kinds: []kind{plain1}, with: holdResponse, observe: firstRead, wants: wants{
			"":                  "4096 octets",
			"read_buffer 1KiB":  "1024 octets",
			"read_buffer 64KiB": "all",
		}},
		optionTest{option: "write_buffer", kinds: []kind{plain1}, observe: writes, wants: wants{
			"":                   "several writes",
			"write_buffer 64KiB": "1 write",
		}},
		optionTest{option: "keepalive_interval", kinds: allKinds, observe: probes, wants: wants{
			"":                       "every 30s",
			"keepalive_interval 7s":  "every 7s",
			"keepalive_interval -1s": "never",
		}},
	)
}

// holdResponse makes a response wait for another backend before its body is read.
const holdResponse = `handle_response {
	reverse_proxy {header.X-Hold}
}`

// firstRead looks at how much of a response is read together with its header.
func firstRead(tr *trial) string {
	response := "HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("x", 20_000)
	port := tr.serve(func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(conn, response)
			_, _ = r.ReadByte() // until the gateway closes it
		}
	})
	holding := testlab.NewBackend(tr, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		left, err := unix.IoctlGetInt(gatewaySocket(tr, port), unix.TIOCINQ)
		if err != nil {
			tr.Error(err)
		}
		fmt.Fprint(rw, len(response)-left)
	})})
	res := tr.mustGet("/", tr.at("a.example", port), header("X-Hold", "127.0.0.2:"+holding.Port))
	if res.body == strconv.Itoa(len(response)) {
		return "all"
	}
	return res.body + " octets"
}

// writes looks at how many writes a header of 12 kB takes. On a loopback interface
// each is a segment. (A body is not held back until there is enough of it.)
func writes(tr *trial) string {
	segments := make(chan uint32, 1)
	b := testlab.NewRawBackend(tr, "", "127.0.0.2", nil, func(conn net.Conn) {
		_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			tr.Error(err)
			return
		}
		_ = raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				tr.Error(err)
				return
			}
			segments <- info.Data_segs_in
		})
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	tr.mustGet("/", tr.at("a.example", b.Port), header("X-Fill", strings.Repeat("x", 12_000)))
	if <-segments > 1 {
		return "several writes"
	}
	return "1 write"
}

// probes looks at how often the kernel asks whether the backend is still there.
func probes(tr *trial) string {
	b := tr.backend(nil)
	tr.mustGet("/", tr.at("a.example", b.Port))
	fd := gatewaySocket(tr, b.Port)
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
	if err != nil {
		tr.Fatal(err)
	}
	if on == 0 {
		return "never"
	}
	seconds, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)
	if err != nil {
		tr.Fatal(err)
	}
	return fmt.Sprintf("every %ds", seconds)
}

// gatewaySocket returns the descriptor of the gateway's connection to a backend at
// 127.0.0.2, both of which are in this process.
func gatewaySocket(t testing.TB, port string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if peer, err := unix.Getpeername(fd); err == nil {
			if peer, ok := peer.(*unix.SockaddrInet4); ok && peer.Addr == [4]byte{127, 0, 0, 2} && strconv.Itoa(peer.Port) == port {
				return fd
			}
		}
	}
	t.Error("the gateway has no connection to the backend")
	return -1
}
