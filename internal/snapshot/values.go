package snapshot

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// Uint writes a number.
func (w *Writer) Uint(n uint64) { w.data = binary.AppendUvarint(w.data, n) }

// Seconds writes a duration, which may be below zero, in whole seconds: it does not
// become longer.
func (w *Writer) Seconds(d time.Duration) {
	n := int64(d / time.Second)
	if d%time.Second < 0 {
		n--
	}
	w.data = binary.AppendVarint(w.data, n)
}

// Text writes a text.
func (w *Writer) Text(s string) {
	w.Uint(uint64(len(s)))
	w.data = append(w.data, s...)
}

// Octets writes octets without their number.
func (w *Writer) Octets(b []byte) { w.data = append(w.data, b...) }

// errContent is the error of a section whose content is not what was expected.
var errContent = errors.New("it is damaged: a section cannot be read")

// Reader reads the content of a section. After an error it returns zero values.
type Reader struct {
	rest []byte
	err  error
}

// Reader returns a reader of the section.
func (s *Section) Reader() *Reader { return &Reader{rest: s.Content} }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Fail makes a value that was read an error.
func (r *Reader) Fail() {
	r.rest, r.err = nil, errContent
}

// More reports whether there is something left to read.
func (r *Reader) More() bool { return len(r.rest) > 0 }

// Uint reads a number that is not above the highest one that makes sense.
func (r *Reader) Uint(highest uint64) uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > highest {
		r.Fail()
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

// Seconds reads a duration.
func (r *Reader) Seconds() time.Duration {
	n, size := binary.Varint(r.rest)
	if size <= 0 || n > math.MaxInt64/int64(2*time.Second) || n < -math.MaxInt64/int64(2*time.Second) {
		r.Fail()
		return 0
	}
	r.rest = r.rest[size:]
	return time.Duration(n) * time.Second
}

// Text reads a text of up to so many octets.
func (r *Reader) Text(most int) string {
	return string(r.Octets(int(r.Uint(uint64(most)))))
}

// Octets reads so many octets. They are a part of the file.
func (r *Reader) Octets(n int) []byte {
	if n > len(r.rest) {
		r.Fail()
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}
