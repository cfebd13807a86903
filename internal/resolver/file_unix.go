//go:build unix

package resolver

import "syscall"

// openFlags keep opening a file from waiting for another process.
const openFlags = syscall.O_NONBLOCK
