package caddytarget

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"caddytarget/internal/testlab"
)

// Each test shows what an example promises.

func TestExampleAds(t *testing.T) {
	w := newWorld(t)
	bidder := testlab.NewBackend(t, testlab.BackendConfig{CA: w.ca})
	w.dns.Has("acme.bidders.example", "127.0.0.1")
	testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, Port: bidder.Port, CA: w.ca, Handler: http.HandlerFunc(
		func(_ http.ResponseWriter, r *http.Request) {
			// before the body has been read, a server does not notice that the client has left
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				<-r.Context().Done()
			}
		},
	)})
	w.dns.Has("slow.bidders.example", "127.0.0.3")
	w.dns.Has("evil.example", "127.0.0.1")
	d := runDocumented(t, "examples/ads.Caddyfile", w,
		swap{"http://localhost:8080", "http://localhost:" + w.port},
		swap{".bidders.example/", ".bidders.example:" + bidder.Port + "/"},
		swap{"schemes https", "schemes https\n" + w.trust()},
	)
	localhost := header("Host", "localhost:"+w.port)
	long := header("X-Tmax", "9999")

	seen := d.send(200, "POST", "/bid/acme", `{"id": "1"}`, localhost, long).seen
	is(t, "Host", seen.Host, "acme.bidders.example:"+bidder.Port)
	is(t, "path", seen.URI, "/openrtb2/auction")
	is(t, "body", seen.Body, `{"id": "1"}`)
	is(t, "name of TLS", seen.SNI, "acme.bidders.example")
	d.logs("target", "acme.bidders.example", "failure", "", "reused", false, "address", "127.0.0.1:"+bidder.Port)
	again := d.send(200, "POST", "/bid/acme", `{"id": "2"}`, localhost, long).seen
	is(t, "connection of the next request", again.Conn, seen.Conn)
	d.logs("target", "acme.bidders.example", "failure", "", "reused", true)

	// no bid, whatever the reason
	d.send(204, "POST", "/bid/unknown", `{}`, localhost, long)
	d.logs("target", "unknown.bidders.example", "failure", "destination_not_found", "phase", "dns")
	d.send(204, "POST", "/bid/slow", `{}`, localhost, header("X-Tmax", "1"))
	if line := d.access(); line["failure"] == "" || line["target"] != "slow.bidders.example" {
		t.Errorf("got %v in the access log of a bidder that is slow, want a failure", line)
	}
	d.send(204, "POST", "/bid/evil.example%2F", `{}`, localhost, long)
	d.logs("target", "evil.example.bidders.example", "failure", "destination_not_found")
	is(t, "requests to the bidder", bidder.Served.Load(), 2)
}

func TestExampleWebhooks(t *testing.T) {
	w := newWorld(t)
	customer := testlab.NewBackend(t, testlab.BackendConfig{CA: w.ca, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(rw, r, "/new", http.StatusPermanentRedirect)
		case "/found":
			http.Redirect(rw, r, "/new", http.StatusFound)
		default:
			fmt.Fprintf(rw, "%s %s auth=%q cookie=%q for=%q target=%q", r.Method, r.URL, r.Header.Get("Authorization"), r.Header.Get("Cookie"),
				r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Webhook-URL"))
		}
	})})
	customer.SetCertificate("expired.customer.test", "other.test")
	for _, name := range []string{"hooks.customer.test", "expired.customer.test", "api.example.com"} {
		w.dns.Has(name, "127.0.0.1")
	}
	w.dns.Has("rebound.customer.test", "10.1.2.3", "169.254.169.254")
	d := runDocumented(t, "examples/webhooks.Caddyfile", w,
		swap{"http://localhost:8080", "http://localhost:" + w.port},
		swap{"resolver {", "resolver " + w.nameserver()},
		swap{"ports 80 443", "ports 80 443 " + customer.Port + "\n" + w.trust()},
		swap{"timeout 10s", "timeout 1m"},
	)
	event := func(status int, url string) response {
		t.Helper()
		return d.send(status, "POST", "/", `{"event": 1}`, header("Host", "localhost:"+w.port), header("X-Webhook-URL", url),
			header("Authorization", "Bearer ours"), header("Cookie", "session=ours"), header("X-Forwarded-For", "192.0.2.1"))
	}
	at := func(name, path string) string { return "https://" + name + ":" + customer.Port + path }

	is(t, "what the customer gets", event(200, at("hooks.customer.test", "/in?x=1")).body, `POST /in?x=1 auth="" cookie="" for="" target=""`)
	d.logs("target", "hooks.customer.test", "failure", "", "reused", false)
	is(t, "after a redirect", event(200, at("hooks.customer.test", "/moved")).body, `POST /new auth="" cookie="" for="" target=""`)
	d.logs("target", "hooks.customer.test", "failure", "", "reused", true)
	event(302, at("hooks.customer.test", "/found")) // would be a GET
	d.logs("status", 302.0)

	for _, test := range []struct {
		url            string
		status         int
		phase, failure string
	}{
		{"", 400, "request", "http_request_error"},
		{at("gone.customer.test", "/"), 502, "dns", "destination_not_found"},
		{at("expired.customer.test", "/"), 502, "tls", "tls_certificate_error"},
		{"https://rebound.customer.test/", 403, "policy", "destination_ip_prohibited"},
		{"http://169.254.169.254/latest/meta-data/", 403, "policy", "destination_ip_prohibited"},
		{at("api.example.com", "/"), 403, "policy", "http_request_denied"},
		{"https://hooks.customer.test:22/", 403, "policy", "http_request_denied"},
		{"https://198.51.100.7/", 403, "policy", "destination_ip_prohibited"},
	} {
		is(t, test.url, event(test.status, test.url).body, fmt.Sprintf(`{"phase": %q, "failure": %q}`, test.phase, test.failure))
		d.logs("phase", test.phase, "failure", test.failure, "status", float64(test.status))
	}
}

func TestExampleGateway(t *testing.T) {
	w := newWorld(t)
	billing := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1", "127.0.0.80"}})
	w.dns.Has("billing.corp.example", "127.0.0.1")
	w.dns.Has("itself.corp.example", "127.0.0.80")
	w.dns.Has("www.other.example", "127.0.0.1")
	d := runDocumented(t, "examples/gateway.Caddyfile", w,
		swap{"http://:8080", "http://:" + w.port},
		swap{"10.0.0.53 10.0.1.53 {", w.nameserver()},
		swap{"remote_ip 10.0.0.0/8", "remote_ip 127.0.0.1"},
		swap{"allow_ips 10.0.0.0/8", "allow_ips 127.0.0.0/8"},
		swap{"deny_ips 10.0.0.80", "deny_ips 127.0.0.80"},
	)
	target := func(name string) func(*http.Request) {
		return header("X-Target", "http://"+name+":"+billing.Port)
	}
	seen := d.send(200, "GET", "/invoices?year=1", "", target("billing.corp.example")).seen
	is(t, "Host", seen.Host, "billing.corp.example:"+billing.Port)
	is(t, "path", seen.URI, "/invoices?year=1")
	d.logs("target", "billing.corp.example", "failure", "", "reused", false)
	d.send(200, "GET", "/", "", target("billing.corp.example"))
	d.logs("target", "billing.corp.example", "failure", "", "reused", true)

	res := d.send(403, "GET", "/", "", target("www.other.example"))
	is(t, "why another domain is refused", strings.HasPrefix(res.body, "403 http_request_denied: www.other.example"), true)
	d.logs("failure", "http_request_denied", "phase", "policy")
	d.send(403, "GET", "/", "", target("itself.corp.example"))
	d.logs("target", "itself.corp.example", "failure", "destination_ip_prohibited", "phase", "policy")
	d.send(502, "GET", "/", "", target("missing.corp.example"))
	d.logs("target", "missing.corp.example", "failure", "destination_not_found", "phase", "dns")

	w.from(t, "127.0.0.9")
	res = d.send(403, "GET", "/", "", target("billing.corp.example"))
	is(t, "what another network gets", res.body, "clients of this network only")
	is(t, "requests to the backend", billing.Served.Load(), 2)
}

func TestExampleNamed(t *testing.T) {
	w := newWorld(t)
	app := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1", "127.0.0.2"}, CA: w.ca})
	w.dns.Set("app.internal.example", testlab.Reply{Addrs: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}, TTL: 1})
	d := runDocumented(t, "examples/named.Caddyfile", w,
		swap{"http://localhost:8080", "http://localhost:" + w.port},
		swap{"app.internal.example 8443", "app.internal.example " + app.Port},
		swap{"10.0.0.53 10.0.1.53", w.nameserver() + "\n}"},
		swap{"\t\t\ttls\n", "\t\t\ttls\n" + w.trustCA() + "\n"},
		swap{"tls_timeout 2s", "tls_timeout 1m"},
	)
	localhost := header("Host", "localhost:"+w.port)
	get := func() testlab.Request {
		t.Helper()
		return d.send(200, "GET", "/x", "", localhost).seen
	}
	// nothing listens at one of the addresses
	addresses := make(map[string]bool)
	for range 20 {
		seen := get()
		addresses[seen.Address] = true
		is(t, "Host", seen.Host, "app.internal.example:"+app.Port)
		is(t, "name of TLS", seen.SNI, "app.internal.example")
	}
	is(t, "addresses that were used", len(addresses), 2)
	var reused []any
	for range 20 {
		line := d.access()
		is(t, "target in the log", line["target"], any("app.internal.example"))
		reused = append(reused, line["reused"])
	}
	is(t, "the first request opens a connection", reused[0], any(false))
	is(t, "others find one", slices.Contains(reused, any(true)), true)

	// the answer is served stale while no nameserver replies
	before := w.dns.Asked("app.internal.example")
	w.dns.SetSilent(true)
	testlab.Eventually(t, "the answer is asked for again", func() bool {
		get()
		return w.dns.Asked("app.internal.example") > before+1
	})
	get()
}

func TestExampleServices(t *testing.T) {
	w := newWorld(t)
	billing := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1", "127.0.0.2"}})
	others := testlab.NewNameserver(t)
	w.dns.Set("_billing._tcp.service.consul", testlab.Reply{TTL: 60, SRV: []string{
		"1 1 " + billing.Port + " n1.node.consul.", "1 1 " + billing.Port + " n2.node.consul.", "1 1 " + testlab.FreePort(t) + " n3.node.consul.",
	}})
	w.dns.Has("n1.node.consul", "127.0.0.1")
	w.dns.Has("n2.node.consul", "127.0.0.2")
	w.dns.Has("n3.node.consul", "127.0.0.3")
	w.dns.Set("_admin._tcp.service.consul", testlab.Reply{TTL: 60, SRV: []string{"1 1 22 n1.node.consul."}})
	w.dns.Has("vault.service.consul", "127.0.0.1")
	d := runDocumented(t, "examples/services.Caddyfile", w,
		swap{"http://localhost:8080", "http://localhost:" + w.port},
		swap{"nameservers tls://9.9.9.9#dns.quad9.net tls://149.112.112.112#dns.quad9.net", "nameservers " + others.Addr + "\nhosts off\nfamily ipv4"},
		swap{"127.0.0.1:8600 10.0.0.10:8600", w.dns.Addr},
		swap{"allow_ips 10.0.0.0/8", "allow_ips 127.0.0.0/8"},
		swap{"ports 20000-32000", "ports 1024-65535"},
	)
	testlab.Eventually(t, "the name of preload is asked for", func() bool { return w.dns.Asked("vault.service.consul") > 0 })
	localhost := header("Host", "localhost:"+w.port)
	hosts := make(map[string]bool)
	for range 30 {
		seen := d.send(200, "GET", "/billing/invoices?x=1", "", localhost).seen
		is(t, "path", seen.URI, "/invoices?x=1")
		hosts[seen.Address] = true
		is(t, "target in the log", d.access()["target"], any("billing"))
	}
	is(t, "instances that were used", len(hosts), 2)
	d.send(200, "GET", "/billing/", "", localhost)
	d.logs("target", "billing", "failure", "", "reused", true)

	res := d.send(503, "GET", "/unknown/", "", localhost)
	is(t, "why", strings.HasPrefix(res.body, "503 destination_not_found: "), true)
	d.logs("target", "unknown", "failure", "destination_not_found", "phase", "dns")
	d.send(503, "GET", "/admin/", "", localhost)
	if line := d.access(); line["phase"] != "policy" {
		t.Errorf("got %v in the access log of a service on a port of its own, want a refusal", line)
	}
	d.send(404, "GET", "/", "", localhost)
	is(t, "queries to the nameserver of other names", others.Total(), 0)
}

func TestExampleTenants(t *testing.T) {
	w := newWorld(t)
	shop := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1"}})
	blog := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, Port: shop.Port})
	w.dns.Has("shop.customer.test.tenants.internal", "127.0.0.1")
	w.dns.Has("blog.other.test.tenants.internal", "127.0.0.2")
	others := testlab.NewNameserver(t)
	var mu sync.Mutex
	var asked []string
	platform := testlab.NewBackend(t, testlab.BackendConfig{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		domain := r.FormValue("domain")
		mu.Lock()
		asked = append(asked, r.URL.Path+" "+domain)
		mu.Unlock()
		if !strings.HasSuffix(domain, ".test") || strings.HasPrefix(domain, "stranger") {
			http.Error(rw, "no tenant", http.StatusNotFound)
		}
	})})
	d := runDocumented(t, "examples/tenants.Caddyfile", w,
		swap{"https:// {", "https://:" + w.port + " {"},
		swap{"\t\ton_demand\n", "\t\ton_demand\n\t\tissuer internal\n"},
		swap{"http://localhost:5555/check", "http://127.0.0.1:" + platform.Port + "/check"},
		swap{"resolver {", "resolver " + others.Addr + " {\nhosts off\nfamily ipv4"},
		swap{"10.0.0.53 10.0.1.53", w.dns.Addr},
		swap{"tenants.internal:8080", "tenants.internal:" + shop.Port},
		swap{"ports 8080", "ports " + shop.Port},
		swap{"allow_ips 10.0.0.0/8", "allow_ips 127.0.0.0/8"},
	)
	// visit sends a request as a browser does that has looked up name.
	visit := func(name, host string) (response, error) {
		rt := &http.Transport{TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
		defer rt.CloseIdleConnections()
		req, cancel := w.request("GET", "/cart", "", nil, header("Host", host))
		defer cancel()
		req.URL.Scheme = "https"
		res, err := do(&http.Client{Transport: rt}, req)
		if err == nil {
			is(t, "certificate for "+name, res.TLS.PeerCertificates[0].VerifyHostname(name), nil)
		}
		return res, err
	}
	mustVisit := func(name, host string) response {
		t.Helper()
		res, err := visit(name, host)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	seen := mustVisit("shop.customer.test", "shop.customer.test").seen
	is(t, "Host", seen.Host, "shop.customer.test")
	is(t, "path", seen.URI, "/cart")
	is(t, "backend", seen.Address, "127.0.0.1")
	d.logs("target", "shop.customer.test.tenants.internal", "failure", "", "reused", false)
	is(t, "connection of the next visitor", mustVisit("shop.customer.test", "shop.customer.test").seen.Conn, seen.Conn)
	d.logs("target", "shop.customer.test.tenants.internal", "failure", "", "reused", true)
	is(t, "backend of another tenant", mustVisit("blog.other.test", "blog.other.test").seen.Address, "127.0.0.2")
	d.logs("target", "blog.other.test.tenants.internal", "failure", "")

	// a name that is no tenant's gets no certificate
	if res, err := visit("stranger.test", "stranger.test"); err == nil {
		t.Errorf("got %v for a name that is no tenant's, want no handshake", res)
	}
	mu.Lock()
	is(t, "who was asked for", fmt.Sprint(asked[0], asked[len(asked)-1]), "/check shop.customer.test"+"/check stranger.test")
	mu.Unlock()

	// a tenant without a backend, and one that visitors make up
	is(t, "without a backend", mustVisit("new.test", "new.test").body, "502 destination_not_found")
	d.logs("target", "new.test.tenants.internal", "failure", "destination_not_found", "phase", "dns")
	is(t, "of a Host that is an address", mustVisit("shop.customer.test", "127.0.0.1:"+blog.Port).body, "502 destination_not_found")
	is(t, "queries to the nameserver of other names", others.Total(), 0)
	is(t, "requests to the other backend", blog.Served.Load(), 1)
}

func TestExampleKubernetes(t *testing.T) {
	w := newWorld(t)
	pods := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.1", "127.0.0.2"}})
	consul, others := testlab.NewNameserver(t), testlab.NewNameserver(t)
	w.dns.Has("cart.shop.svc.cluster.local", "127.0.0.1", "127.0.0.2")
	w.dns.Has("kubernetes.default.svc.cluster.local", "127.0.0.1")
	w.dns.Has("dns.kube-system.svc.cluster.local", "127.0.0.1")
	consul.Has("billing.service.consul", "127.0.0.2")
	at := pods.Port
	d := runDocumented(t, "examples/kubernetes.Caddyfile", w,
		swap{"http://:8080", "http://:" + w.port},
		swap{"resolver {", "resolver " + others.Addr + " {\nhosts off\nfamily ipv4"},
		swap{"zone cluster.local 10.96.0.10", "zone cluster.local " + w.dns.Addr},
		swap{"zone consul 10.96.0.20:8600", "zone consul " + consul.Addr},
		swap{"cluster.local:8080", "cluster.local:" + at},
		swap{"consul:8080", "consul:" + at},
		swap{"ports 8080", "ports " + at},
		swap{"allow_ips 10.0.0.0/8", "allow_ips 127.0.0.0/8"},
	)
	addresses := make(map[string]bool)
	for range 30 {
		seen := d.send(200, "GET", "/k8s/shop/cart/items?x=1", "").seen
		is(t, "path", seen.URI, "/items?x=1")
		is(t, "Host", seen.Host, "cart.shop.svc.cluster.local:"+at)
		addresses[seen.Address] = true
		is(t, "target in the log", d.access()["target"], any("cart.shop.svc.cluster.local"))
	}
	is(t, "pods that were used", len(addresses), 2)
	d.send(200, "GET", "/k8s/shop/cart/", "")
	d.logs("failure", "", "reused", true)
	is(t, "instance of Consul", d.send(200, "GET", "/consul/billing/invoices", "").seen.Address, "127.0.0.2")
	d.logs("target", "billing.service.consul", "failure", "", "reused", false)

	for _, path := range []string{"/k8s/default/kubernetes/api", "/k8s/kube-system/dns/"} {
		d.send(403, "GET", path, "")
		d.logs("failure", "http_request_denied", "phase", "policy")
	}
	d.send(502, "GET", "/k8s/shop/none/", "")
	d.logs("target", "none.shop.svc.cluster.local", "failure", "destination_not_found", "phase", "dns")
	d.send(404, "GET", "/", "")

	// one zone fails alone
	consul.SetSilent(true)
	d.send(200, "GET", "/k8s/shop/cart/", "")
	d.send(200, "GET", "/consul/billing/", "") // it is known
	is(t, "queries to the nameserver of other names", others.Total(), 0)
}
