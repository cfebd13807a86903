package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/testlab"
	"caddytarget/internal/testlab/leaktest"
)

// familyMatrix has what is known of a name after one more lookup, by the replies for
// A and AAAA and by what was known before: nothing (the first lookup), or addresses
// of both families, of IPv4 or of IPv6 alone, which still held or had expired.
//
// "46" are fresh addresses of both families, or of one that is fresh and of one that
// has expired, "4~" is a stale address; "none" is a negative answer; "fails" is a
// failure, after which the name is asked for again soon. The reply "fail" stands for
// SERVFAIL, REFUSED and silence.
const familyMatrix = `
A       AAAA    first  both   both~  4      4~     6      6~

ok      ok      46     46     46     46     46     46     46
ok      nx      4      4      4      4      4      4      4
ok      nodata  4      4      4      4      4      4      4
ok      fail    4      46     46     4      4      46     46

nx      ok      6      6      6      6      6      6      6
nx      nx      none   none   none   none   none   none   none
nx      nodata  none   none   none   none   none   none   none
nx      fail    fails  6      6~     fails  fails  6      6~

nodata  ok      6      6      6      6      6      6      6
nodata  nx      none   none   none   none   none   none   none
nodata  nodata  none   none   none   none   none   none   none
nodata  fail    fails  6      6~     fails  fails  6      6~

fail    ok      6      46     46     46     46     6      6
fail    nx      fails  4      4~     4      4~     fails  fails
fail    nodata  fails  4      4~     4      4~     fails  fails
fail    fail    fails  46     46~    4      4~     6      6~
`

// TestFamilyMatrix has all of familyMatrix, over the real resolver.
func TestFamilyMatrix(t *testing.T) {
	leaktest.Check(t)
	lines := strings.Split(strings.TrimSpace(familyMatrix), "\n")
	columns := strings.Fields(lines[0])[2:]
	t.Run("columns", func(t *testing.T) {
		for i, before := range columns {
			var rows []matrixRow
			for _, line := range lines[1:] {
				if fields := strings.Fields(line); len(fields) > 0 {
					rows = append(rows, matrixRows(fields[0], fields[1], fields[2+i])...)
				}
			}
			t.Run(before, func(t *testing.T) {
				t.Parallel()
				testMatrixColumn(t, before, rows)
			})
		}
	})
}

// matrixRow is a name.
type matrixRow struct {
	name    string
	replies [2]string // for A and AAAA
	want    string
}

// matrixRows returns a row for each meaning of "fail".
func matrixRows(a, aaaa, want string) (rows []matrixRow) {
	all := func(reply string) []string {
		if reply == "fail" {
			return []string{"servfail", "refused", "silent"}
		}
		return []string{reply}
	}
	for _, a := range all(a) {
		for _, aaaa := range all(aaaa) {
			rows = append(rows, matrixRow{fmt.Sprintf("%s-%s.example", a, aaaa), [2]string{a, aaaa}, want})
		}
	}
	return rows
}

// matrixColumn is a test of all rows, which have the same past.
type matrixColumn struct {
	*testing.T
	rows     []matrixRow
	server   *familyServer
	resolver *Resolver
	ex       *countedExchanger
	now      atomic.Int64 // the time stands still, but for what the test adds
}

const matrixTTL = 100 * time.Second

func testMatrixColumn(t *testing.T, before string, rows []matrixRow) {
	c := &matrixColumn{T: t, rows: rows, server: newFamilyServer(t, uint32(matrixTTL.Seconds()))}
	c.resolver = newResolver(t, Config{
		Nameservers: []string{c.server.addr}, Hosts: "off", Family: "prefer_ipv4", Tries: 1,
		Timeout: 3 * time.Second, Deadline: testlab.Timeout, RefreshAlways: true,
		Now: func() time.Duration { return time.Duration(c.now.Load()) },
	})
	c.ex = &countedExchanger{Client: c.resolver.client, ended: make(map[string]int)}
	z := &c.resolver.zone
	z.cache.Close()
	z.cache = dnscache.New(c.ex, c.resolver.cacheConfig(z, nil))

	questions := 2
	if before == "first" {
		c.testFirst()
	} else {
		c.testKnown(before)
		questions += 2
	}
	c.want("then", questions, func(row matrixRow) string { return row.want })
	c.testAfterwards()
}

// lookUp looks all names up together.
func (c *matrixColumn) lookUp(check func(row matrixRow, got string)) {
	var wg sync.WaitGroup
	for _, row := range c.rows {
		wg.Go(func() { check(row, matrixOutcome(c.resolver.Lookup(c.Context(), row.name))) })
	}
	wg.Wait()
}

// want checks what is known when so many questions for each name have ended.
func (c *matrixColumn) want(what string, questions int, of func(row matrixRow) string) {
	c.Helper()
	testlab.Eventually(c, "the questions have ended", func() bool {
		for _, row := range c.rows {
			if c.ex.questions(row.name) < questions {
				return false
			}
		}
		return true
	})
	c.lookUp(func(row matrixRow, got string) {
		if want := of(row); got != want {
			c.Errorf("%s: %s: %s, want %s", what, row.name, got, want)
		}
	})
}

// testFirst looks names up of which nothing is known.
func (c *matrixColumn) testFirst() {
	for _, row := range c.rows {
		c.server.set(row.name, row.replies)
	}
	c.lookUp(func(row matrixRow, got string) {
		// an answer for one family does not wait long for the other one
		if got != row.want && (row.want != "46" || got != "4" && got != "6") {
			c.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
	})
}

// testKnown makes names known, and then refreshes them or lets them expire.
func (c *matrixColumn) testKnown(before string) {
	had := strings.TrimSuffix(before, "~")
	replies := map[string][2]string{"both": {"ok", "ok"}, "4": {"ok", "nodata"}, "6": {"nx", "ok"}}[had]
	for _, row := range c.rows {
		c.server.set(row.name, replies)
	}
	known := strings.Replace(had, "both", "46", 1)
	c.lookUp(func(matrixRow, string) {})
	c.want("before", 2, func(matrixRow) string { return known })
	for _, row := range c.rows {
		c.server.set(row.name, row.replies)
	}
	if before == had {
		c.now.Add(int64(matrixTTL * 95 / 100))
		c.resolver.Start() // they are refreshed
		return
	}
	c.now.Add(int64(matrixTTL + time.Second))
	c.lookUp(func(row matrixRow, got string) { // they are asked for meanwhile
		if got != known+"~" && got != row.want {
			c.Errorf("expired: %s: %s, want %s~", row.name, got, known)
		}
	})
}

// testAfterwards: failures do not hold for long, and then the name has all addresses;
// what is negative holds.
func (c *matrixColumn) testAfterwards() {
	for _, row := range c.rows {
		c.server.set(row.name, [2]string{"ok", "ok"})
	}
	c.now.Add(int64(2 * time.Second))
	c.lookUp(func(row matrixRow, got string) {
		switch {
		case row.want == "none" && got != "none":
			c.Errorf("a moment later: %s: got %s, want none", row.name, got)
		case row.want == "fails" && !strings.ContainsAny(got, "46"):
			c.Errorf("a moment later: %s: got %s, want addresses", row.name, got)
		}
	})
	testlab.Eventually(c, "all that failed is fresh", func() (fresh bool) {
		fresh = true
		for _, row := range c.rows {
			if row.want == "fails" || strings.HasSuffix(row.want, "~") {
				got := matrixOutcome(c.resolver.Lookup(c.Context(), row.name))
				fresh = fresh && got == "46"
			}
		}
		return fresh
	})
}

// matrixOutcome is what the matrix has for an answer.
func matrixOutcome(a Answer, err error) string {
	switch {
	case err == nil:
	case dnscache.IsNegative(err):
		return "none"
	default:
		return "fails"
	}
	text := ""
	for _, addr := range a.Addrs {
		text += map[bool]string{true: "4", false: "6"}[addr.Is4()]
	}
	if a.From == "stale" {
		text += "~"
	}
	return text
}

// countedExchanger counts the questions for each name that have ended.
type countedExchanger struct {
	*dnsclient.Client

	mu    sync.Mutex
	ended map[string]int
}

func (e *countedExchanger) Ask(ctx context.Context, name string, qtype uint16, done func([]netip.Addr, time.Duration, error)) {
	e.Client.Ask(ctx, name, qtype, func(addrs []netip.Addr, ttl time.Duration, err error) {
		done(addrs, ttl, err)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.ended[name]++
	})
}

func (e *countedExchanger) questions(name string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended[name]
}

// familyServer is a nameserver that replies differently for A and AAAA.
type familyServer struct {
	addr string
	ttl  uint32

	mu      sync.Mutex
	replies map[string][2]string
}

func newFamilyServer(t *testing.T, ttl uint32) *familyServer {
	t.Helper()
	s := &familyServer{ttl: ttl, replies: make(map[string][2]string)}
	s.addr = testlab.ServeDNS(t, s)
	return s
}

func (s *familyServer) set(name string, replies [2]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies[name] = replies
}

// ServeDNS implements dns.Handler.
func (s *familyServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	s.mu.Lock()
	replies := s.replies[strings.TrimSuffix(strings.ToLower(q.Name), ".")]
	s.mu.Unlock()
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	kind, record := replies[0], "A 192.0.2.1"
	if q.Qtype == dns.TypeAAAA {
		kind, record = replies[1], "AAAA 2001:db8::1"
	}
	switch kind {
	case "silent":
		return
	case "servfail":
		reply.Rcode = dns.RcodeServerFailure
	case "refused":
		reply.Rcode = dns.RcodeRefused
	case "ok":
		reply.Answer = testlab.Records(fmt.Sprintf("%s %d IN %s", q.Name, s.ttl, record))
	case "nx":
		reply.Rcode = dns.RcodeNameError
		fallthrough
	default: // no data; also for what probes ask
		reply.Ns = testlab.Records(". 20 IN SOA ns. m. 1 1 1 1 20")
	}
	_ = w.WriteMsg(reply)
}
