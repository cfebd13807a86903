//go:build race

package topk

// raced makes the tests smaller: the race detector makes each observation many times as
// expensive.
const raced = true
