package pool

import (
	"container/list"
	"crypto/tls"
	"strings"
	"sync"
)

const (
	// maxChain is how many octets of certificates a backend may show for its session
	// to be kept.
	maxChain = 16 << 10

	// maxSessions is how many octets of memory all sessions may take. One counts as
	// sessionSize and parsedSize octets for each octet of its certificates.
	maxSessions = 64 << 20
	sessionSize = 1 << 10
	parsedSize  = 3
)

// sessions keeps TLS sessions to be resumed, by server name: all else that their
// verification depends on belongs to the Config. Those that were used least recently
// are dropped first.
type sessions struct {
	limit int

	mu     sync.Mutex
	octets int
	order  *list.List // of *session, the one used last at the front
	names  map[string]*list.Element
}

type session struct {
	name   string
	state  *tls.ClientSessionState
	octets int
}

func newSessions(limit int) *sessions {
	return &sessions{limit: limit, order: list.New(), names: make(map[string]*list.Element)}
}

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(name string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.names[name]
	if !ok {
		return nil, false
	}
	s.order.MoveToFront(e)
	return e.Value.(*session).state, true
}

// put keeps a session; a nil state drops the one of that name.
func (s *sessions) put(name string, state *tls.ClientSessionState, octets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.names[name]; ok {
		s.remove(e)
	}
	if state == nil {
		return
	}
	n := &session{strings.Clone(name), state, octets}
	s.names[n.name] = s.order.PushFront(n)
	for s.octets += octets; s.octets > maxSessions || s.order.Len() > s.limit; {
		s.remove(s.order.Back())
	}
}

func (s *sessions) remove(e *list.Element) {
	n := s.order.Remove(e).(*session)
	delete(s.names, n.name)
	s.octets -= n.octets
}

// connSessions is the cache for one connection. It knows how large the certificates are
// that the backend has shown.
type connSessions struct {
	*sessions
	chain int // octets
}

// configure makes a connection keep its sessions.
func (s *sessions) configure(config *tls.Config) {
	cache := &connSessions{sessions: s}
	config.ClientSessionCache = cache
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		for _, certificate := range state.PeerCertificates {
			cache.chain += len(certificate.Raw)
		}
		if verify != nil {
			return verify(state)
		}
		return nil
	}
}

// Put implements tls.ClientSessionCache.
func (s *connSessions) Put(name string, state *tls.ClientSessionState) {
	if state != nil && s.chain > maxChain {
		return
	}
	s.put(name, state, sessionSize+parsedSize*s.chain)
}
