// Package pool keeps connections to backends that no configuration lists, and
// sends requests over them.
//
// A Key is all that a connection depends on: the address, the target's host, the
// TLS server name, the protocol. For each Key that is in use the Pool has a
// destination, with its connections, the requests that wait for one, and the dials
// under way. A request takes the connection that was used last. If there is none,
// it becomes a waiter and starts a dial; it gets whichever comes first, a
// connection that becomes free or a new one. A connection that no request waits
// for becomes idle. A dial may outlive its request, so it looks at nothing but its
// Order.
//
// A connection of HTTP/1.1 (conn, http1.go) has no goroutine: the request's own
// goroutine writes the request and reads the response, with buffers that it has
// only meanwhile. The standard library writes, parses and frames. A connection of
// HTTP/2 (http2.go) is an http2.ClientConn of golang.org/x/net. The sweeper
// (sweep.go) closes what has been idle for too long or was closed by the backend,
// and looks for backends that have gone silent. The watcher (watch.go) ends requests
// over HTTP/1.1 whose contexts end.
package pool
