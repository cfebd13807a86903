//go:build !linux

package localnet

import "net/netip"

func routesHere(netip.Addr) (bool, error) { return false, ErrUnsupported }

func localRoutes() ([]netip.Prefix, error) { return nil, ErrUnsupported }

func socketID(int) (uint64, error) { return 0, ErrUnsupported }

// Sockets finds the sockets on which this process listens.
type Sockets struct{}

// Hearing returns the sockets at which a connection to an address of this machine
// may end.
func (*Sockets) Hearing(netip.AddrPort) ([]uint64, error) { return nil, ErrUnsupported }

// MayHear reports whether a socket of this process may listen on a port.
func (*Sockets) MayHear(uint16) bool { return true }
