package caddytarget

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// sessions keeps the TLS sessions of transports, so that they can be resumed
// after a reload. Transports share them if all is equal by which a backend and
// this server prove to each other who they are: a session is not verified again.
type sessions struct {
	mu   sync.Mutex
	list []*sessionCache
}

type sessionCache struct {
	tls.ClientSessionCache
	settings []byte
	roots    *x509.CertPool
	certs    []tls.Certificate
	uses     int
}

// acquire returns the cache for n sessions of a transport. It has to be released.
func (s *sessions) acquire(n int, settings *reverseproxy.TLSConfig, config *tls.Config) (*sessionCache, error) {
	text, err := json.Marshal(struct {
		N        int
		Settings *reverseproxy.TLSConfig
	}{n, settings})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(c *sessionCache) bool {
		return bytes.Equal(c.settings, text) && c.roots.Equal(config.RootCAs) && slices.EqualFunc(c.certs, config.Certificates, sameCertificate)
	})
	if i < 0 {
		i = len(s.list)
		s.list = append(s.list, &sessionCache{
			ClientSessionCache: tls.NewLRUClientSessionCache(n),
			settings:           text, roots: config.RootCAs, certs: config.Certificates,
		})
	}
	s.list[i].uses++
	return s.list[i], nil
}

func sameCertificate(a, b tls.Certificate) bool {
	return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
}

func (s *sessions) release(c *sessionCache) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.uses--; c.uses == 0 {
		s.list = slices.DeleteFunc(s.list, func(other *sessionCache) bool { return other == c })
	}
}
