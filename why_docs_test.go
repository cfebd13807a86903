package caddytarget

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// whyWorld is the gateway of the examples of docs/why.md, with a fault for each of them.
// typed makes of a command that of the test, shown makes of an output that of the page.
func whyWorld(t *testing.T) (w *world, typed, shown *strings.Replacer) {
	w = newAdminWorld(t)
	down := "127.0.0.1:" + testlab.FreePort(t) // no nameserver listens there
	w.resolver = "refresh off\nzone corp.example " + down
	untrusted := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.2"}, CA: w.ca})
	slow := testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{"127.0.0.3"}, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		time.Sleep(50 * time.Millisecond)
	})})
	closed := testlab.FreePort(t)
	for name, addr := range map[string]string{"api.example": "127.0.0.2", "slow.example": "127.0.0.3", "dead.example": "127.0.0.4", "wiki.example": "10.0.0.7"} {
		w.dns.Set(name, testlab.Reply{Addrs: []string{addr}, TTL: 3000})
	}
	w.run("target_proxy {header.X-Target} {\nallow_ips 127.0.0.0/8\nfail_duration 1h\n}") // no trust in w.ca
	typed = strings.NewReplacer(
		"//api.example/", "//api.example:"+untrusted.Port+"/", "//slow.example/", "//slow.example:"+slow.Port+"/", "//dead.example/", "//dead.example:"+closed+"/",
	)
	return w, typed, strings.NewReplacer(
		w.dns.Addr, "10.0.0.53:53", down, "10.1.0.53:53", usedResolvers()[0].ID(), "6f1e2a9c", "srv0/routes/1/", "srv0/routes/0/",
		"until 2100-01-01T", "until 2027-03-01T", "caddytarget test CA", "Example Corp CA",
		"port "+untrusted.Port, "port 443", "port "+slow.Port, "port 80", "port "+closed, "port 80",
		"example:"+untrusted.Port, "example", "example:"+slow.Port, "example", "example:"+closed, "example",
		"127.0.0.2:"+untrusted.Port, "192.0.2.10:443", "127.0.0.3:"+slow.Port, "192.0.2.12:80", "127.0.0.4:"+closed, "192.0.2.11:80",
	)
}

// TestWhyDocs plays the faults of docs/why.md in the order of the page, and checks that the
// examples there show what the commands answer.
func TestWhyDocs(t *testing.T) {
	w, typed, shown := whyWorld(t)
	curl := regexp.MustCompile(`^curl -si -H 'X-Target: (\S+)' http://localhost:8080/ \| grep -i '\^Proxy-Status'$`)
	// a nameserver that is down, and a name whose addresses all fail, are asked again meanwhile
	unsteady := regexp.MustCompile(`(?m)^ query .*\n|( \d+){3} `)
	examples := examplesIn(readFile(t, "docs/why.md"))
	if len(examples) < 11 {
		t.Errorf("got %d examples in docs/why.md, want those of each section that has a command", len(examples))
	}
	for _, e := range examples {
		command := typed.Replace(e.command)
		var got string
		same := func(text string) string { return unsteady.ReplaceAllString(sameTable(text), "") }
		if parts := curl.FindStringSubmatch(command); parts != nil {
			got = "Proxy-Status: " + w.get("/", parts[1]).Header.Get("Proxy-Status") + "\n"
		} else if strings.HasPrefix(command, "caddy target trace ") {
			done := make(chan struct{})
			go func() { // a request is shown when it ends while the command listens
				defer close(done)
				testlab.Eventually(w, "the command listens", acquiredShared(w).trace.Listening)
				_, _ = w.try(http.MethodGet, "/", typed.Replace("http://slow.example/"), nil)
			}()
			got, _ = w.runExample(command)
			<-done
		} else {
			got, _ = w.runExample(command)
		}
		if got = shown.Replace(got); same(got) != same(e.want) {
			t.Errorf("%s: got\n%s\nwant, as in docs/why.md,\n%s", e.command, got, e.want)
		}
	}
}
