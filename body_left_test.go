package caddytarget

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// TestRestOfBody: when a request is answered before all of its body has come, the rest is
// not taken for the next request.
func TestRestOfBody(t *testing.T) {
	const length, readByBackend = 16 << 20, 100 << 10
	w := newWorld(t)
	backend := func(addr, answer string) string {
		return testlab.NewRawBackend(t, "", addr, nil, func(conn net.Conn) {
			_, _ = io.CopyN(io.Discard, conn, readByBackend)
			_, _ = io.WriteString(conn, answer)
			testlab.Reset(conn)
		}).Port
	}
	w.dns.Has("breaks.example", "127.0.0.2")
	w.dns.Has("answers.example", "127.0.0.3")
	breaks := "http://breaks.example:" + backend("127.0.0.2", "")
	answers := "http://answers.example:" + backend("127.0.0.3", "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	smuggled := "GET / HTTP/1.1\r\nHost: gateway\r\nX-Target: " + breaks + "\r\n\r\n"
	body := strings.Repeat(smuggled, length/len(smuggled)+1)[:length]
	for _, options := range [][]string{nil, {"max_requests 10"}, {"follow_redirects 2"}, {"timeout 50s"}, {"request_buffers 100KiB"}} {
		w.run(w.proxy(append([]string{"fail_duration 0"}, options...)...))
		for _, target := range []string{breaks, answers} {
			for framing, sent := range map[string]string{
				fmt.Sprint("Content-Length: ", length): body,
				"Transfer-Encoding: chunked":           fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", length, body),
			} {
				t.Run(fmt.Sprint(target, framing, options), func(t *testing.T) {
					conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
					go fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: gateway\r\nX-Target: %s\r\n%s\r\n\r\n%s", target, framing, sent)
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Fatalf("no response: %v", err)
					}
					if !res.Close {
						t.Errorf("status %d, and the connection stays open", res.StatusCode)
					}
				})
			}
		}
	}
}
