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

// TestRedirectOtherHandler: what another handler answers with the status of a redirect
// before is not taken for one.
func TestRedirectOtherHandler(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.run(`@targeted header X-Target *
	route @targeted {
		target {header.X-Target} {
			allow_ips 127.0.0.0/8
			follow_redirects 3
		}
		@again expression {http.target.redirects} > 0
		redir @again https://login.example/ 302
		reverse_proxy {
			dynamic target
			transport target
		}
	}`)
	for _, status := range []int{302, 307} {
		res := w.get("/", goTo(at("a.test"), status, "/end"))
		if got := res.Header.Get("Location"); res.StatusCode != 302 || got != "https://login.example/" {
			t.Errorf("after a %d: status %d, Location %q, want the 302 of redir", status, res.StatusCode, got)
		}
		if got := b.requests(); len(got) != 1 {
			t.Errorf("after a %d: the backend got %v, want one request", status, requestLines(got))
		}
	}
}

// TestRedirectFallback: what handle_errors calls after a redirect gets the body that the
// client sent.
func TestRedirectFallback(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.run(fmt.Sprintf(`target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		follow_redirects 3
	}
	handle_errors {
		@again path /again*
		target_proxy @again http://%s/end {
			allow_ips 127.0.0.0/8
		}
		reverse_proxy 127.0.0.1:%s
	}`, at("a.test"), b.Port))
	for _, to := range []string{"http://10.0.0.1/", "http://gone.test/", "http://a.test:" + testlab.FreePort(t) + "/"} {
		for _, status := range []int{303, 307} {
			for _, path := range []string{"/again", "/proxy"} {
				for _, chunked := range []bool{false, true} {
					var body io.Reader = strings.NewReader("body")
					if chunked {
						body = io.MultiReader(body)
					}
					res, err := w.try(http.MethodPost, path, goTo(at("a.test"), status, to), body)
					got := b.requests()
					if err != nil || res.StatusCode != http.StatusOK || len(got) != 2 || got[1].Method != http.MethodPost || got[1].Body != "body" {
						t.Errorf("%s, %d to %s, chunked %t: %v, %v, the backend got %+v, want the POST again, with its body", path, status, to, chunked, res, err, got)
					}
				}
			}
		}
	}
}

// TestRedirectInterim: the client does not get an interim response that came before a
// redirect.
func TestRedirectInterim(t *testing.T) {
	w, _, at := redirectWorld(t)
	b := testlab.NewRawBackend(t, "", "127.0.0.1", nil, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </secret.css>\r\n\r\nHTTP/1.1 302 Found\r\nLocation: http://"+at("b.test")+"/end\r\nContent-Length: 0\r\n\r\n")
	})
	conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: gateway\r\nX-Target: http://a.test:%s/\r\nConnection: close\r\n\r\n", b.Port)
	text, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200 ") || strings.Contains(string(text), "secret") {
		t.Errorf("the client got %q, %v, want the last response alone", text, err)
	}
}

// TestErrorsAfterStall: handle_errors can still call something else when the body of a
// request has not come within the timeout.
func TestErrorsAfterStall(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	reads := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.7"}, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})})
	w.dns.Has("reads.example", "127.0.0.7")
	w.dns.Has("name.example", "127.0.0.2")
	w.run(fmt.Sprintf(`target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		timeout 300ms
	}
	handle_errors {
		target_proxy http://name.example:%s/fallback {
			allow_ips 127.0.0.0/8
			method GET
		}
	}`, b.Port))
	for _, framing := range []string{"Content-Length: 3\r\n\r\nabc", "Content-Length: 100000\r\n\r\nabc"} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: gateway\r\nX-Target: http://reads.example:%s/\r\n%s", reads.Port, framing)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%q: %v", framing, err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%q: status %d, want that of the fallback, 200", framing, res.StatusCode)
		}
	}
}
