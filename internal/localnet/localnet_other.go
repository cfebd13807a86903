//go:build !linux

package localnet

import "net/netip"

func routesHere(netip.Addr) (bool, error) { return false, errUnsupported }

func localRoutes() ([]netip.Prefix, error) { return nil, errUnsupported }

func socketID(int) (uint64, error) { return 0, errUnsupported }

// Sockets finds the sockets on which this process listens.
type Sockets struct{}

// hearing returns the sockets at which a connection to an address of this machine
// may end.
func (*Sockets) hearing(netip.AddrPort) ([]uint64, error) { return nil, errUnsupported }

// mayHear reports whether a socket of this process may listen on a port.
func (*Sockets) mayHear(uint16) bool { return true }
