package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPictures checks that the files are what is drawn, and that they are XML.
func TestPictures(t *testing.T) {
	for name, draw := range pictures {
		want := draw()
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("docs/%s is not what is drawn: go run ./docs/picture draws it again", name)
		}
		decoder := xml.NewDecoder(strings.NewReader(want))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("docs/%s: %v", name, err)
			}
		}
	}
}
