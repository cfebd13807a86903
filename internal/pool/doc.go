// Package pool keeps connections to backends that no configuration lists, and
// sends requests over them.
//
// A Key is all that a connection depends on: the address, the host of the target,
// the TLS server name, the protocol. An Order is a Key and what a request allows:
// how long it waits, and who is asked whether the address may be dialled (its Owner).
// For each Key in use the Pool has a destination, which holds its connections
// (conn), the requests that wait for one (waiter) and the dials under way (dial).
//
// A request takes the connection that was used last. If there is none, it becomes a
// waiter and is assigned a dial. It gets what comes first, a connection that becomes
// free or a new one, and waits only as long as its Order allows (dialWait). A request
// that gives its dial up gets an Error with a Pending: the dial goes on, and its
// connection is then idle until a request takes it. A dial may outlive its request, so
// it looks at a copy of the Order and at nothing else of the request.
//
// A connection of HTTP/1.1 (http1.go) has no goroutine. An exchange is one request
// and its response: the goroutine of the request writes one and reads the other, with
// buffers that it has only meanwhile; a request's body is an upload, with a goroutine
// of its own. On Unix, a combinedIO checks an idle connection, writes the request and
// waits for the response in one call of the runtime's poller. A connection of HTTP/2
// (http2.go) is an http2.ClientConn of golang.org/x/net. The sweeper (sweep.go) closes
// connections that were idle for too long or that the backend has closed, and aborts
// those whose backend has gone silent. The watcher (watch.go) aborts requests over
// HTTP/1.1 whose contexts end. Limits bound the connections of all pools together.
//
// # One address at a time
//
// A Pool knows one address of a target, that of the Key. The caller tries the others.
// Take a GET request to a target with four addresses, of which R refuses connections,
// S is silent, B breaks the connection after the request and H is healthy. Package
// failover has what the caller makes of it.
//
//   - R: the dial fails at once. The Pool records the failure in health; RoundTrip
//     returns an Error with the Phase Connect, and nothing was sent.
//   - S: the Order is not the Last, so the request waits for FailoverTimeout. RoundTrip
//     returns an Error with a Pending. Health keeps other requests from S while the
//     dial goes on. If it fails in the end, that is recorded, too.
//   - B: the connection is opened, the request is written, the connection is reset.
//     RoundTrip returns an Error with the Phase Response; all of the request may have
//     been seen (Sent). Whether another address may get it is the caller's decision,
//     and so is what is recorded. Had the connection been idle before, RoundTrip would
//     itself have sent the request again, over another connection to B.
//   - H: the Order is the Last and has the Pending of S. The request waits for the dial
//     of H until the deadline: DialTimeout after the dial of S began, and later by the
//     time that the attempt at B took (dialWait.timeout has the bounds). If the dial of S
//     succeeds first, RoundTrip returns an Error with the Pending of H, and the caller
//     goes back to S, whose connection is idle by then.
//
// # Where to find what
//
//   - RoundTrip and the shards: pool.go. A connection for a request: waiter.go, which also
//     decides when to dial; destination.go (who gets a connection), idle.go (the list of
//     idle ones).
//   - How long a dial is waited for: dialwait.go. The dial itself, and what is recorded in
//     health: dial.go.
//   - Bounds: config.go (defaults: pool.go), limits.go (connections of all pools),
//     http2.go (buffers), sessions.go (TLS sessions).
//   - Phase, Sent, retries over another connection, maxSilence: error.go. What may be sent
//     at all, and again: request.go.
//   - Whether an idle connection can be used: conn.go (quiet), poll_*.go; knock.go, before
//     a request that cannot be sent again; tlsrecords.go, over TLS.
//   - The header's bounds and Keep-Alive: header.go. A body that is sent: upload.go. One
//     that is received: http1.go, http2body.go (and streams that block others), body.go
//     (gzip, switched protocols).
//   - What a request did when, for those who record it: timing.go.
//   - Streams of HTTP/2: http2stream.go. Octets: rawconn.go (reads and writes of the
//     socket), writer.go (buffers), combined_*.go (combinedIO).
//   - Backends that have gone silent: silence_*.go.
//   - Connections that are opened for requests to come: spare.go.
//   - The pools of all transports, which outlive a reload: set.go.
//   - What there is, for operators: usage.go; slots.go, by which that is read in parts.
package pool
