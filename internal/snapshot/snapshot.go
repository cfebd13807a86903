// Package snapshot keeps what a process has learned for the next one: in a file of
// sections, which a [Saver] writes to a [Store] now and then and reads at the start.
//
// Where to find what:
//
//   - snapshot.go: the format of the file. values.go: numbers and texts in a section.
//   - saver.go: Saver, Store; when it is saved and loaded, and what happens if that fails.
//
// What is in a section, its owner knows. A reader skips sections that it does not know, so
// that new ones need no new version.
package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The format, numbers in big endian:
//
//	8 octets   magic
//	2          version
//	8          when it was saved, in milliseconds since 1970
//	4          size of the whole file
//	sections:  4 octets name, 4 octets size of the content, the content
//	32         SHA-256 of all before
const (
	magic      = "ctsnap\r\n"
	version    = 1
	headerSize = len(magic) + 2 + 8 + 4
	nameSize   = 4
	minSize    = headerSize + sha256.Size

	// MaxSize is how many octets a file may have.
	MaxSize = 64 << 20

	// maxSkew is by how much the clocks of two instances, or one clock before and after
	// a start, may differ.
	maxSkew = 10 * time.Minute
)

// Section is a part of a file.
type Section struct {
	Name    string // 4 octets
	Content []byte // a part of the file
}

// File is what was read from a file.
type File struct {
	SavedAt  time.Time
	Sections []Section

	sum [sha256.Size]byte
}

// maxAge bounds File.Age, so that sums do not overflow.
const maxAge = 10 * 365 * 24 * time.Hour

// Age returns how long ago the file was saved, ten years at most.
func (f *File) Age(now time.Time) time.Duration { return min(max(0, now.Sub(f.SavedAt)), maxAge) }

// Parse reads a file. The error says why it cannot be used: it is no snapshot, it has
// another version, it is damaged, too large, or from the future.
func Parse(data []byte, now time.Time) (*File, error) {
	switch {
	case len(data) > MaxSize:
		return nil, tooLarge(int64(len(data)))
	case !bytes.HasPrefix(data, []byte(magic)[:min(len(magic), len(data))]):
		return nil, errors.New("it is no snapshot")
	case len(data) < minSize:
		return nil, fmt.Errorf("it is truncated: %d octets", len(data))
	}
	header := data[len(magic):]
	if v := binary.BigEndian.Uint16(header); v != version {
		age := "an older"
		if v > version {
			age = "a newer"
		}
		return nil, fmt.Errorf("it has version %d, %s one than %d", v, age, version)
	}
	if size := binary.BigEndian.Uint32(header[10:]); uint64(size) != uint64(len(data)) {
		return nil, fmt.Errorf("it has %d octets instead of %d", len(data), size)
	}
	body, sum := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if sha256.Sum256(body) != [sha256.Size]byte(sum) {
		return nil, errors.New("it is damaged: its checksum is wrong")
	}
	f := &File{SavedAt: time.UnixMilli(int64(binary.BigEndian.Uint64(header[2:]))), sum: sumOf(data)}
	if ahead := f.SavedAt.Sub(now); ahead > maxSkew {
		return nil, fmt.Errorf("it was saved %s in the future: one of the clocks is wrong", ahead.Round(time.Second))
	}
	for rest := body[headerSize:]; len(rest) > 0; {
		if len(rest) < nameSize+4 {
			return nil, errors.New("it is damaged: a section has no header")
		}
		name, size := string(rest[:nameSize]), binary.BigEndian.Uint32(rest[nameSize:])
		rest = rest[nameSize+4:]
		if uint64(size) > uint64(len(rest)) {
			return nil, fmt.Errorf("it is damaged: the section %q is too long", name)
		}
		f.Sections = append(f.Sections, Section{name, rest[:size:size]})
		rest = rest[size:]
	}
	return f, nil
}

// sumOf returns the checksum that a file has.
func sumOf(data []byte) [sha256.Size]byte { return [sha256.Size]byte(data[len(data)-sha256.Size:]) }

// Size returns about how many octets the file has.
func (f *File) Size() int {
	n := minSize
	for i := range f.Sections {
		n += nameSize + 4 + len(f.Sections[i].Content)
	}
	return n
}

func tooLarge(size int64) error {
	return fmt.Errorf("it has %d octets, more than %d", size, MaxSize)
}

// Writer makes a file.
type Writer struct {
	data    []byte
	section int // where the content of the last section begins; 0: it has ended
}

// NewWriter returns a writer of a file that is saved now, of about so many octets.
func NewWriter(now time.Time, size int) *Writer {
	w := &Writer{data: append(make([]byte, 0, size), magic...)}
	w.data = binary.BigEndian.AppendUint16(w.data, version)
	w.data = binary.BigEndian.AppendUint64(w.data, uint64(now.UnixMilli()))
	w.data = append(w.data, 0, 0, 0, 0)
	return w
}

// Begin begins a section, which goes on until the next one or the end of the file. Its
// name has 4 octets.
func (w *Writer) Begin(name string) {
	w.end()
	w.data = append(append(w.data, name[:nameSize]...), 0, 0, 0, 0)
	w.section = len(w.data)
}

// end writes the size of a section.
func (w *Writer) end() {
	if w.section > 0 {
		binary.BigEndian.PutUint32(w.data[w.section-4:], uint32(len(w.data)-w.section))
	}
}

// Room returns how many octets the last section may still get.
func (w *Writer) Room() int { return MaxSize - len(w.data) - sha256.Size }

// Finish returns the file.
func (w *Writer) Finish() []byte {
	w.end()
	w.section = 0
	binary.BigEndian.PutUint32(w.data[headerSize-4:], uint32(len(w.data)+sha256.Size))
	sum := sha256.Sum256(w.data)
	return append(w.data, sum[:]...)
}
