//go:build !unix

package pool

// DescriptorLimit returns how many descriptors this process may have open, or 0
// if that is not known.
func DescriptorLimit() int { return 0 }
