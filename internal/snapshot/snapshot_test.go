package snapshot

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.UnixMilli(1_800_000_000_000)

// example returns a file with two sections.
func example() []byte {
	w := NewWriter(now, 0)
	w.Begin("abcd")
	w.Uint(300)
	w.Seconds(-1500 * time.Millisecond)
	w.Text("text")
	w.Begin("wxyz")
	w.Octets([]byte{1, 2, 3})
	return w.Finish()
}

func TestFile(t *testing.T) {
	f, err := Parse(example(), now.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if f.Age(now.Add(time.Minute)) != time.Minute || f.Age(now.Add(-time.Minute)) != 0 || len(f.Sections) != 2 {
		t.Errorf("got %+v, want two sections that were saved a minute ago", f)
	}
	r := f.Sections[0].Reader()
	if n, d, s := r.Uint(300), r.Seconds(), r.Text(4); n != 300 || d != -2*time.Second || s != "text" || r.More() || r.Err() != nil {
		t.Errorf("got %d %v %q, %v; want 300 -2s text", n, d, s, r.Err())
	}
	if s := f.Sections[1]; s.Name != "wxyz" || !bytes.Equal(s.Content, []byte{1, 2, 3}) {
		t.Errorf("got %+v, want wxyz with 1 2 3", s)
	}
}

// TestDamagedFile: no part of a file and no file with another octet can be read.
func TestDamagedFile(t *testing.T) {
	data := example()
	for i := range data {
		if _, err := Parse(data[:i], now); err == nil {
			t.Errorf("%d octets of %d: got no error", i, len(data))
		}
		for bit := range 8 {
			damaged := slices.Clone(data)
			damaged[i] ^= 1 << bit
			if _, err := Parse(damaged, now); err == nil {
				t.Errorf("bit %d of octet %d: got no error", bit, i)
			}
		}
	}
	if _, err := Parse(append(data, 0), now); err == nil {
		t.Error("an octet more: got no error")
	}
}

func TestParseErrors(t *testing.T) {
	change := func(at int, to ...byte) []byte {
		data := example()
		copy(data[at:], to)
		sum := sha256.Sum256(data[:len(data)-sha256.Size])
		return append(data[:len(data)-sha256.Size], sum[:]...)
	}
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "truncated: 0 octets"},
		{"other", []byte(strings.Repeat("other", 20)), "no snapshot"},
		{"older", change(9, 0), "version 0, an older one"},
		{"newer", change(9, 2), "version 2, a newer one"},
		{"long section", change(headerSize+4, 0, 0, 1), `the section "abcd" is too long`},
		{"short section", change(headerSize+4, 0, 0, 0, 16), "a section"},
		{"too large", make([]byte, MaxSize+1), "more than"},
	} {
		if _, err := Parse(test.data, now); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := Parse(example(), now.Add(-maxSkew)); err != nil {
		t.Errorf("the clocks differ: %v", err)
	}
	if _, err := Parse(example(), now.Add(-maxSkew-time.Second)); err == nil || !strings.Contains(err.Error(), "in the future") {
		t.Errorf("got %v, want that it is from the future", err)
	}
}

// TestReaderErrors: after an error there are only zero values.
func TestReaderErrors(t *testing.T) {
	for name, read := range map[string]func(r *Reader){
		"a number that is too high": func(r *Reader) { r.Uint(4) },
		"a text that is too long":   func(r *Reader) { r.Text(4) },
		"a text beyond the end":     func(r *Reader) { r.Text(5) },
		"octets beyond the end":     func(r *Reader) { r.Octets(4) },
	} {
		r := (&Section{Content: []byte{5, 1, 1}}).Reader()
		read(r)
		if r.Err() == nil || r.More() || r.Uint(9) != 0 || r.Seconds() != 0 || r.Text(9) != "" || len(r.Octets(1)) != 0 {
			t.Errorf("%s: got %v and values after it", name, r.Err())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example(), false)
	f.Add(example()[:len(example())-sha256.Size], true)
	f.Fuzz(func(t *testing.T, data []byte, sum bool) {
		if sum { // so that it is about what comes after the checksum
			all := sha256.Sum256(data)
			data = append(slices.Clone(data), all[:]...)
		}
		file, err := Parse(data, now)
		if err != nil {
			return
		}
		w := NewWriter(file.SavedAt, 0)
		for _, s := range file.Sections {
			w.Begin(s.Name)
			w.Octets(s.Content)
			r := s.Reader()
			for r.More() {
				r.Text(len(data))
				r.Seconds()
				r.Uint(1 << 63)
			}
		}
		if !bytes.Equal(w.Finish(), data) {
			t.Error("another file has the same sections")
		}
	})
}
