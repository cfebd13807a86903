package resolver

import (
	"fmt"
	"net"
	"testing"

	"github.com/miekg/dns"

	"caddytarget/internal/testlab"
)

// serveRcode starts a nameserver that replies to all with an rcode, and returns its address.
// It keeps nothing.
func serveRcode(t *testing.T, rcode int) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode))
	})}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return conn.LocalAddr().String()
}

// TestMemoryOfDeadNames measures what a name without addresses costs: why there are none
// is kept, with each query.
func TestMemoryOfDeadNames(t *testing.T) {
	const n, limit = 5000, 1500
	for _, rcode := range []int{dns.RcodeNameError, dns.RcodeServerFailure} {
		config := Config{Nameservers: []string{serveRcode(t, rcode)}, CacheSize: n}
		before := testlab.Heap()
		r := newResolver(t, config)
		for i := range n {
			if _, err := r.Lookup(t.Context(), fmt.Sprintf("n%06d.dead.example", i)); err == nil {
				t.Fatal("got addresses, want an error")
			}
		}
		perName := float64(testlab.Heap()-before) / n
		known, _ := r.Name("n000000.dead.example")
		t.Logf("%s: %.0f B a name, with %d queries", dns.RcodeToString[rcode], perName, len(known.Names[0].Tries()))
		if perName > limit {
			t.Errorf("%s: %.0f B a name, want at most %d", dns.RcodeToString[rcode], perName, limit)
		}
	}
}
