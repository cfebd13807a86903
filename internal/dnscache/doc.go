// Package dnscache caches what is known of names: their addresses, the records of
// services, that a name has none, that a lookup failed. It decides when to look a
// name up again, what to serve meanwhile and what to evict. An [Exchanger] asks the
// nameservers.
//
// A read of a known name takes no lock, allocates nothing and reads the clock at
// most once. All that such a reader sees is immutable and replaced as a whole.
//
// The types hang together like this:
//
//   - A [Cache] has a table of entries. An entry has what a hit needs: the name, its
//     addresses and when they expire. A lookup replaces it.
//   - An entry points to a state: what else is known, for each address family.
//   - A state points to a node, which stays while the name is in the cache. A node is
//     in one of the queues, which choose what to evict, and in one list of the
//     scheduler, which refreshes names before they expire.
//   - A call is one lookup of a node's name, from the moment that it is planned. A node
//     has one at most. Readers of a miss wait for it.
//   - A flight does the work of a call: it asks the Exchanger, and merge makes the
//     next entry of the last one and the replies.
//   - A flight for readers passes admission and takes a slot of the slotQueue, for
//     which it has a lease. A refresh takes one of the scheduler's slots; account
//     decides whether it is worth its queries.
//
// Operators list names with Names and Name, read counts with Stats, and have names
// forgotten or asked for again with Purge. None of them holds a lock for longer than
// it takes to handle a few names.
//
// Where to find what:
//
//   - cache.go: Cache, node and call; what a read does; the defaults of a
//     Config that says nothing (New): those of the options are in package resolver.
//   - entry.go: entry and the table. state.go: state and merge; the order of the
//     addresses of an answer. Which of them a request is offered says package failover.
//   - flight.go, scheduler.go, slots.go, …: what their names say; the list below has them.
//   - record.go: names in a form to keep or hand on, and how they come back.
//   - config.go: Exchanger, Config, the exported errors. names.go, purge.go, preload.go, counters.go:
//     what operators see.
//
// These limit what attackers and failures can cost. Each is noticed by the test behind
// it if it is taken out.
//
//   - admission.limit (admission.go) bounds lookups for readers, in flight and waiting;
//     without it a flood of new names takes the memory. TestAdmission
//   - admission.domains (admission.go) bounds lookups below one registrable domain, to a
//     quarter of what is free; without it a flood of names below one silent domain keeps
//     out all others. TestDomainShare
//   - slotQueue (slots.go) bounds lookups in flight for readers; without it a flood of
//     new names takes the sockets and loads the nameservers. TestOverload
//   - lease (slots.go) bounds the time of a lookup while another one waits, to 1.5 s;
//     without it a flood of silent names, each below a domain of its own, keeps out all
//     others. TestSilentNamesArePreempted
//   - slowLookups (flight.go) bounds how long a slot is held by a name that was slow or
//     failed, and by the late family of a name that was answered; without it readers of
//     dead names keep out the others. It also bounds how many lookups go on without a
//     slot. TestSlowNamesReleaseSlots, TestLateFamilyReleasesSlot,
//     TestSlowLookupsAreBounded
//   - newNames (cache.go) bounds new names a second; without it a flood of names that are
//     answered sends as many queries as it has names. TestNewNames
//   - backoff (state.go) bounds lookups of a name that fails, to one in 1, 2, 4 … 30 s;
//     without it each read of such a name starts one. TestBackoff
//   - renewGap (renew.go) bounds lookups because addresses did not work, to one in
//     0.1 … 6.4 s; without it each such request starts one. TestRenew
//   - account (account.go) bounds queries for refreshes, to about one a request; without
//     it very many names with short TTLs that are seldom used, and retries of names that
//     fail and are not used, load the nameservers. TestQueriesARequest,
//     TestRetriesOfUnusedNames
//   - refreshSlots (scheduler.go) bounds refreshes in flight; without it they pile up when
//     nameservers become slow. TestRefreshSlots
//   - slowRefreshSlots (scheduler.go) bounds the refreshes of slow and dead names, to half
//     of these; without it they keep the others from being refreshed.
//     TestDeadNamesLeaveSlots
//   - forecast (scheduler.go) bounds the refreshes of one second; without it very many
//     names that were learned together are refreshed together. TestRefreshesAreEven
//   - recoveryRate (scheduler.go) bounds the refreshes a second after an outage and at
//     Start; without it all are due at once. TestOutage
//   - queues (queues.go) bounds the evictions of names in use; without it a flood of
//     names, however they are read, evicts them. TestFloods
//   - trim (large.go) bounds the addresses beyond 64 of a family; without it a domain with
//     very large answers takes the memory. TestLargeAnswers
package dnscache
