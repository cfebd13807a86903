package caddytarget

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// redirector is a backend that sends clients elsewhere where the path ends in /go:
// with ?status= to ?to=. Everything else it answers as backends do. It remembers what
// it saw.
type redirector struct {
	*testlab.Backend
	mu   sync.Mutex
	seen []testlab.Request
}

func newRedirector(t testing.TB, config testlab.BackendConfig) *redirector {
	r := new(redirector)
	config.Handler = r
	r.Backend = testlab.NewBackend(t, config)
	return r
}

// ServeHTTP implements http.Handler.
func (b *redirector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	s := testlab.Request{Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header, Proto: r.Proto}
	if query.Get("unread") != "" {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Connection", "close") // Go's server panics over the next request
	} else {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.Body = string(body)
	}
	for name, values := range r.Trailer {
		r.Header["Trailer-"+name] = values
	}
	r.Header["Content-Length-Seen"] = []string{strconv.FormatInt(r.ContentLength, 10)}
	b.mu.Lock()
	b.seen = append(b.seen, s)
	b.mu.Unlock()
	if !strings.HasSuffix(r.URL.Path, "/go") {
		w.Header().Set("Set-Cookie", "last=1")
		writeSeen(w, s)
		return
	}
	if wait, err := time.ParseDuration(query.Get("wait")); err == nil {
		time.Sleep(wait)
	}
	status, err := strconv.Atoi(query.Get("status"))
	if err != nil {
		status = http.StatusFound
	}
	w.Header()["Location"] = query["to"]
	w.Header().Set("Set-Cookie", "hop=1")
	w.Header().Set("X-Hop", "1")
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	n, _ := strconv.Atoi(query.Get("body"))
	for range n {
		if _, err := io.WriteString(w, strings.Repeat("x", 1000)); err != nil {
			return
		}
	}
	_, _ = io.WriteString(w, "moved")
}

// writeSeen responds with a request as JSON.
func writeSeen(w http.ResponseWriter, s testlab.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

// requests returns what was seen since it was last called.
func (b *redirector) requests() []testlab.Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.seen
	b.seen = nil
	return list
}

// lines returns method, host and request URI of requests.
func requestLines(list []testlab.Request) (lines []string) {
	for _, s := range list {
		lines = append(lines, s.Method+" "+s.Host+s.URI)
	}
	return lines
}

// goTo is a target that redirects: to a Location with a status, and with more in the
// query of the target.
func goTo(hostport string, status int, location string, more ...string) string {
	values := url.Values{"status": {strconv.Itoa(status)}, "to": {location}}
	for i := 0; i < len(more); i += 2 {
		values.Set(more[i], more[i+1])
	}
	return "http://" + hostport + "/go?" + values.Encode()
}

// redirectWorld is a gateway that follows redirects, with the hosts a.test and b.test.
func redirectWorld(t testing.TB, options ...string) (w *world, b *redirector, at func(host string) string) {
	w = newWorld(t)
	b = newRedirector(t, testlab.BackendConfig{})
	w.dns.Has("a.test", "127.0.0.1")
	w.dns.Has("b.test", "127.0.0.1")
	if len(options) == 0 {
		options = []string{"follow_redirects 3"}
	}
	w.run(w.proxy(options...) + "\nheader {\ndefer\nX-Url {http.target.url}\nX-Redirects {http.target.redirects}\nX-Not-Followed {http.target.not_followed}\n}")
	return w, b, func(host string) string { return host + ":" + b.Port }
}

// withBody sets the fields of a body.
func withBody(r *http.Request) {
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Content-Language", "en")
	r.Header.Set("Idempotency-Key", "1")
}

// TestRedirectMethods: method and body are those of RFC 9110, section 15.4.
func TestRedirectMethods(t *testing.T) {
	w, b, at := redirectWorld(t)
	const body = "a body"
	for _, test := range []struct {
		status       int
		method, want string
		hasBody      bool
	}{
		{301, "GET", "GET", false},
		{301, "HEAD", "HEAD", false},
		{301, "POST", "GET", false},
		{301, "PUT", "PUT", true},
		{301, "DELETE", "DELETE", true},
		{302, "GET", "GET", false},
		{302, "POST", "GET", false},
		{302, "PATCH", "PATCH", true},
		{303, "GET", "GET", false},
		{303, "HEAD", "HEAD", false},
		{303, "POST", "GET", false},
		{303, "PUT", "GET", false},
		{303, "DELETE", "GET", false},
		{307, "GET", "GET", false},
		{307, "HEAD", "HEAD", false},
		{307, "POST", "POST", true},
		{307, "PURGE", "PURGE", true},
		{308, "POST", "POST", true},
		{308, "PUT", "PUT", true},
	} {
		for _, chunked := range []bool{false, true} {
			name := fmt.Sprint(test.status, " ", test.method, " chunked ", chunked)
			sends := test.method != "GET" && test.method != "HEAD"
			var reader io.Reader
			if sends {
				reader = strings.NewReader(body)
				if chunked {
					reader = io.MultiReader(reader) // of unknown length
				}
			}
			res, err := w.try(test.method, "/", goTo(at("a.test"), test.status, "/end?q"), reader, withBody)
			got := b.requests()
			if err != nil && test.method != "HEAD" || res.StatusCode != http.StatusOK {
				t.Errorf("%s: got %v, %v, want status 200", name, res, err)
				continue
			}
			if len(got) != 2 || got[1].Method != test.want || got[1].URI != "/end?q" || got[1].Host != at("a.test") {
				t.Errorf("%s: the backend got %q", name, requestLines(got))
				continue
			}
			last := got[1]
			wantBody, wantType := "", ""
			if test.hasBody {
				wantBody, wantType = body, "application/json"
			}
			if last.Body != wantBody {
				t.Errorf("%s: body %q, want %q", name, last.Body, wantBody)
			}
			if last.Method == test.method {
				wantType = "application/json" // nothing has changed
			}
			if got := last.Header.Get("Content-Type"); got != wantType {
				t.Errorf("%s: Content-Type %q, want %q", name, got, wantType)
			}
			if length := last.Header.Get("Content-Length-Seen"); !test.hasBody && length != "0" || test.hasBody && !chunked && length != "6" {
				t.Errorf("%s: Content-Length %s, want the length of the body", name, length)
			}
			if last.Header.Get("Idempotency-Key") != "1" {
				t.Errorf("%s: got the header %v, want Idempotency-Key 1", name, last.Header)
			}
		}
	}
}

// TestRedirectResponse: the client gets the last response alone, and each backend gets
// the request as it would get it without redirects.
func TestRedirectResponse(t *testing.T) {
	w, b, at := redirectWorld(t)
	end := "http://" + at("b.test") + "/end"
	res := w.mustGet("/my/path", goTo(at("a.test"), 302, goTo(at("b.test"), 307, end)), header("X-Custom", "1"), header("Cdn-Loop", "other"))
	got := b.requests()
	if len(got) != 3 || got[2].Host != at("b.test") || got[2].URI != "/end" {
		t.Fatalf("the backend got %q", requestLines(got))
	}
	for i, s := range got {
		for name, want := range map[string]int{"Via": 1, "X-Forwarded-For": 1, "X-Forwarded-Host": 1, "X-Custom": 1, "Cdn-Loop": 2, "X-Target": 0} {
			if n := len(s.Header[name]); n != want {
				t.Errorf("request %d has %d fields %s: %q", i, n, name, s.Header[name])
			}
		}
		if host := s.Header.Get("X-Forwarded-Host"); host != "127.0.0.1:"+w.port {
			t.Errorf("request %d: X-Forwarded-Host %s", i, host)
		}
	}
	for name, want := range map[string][]string{
		"Set-Cookie": {"last=1"}, "X-Hop": nil, "Location": nil, "Via": {"1.1 Caddy"}, "Content-Type": {"application/json"},
		"X-Url": {end}, "X-Redirects": {"2"}, "X-Not-Followed": {""},
	} {
		if got := res.Header[name]; !slices.Equal(got, want) {
			t.Errorf("the client got %s %q, want %q", name, got, want)
		}
	}
	// and the next request begins anew
	res = w.mustGet("/", end)
	if got := res.Header.Get("X-Redirects"); got != "0" {
		t.Errorf("%s redirects of a request without", got)
	}
}

// TestRedirectNotFollowed: what is not followed goes on to the client as it is.
func TestRedirectNotFollowed(t *testing.T) {
	w, b, at := redirectWorld(t, "follow_redirects 2 {\nmax_body 100KiB\n}")
	a, large := at("a.test"), strings.Repeat("x", 101<<10)
	tls := newRedirector(t, testlab.BackendConfig{CA: w.ca})
	for _, test := range []struct {
		name, target, body string
		change             func(*http.Request)
		requests           int
		why                string
	}{
		{name: "one too many", target: goTo(a, 302, goTo(a, 302, goTo(a, 302, "/end"))), requests: 3, why: "2 redirects were followed"},
		{name: "for ever", target: goTo(a, 302, ""), requests: 3, why: "2 redirects were followed"},
		{name: "no Location", target: "http://" + a + "/go?status=302", why: "0 Location fields"},
		{name: "two Locations", target: goTo(a, 302, "/end") + "&to=/other", why: "2 Location fields"},
		{name: "another status", target: goTo(a, 300, "/end")},
		{name: "use proxy", target: goTo(a, 305, "/end")},
		{name: "an app", target: goTo(a, 302, "myapp://callback?code=1"), why: "another scheme"},
		{name: "ftp", target: goTo(a, 302, "ftp://"+a+"/"), why: "another scheme"},
		{name: "mail", target: goTo(a, 302, "mailto:joe@example.com"), why: "neither"},
		{name: "a scheme and a path", target: goTo(a, 302, "http:/end"), why: "neither"},
		{name: "a host without a scheme", target: goTo(a, 302, "b.test:80/end"), why: "neither"},
		{name: "userinfo", target: goTo(a, 302, "http://joe:secret@"+a+"/end"), why: "userinfo"},
		{name: "a backslash", target: goTo(a, 302, `/\b.test/`), why: "backslash"},
		{name: "no host", target: goTo(a, 302, "http:///end"), why: "no host"},
		{name: "from https to http", target: strings.Replace(goTo("a.test:"+tls.Port, 302, "http://"+a+"/end"), "http", "https", 1), requests: 0, why: "from https to http"},
		{name: "a large body", target: goTo(a, 307, "/end"), body: large, why: "more than the 102400 octets"},
		{name: "an upgrade", target: goTo(a, 302, "/end"), change: func(r *http.Request) {
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
		}},
	} {
		method := "GET"
		var reader io.Reader
		if test.body != "" {
			method, reader = "POST", strings.NewReader(test.body)
		}
		res, err := w.try(method, "/", test.target, reader, func(r *http.Request) {
			if test.change != nil {
				test.change(r)
			}
		})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		target, _ := url.Parse(test.target)
		if test.requests < 2 {
			if want := target.Query()["to"]; !slices.Equal(res.Header["Location"], want) || strconv.Itoa(res.StatusCode) != target.Query().Get("status") {
				t.Errorf("%s: %v, Location %q, want %q", test.name, res, res.Header["Location"], want)
			}
		}
		if res.StatusCode < 300 || res.StatusCode > 399 || res.body != "moved" || res.Header.Get("Set-Cookie") != "hop=1" || res.Header.Get("X-Hop") != "1" {
			t.Errorf("%s: got %v with %v, want the redirect of the backend", test.name, res, res.Header)
		}
		if got := res.Header.Get("X-Not-Followed"); test.why == "" && got != "" || !strings.Contains(got, test.why) || strings.Contains(got, "secret") {
			t.Errorf("%s: not followed: %q, want %q", test.name, got, test.why)
		}
		if got := b.requests(); len(got) != max(test.requests, 1) && test.why != "from https to http" {
			t.Errorf("%s: the backend got %q", test.name, requestLines(got))
		}
	}
}

// TestRedirectLargeBody: a body that has max_body octets is sent again.
func TestRedirectLargeBody(t *testing.T) {
	w, b, at := redirectWorld(t, "follow_redirects 2 {\nmax_body 100KiB\n}")
	a, large := at("a.test"), strings.Repeat("x", 101<<10)
	res, err := w.try("POST", "/", goTo(a, 307, "/end"), strings.NewReader(large[:100<<10]))
	if got := b.requests(); err != nil || res.StatusCode != 200 || len(got) != 2 || got[1].Body != large[:100<<10] {
		t.Errorf("a body of 100 KiB: got %v, %v, want status 200 from /end with the body", res, err)
	}
	// a body that is not needed may have any size
	res, err = w.try("POST", "/", goTo(a, 303, "/end"), strings.NewReader(large))
	if got := b.requests(); err != nil || res.StatusCode != 200 || len(got) != 2 || got[1].Body != "" {
		t.Errorf("a large body that is not needed: got %v, %v, want status 200 from /end without the body", res, err)
	}
}

// TestRedirectStatuses: only redirects with the configured statuses are followed, and
// none without the option.
func TestRedirectStatuses(t *testing.T) {
	w, b, at := redirectWorld(t, "follow_redirects 3 {\nstatus 307 308\n}")
	a := at("a.test")
	for status, followed := range map[int]bool{301: false, 302: false, 303: false, 307: true, 308: true} {
		res, err := w.try("POST", "/", goTo(a, status, "/end"), strings.NewReader("body"))
		if err != nil || (res.StatusCode == 200) != followed || !followed && (res.StatusCode != status || !strings.Contains(res.Header.Get("X-Not-Followed"), "status")) {
			t.Errorf("status 307 308: %d: got %v, %v, want it followed: %t", status, res, err, followed)
		}
		b.requests()
	}
	w.run(w.proxy())
	if res := w.get("/", goTo(a, 302, "/end")); res.StatusCode != 302 || len(b.requests()) != 1 {
		t.Errorf("without follow_redirects: got %v, want status 302", res)
	}
}

// TestRedirectRefused: a target to which a redirect leads is a target.
func TestRedirectRefused(t *testing.T) {
	w, b, at := redirectWorld(t, "follow_redirects 3", "deny c.test", "schemes http", "ports 1-65535")
	w.dns.Has("private.test", "10.1.1.1")
	w.dns.Has("mixed.test", "10.1.1.1", "127.0.0.1")
	a := at("a.test")
	for _, test := range []struct {
		location string
		status   int
		why      string
	}{
		{"http://10.0.0.1/", 403, "private"},
		{"http://169.254.169.254/latest/meta-data/", 403, "metadata"},
		{"//[::ffff:a9fe:a9fe]/", 403, "metadata"},
		{"http://private.test/", 403, "10.1.1.1"},
		{"http://c.test/", 403, "deny"},
		{"https://a.test/", 403, "scheme"},
		{"http://missing.test/", 502, "NXDOMAIN"},
		{"http://" + at("mixed.test") + "/end", 200, ""},
		{"http://a.test:" + testlab.FreePort(t) + "/", 502, "refused"},
	} {
		res := w.get("/", goTo(a, 302, goTo(a, 302, test.location)))
		if res.StatusCode != test.status || test.status != 200 && !strings.Contains(res.body, test.why) {
			t.Errorf("%s: %v, want %d %s", test.location, res, test.status, test.why)
		}
		for name, values := range res.Header {
			if name == "Set-Cookie" && test.status != 200 || name == "X-Hop" || name == "Location" {
				t.Errorf("%s: the client got %s: %s", test.location, name, values)
			}
		}
		want := 2
		if test.status == 200 {
			want = 3
		}
		if got := b.requests(); len(got) != want {
			t.Errorf("%s: the backend got %q", test.location, requestLines(got))
		}
	}
}

// TestRedirectLocations: a Location is resolved against the target that was called.
func TestRedirectLocations(t *testing.T) {
	w, b, at := redirectWorld(t)
	a, other := at("a.test"), at("b.test")
	for location, want := range map[string]string{
		"/end":                         a + "/end",
		"end":                          a + "/dir/end",
		"./end?x=1":                    a + "/dir/end?x=1",
		"../end":                       a + "/end",
		"../../../end":                 a + "/end",
		"/x/../end/.":                  a + "/end/",
		"//" + other + "/end":          other + "/end",
		"//" + other:                   other + "/",
		"http://" + other:              other + "/",
		"HTTP://B.TEST:" + b.Port:      other + "/",
		"http://" + other + "?x":       other + "/?x",
		"http://" + other + "/a/../b":  other + "/b",
		"http://" + other + "/%2e%2fx": other + "/%2e%2fx",
		"/with space?a b#c d":          a + "/with%20space?a%20b",
		"/ü":                           a + "/%C3%BC",
		"/\xfc":                        a + "/%FC",
		"/end#fragment?x":              a + "/end",
		"/a:b":                         a + "/a:b",
		"/http://" + other + "/":       a + "/http://" + other + "/",
		"/x?to=http://" + other + "/":  a + "/x?to=http://" + other + "/",
	} {
		target := strings.Replace(goTo(a, 302, location), "/go", "/dir/go", 1)
		res := w.get("/", target)
		if got := b.requests(); len(got) != 2 || got[1].Host+got[1].URI != want {
			t.Errorf("%q: %v, the backend got %q, want %q", location, res, requestLines(got), want)
		}
	}
}

// TestRedirectCredentials: who gets what was meant for another origin.
func TestRedirectCredentials(t *testing.T) {
	w, b, at := redirectWorld(t, "follow_redirects 3 {\ndrop X-Mine x-our-* *-End *middle*\n}",
		"header_up X-Gateway-Token secret", "header_up X-Gateway public")
	tls := newRedirector(t, testlab.BackendConfig{CA: w.ca})
	w.dns.Has("127.0.0.1.test", "127.0.0.1")
	a, other := at("a.test"), at("b.test")
	secrets := []string{
		"Authorization", "Www-Authenticate", "Cookie", "Cookie2", "X-Auth-Token", "X-Api-Key", "Apikey",
		"X-Amz-Security-Token", "Private-Token", "X-Session-Id", "X-Client-Secret", "X-Password", "X-Csrf-Token",
		"Ocp-Apim-Subscription-Key", "X-Mine", "X-Our-Own", "X-Our-", "In-The-End", "Xmiddlex", "X-Gateway-Token",
	}
	public := []string{"X-Custom", "Idempotency-Key", "X-Hub-Signature-256", "Accept-Language", "If-None-Match", "X-Gateway", "X-Our", "X-Forwarded-For"}
	send := func(r *http.Request) {
		for _, name := range slices.Concat(secrets, public) {
			if !strings.HasPrefix(name, "X-Gateway") && !strings.HasPrefix(name, "X-Forwarded") {
				r.Header.Set(name, "value")
			}
		}
		r.Trailer = http.Header{"Signature": {"1"}}
	}
	check := func(what string, s testlab.Request, foreign bool) {
		t.Helper()
		for _, name := range secrets {
			if got := s.Header.Get(name) != ""; got == foreign {
				t.Errorf("%s: %s is there: %t, want %t", what, name, got, !foreign)
			}
		}
		for _, name := range public {
			if s.Header.Get(name) == "" {
				t.Errorf("%s: no %s, want it kept", what, name)
			}
		}
		if got := s.Header.Get("Trailer-Signature") != ""; got == foreign {
			t.Errorf("%s: the trailer is there: %t", what, got)
		}
	}
	try := func(target string, b *redirector) []testlab.Request {
		t.Helper()
		res, err := w.try("POST", "/", target, io.MultiReader(strings.NewReader("body")), send)
		if err != nil || res.StatusCode != 200 {
			t.Errorf("%s: got %v, %v, want status 200", target, res, err)
		}
		got := b.requests()
		if len(got) == 0 || got[len(got)-1].Body != "body" {
			t.Fatalf("%s: the backend got %+v", target, got)
		}
		return got
	}
	got := try(goTo(a, 307, goTo(a, 308, "/end")), b)
	check("same origin, first", got[0], false)
	check("same origin, second", got[1], false)
	check("same origin, last", got[2], false)

	got = try(goTo(a, 307, goTo(other, 307, goTo(other, 307, "http://"+a+"/end"))), b)
	check("first", got[0], false)
	check("another host", got[1], true)
	check("the same other host", got[2], true)
	check("back again", got[3], true)

	got = try(goTo(a, 307, "https://a.test:"+tls.Port+"/end"), tls)
	check("another port and scheme", got[0], true)
	got = try(goTo(a, 307, goTo(at("127.0.0.1"), 307, "/end")), b)
	check("the same address, and not the same host", got[2], true)
}

// TestRedirectHost: what the option host says is for the origin that it was given for.
func TestRedirectHost(t *testing.T) {
	w, b, at := redirectWorld(t, "follow_redirects 3", "host virtual.test", "path /go{?}{query}")
	query := "?status=302&to=" + url.QueryEscape("http://"+at("a.test")+"/end")
	w.run(w.proxy("follow_redirects 3", "host virtual.test", "path /go"+query))
	w.mustGet("/", "http://"+at("a.test"))
	if got := requestLines(b.requests()); !slices.Equal(got, []string{"GET virtual.test/go" + query, "GET virtual.test/end"}) {
		t.Errorf("the same origin: %q", got)
	}
	w.mustGet("/", "http://"+at("b.test"))
	if got := requestLines(b.requests()); !slices.Equal(got, []string{"GET virtual.test/go" + query, "GET " + at("a.test") + "/end"}) {
		t.Errorf("another origin: got %q, want two requests, the second to a.test", got)
	}
}

// TestRedirectRewrite: a relative Location leads from the path that was sent.
func TestRedirectRewrite(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.run("@targeted header X-Target *\nroute @targeted {\nrewrite * /dir{uri}\ntarget_proxy {header.X-Target} {\nallow_ips 127.0.0.0/8\nfollow_redirects 3\n}\n}")
	w.mustGet("/go?status=302&to=end", "http://"+at("a.test"))
	if got := requestLines(b.requests()); len(got) != 2 || got[1] != "GET "+at("a.test")+"/dir/end" {
		t.Errorf("a rewrite before it: %q", got)
	}
	w.run(`@targeted header X-Target *
	route @targeted {
		target {header.X-Target} {
			allow_ips 127.0.0.0/8
			follow_redirects 3
		}
		uri path_regexp ^/go /deep/go
		reverse_proxy {
			dynamic target
			transport target
		}
	}`)
	w.mustGet("/", goTo(at("a.test"), 302, "end"))
	if got := requestLines(b.requests()); len(got) != 2 || got[1] != "GET "+at("a.test")+"/deep/end" {
		t.Errorf("a rewrite after it: %q", got)
	}
}

// TestRedirectProtocols follows redirects over HTTP/2, on both sides.
func TestRedirectProtocols(t *testing.T) {
	w, _, _ := redirectWorld(t)
	tls := newRedirector(t, testlab.BackendConfig{CA: w.ca, HTTP2: true})
	clear := newRedirector(t, testlab.BackendConfig{HTTP2: true, HTTP2Only: true})
	w.run(w.proxy("follow_redirects 3", "schemes http https h2c"))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	rt := &http.Transport{Protocols: protocols}
	defer rt.CloseIdleConnections()
	for _, client := range []*http.Client{w.client, {Transport: rt}} {
		for _, test := range []struct {
			target string
			b      *redirector
		}{
			{"https://a.test:" + tls.Port + "/go?status=307&to=/end", tls},
			{"https://a.test:" + tls.Port + "/go?status=307&to=https://b.test:" + tls.Port + "/end", tls},
			{"h2c://a.test:" + clear.Port + "/go?status=307&to=/end", clear},
			{"h2c://a.test:" + clear.Port + "/go?status=308&to=http://a.test:" + clear.Port + "/end", clear},
		} {
			req, cancel := w.request("POST", "/", test.target, strings.NewReader("body"))
			res, err := do(client, req)
			cancel()
			got := test.b.requests()
			if err != nil || res.StatusCode != 200 || len(got) != 2 || got[1].Body != "body" || got[1].Proto != "HTTP/2.0" {
				t.Errorf("%s: %v %v, the backend got %q", test.target, res, err, requestLines(got))
			}
		}
	}
}

// TestRedirectTimeout: the time is for all of it, and what is left of it says nothing
// about an address.
func TestRedirectTimeout(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.dns.Has("silent.test", "127.0.0.2")
	silent := testlab.SilentBackend(t, "", "127.0.0.2").Port
	w.run(w.proxy("follow_redirects 3", "timeout 1s"))
	if res := w.get("/", goTo(at("a.test"), 302, "http://silent.test:"+silent+"/")); res.StatusCode != 504 {
		t.Errorf("a silent target of a redirect: %v", res)
	}
	// each is quick enough, and all together are not
	slow := goTo(at("a.test"), 302, goTo(at("a.test"), 302, "/end", "wait", "600ms"), "wait", "600ms")
	if res := w.get("/", slow); res.StatusCode != 504 {
		t.Errorf("slow redirects: got %v, want status 504", res)
	}
	b.requests()
	w.mustGet("/", "http://"+at("a.test")+"/end")
}

// TestRedirectMaxRequests: a request takes a place of the target that it is at.
func TestRedirectMaxRequests(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.run(w.proxy("follow_redirects 3", "max_requests 1"))
	for range 3 { // a place is given back
		w.mustGet("/", goTo(at("a.test"), 302, goTo(at("a.test"), 302, "http://"+at("b.test")+"/end")))
	}
	b.requests()
	held := make(chan struct{})
	release := make(chan struct{})
	hold := testlab.NewBackend(t, testlab.BackendConfig{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(held)
		<-release
	})})
	done := make(chan error)
	go func() {
		_, err := w.try("GET", "/", "http://b.test:"+hold.Port+"/", nil)
		done <- err
	}()
	<-held
	res := w.get("/", goTo(at("a.test"), 302, "http://b.test:"+hold.Port+"/"))
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || !strings.Contains(res.body, "b.test") {
		t.Errorf("a redirect to a target with too many requests: %v", res)
	}
	w.mustGet("/", "http://"+at("a.test")+"/end")
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestRedirectRetries: the addresses of each target are tried.
func TestRedirectRetries(t *testing.T) {
	w, b, at := redirectWorld(t, "follow_redirects 3", "lb_policy first", "fail_duration 0")
	w.dns.Has("dead.test", "127.0.0.3", "127.0.0.4", "127.0.0.1")
	res, err := w.try("POST", "/", goTo(at("dead.test"), 307, goTo(at("a.test"), 307, "http://"+at("dead.test")+"/end")), strings.NewReader("body"))
	got := b.requests()
	if err != nil || res.StatusCode != 200 || len(got) != 3 || got[2].Body != "body" {
		t.Errorf("%v %v: the backend got %q", res, err, requestLines(got))
	}
}

// TestRedirectUnreadBody: a backend may redirect before it has read the body, and the
// client may send it slowly.
func TestRedirectUnreadBody(t *testing.T) {
	w, b, at := redirectWorld(t)
	for _, second := range []string{"and the rest", strings.Repeat("x", 60<<10), strings.Repeat("x", 200<<10)} {
		reader, writer := io.Pipe()
		go func() {
			_, _ = io.WriteString(writer, "first")
			testlab.Eventually(t, "the redirect", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return len(b.seen) > 0
			})
			time.Sleep(20 * time.Millisecond)
			_, _ = io.WriteString(writer, second)
			_ = writer.Close()
		}()
		res, err := w.try("POST", "/", goTo(at("a.test"), 307, "/end", "unread", "1"), reader)
		got := b.requests()
		if err != nil || res.StatusCode != 200 || len(got) != 2 || got[1].Body != "first"+second {
			t.Errorf("%d octets: %v %v: the backend got %q", len(second), res, err, requestLines(got))
		}
	}
}

// TestRedirectBodies: a redirect's own body does not hold up the request, and a short
// one does not cost the connection.
func TestRedirectBodies(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.mustGet("/", "http://"+at("a.test")+"/end")
	opened := b.Opened.Load()
	for range 10 {
		w.mustGet("/", goTo(at("a.test"), 302, "/end"))
	}
	if n := b.Opened.Load() - opened; n != 0 {
		t.Errorf("%d connections for short redirects", n)
	}
	w.mustGet("/", goTo(at("a.test"), 302, "/end", "body", "100"))
	// without end, or without the end that it says
	for _, response := range []string{
		"HTTP/1.1 302 Found\r\nLocation: http://" + at("a.test") + "/end\r\nContent-Length: 1000000\r\n\r\nmoved",
		"HTTP/1.1 302 Found\r\nLocation: http://" + at("a.test") + "/end\r\nContent-Length: 10\r\n\r\nmoved",
		"HTTP/1.1 302 Found\r\nLocation: http://" + at("a.test") + "/end\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nmoved\r\n",
		"HTTP/1.1 302 Found\r\nLocation: http://" + at("a.test") + "/end\r\n\r\nmoved",
	} {
		raw := testlab.NewRawBackend(t, "", "127.0.0.1", nil, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, response)
			_, _ = conn.Read(make([]byte, 1)) // until the gateway has enough
		})
		w.mustGet("/", "http://a.test:"+raw.Port+"/")
	}
}

// TestRedirectRoutes: what stands between target and reverse_proxy runs for each
// target, and begins anew.
func TestRedirectRoutes(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.run(`@targeted header X-Target *
	route @targeted {
		target {header.X-Target} {
			allow_ips 127.0.0.0/8
			follow_redirects 3
		}
		@go path /go
		handle @go {
			request_header +X-Added go
			header +X-Response go
			reverse_proxy {
				dynamic target
				transport target
			}
		}
		handle {
			request_header +X-Added other
			header +X-Response other
			reverse_proxy {
				dynamic target
				transport target
			}
		}
	}`)
	w.mustGet("/", "http://"+at("a.test")+"/end")
	b.requests()
	for _, target := range []string{goTo(at("a.test"), 302, "/end"), goTo(at("a.test"), 302, goTo(at("a.test"), 302, "/end"))} {
		res := w.mustGet("/", target)
		got := b.requests()
		for i, s := range got {
			want := "go"
			if i == len(got)-1 {
				want = "other"
			}
			if added := s.Header["X-Added"]; !slices.Equal(added, []string{want}) {
				t.Errorf("request %d of %d: %q, want %q", i, len(got), added, want)
			}
		}
		if added := res.Header["X-Response"]; !slices.Equal(added, []string{"other"}) {
			t.Errorf("the client got %q", added)
		}
	}
}

// TestRedirectHandled: a handle_response that takes redirects gets them.
func TestRedirectHandled(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.run(w.proxy("follow_redirects 3", "@temporary status 307", "handle_response @temporary {\nrespond \"handled {rp.header.Location}\" 418\n}",
		"@found status 302", "replace_status @found 201"))
	if res := w.get("/", goTo(at("a.test"), 307, "/end")); res.StatusCode != 418 || res.body != "handled /end" {
		t.Errorf("handle_response: got %v, want status 418, handled /end", res)
	}
	if res := w.get("/", goTo(at("a.test"), 302, "/end")); res.StatusCode != 201 || res.body != "moved" {
		t.Errorf("replace_status: got %v, want status 201, moved", res)
	}
	b.requests()
	w.mustGet("/", goTo(at("a.test"), 308, "/end"))
}

// TestHandleResponseRedirects: handle_response can follow redirects, too.
func TestHandleResponseRedirects(t *testing.T) {
	w, b, at := redirectWorld(t)
	tls := newRedirector(t, testlab.BackendConfig{CA: w.ca})
	site := func(more string) string {
		return fmt.Sprintf(`target_proxy {header.X-Target} {
		allow_ips 127.0.0.0/8
		tls_trust_pool file %q
		%s
		@other status 301 302 303
		handle_response @other {
			target_proxy {rp.header.Location} {
				allow_ips 127.0.0.0/8
				method GET
			}
		}
		@same status 307 308
		handle_response @same {
			target_proxy {rp.header.Location} {
				allow_ips 127.0.0.0/8
				tls_trust_pool file %q
			}
		}
	}
	handle_errors {
		respond "{err.status_code} {http.target.error}"
	}`, w.ca.File, more, w.ca.File)
	}
	for _, more := range []string{"", "request_buffers 1MiB"} {
		w.run(site(more))
		for _, test := range []struct {
			status   int
			location string
			body     string
			want     string // method, host, URI, body
		}{
			{307, "http://" + at("b.test") + "/end", "abc", "POST " + at("b.test") + "/end abc"},
			{308, "/end", "abc", "POST " + at("a.test") + "/end abc"},
			{308, "end?x", strings.Repeat("x", 60<<10), "POST " + at("a.test") + "/end?x " + strings.Repeat("x", 60<<10)},
			{303, "/end", "abc", "GET " + at("a.test") + "/end "},
			{302, "//" + at("b.test"), "abc", "GET " + at("b.test") + "/ "},
		} {
			for _, chunked := range []bool{false, true} {
				var reader io.Reader = strings.NewReader(test.body)
				if chunked {
					reader = io.MultiReader(reader)
				}
				res, err := w.try("POST", "/", goTo(at("a.test"), test.status, test.location), reader, header("Authorization", "secret"))
				got := b.requests()
				if err != nil || res.StatusCode != 200 || len(got) != 2 || got[1].Method+" "+got[1].Host+got[1].URI+" "+got[1].Body != test.want {
					t.Errorf("%s: %d %s: %v %v: the backend got %q", more, test.status, test.location, res, err, requestLines(got))
					continue
				}
				if same := got[1].Host == at("a.test"); same != (got[1].Header.Get("Authorization") != "") {
					t.Errorf("%s: %d %s: Authorization %q, want it kept: %t", more, test.status, test.location, got[1].Header.Get("Authorization"), same)
				}
			}
		}
		// a body that is not kept
		res, err := w.try("POST", "/", goTo(at("a.test"), 307, "/end"), strings.NewReader(strings.Repeat("x", 100<<10)))
		if err != nil || res.StatusCode != 502 || !strings.Contains(res.body, "a.test") || !strings.Contains(res.body, "only up to 65536 octets") {
			t.Errorf("%s: a large body: got %v, %v, want status 502, only up to 65536 octets", more, res, err)
		}
		b.requests()
		// from https to http
		res = w.get("/", strings.Replace(goTo("a.test:"+tls.Port, 307, "http://"+at("a.test")+"/end"), "http", "https", 1))
		if res.StatusCode != 403 || !strings.Contains(res.body, "from https") || len(b.requests()) != 0 {
			t.Errorf("%s: from https to http: %v", more, res)
		}
	}
}

// TestFallbackBody: a request that another target could not take has its body still.
func TestFallbackBody(t *testing.T) {
	w, b, at := redirectWorld(t)
	w.run(fmt.Sprintf(`target_proxy http://a.test:%s {
		allow_ips 127.0.0.0/8
	}
	handle_errors {
		target_proxy http://%s/end {
			allow_ips 127.0.0.0/8
		}
	}`, testlab.FreePort(t), at("a.test")))
	res, err := w.try("POST", "/", "", strings.NewReader("body"))
	got := b.requests()
	if err != nil || len(got) != 1 || got[0].Body != "body" {
		t.Errorf("%v %v: the backend got %+v", res, err, got)
	}
}

// TestRedirectLogs: what was followed, and what not, is in the log at debug level.
func TestRedirectLogs(t *testing.T) {
	w, _, at := redirectWorld(t)
	logged := w.logTo("DEBUG", "http.handlers.target", "redirect followed", "redirect not followed")
	w.run(w.proxy("follow_redirects 1"))
	w.get("/", goTo(at("a.test"), 302, goTo(at("b.test"), 302, "/end?secret")))
	var got []map[string]any
	testlab.Eventually(t, "the log", func() bool {
		got = logged()
		return len(got) == 2
	})
	if l := got[0]; l["from"] != "a.test" || l["name"] != "b.test" || l["redirects"] != 1.0 || l["method"] != "GET" {
		t.Errorf("followed: got %v, want from a.test to b.test, 1 redirect, GET", l)
	}
	if l := got[1]; l["name"] != "b.test" || l["error"] != "1 redirects were followed" || l["status"] != 302.0 {
		t.Errorf("not followed: got %v, want b.test, status 302, 1 redirects were followed", l)
	}
	for _, l := range got {
		if strings.Contains(fmt.Sprint(l), "secret") {
			t.Errorf("the log has the query: %v", l)
		}
	}
}

// TestRedirectClientLeaves: a client that leaves ends the request at the target where
// it is.
func TestRedirectClientLeaves(t *testing.T) {
	w, _, at := redirectWorld(t)
	there, gone := make(chan struct{}), make(chan struct{})
	hold := testlab.NewBackend(t, testlab.BackendConfig{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(there)
		<-r.Context().Done()
		close(gone)
	})})
	req, cancel := w.request("GET", "/", goTo(at("a.test"), 302, "http://b.test:"+hold.Port+"/"), nil)
	done := make(chan error)
	go func() {
		_, err := do(w.client, req)
		done <- err
	}()
	<-there
	cancel()
	<-gone
	if err := <-done; err == nil {
		t.Error("the client got a response")
	}
}
