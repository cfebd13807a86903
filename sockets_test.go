package caddytarget

import (
	"os"

	"caddytarget/internal/localnet"
)

// inOwnProcess is in the environment of a test that has no backend in its process.
const inOwnProcess = "CADDYTARGET_NO_BACKENDS_HERE"

// The backends of other tests are in the process of the gateway, which would refuse
// to call what it listens on itself. So it goes by Caddy's account of its listeners
// there, as it does on systems that do not show the sockets.
func init() {
	if os.Getenv(inOwnProcess) == "" {
		newSockets = func() *localnet.Sockets { return nil }
	}
}
