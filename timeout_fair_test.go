package caddytarget

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"caddytarget/internal/testlab"
)

// slowBody is a request body that stops in the middle.
type slowBody struct{ release chan struct{} }

func (b slowBody) Read(p []byte) (int, error) {
	<-b.release
	return 0, io.ErrUnexpectedEOF
}

// TestTimeoutIsFair checks whose fault it is if there is no answer in time.
func TestTimeoutIsFair(t *testing.T) {
	w := newWorld(t)
	addrs := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"}
	slow := testlab.NewBackend(t, testlab.BackendConfig{Addrs: addrs, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	})}).Port
	w.dns.Has("slow.example", addrs...)
	shared := acquireShared()
	defer releaseShared()
	h := shared.health
	w.run(w.proxy("timeout 200ms", "max_requests 1"))

	t.Run("stalled upload", func(t *testing.T) {
		body := slowBody{make(chan struct{})}
		defer close(body.release)
		res, err := w.try(http.MethodPost, "/", "http://slow.example:"+slow, io.MultiReader(strings.NewReader("abc"), body), func(r *http.Request) { r.ContentLength = 100_000 })
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("status %d, want 504", res.StatusCode)
		}
		if n := h.Len(); n != 0 {
			t.Errorf("%d failures are remembered", n)
		}
	})
	t.Run("slow backend", func(t *testing.T) {
		res, err := w.try(http.MethodGet, "/", "http://slow.example:"+slow, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("status %d, the place of the stalled request was not freed?", res.StatusCode)
		}
		if n := h.Len(); n != 1 {
			t.Errorf("%d failures are remembered, but one address was asked", n)
		}
	})
}
