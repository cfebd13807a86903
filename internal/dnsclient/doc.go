// Package dnsclient asks nameservers for the addresses of a name, or for where a
// service is. It asks over UDP, and over TCP if a reply is truncated, or only
// over TCP, TLS or HTTPS. If a nameserver fails, it asks the next one.
//
// It is a stub resolver (RFC 1034, section 5.3.1): the nameservers do the
// recursion. It keeps no answers; a cache belongs in front of it.
//
// How the types hang together:
//
//   - A Client has servers. Each server is a Nameserver, its transports and its
//     health.
//   - A call of Ask or AskSRV is a lookup. It has one round, or two if the reply
//     to the first one is an alias.
//   - A round begins attempts, each on one server: the next one when the last one
//     has failed or takes long (a hedge).
//   - An attempt has a goroutine. That sends a question over a transport (udp,
//     stream or https), once or as often as the replies require, reads the reply,
//     and hands a result to the lookup.
//   - Results go into the health of the server. Health decides the order in which
//     the next lookup asks servers. A server that looks dead gets probes, and while
//     all servers are down, in an outage, nothing but probes is sent.
//
// Every message from a socket is hostile until it is shown to be the reply to the
// query that was sent. Other messages are ignored, and the socket keeps listening.
// A reply that cannot be read is a failure of that nameserver and never an answer.
//
// Where to find what:
//
//   - client.go: Config and its defaults.
//   - server.go: the order in which servers are asked.
//   - lookup.go: lookup and round, hedges.
//   - attempt.go: the goroutine of an attempt.
//   - message.go: queries, and what is read of a reply, with its bounds.
//   - reply.go: what a reply means.
//   - transport.go: the interface of all transports. They are in udp.go, stream.go
//     (TCP and TLS) and https.go.
//   - dialer.go: how streams and HTTPS connect, and how long a connection without a
//     query is kept.
//   - health.go: what is known of a server, and the intervals of hedges and probes.
//   - probe.go: sends the probes.
//   - inherit.go: what a client takes over from another one.
//   - nameserver.go: the text of a nameserver, default ports.
//   - error.go: Error and Try.
package dnsclient
