// Package dnsclient turns questions into replies: it asks nameservers for the
// addresses of a name, or where a service is, over UDP and, where a reply is truncated, over TCP, or
// over TCP, TLS or HTTPS alone, and moves on to the next nameserver when one
// fails.
//
// It is a stub resolver (RFC 1034, section 5.3.1): the nameservers do the
// recursion. It keeps no answers; a cache belongs in front of it. What it does
// keep is the health of the nameservers, so that a dead one is not asked first
// again, and so that in an outage nothing but a probe a second goes out.
//
// Whatever arrives on a socket is hostile until it is shown to be the reply to
// the query that was sent. A message that is not is ignored and the socket keeps
// listening; a reply that is, but makes no sense, is a failure of that
// nameserver and never an answer.
package dnsclient
