// Package topk counts requests per target in a fixed amount of memory: exactly for the
// busiest and the most failing targets, and in one sum, "other", for the rest.
//
// A Sketch is an array of shards with a lock each. The hash of a target selects its
// shard. A shard has slots for a few targets, half of them for its busiest and half for
// its most failing ones, and a filter, which estimates how often the targets without a
// slot are observed.
//
// Slots are given by score: the number of observations, halved from time to time, so
// that it follows the rate. A target without a slot gets one when its estimate is more
// than twice the lowest score of the slots (shard.slotFor). A name seen once is estimated
// as 1, or in a flood of millions as about one in a million of all requests, so a flood of
// new names does not push out a target with twice that rate. Space-saving (Metwally et al., 2005) without
// a filter would give each new name a slot. The filter is a count-min sketch with
// conservative update (Estan and Varghese, 2002).
//
// Counts, unlike scores, are exact and never fall. Those of a target with a slot are what
// was observed since it got the slot. All that was observed without a slot is in "other",
// and so are the counts of a target from the moment it loses its slot. Every observation
// is in exactly one of them.
//
// Top lists these counts for people. Series selects targets for a monitoring system, in
// which neither a series nor "other" may ever fall.
package topk
