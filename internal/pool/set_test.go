package pool

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"

	"caddytarget/internal/health"
)

// TestSet: transports of two configurations share a pool where their settings are the same,
// those of one configuration do not. A pool is closed when no transport uses it.
func TestSet(t *testing.T) {
	roots := x509.NewCertPool()
	roots.AddCert(&x509.Certificate{Raw: []byte("a")})
	plain, own := new(tls.Config), &tls.Config{RootCAs: roots}
	certs := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{[]byte("b")}}}}
	var s Set
	created := 0
	create := func(config Config) *Pool {
		created++
		return New(config, health.New(), NewLimits(0, nil))
	}
	configuration := func(all ...*tls.Config) (pools []*Shared) {
		var settings []*Settings
		for _, c := range all {
			n := NewSettings([]byte("text"), c, settings)
			settings = append(settings, n)
			pools = append(pools, s.Acquire(n, Config{TLS: c, MaxIdle: 3}, create))
		}
		return pools
	}
	release := func(pools []*Shared) {
		for _, p := range pools {
			s.Release(p)
		}
	}
	first := configuration(plain, plain, own, certs)
	if all := s.All(); created != 4 || !slices.Equal(all, first) {
		t.Fatalf("got %d pools, %d of them in the set, want 4", created, len(all))
	}
	if first[0].Name() == first[1].Name() || first[0].Config.MaxIdle != 3 {
		t.Errorf("got the names %s and %s, want two, and the configuration", first[0].Name(), first[1].Name())
	}
	second := configuration(plain, certs)
	if created != 4 || second[0] != first[0] || second[1] != first[3] {
		t.Errorf("got %d pools, want the same ones for the same settings", created)
	}
	release(first)
	if all := s.All(); len(all) != 2 || all[0].Closed() || all[1].Closed() {
		t.Errorf("got %d pools when the first configuration is gone, want 2 that are not closed", len(all))
	}
	if !first[1].Closed() || !first[2].Closed() {
		t.Error("a pool that is not used any more is not closed")
	}
	second[0].open.Add(1) // a request is in flight
	release(second)
	if all := s.All(); len(all) != 1 || all[0] != second[0] || !all[0].Closed() {
		t.Errorf("got %d pools, want the closed one with a request", len(all))
	}
	third := configuration(plain)
	if third[0] == second[0] || created != 5 {
		t.Error("a closed pool is used again")
	}
	second[0].open.Add(-1)
	if all := s.All(); !slices.Equal(all, third) {
		t.Errorf("got %d pools, want the new one", len(all))
	}
	release(third)
}

// TestSetForgets: a pool that was released and has no connections is forgotten, though
// nothing asks for all of them.
func TestSetForgets(t *testing.T) {
	var s Set
	create := func(config Config) *Pool { return New(config, health.New(), NewLimits(0, nil)) }
	acquire := func() *Shared { return s.Acquire(NewSettings(nil, new(tls.Config), nil), Config{}, create) }
	busy := acquire()
	busy.open.Add(1) // a request is in flight
	s.Release(busy)
	for range 3 {
		s.Release(acquire())
	}
	if len(s.draining) != 1 || s.draining[0] != busy {
		t.Errorf("got %d pools that were released, want the one with a request", len(s.draining))
	}
	busy.open.Add(-1)
	s.Release(acquire())
	if len(s.draining) != 0 {
		t.Errorf("got %d pools that were released, want none", len(s.draining))
	}
}
