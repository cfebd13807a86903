//go:build linux

package caddytarget

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"caddytarget/internal/redirect"
	"caddytarget/internal/targeturl"
	"caddytarget/internal/testlab"
)

// Every attack of the tables is made once more behind redirects: the client names an
// honest host that the site lets it call, and that host leads to the target of the
// attack, at once or by way of others. Nothing may be reached that may not be reached
// by a request that names it.

// attackHops is what stands between a request and the target of an attack: the
// Locations of each request, by the value of its field X-Hops.
type attackHops struct {
	mu    sync.Mutex
	left  map[string][]string
	count int
}

// add returns the value of X-Hops of a request that is redirected.
func (h *attackHops) add(locations []string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	id := strconv.Itoa(h.count)
	h.left[id] = locations
	return id
}

// remaining returns how many redirects of a request have not been reached.
func (h *attackHops) remaining(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.left[id])
}

// next returns the Location for a request, and the status.
func (h *attackHops) next(id string) (location string, status int, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list, ok := h.left[id]
	if !ok || len(list) == 0 {
		return "", 0, false
	}
	h.left[id] = list[1:]
	statuses := []int{http.StatusTemporaryRedirect, http.StatusFound, http.StatusPermanentRedirect, http.StatusMovedPermanently}
	return list[0], statuses[len(list)%len(statuses)], true
}

// lead redirects requests while there is something left, and has others answered by
// another handler.
func (h *attackHops) lead(other http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		location, status, ok := h.next(r.Header.Get("X-Hops"))
		if !ok {
			other(w, r)
			return
		}
		w.Header()["Location"] = []string{location}
		w.WriteHeader(status)
	})
}

// everywhereLeading starts backends at every address, all of which redirect.
func (a *arena) everywhereLeading(t *testing.T, hops *attackHops) {
	a.proxied = true
	everywhere := []string{"::"}
	answer := hops.lead(echo)
	for _, port := range []string{"80", "8080", "22", "2019", "2375", "6379", "10250", "32526", "8083"} {
		a.backends = append(a.backends, testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: port, Handler: answer}))
	}
	a.backends = append(a.backends,
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: "443", CA: a.ca, HTTP2: true, Handler: answer}),
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: "8088", HTTP2: true, HTTP2Only: true, Handler: answer}),
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: everywhere, Port: "8082", Handler: hops.lead(sendRedirect)}),
		testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{aliveAddr, "10.0.0.1", "169.254.169.254", "127.0.0.1", "::1"}, Port: "8081", Handler: answer}))
	testlab.ResettingBackend(t, "8081", resetAddr)
}

// firstHops are the honest targets at sites that do not let http://good.example be
// called, or have another template.
var firstHops = map[string]string{
	"below":            "http://a.good.example/hop",
	"suffix":           "a",
	"prefix":           "/hop",
	"deny-all-below":   "http://" + goodAddr + "/hop",
	"https":            "https://good.example/hop",
	"h2c":              "h2c://good.example:8088/hop",
	"metadata-allowed": "http://metadata.google.internal/hop",
	"metadata-below":   "http://hop.google.internal/hop",

	"bad-ports": "http://good.example:22/hop",

	// those where the client brings a part of the URL, which no redirect does
	"url-path": "", "url-query": "",

	// those that have no target handler
	"service": "", "service-any-port": "", "named": "", "named-port": "",
}

var (
	targetDirective = regexp.MustCompile(`(?m)^(\s*target(?:_proxy)?(?: @\w+)? \{[^\n{}]*\})( \{)?$`)
	rawTarget       = regexp.MustCompile(`(?mi)^x-target: ([^\r\n]*)`)
	plainTarget     = regexp.MustCompile(`^(?i)[a-z0-9+]+://[^\x00-\x20\x7f\\]*$`)
)

// following returns a site whose target handlers follow redirects.
func following(s attackSite) attackSite {
	const option = "follow_redirects 20"
	if s.whole == "" {
		s.rules += "\n" + option
		return s
	}
	s.whole = targetDirective.ReplaceAllStringFunc(s.whole, func(line string) string {
		if strings.HasSuffix(line, "} {") {
			return line + "\n" + option
		}
		return line + " {\n" + option + "\n}"
	})
	return s
}

// attackRedirects makes the attacks of the tables behind 1, 2 and 7 redirects.
func attackRedirects(t *testing.T) {
	registerRecorder()
	registerPause()
	for _, n := range []int{1, 2, 7} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			sites, groups := slices.Concat(attackSites, proxySites), slices.Concat(attackGroups, proxyGroups)
			a, hops := newLeadingArena(t, sites, groups, "admin off")
			a.dns.Has("hop.google.internal", goodAddr)
			a.socket(t)
			a.start()
			a.playBehind(t, hops, n, 700, 400)
		})
		t.Run(strconv.Itoa(n)+", own listeners", func(t *testing.T) {
			a, hops := newLeadingArena(t, ownSites, ownGroups, "admin "+ownAddr+":2020")
			a.dns.Has("good.example", goodAddr)
			a.backends = append(a.backends, testlab.NewBackend(t, testlab.BackendConfig{Addrs: []string{ownAddr, goodAddr}, Port: "8090", Handler: hops.lead(echo)}))
			a.start()
			t.Cleanup(func() { // which ends the admin endpoint
				a.global = "admin off"
				a.start()
			})
			a.playBehind(t, hops, n, 25, 25)
		})
	}
}

// newLeadingArena is an arena whose sites follow redirects, and whose backends lead
// on.
func newLeadingArena(t *testing.T, sites []attackSite, groups []attackGroup, global string) (*arena, *attackHops) {
	var followers []attackSite
	for _, s := range sites {
		followers = append(followers, following(s))
	}
	a := newArena(t, followers, groups)
	a.global = global
	hops := &attackHops{left: make(map[string][]string)}
	a.everywhereLeading(t, hops)
	return a, hops
}

// playBehind makes the attacks of all groups behind n redirects.
func (a *arena) playBehind(t *testing.T, hops *attackHops, n, minPlayed, minExact int) {
	played, exact := 0, 0
	for _, g := range a.groups {
		t.Run(g.kind, func(t *testing.T) {
			for _, at := range g.all() {
				if at.site == "" {
					at.site = g.site
				}
				if ok, strict := a.attackBehind(t, hops, at, n); ok {
					played++
					if strict {
						exact++
					}
				}
			}
		})
	}
	t.Logf("%d attacks behind %d redirects, %d of them compared with those without", played, n, exact)
	if played < minPlayed || exact < minExact {
		t.Errorf("only %d attacks were made, %d of them compared", played, exact)
	}
}

// behind is an attack behind redirects.
type behind struct {
	attack          // its request names the honest host
	first    string // the URL of the honest host
	location string // the target of the attack, the last Location
	strict   bool   // its outcome is compared with that without redirects
}

// putBehind puts an attack behind redirects. It reports whether it can be put there.
func putBehind(at attack) (b behind, ok bool) {
	first, special := firstHops[at.site]
	switch {
	case special && first == "":
		return b, false
	case !special:
		first = "http://good.example/hop"
	}
	b = behind{attack: at, first: first, location: at.target}
	switch {
	case at.raw != "":
		m := rawTarget.FindStringSubmatch(at.raw)
		if m == nil {
			return b, false
		}
		b.location = m[1]
		b.raw = strings.Replace(at.raw, m[0], "X-Target: "+first, 1)
	case at.h2 != nil:
		i := slices.IndexFunc(at.h2, func(f string) bool { return strings.HasPrefix(f, "x-target: ") })
		if i < 0 {
			return b, false
		}
		b.location = strings.TrimPrefix(at.h2[i], "x-target: ")
		b.h2 = slices.Clone(at.h2)
		b.h2[i] = "x-target: " + first
	default:
		b.target = first
		// what is no part of a template, no redirect itself, and not stopped before
		// the first redirect is compared
		b.strict = !strings.Contains(b.location, ":8082") && !strings.HasPrefix(at.site, "static") && at.site != "suffix" && at.site != "prefix" && plainTarget.MatchString(b.location)
	}
	return b, true
}

// attackBehind makes one attack behind n redirects. It reports whether it can be made
// so, and whether its outcome was compared with that without redirects.
func (a *arena) attackBehind(t *testing.T, hops *attackHops, at attack, n int) (ok, strict bool) {
	t.Helper()
	b, ok := putBehind(at)
	if !ok {
		return false, false
	}
	locations := []string{a.fill(b.location)}
	for i := 1; i < n; i++ {
		locations = append([]string{[]string{"/again", "?again", "again/x"}[i%3]}, locations...)
	}
	id := hops.add(locations)
	at = a.withHops(b.attack, id)

	if at.set != "" {
		r := parseDNSName(at.set)
		a.dns.Set(r.name, r.Reply)
	}
	time.Sleep(at.wait)
	before := a.arrivals()
	res, body, err := a.exchange(at)
	if err != nil {
		t.Errorf("%s: %v", at.name, err)
		return true, b.strict
	}
	statuses, what, _ := strings.Cut(a.fill(at.want), " ")
	allowed := []string{goodAddr, at.via}
	if at.site == "metadata-allowed" {
		allowed[0] = evilAddr
	}
	if strings.Contains(statuses, "200") && what != "!" && what != "" {
		allowed = append(allowed, strings.Split(strings.Fields(what)[0], "|")...)
	}
	for addr, count := range a.arrivals() {
		if count > before[addr] && !slices.Contains(allowed, addr) {
			t.Errorf("%s: %.200q behind %d redirects: %s was reached", at.name, b.location, n, addr)
		}
	}
	if !b.strict {
		return true, false
	}
	if left := hops.remaining(id); left != 0 {
		t.Errorf("%s: %.200q: %d of %d redirects were not reached: %s: %.300s", at.name, b.location, left, n, res.Status, body)
	}
	a.checkBehind(t, b, res, body)
	return true, true
}

// checkBehind checks that the last redirect is refused, passed on or followed as the
// attack without redirects would be.
func (a *arena) checkBehind(t *testing.T, b behind, res *http.Response, body []byte) {
	t.Helper()
	statuses, what, _ := strings.Cut(a.fill(b.want), " ")
	status := strconv.Itoa(res.StatusCode)
	scheme, _, _ := strings.Cut(strings.ToLower(b.location), "://")
	switch passedOn := redirect.IsStatus(res.StatusCode); {
	case passedOn && (strings.Contains(statuses, "400") || targeturl.DefaultPort(scheme) == 0 ||
		strings.HasPrefix(b.first, "https") && scheme != "https"):
		if got := res.Header.Get("Location"); got != a.fill(b.location) {
			t.Errorf("%s: got Location %q, want %.200q", b.name, got, b.location)
		}
	case passedOn || !slices.Contains(strings.Split(statuses, "|"), status):
		t.Errorf("%s: %.200q: status %s, want %s: %.300s", b.name, b.location, status, b.want, body)
	case status == "200" && what != "!":
		var got testlab.Request
		if err := json.Unmarshal(body, &got); err != nil {
			t.Errorf("%s: %v: %.300s", b.name, err, body)
			break
		}
		want := strings.Fields(what)
		if !slices.Contains(strings.Split(want[0], "|"), got.Address) || got.Host != want[1] {
			t.Errorf("%s: %.200q: reached %s as %s, want %s", b.name, b.location, got.Address, got.Host, what)
		}
		if got.Header["X-Target"] != nil && a.strips(b.site) || got.Header["X-Injected"] != nil {
			t.Errorf("%s: the backend got %v, want no X-Target and no X-Injected", b.name, got.Header)
		}
	}
}

// withHops puts the field X-Hops into the request of an attack.
func (a *arena) withHops(at attack, id string) attack {
	if at.h2 != nil {
		at.h2 = append(at.h2, "x-hops: "+id)
		return at
	}
	raw := a.request(at)
	line, rest, _ := strings.Cut(raw, "\r\n")
	at.raw = fmt.Sprintf("%s\r\nX-Hops: %s\r\n%s", line, id, rest)
	return at
}
