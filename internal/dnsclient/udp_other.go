//go:build !unix

package dnsclient

import (
	"net"
	"slices"
)

// receiver receives the datagrams of a socket.
type receiver struct{}

// receive waits for a datagram and returns a copy of it.
func (receiver) receive(conn *net.UDPConn) ([]byte, error) {
	buffer := buffers.Get().(*[maxMessage]byte)
	defer buffers.Put(buffer)
	n, err := conn.Read(buffer[:])
	if err != nil {
		return nil, err
	}
	return slices.Clone(buffer[:n]), nil
}
