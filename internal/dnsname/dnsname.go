// Package dnsname has the limits of domain names (RFC 1035, section 2.3.4).
package dnsname

const (
	// MaxLen is how many octets a name may have as text, without a trailing dot.
	MaxLen = 253

	// MaxWire is how many octets a name may have in a message: in addition to its
	// text, the length of the first label and the root.
	MaxWire = MaxLen + 2

	// MaxLabel is how many octets a label may have.
	MaxLabel = 63
)
