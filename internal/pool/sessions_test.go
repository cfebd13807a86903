package pool

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

// kept returns how many sessions are kept and how many octets they count as.
func (s *sessions) kept() (n, octets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) != s.order.Len() {
		panic("names and order differ")
	}
	return s.order.Len(), s.octets
}

// TestChain: a session is kept unless the backend has shown too many certificates.
func TestChain(t *testing.T) {
	s := newSessions(10)
	state := new(tls.ClientSessionState)
	for _, test := range []struct{ chain, want int }{{0, 1}, {maxChain, 1}, {maxChain + 1, 0}} {
		cache := &connSessions{sessions: s, chain: test.chain}
		cache.Put("a.example", state)
		n, octets := s.kept()
		if n != test.want || octets != test.want*(sessionSize+parsedSize*test.chain) {
			t.Errorf("%d octets of certificates: %d sessions of %d octets, want %d sessions", test.chain, n, octets, test.want)
		}
		cache.Put("a.example", nil) // it did not work
		if n, octets := s.kept(); n != 0 || octets != 0 {
			t.Errorf("%d sessions of %d octets are left, want none", n, octets)
		}
	}
}

// TestChainOfBackend is TestChain with a backend.
func TestChainOfBackend(t *testing.T) {
	for _, long := range []bool{false, true} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.StartTLS()
		t.Cleanup(s.Close)
		chain := &s.TLS.Certificates[0].Certificate
		leaf := (*chain)[0]
		octets := len(leaf)
		for ; long && octets <= maxChain; octets += len(leaf) {
			*chain = append(*chain, leaf)
		}
		resumed := false
		p := newPool(t, Config{SessionCache: 10, DisableKeepAlive: true, TLS: &tls.Config{
			InsecureSkipVerify: true,
			VerifyConnection: func(state tls.ConnectionState) error {
				resumed = state.DidResume
				return nil
			},
		}})
		o := &Order{Key: Key{
			Addr: netip.MustParseAddrPort(s.Listener.Addr().String()), Host: "a.example", ServerName: "a.example", Protocol: TLS,
		}, Last: true}
		for range 3 {
			if _, err := get(t, p, o, "/"); err != nil {
				t.Fatal(err)
			}
		}
		if resumed == long {
			t.Errorf("%d octets of certificates: resumed %t, want %t", octets, resumed, !long)
		}
		n, size := p.sessions.kept()
		if want := !long; (n == 1) != want || want && size != sessionSize+parsedSize*octets {
			t.Errorf("%d octets of certificates: %d sessions of %d octets, want one: %t", octets, n, size, want)
		}
	}
}

// TestSessionsBounds: neither the number nor the octets of sessions exceed their bounds.
// Those that were used least recently are dropped first.
func TestSessionsBounds(t *testing.T) {
	state := new(tls.ClientSessionState)
	there := func(s *sessions, name string) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.names[name] != nil
	}
	for name, test := range map[string]struct{ limit, octets, want int }{
		"number": {4, 100, 4},
		"octets": {100, maxSessions / 4, 4},
		"larger": {100, maxSessions/4 + 1, 3},
	} {
		s := newSessions(test.limit)
		for i := range 10 {
			s.put(fmt.Sprint(i), state, test.octets)
			s.Get("0") // stays
		}
		n, octets := s.kept()
		if n != test.want || octets != test.want*test.octets {
			t.Errorf("%s: %d sessions of %d octets, want %d of %d", name, n, octets, test.want, test.want*test.octets)
		}
		for i := range 10 {
			if want := i == 0 || i > 10-test.want; there(s, fmt.Sprint(i)) != want {
				t.Errorf("%s: session %d is kept: %t", name, i, !want)
			}
		}
		s.put("9", state, test.octets/2) // in its place
		if n, octets := s.kept(); n != test.want || octets != (test.want-1)*test.octets+test.octets/2 {
			t.Errorf("%s: %d sessions of %d octets after one was replaced, want %d sessions, one half as large", name, n, octets, test.want)
		}
	}
}
