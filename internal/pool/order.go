package pool

import (
	"net/netip"
	"strings"
	"time"
)

// Protocol is what is spoken over a connection.
type Protocol uint8

// The protocols.
const (
	HTTP1    Protocol = iota // HTTP/1.1 without TLS
	HTTP2                    // HTTP/2 without TLS, with prior knowledge
	TLS                      // over TLS, HTTP/1.1 or HTTP/2 as negotiated
	TLSHTTP1                 // HTTP/1.1 over TLS, for requests that change the protocol
)

// Key is all that a connection depends on, beside the Config.
type Key struct {
	Addr       netip.AddrPort // of the backend; not valid: see Dial
	Dial       string         // network and address, separated by a space, if that is no IP address
	Host       string         // of the target; empty where targets share connections
	ServerName string         // for which the backend's certificate has to be valid, with TLS
	Protocol   Protocol
	Client     netip.AddrPort // announced by the PROXY protocol
}

// address returns network and address, as net.Dial has them.
func (k *Key) address() (network, address string) {
	if k.Addr.IsValid() {
		return "tcp", k.Addr.String()
	}
	network, address, _ = strings.Cut(k.Dial, " ")
	return network, address
}

func (k *Key) secure() bool { return k.Protocol >= TLS }

// Order is the connection that a request needs, and how long it may wait for it. It must
// not change before RoundTrip returns. A dial may outlive the request and has a copy.
type Order struct {
	Key    Key
	Target string // the target for which health records failures, by its host; empty: no failure is recorded
	Owner  Owner  // nil: each address may be dialled

	// Last is true if the request had better wait for this address: the caller has no
	// other one, or only worse ones, or no attempt left. Else the request waits no longer
	// than FailoverTimeout for each phase of its dial.
	Last bool

	// Deadlines are when the phases Connect and Handshake have to end, for all addresses
	// of a request together, so that several addresses take little longer than one. They
	// are used where Last is true. When one has passed, the request still waits for
	// FailoverTimeout. Zero: the dial has its whole timeout.
	Deadlines [dialPhaseCount]time.Time

	// Pending are the dials that the same request gave up before. When one to
	// another address succeeds, the request stops waiting for this dial: RoundTrip
	// returns an Error, and the caller goes back to the other address.
	Pending []*Pending

	// Reused, if not nil, is set by RoundTrip where it returns a response: whether the
	// connection had been idle, or carried other requests.
	Reused *bool

	// Timing, if not nil, is set by RoundTrip: what it did when.
	Timing *Timing
}

// Owner answers for the target of an Order: which addresses may be dialled, and which
// the target has. Its methods may be called after the request has ended.
type Owner interface {
	// Permit returns why an address may not be dialled, or nil. It is asked just
	// before the connection is opened.
	Permit(addr netip.AddrPort) error

	// Confirm returns why a connection that was just opened may not be used, or nil.
	// Nothing has been sent. Addresses that are not of TCP are zero values.
	Confirm(local, remote netip.AddrPort) error

	// Guard returns a comparable value that stands for the rules of Permit. A dial
	// serves another request only if both have the same.
	Guard() any

	// Source returns a comparable value that stands for the source of the target's
	// addresses. Where it differs from that of the request before, Watch is called.
	Source() any

	// Watch returns a function that reports whether the target no longer has the
	// address of a connection, according to Source; nil: it always has it.
	Watch() func(addr netip.Addr) (moved bool)
}

// guardOf returns the Guard of an order, or nil.
func guardOf(o *Order) any {
	if o.Owner == nil {
		return nil
	}
	return o.Owner.Guard()
}
