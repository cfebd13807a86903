//go:build unix

package pool

import (
	"math"

	"golang.org/x/sys/unix"
)

// DescriptorLimit returns how many descriptors this process may have open, or 0
// if that is not known.
func DescriptorLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(uint64(limit.Cur), math.MaxInt32)) //nolint:unconvert // it is signed on FreeBSD
}
