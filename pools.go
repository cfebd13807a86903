package caddytarget

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"caddytarget/internal/failure"
	"caddytarget/internal/pool"
)

// sharedPool is the connections of a transport. It outlives a reload that leaves
// the transport's settings as they are.
type sharedPool struct {
	*pool.Pool
	config   pool.Config
	settings *poolSettings
	shared   *shared
	id       uint64 // random
}

// Destruct implements caddy.Destructor.
func (p *sharedPool) Destruct() error {
	p.Close()
	p.shared.draining.add(p)
	return nil
}

// drainingPools are pools that no configuration uses any more, but requests.
type drainingPools struct {
	mu   sync.Mutex
	list []*sharedPool
}

func (d *drainingPools) add(p *sharedPool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, p)
	d.list = d.removeEmpty()
}

// pools returns those that have connections.
func (d *drainingPools) pools() []*sharedPool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = d.removeEmpty()
	return slices.Clone(d.list)
}

// removeEmpty removes those without connections; d.mu is held.
func (d *drainingPools) removeEmpty() []*sharedPool {
	return slices.DeleteFunc(d.list, func(p *sharedPool) bool { return p.Open() == 0 })
}

// usedPools returns the pools of all configurations, and those that requests of earlier
// ones still use.
func (s *shared) usedPools() []*sharedPool {
	list := s.draining.pools()
	s.pools.Range(func(_, value any) bool {
		list = append(list, value.(*sharedPool))
		return true
	})
	return list
}

// countPools yields how many connections each of these pools has.
func (s *shared) countPools(yield func(pool.Counts) bool) {
	for _, p := range s.usedPools() {
		if !yield(p.Counts()) {
			return
		}
	}
}

// poolSettings are the settings by which pools are told apart: all that a
// connection depends on, and how this server and a backend prove to each other who
// they are.
type poolSettings struct {
	index int // among the transports of a configuration with the same settings
	text  []byte
	roots *x509.CertPool
	certs []tls.Certificate
}

func (s *poolSettings) equal(other *poolSettings) bool {
	return s.index == other.index && bytes.Equal(s.text, other.text) && s.roots.Equal(other.roots) && slices.EqualFunc(s.certs, other.certs, sameCertificate)
}

func sameCertificate(a, b tls.Certificate) bool {
	return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
}

// acquirePool returns the pool for the settings of a transport. It has to be
// released.
func (a *App) acquirePool(t *Transport, config pool.Config) (*sharedPool, error) {
	text, err := json.Marshal(struct {
		Transport any
		Sessions  int
	}{&t.HTTPTransport, config.SessionCache})
	if err != nil {
		return nil, err
	}
	key := &poolSettings{text: text, roots: config.TLS.RootCAs, certs: config.TLS.Certificates}
	for _, other := range a.transports {
		if other.equal(key) {
			key.index++
		}
	}
	a.transports = append(a.transports, key)
	s := a.shared
	s.pools.Range(func(other, _ any) bool {
		if same := other.(*poolSettings); same.equal(key) {
			key = same
			return false
		}
		return true
	})
	config.Observer, config.Interim = s.metrics.Dials, failure.DropProxyStatus
	value, _, err := s.pools.LoadOrNew(key, func() (caddy.Destructor, error) {
		return &sharedPool{pool.New(config, s.health, s.limits), config, key, s, rand.Uint64()}, nil
	})
	if err != nil {
		return nil, err
	}
	return value.(*sharedPool), nil
}

func (s *shared) releasePool(p *sharedPool) error {
	_, err := s.pools.Delete(p.settings)
	return err
}
