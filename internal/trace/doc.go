// Package trace records single requests while they go on, and passes what was recorded
// to those who listen.
//
// A Request has the entries of one request in their order: each is an attempt to send it,
// or a lookup that no attempt followed. Event is its form for JSON, and for a line of
// text (event.go). A Hub has the listeners (hub.go). Where there is none, its Listening is
// one atomic load, and then nothing of a request is recorded. A request never waits for a
// listener: what a slow one has no room for is dropped and counted.
package trace
