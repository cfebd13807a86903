//go:build !unix

package resolver

// openFlags are not needed where no name in the file system waits for another process.
const openFlags = 0
