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
//   - A call is the lookup of a node that is planned or in flight. There is at most
//     one for a node. Readers of a miss wait for it.
//   - A flight does the work of a call: it asks the Exchanger, and merge makes the
//     next entry of the last one and the replies.
//   - A flight for readers passes admission and takes a slot of the slotQueue, for
//     which it has a lease. A refresh takes one of the scheduler's slots; account
//     decides whether it is worth its queries.
//
// These limit what attackers and failures can cost. Each is noticed by a test if it
// is taken out:
//
//	limit              what it bounds, and against what                               test
//
//	admission.limit    lookups for readers, in flight and waiting: a flood of new     TestAdmission
//	                   names takes the memory
//	admission.domains  lookups below one registrable domain, to a quarter of what     TestDomainShare
//	                   is free: a flood of names below one silent domain
//	slotQueue          lookups in flight for readers: a flood of new names takes      TestOverload
//	                   the sockets and loads the nameservers
//	lease              time of a lookup while another one waits, to 1.5 s: a flood    TestSilentNamesArePreempted
//	                   of silent names, each below a domain of its own
//	slowLookups        time that a name that was slow or failed, or the late family   TestSlowNamesReleaseSlots
//	                   of an answered one, has a slot; and how many lookups go on     TestLateFamilyReleasesSlot
//	                   without one: readers of dead names keep out the others         TestSlowLookupsAreBounded
//	newNames           new names a second: a flood of names that are answered         TestNewNames
//	backoff            lookups of a name that fails, to one in 1, 2, 4 … 30 s         TestBackoff
//	renewGap           lookups because addresses did not work, to one in 0.1 … 6.4 s  TestRenew
//	account            queries for refreshes, to about one a request: very many       TestQueriesARequest
//	                   names with short TTLs that are seldom used; and retries of     TestRetriesOfUnusedNames
//	                   names that fail and are not used
//	refreshSlots       refreshes in flight: nameservers that have become slow         TestRefreshSlots
//	slowRefreshSlots   those of slow and dead names, to half of it: they keep the     TestDeadNamesLeaveSlots
//	                   others from being refreshed
//	forecast           refreshes in one second: very many names learned together      TestRefreshesAreEven
//	recoveryRate       refreshes a second after an outage and at Start                TestOutage
//	queues             evictions of names in use: a flood of names, however they      TestFloods
//	                   are read
//	trim               addresses beyond 64 of a family: a domain with very large      TestLargeAnswers
//	                   answers takes the memory
package dnscache
