// Package health remembers which addresses failed, so that they can be left out while
// others remain.
//
// A Tracker has records of failures at two levels. A connection that cannot be opened
// counts for the address and port, whatever the target. A failed TLS handshake, a reset
// or a missing response counts for one target at the address: one bad site at the
// address of a CDN does not take the address from the others. The records of both levels
// are deleted when the address works for the target.
//
// Some failures depend on a limit: with another timeout there might have been a
// response. They count only for requests with the same Limit. That is the text of a
// configured timeout, or a class of timeouts that clients choose.
//
// A client could choose a timeout in which no address can respond. So a timeout of a
// client counts as a failure only if several requests in a row ran out of time (RanOut),
// and each of them had as much as another address of the target usually takes
// (usualTimes).
//
// State classifies an address for a request, by these records and the request's Policy.
// An address with enough failures is Ejected for EjectFor. After that one request finds
// out whether it works again, by a connection (NeedsProbe) or by being sent to it
// (NeedsTrial), and claims the address first (Tracker.Claim): until the outcome is
// recorded, or the Claim is released, others find the address Ejected. An address whose
// dial a request has given up is Ejected, too, until the dial has ended (StillDialing).
// Where nothing of a family can be reached, IPv4 or IPv6, all its addresses are left out
// in the same way (family).
//
// The records are spread over shards with a lock each. The lock of a shard in which
// nothing has failed is not taken.
//
// Where to find what:
//
//   - health.go: Tracker, its records, how many there may be and how long they are kept.
//   - state.go: Policy, State, Claim, and how long a claim holds.
//   - family.go: when a family counts as unreachable.
//   - ranout.go: timeouts of clients, their classes, how many in a row count.
//   - usual.go: usualTimes.
//   - ejection.go: the Observer, who is told of ejections, and the policies by which they
//     count where no request asks.
//   - records.go: what is known of addresses, for operators; Lift.
package health
