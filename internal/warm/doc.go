// Package warm keeps connections open to the targets that are called most, so that requests
// after a start, and after a pause, find them open.
//
// A [List] counts the requests of each [Target] of some sites. While a configuration runs,
// it looks at the busiest targets of each [Site] once a second, and lets the site's pool
// open what is missing. Site.Find says where: only at addresses to which a request would be
// sent now.
//
// A target never has more connections by this than Site.Connections, whatever else has
// opened them, nor more than it had requests of late. One that was not called for
// Site.Unused gets none. A backend that closes connections which no request has used soon
// after they were opened gets no others in their place, until requests have opened or
// used as many: see entry.debt.
//
// Where to find what:
//
//   - list.go: List, Target, Site; who is counted, and which targets are the busiest.
//   - work.go: what is missing for a target, the pace at which it is opened.
//   - check.go: what can be configured.
//   - saved.go: Part, the section of the file by which the list outlives the process.
package warm
