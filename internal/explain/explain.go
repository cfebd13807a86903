// Package explain describes how a request to a target would be treated, and why: for
// operators, as JSON (Report) and as lines of text (Report.Rows, rows.go). It decides
// nothing: a Report is filled by those who do. An Input is the request (input.go); NewLookup
// observes how its name is looked up (lookup.go).
package explain

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/failure"
	"caddytarget/internal/guard"
	"caddytarget/internal/health"
	"caddytarget/internal/pool"
	"caddytarget/internal/resolver"
)

// Report is the way of one request, in the order in which it is decided upon, up to the
// step at which it ends. All times are in seconds.
type Report struct {
	Site     string     `json:"site"`
	Method   string     `json:"method"`
	Target   *Target    `json:"target,omitempty"` // nil: it cannot be read
	Rules    []Rule     `json:"rules,omitempty"`
	InFlight *InFlight  `json:"in_flight,omitempty"` // nil: there is no limit
	Lookup   *Lookup    `json:"lookup,omitempty"`    // nil: the target is an address, or it did not come to that
	Found    []*Address `json:"addresses,omitempty"` // of the target, in the order of the answer
	Dial     *Dial      `json:"dial,omitempty"`      // nil: nothing is known of how the target is called
	Connect  *Connect   `json:"connect,omitempty"`   // nil: no connection was opened

	Outcome
}

// Target is what the request calls.
type Target struct {
	Scheme     string  `json:"scheme"`
	Host       string  `json:"host"`
	Port       uint16  `json:"port"`
	HostHeader string  `json:"host_header"`
	URI        string  `json:"uri"`
	Timeout    float64 `json:"timeout,omitempty"` // of the whole request; 0: none
}

// Rule is the outcome of one check of the guard.
type Rule struct {
	Check        string `json:"check"` // scheme, name or port
	Value        string `json:"value"`
	Rule         string `json:"rule,omitempty"` // by which it is refused; empty: it is not
	OnlyReported bool   `json:"only_reported,omitempty"`
}

// NewRule returns the outcome of a check of a value. onlyReports reports whether an error
// is only reported.
func NewRule(check, value string, err error, onlyReports func(error) bool) Rule {
	return Rule{check, value, failure.RuleOf(err), err != nil && onlyReports(err)}
}

// InFlight is how many requests to the target are in flight.
type InFlight struct {
	Requests int `json:"requests"`
	Max      int `json:"max"`
}

// Lookup is how the name was resolved.
type Lookup struct {
	Resolver string  `json:"resolver"`
	From     string  `json:"from"` // hit, stale, miss or hosts
	Seconds  float64 `json:"seconds"`
	Found    string  `json:"found,omitempty"` // what the name is short for
	Names    []Name  `json:"names,omitempty"`
	Queries  []Query `json:"queries,omitempty"`
	Earlier  bool    `json:"earlier,omitempty"` // Queries were sent before: the failure is remembered
	Error    string  `json:"error,omitempty"`
}

// Name is what is known of the name, or of one that it may be short for, after the lookup.
type Name struct {
	Name  string  `json:"name"`
	Zone  string  `json:"zone"`
	State string  `json:"state"` // empty: nothing is known
	TTL   float64 `json:"ttl"`   // below 0: it has expired
}

// Query is one query to a nameserver.
type Query struct {
	Name       string  `json:"name"`
	Type       string  `json:"type"`
	Nameserver string  `json:"nameserver"`
	Transport  string  `json:"transport"`
	Seconds    float64 `json:"seconds"`
	Outcome    string  `json:"outcome"`
	Ignored    int     `json:"ignored,omitempty"` // messages that were no reply to it
}

// addQueries adds what was sent for one lookup.
func (l *Lookup) addQueries(qtype uint16, tries []dnsclient.Try) {
	for _, t := range tries {
		l.Queries = append(l.Queries, Query{
			t.Name, dns.Type(qtype).String(), t.Server.String(), t.Transport, seconds(t.Duration), t.Outcome, t.Ignored,
		})
	}
}

// addEarlier adds the queries that a lookup sent whose failure is remembered, if there are
// no others.
func (l *Lookup) addEarlier(err error) {
	if e, ok := errors.AsType[*dnsclient.Error](err); ok && len(l.Queries) == 0 {
		l.addQueries(e.Type, e.Tries)
		l.Earlier = len(l.Queries) > 0
	}
}

// addNames adds what is known of names at the places where they are looked up.
func (l *Lookup) addNames(places []resolver.Place, known []resolver.Name) {
	for _, p := range places {
		n := Name{Name: p.Name, Zone: p.Zone}
		for i := range known {
			if k := &known[i]; k.Name.Name == p.Name && !k.Service {
				n.State, n.TTL = k.State.String(), k.TTL.Round(time.Millisecond).Seconds()
			}
		}
		if n.State == dnscache.NamePending.String() {
			n.TTL = 0
		}
		l.Names = append(l.Names, n)
	}
}

// Address is one address of the target.
type Address struct {
	Address      netip.AddrPort `json:"address"`
	Preferred    bool           `json:"preferred,omitempty"`
	Rule         string         `json:"rule,omitempty"`  // by which it is refused; empty: it is not
	Error        string         `json:"error,omitempty"` // the same for people
	OnlyReported bool           `json:"only_reported,omitempty"`

	// State is healthy, needs_probe, needs_trial or ejected. It is empty if the address is
	// refused, or nothing is known of how the target is called.
	State  string  `json:"state,omitempty"`
	Causes []Cause `json:"causes,omitempty"`

	Offered     int          `json:"offered,omitempty"` // its place among the addresses that are offered, from 1; 0: it is not
	Connections *Connections `json:"connections,omitempty"`
}

// Refuse sets why the address may not be called, unless r is nil.
func (a *Address) Refuse(r *guard.Refusal, onlyReports func(error) bool) {
	if r != nil {
		a.Rule, a.Error, a.OnlyReported = r.Rule, failure.Text(r), onlyReports(r)
	}
}

// Allowed reports whether the address may be called.
func (a *Address) Allowed() bool { return a.Rule == "" || a.OnlyReported }

// Cause is one reason for the State of an address.
type Cause struct {
	Of       string  `json:"of"` // whose failures they are: address, target, limit or family
	Limit    string  `json:"limit,omitempty"`
	Failures int     `json:"failures"` // in a row
	Max      int     `json:"max_fails"`
	Age      float64 `json:"age,omitempty"`      // of the last one
	Failure  string  `json:"failure,omitempty"`  // what the last one was
	Error    string  `json:"error,omitempty"`    // the same for people
	Left     float64 `json:"left,omitempty"`     // how long it is still ejected
	Dialling float64 `json:"dialling,omitempty"` // how much longer a dial may take that a request has given up
}

// SetState sets the state of the address and what it comes from.
func (a *Address) SetState(state health.State, causes []health.Cause) {
	a.State = state.String()
	for _, c := range causes {
		of := "address"
		switch {
		case c.Family:
			of = "family"
		case c.Limit != "":
			of = "limit"
		case c.ForTarget:
			of = "target"
		}
		a.Causes = append(a.Causes, Cause{
			of, string(c.Limit), c.Fails, c.MaxFails, c.Age.Round(time.Millisecond).Seconds(), c.Reason.Token, c.Reason.Text,
			c.Left.Round(time.Millisecond).Seconds(), c.Dialling.Round(time.Millisecond).Seconds(),
		})
	}
}

// Connections counts the connections that a request may get, with the dials for others.
type Connections struct {
	Open    int `json:"open"`
	Idle    int `json:"idle"`
	HTTP2   int `json:"http2"`
	Dials   int `json:"dials"`
	Waiting int `json:"waiting"`
}

// Dial is the connection that the request gets.
type Dial struct {
	Address    string `json:"address"`
	Of         int    `json:"of"`         // among so many addresses the load balancing policy selects
	Connection string `json:"connection"` // new or open
	Protocol   string `json:"protocol"`
	ServerName string `json:"server_name,omitempty"` // that the backend has to prove
}

var protocolNames = map[pool.Protocol]string{
	pool.HTTP1: "HTTP/1.1", pool.HTTP2: "HTTP/2", pool.TLS: "TLS", pool.TLSHTTP1: "TLS, HTTP/1.1",
}

// NewDial returns the connection for a key, of which there are others.
func NewDial(address string, of int, key *pool.Key, others pool.Connections) *Dial {
	d := &Dial{address, of, "new", protocolNames[key.Protocol], key.ServerName}
	if others.Idle+others.HTTP2 > 0 {
		d.Connection = "open"
	}
	return d
}

// Connect is a connection that was opened to find out how that ends.
type Connect struct {
	Address      string        `json:"address"`
	Local        string        `json:"local,omitempty"`
	Connect      float64       `json:"connect"`
	Handshake    float64       `json:"handshake,omitempty"`
	TLS          string        `json:"tls,omitempty"`  // the version
	ALPN         string        `json:"alpn,omitempty"` // the protocol that was negotiated
	Certificates []Certificate `json:"certificates,omitempty"`

	// ClientCertificate is whether the backend asks for a client certificate.
	ClientCertificate bool `json:"client_certificate_wanted,omitempty"`

	Error string `json:"error,omitempty"`
}

// Certificate is one certificate that the backend has shown.
type Certificate struct {
	Subject string    `json:"subject"`
	Issuer  string    `json:"issuer"`
	Names   []string  `json:"names,omitempty"`
	From    time.Time `json:"from"`
	Until   time.Time `json:"until"`
}

// maxNames is how many names of a certificate are shown.
const maxNames = 20

// NewConnect returns the outcome of a check.
func NewConnect(address string, c *pool.Check, err error) *Connect {
	n := &Connect{Address: address, Connect: seconds(c.Connect), Handshake: seconds(c.Handshake), Error: failure.Text(err)}
	if c.Local.IsValid() {
		n.Local = c.Local.String()
	}
	if c.TLS != nil {
		if c.TLS.Version != 0 {
			n.TLS = tls.VersionName(c.TLS.Version)
		}
		n.ALPN = c.TLS.NegotiatedProtocol
	}
	n.ClientCertificate = c.CertificateWanted
	for _, certificate := range c.Certificates {
		n.Certificates = append(n.Certificates, newCertificate(certificate))
	}
	return n
}

func newCertificate(c *x509.Certificate) Certificate {
	n := Certificate{c.Subject.String(), c.Issuer.String(), c.DNSNames, c.NotBefore.UTC(), c.NotAfter.UTC()}
	for _, ip := range c.IPAddresses {
		n.Names = append(n.Names, ip.String())
	}
	n.Names = n.Names[:min(len(n.Names), maxNames)]
	return n
}

// Outcome is how the request would end.
type Outcome struct {
	WouldSend bool   `json:"would_send"`
	Status    int    `json:"status,omitempty"` // that the client gets; 0: the target's
	Phase     string `json:"phase,omitempty"`
	Failure   string `json:"failure,omitempty"`
	Rule      string `json:"rule,omitempty"`
	Error     string `json:"error,omitempty"`
}

// NewOutcome returns the outcome of a request that ends with an error, or is sent if that
// is nil.
func NewOutcome(err error, f failure.Failure, text string) Outcome {
	if err == nil {
		return Outcome{WouldSend: true}
	}
	o := Outcome{Status: failure.StatusOf(err), Phase: string(f.Phase), Failure: string(f.Token), Rule: f.Rule, Error: text}
	if errors.Is(err, pool.ErrLimit) {
		o.Status = http.StatusServiceUnavailable
	}
	return o
}

func seconds(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }
