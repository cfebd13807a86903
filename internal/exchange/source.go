package exchange

import (
	"fmt"
	"net"
	"net/http"
	"time"

	"caddytarget/internal/failover"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/resolver"
	"caddytarget/internal/targeturl"
)

// Source is what has to be known of a source of upstreams.
type Source struct {
	failover.Source
	Resolver *resolver.Resolver
	Policy   *Policy
	Dynamic  bool // its name has placeholders: it is checked what may be called
}

// CallName makes c the call of a name of the source, and resolves it.
func (s *Source) CallName(c *Call, r *http.Request, name, port string, x *Exchange, st *State) error {
	*c = Call{Exchange: x, State: st, Resolver: s.Resolver}
	host, literal, err := targeturl.NormalizeHost(name)
	if err != nil {
		return failure.NewMalformed(err)
	}
	c.Port, err = guard.ParsePort(port)
	if err != nil {
		return failure.NewMalformed(err)
	}
	c.Host, c.Retryable = host, IsRetryable(r.Method)
	c.HostPort = r.Host // as long as there is no TLS, the client's
	if s.Dynamic {
		c.Policy, c.Client = s.Policy, ClientOf(r)
		if err := c.Check(); err != nil {
			return err
		}
	}
	err = c.Resolve(r.Context(), literal)
	st.recordOfSource(r).Resolved(c, err)
	return err
}

// callRecord makes c the call of a record of a service. On an error it has no name.
func (s *Source) callRecord(c *Call, r *http.Request, record net.SRV, x *Exchange, st *State) error {
	*c = Call{Exchange: x, State: st, Resolver: s.Resolver, Complete: true}
	c.Owner, c.Retryable = c, IsRetryable(r.Method)
	c.HostPort = r.Host // as long as there is no TLS, the client's
	if s.Dynamic {
		c.Policy, c.Client = s.Policy, ClientOf(r)
	}
	host, literal, err := targeturl.NormalizeHost(record.Target)
	switch {
	case err != nil:
		return err
	case record.Port == 0:
		return fmt.Errorf("%s: port 0 cannot be called", host)
	}
	c.Host, c.Port = host, record.Port
	if c.Policy != nil {
		err = c.Policy.Enforce(c.Policy.CheckPort(c.Port), c)
	}
	if err == nil && literal.IsValid() {
		err = c.Resolve(r.Context(), literal)
	}
	if err != nil {
		c.Host = ""
	}
	return err
}

// CallService looks up the records of a service of the source.
func (s *Source) CallService(r *http.Request, service string, x *Exchange, st *State) (*Service, error) {
	name, _, err := targeturl.NormalizeHost(service)
	if err != nil {
		return nil, failure.NewMalformed(err)
	}
	if s.Dynamic {
		if err := s.Policy.CheckName(name); err != nil {
			c := &Call{Client: ClientOf(r), Policy: s.Policy}
			c.Host = name
			if err := s.Policy.Enforce(err, c); err != nil {
				return nil, err
			}
		}
	}
	found, err := s.Resolver.LookupService(r.Context(), name)
	if err != nil {
		return nil, failure.OfLookup(name, err)
	}
	sample, drawn := s.Sample(found)
	sc := &Service{Calls: make([]Call, len(sample)), source: s, name: name, end: time.Now().Add(s.Resolver.Deadline())}
	records := make([]failover.Record, len(sample))
	for i, record := range sample {
		c := &sc.Calls[i]
		if err := s.callRecord(c, r, record, x, st); err != nil {
			sc.failed(err)
		}
		records[i] = failover.Record{Target: &c.Target, Priority: record.Priority, Weight: record.Weight}
	}
	sc.exchange, sc.records = x, failover.NewService(records, drawn, sc)
	return sc, nil
}
