package replay

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"
)

// TestRequestBodyGivenUp: what a reader reads that another one has replaced is not
// lost.
func TestRequestBodyGivenUp(t *testing.T) {
	reader, writer := io.Pipe()
	b := New(reader, 10)
	first, err := b.Open(true)
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	go func() {
		close(begun)
		_, _ = first.Read(make([]byte, 100))
	}()
	<-begun
	for b.mu.TryLock() { // until the first reader reads
		b.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	second, err := b.Open(true)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = writer.Write(bytes.Repeat([]byte("x"), 50))
		_ = writer.CloseWithError(errors.New("the end"))
	}()
	got, err := io.ReadAll(second)
	if len(got) != 50 || err == nil || err.Error() != "the end" {
		t.Errorf("got %d octets, %v, want 50 octets, the end", len(got), err)
	}
}
