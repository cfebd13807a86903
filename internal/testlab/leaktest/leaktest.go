// Package leaktest finds goroutines that outlive a test.
package leaktest

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"caddytarget/internal/testlab"
)

// Check makes the test fail if there are goroutines left when everything that is registered
// after it has been cleaned up. Those that run now, and those of the options, may stay.
func Check(t testing.TB, options ...goleak.Option) {
	options = append(options, goleak.IgnoreCurrent())
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		var err error
		for deadline := time.Now().Add(testlab.Timeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if err = goleak.Find(options...); err == nil {
				return
			}
		}
		t.Errorf("goroutines are left: %v", err)
	})
}
