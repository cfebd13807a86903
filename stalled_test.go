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

// TestStalledBody: a client that stops sending its body gets the response that a timeout
// or a refusal has for it.
func TestStalledBody(t *testing.T) {
	w := newWorld(t)
	w.resolver = "timeout 50s\ndeadline 50s"
	silent := testlab.NewBlackhole(t, "", "127.0.0.9").Port
	mute := testlab.SilentBackend(t, "", "127.0.0.8").Port
	reads := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.7"}, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})})
	w.dns.Has("hole.example", "127.0.0.9")
	w.dns.Has("mute.example", "127.0.0.8")
	w.dns.Has("reads.example", "127.0.0.7")
	w.dns.Has("private.example", "10.0.0.1")
	w.dns.Set("silent.example", testlab.Reply{Silent: true})
	w.dns.Set("fails.example", testlab.Reply{Rcode: 2})
	type config struct {
		timeout string
		options []string
	}
	var configs []config
	for _, timeout := range []string{"200ms", "50s"} { // a response that is no 504 must not wait for it
		configs = append(configs, config{timeout, []string{"timeout " + timeout}}, config{timeout, []string{"timeout {header.X-Timeout}"}},
			config{timeout, []string{"timeout " + timeout, "max_requests 10"}})
	}
	for _, config := range configs {
		options := config.options
		w.run(w.proxy(options...))
		for _, test := range []struct {
			name, target string
			status       int
		}{
			{"a silent address", "http://hole.example:" + silent, 504},
			{"a backend that accepts and is silent", "http://mute.example:" + mute, 504},
			{"a backend that reads and is silent", "http://reads.example:" + reads.Port, 504},
			{"a silent nameserver", "http://silent.example", 504},
			{"a nameserver that fails", "http://fails.example", 502},
			{"a refused address", "http://10.0.0.1/", 403},
			{"a refused name", "http://private.example/", 403},
			{"a refused scheme", "ftp://mute.example/", 403},
			{"a malformed target", "http://a b/", 400},
		} {
			for _, framing := range []string{"Content-Length: 100000\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "Content-Length: 100000\r\n\r\n"} {
				want := test.status
				if len(options) > 1 && want != 400 && !strings.HasPrefix(test.target, "ftp") && !strings.Contains(framing, "abc") {
					want = 504 // max_requests waits for the first octet
				}
				if (want == 504) != (config.timeout == "200ms") {
					continue
				}
				t.Run(fmt.Sprintf("%s, %.12q, %d octets, %v", test.name, framing, len(framing), options), func(t *testing.T) {
					conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
					fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: gateway\r\nX-Target: %s\r\nX-Timeout: %s\r\n%s", test.target, config.timeout, framing)
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Fatalf("no response: %v", err)
					}
					if res.StatusCode != want {
						text, _ := io.ReadAll(res.Body)
						t.Errorf("status %d: %s, want %d", res.StatusCode, text, want)
					}
				})
			}
		}
	}
}

// TestSlowBodyAfterError: what handles an error gets the body whole, however long that
// takes.
func TestSlowBodyAfterError(t *testing.T) {
	w := newWorld(t)
	b := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}})
	w.run(fmt.Sprintf(`target_proxy {header.X-Target} {
		timeout 200ms
	}
	handle_errors {
		@refused expression {err.status_code} == 403
		handle @refused {
			reverse_proxy 127.0.0.2:%s {
				transport target
			}
		}
		handle {
			respond "{err.status_code}"
		}
	}`, b.Port))
	body := strings.Repeat("x", 1000)
	exchange := func(target string, pause time.Duration) (int, string) {
		t.Helper()
		conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: gateway\r\nX-Target: %s\r\nContent-Length: %d\r\n\r\n%s", target, len(body), body[:10])
		time.Sleep(pause)
		_, _ = io.WriteString(conn, body[10:])
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("no response: %v", err)
		}
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	for range 3 {
		if status, text := exchange("http://10.0.0.1/", 600*time.Millisecond); status != http.StatusOK || !strings.Contains(text, body) {
			t.Errorf("status %d, want 200 with the body: %s", status, text)
		}
	}
	for _, target := range []string{"ftp://10.0.0.1/", "http://a b/"} {
		for _, pause := range []time.Duration{0, 600 * time.Millisecond} {
			want := http.StatusOK
			if strings.HasPrefix(target, "http") {
				want = http.StatusBadRequest
			}
			if status, text := exchange(target, pause); status != want || want == http.StatusOK && !strings.Contains(text, body) {
				t.Errorf("%s: status %d, want %d: %s", target, status, want, text)
			}
		}
	}
}

// TestReadBodyKeepsConnection: the connection of a client whose request fails is used
// again if its body has come.
func TestReadBodyKeepsConnection(t *testing.T) {
	w := newWorld(t)
	port := testlab.FreePort(t)
	w.dns.Has("dead.example", "127.0.0.2")
	w.run(w.proxy("timeout 50s", "max_requests 10"))
	conn, err := net.Dial("tcp", "127.0.0.1:"+w.port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testlab.Timeout))
	reader := bufio.NewReader(conn)
	for range 10 {
		for _, target := range []string{"http://dead.example:" + port, "http://gone.example"} {
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: gateway\r\nX-Target: %s\r\nContent-Length: 3\r\n\r\nabc", target)
			res, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			if res.StatusCode != http.StatusBadGateway || res.Close {
				t.Errorf("%s: status %d, close %t, want 502 on a connection that stays", target, res.StatusCode, res.Close)
			}
		}
	}
}
