package resolver

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"caddytarget/internal/testlab"
)

// checkLeaks makes the test fail if there are goroutines left when everything
// that is registered after it has been cleaned up.
func checkLeaks(t testing.TB) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		var err error
		for deadline := time.Now().Add(testlab.Timeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if err = goleak.Find(before); err == nil {
				return
			}
		}
		t.Errorf("goroutines are left: %v", err)
	})
}
