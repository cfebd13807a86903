package pool

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
)

// Set has the pools of all configurations. Transports with the same Settings share one, so
// that connections outlive a reload that leaves the settings as they are. The zero value is
// empty.
type Set struct {
	mu       sync.Mutex
	used     []*Shared
	draining []*Shared // used by no transport any more, but by requests
}

// Shared is a pool of a Set.
type Shared struct {
	*Pool
	Config Config
	ID     uint64 // random

	settings *Settings
	users    int // under Set.mu
}

// Settings are those by which pools are told apart: all that a connection depends on, and
// how this server and a backend prove to each other who they are.
type Settings struct {
	index int // among the transports of a configuration with the same settings
	text  []byte
	roots *x509.CertPool
	certs []tls.Certificate
}

// NewSettings returns the settings of a transport: those of TLS, and a text that has all
// others. Each transport of a configuration has a pool of its own; others are the settings
// of those before it.
func NewSettings(text []byte, config *tls.Config, others []*Settings) *Settings {
	s := &Settings{text: text, roots: config.RootCAs, certs: config.Certificates}
	for _, other := range others {
		if other.equal(s) {
			s.index++
		}
	}
	return s
}

func (s *Settings) equal(other *Settings) bool {
	return s.index == other.index && bytes.Equal(s.text, other.text) && s.roots.Equal(other.roots) && slices.EqualFunc(s.certs, other.certs, sameCertificate)
}

func sameCertificate(a, b tls.Certificate) bool {
	return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
}

// Name returns a short text that is the same for as long as the settings of a transport.
func (p *Shared) Name() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s%d", p.settings.text, p.settings.index))
	return hex.EncodeToString(sum[:4])
}

// Acquire returns the pool for some settings, made by create from config if there is none.
// It has to be released.
func (s *Set) Acquire(settings *Settings, config Config, create func(Config) *Pool) *Shared {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.used, func(p *Shared) bool { return p.settings.equal(settings) })
	if i < 0 {
		i = len(s.used)
		s.used = append(s.used, &Shared{Pool: create(config), Config: config, ID: rand.Uint64(), settings: settings})
	}
	p := s.used[i]
	p.users++
	return p
}

// Release gives back what Acquire returned. A pool that no transport uses any more is
// closed; it remains in All while it has connections.
func (s *Set) Release(p *Shared) {
	s.mu.Lock()
	p.users--
	last := p.users == 0
	if last {
		s.used = slices.DeleteFunc(s.used, func(other *Shared) bool { return other == p })
		s.draining = append(s.draining, p)
	}
	s.mu.Unlock()
	if last {
		p.Close()
		s.mu.Lock()
		s.removeDrained()
		s.mu.Unlock()
	}
}

// removeDrained removes the pools that have no connection any more from those that only
// requests still use; s.mu is held.
func (s *Set) removeDrained() {
	s.draining = slices.DeleteFunc(s.draining, func(p *Shared) bool { return p.Open() == 0 })
}

// All returns the pools in use, those included that only requests still use.
func (s *Set) All() []*Shared {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeDrained()
	return slices.Concat(s.draining, s.used)
}
