//go:build !unix

package caddytarget

// descriptorLimit returns how many descriptors this process may have open, or 0
// if that is not known.
func descriptorLimit() int { return 0 }
