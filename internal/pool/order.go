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
	Addr       netip.AddrPort // where it leads to; not valid: see Dial
	Dial       string         // network and address, separated by a space, if that is no IP address
	Host       string         // of the target; empty where targets share connections
	ServerName string         // that the backend proves to have, with TLS
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

// Order is what a request wants of a Pool. It does not change: it is all that a
// dial may look at, which may outlive the request.
type Order struct {
	Key    Key
	Target string // the host, for health and errors; empty: nobody's
	Owner  Owner  // nil: nobody has to permit anything

	Last      bool                      // there is no other address to try
	Deadlines [dialPhaseCount]time.Time // when the time for a phase is over; zero: each dial has all of it
	Pending   []*Pending                // dials for the same request that are under way
}

// Owner stands behind an Order. Its methods may be called after the request has
// ended.
type Owner interface {
	// Permit returns why an address may not be dialled, or nil. It is asked just
	// before the connection is opened.
	Permit(addr netip.AddrPort) error

	// Confirm returns why a connection that was just opened may not be used, or nil.
	// Nothing has been sent. Addresses that are not of TCP are zero values.
	Confirm(local, remote netip.AddrPort) error

	// Guard returns what Permit goes by, for comparison.
	Guard() any

	// Source returns where the target's addresses come from, for comparison.
	Source() any

	// Watch returns a function that reports whether the target has other addresses
	// now than that of the connection, according to Source; nil: that is never so.
	Watch() func(addr netip.Addr) (moved bool)
}

// guardOf returns by what an order's dial is permitted.
func guardOf(o *Order) any {
	if o.Owner == nil {
		return nil
	}
	return o.Owner.Guard()
}
