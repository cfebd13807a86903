package pool

import (
	"context"
	"net/netip"
	"sync/atomic"
)

// Pending is a dial that its request has given up and that goes on, so that a slow
// address is not lost: if the dial succeeds, the caller can return to the address.
type Pending struct {
	Addr  netip.AddrPort
	Phase Phase // in which it was given up: Connect or Handshake

	progress atomic.Int32
	done     context.Context // ends after progress was set
}

// Progress is the state of a Pending.
type Progress int32

// The values of Progress.
const (
	Underway  Progress = iota
	Succeeded          // the connection is in the pool, in use or idle, or was closed since
	Failed
)

// Progress returns the state of the dial.
func (d *Pending) Progress() Progress { return Progress(d.progress.Load()) }
