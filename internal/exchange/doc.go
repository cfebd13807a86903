// Package exchange has the core of a request, between the handler that reads its target and
// the pool that sends it. It needs no Caddy: what it has to know of the modules, Source,
// Transport and Policy say.
//
// What a request calls is a [Call]: it is made of a URL or a name, checked by a [Policy], and
// resolved. A source that has the name of a service makes a [Service], which has a Call for
// each record. All attempts of one reverse_proxy at a request share an [Exchange]: what was
// tried, and the body. An [Attempt] is one of them. What is known of the request stays in its
// [State], whatever handlers it passes.
//
// Where to find what:
//
//   - call.go: Call and [Context]; lookup.go: its addresses.
//   - policy.go: Policy, what may be called, counted and logged: refusals, and in the mode
//     report what would have been refused.
//   - source.go: [Source], the calls of a source that has a name; service.go: Service.
//   - state.go: State, the placeholders and why a request failed; exchange.go: Exchange.
//   - attempt.go: Attempt and [Transport]; errors.go: what it returns; response.go: how the
//     response ends.
//   - redirect.go: redirects, which lead to other calls.
//   - record.go: what is recorded of a request and its attempts.
package exchange
