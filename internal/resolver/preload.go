package resolver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"go.uber.org/zap"
)

// preloadFile is a file of names to preload.
type preloadFile struct {
	file
	names   []string      // in normal form, each once, of each zone as many as its cache has room for
	leftOut map[*zone]int // how many more there are
}

// isPreloadFile reports whether an entry of [Config.Preload] is the path of a file: one
// that is absolute or begins with a dot and a slash.
func isPreloadFile(entry string) bool {
	return filepath.IsAbs(entry) || strings.HasPrefix(entry, "./") || strings.HasPrefix(entry, "../")
}

// CheckPreload returns an error unless names can be those of [Config.Preload].
func CheckPreload(names []string) error {
	for _, name := range names {
		if isPreloadFile(name) {
			if err := checkFile(name); err != nil {
				return fmt.Errorf("preload: %w", err)
			}
			continue
		}
		if _, err := preloadName(name); err != nil {
			return fmt.Errorf("preload %q: %w", name, err)
		}
	}
	return nil
}

// preloadName returns a name to preload in normal form.
func preloadName(name string) (string, error) {
	if strings.HasPrefix(name, "_") {
		return "", errors.New("a service cannot be preloaded, only names of hosts")
	}
	return normalName(name)
}

// openPreloadFiles reads the files of Config.Preload for the first time.
func (r *Resolver) openPreloadFiles() {
	for _, entry := range r.config.Preload {
		if isPreloadFile(entry) {
			f := &preloadFile{file: file{path: entry}}
			r.readPreloadFile(f)
			r.preloadFiles = append(r.preloadFiles, f)
		}
	}
}

// readPreloadFile reads a file of names, and reports whether that has worked. If not, the
// names stay as they are.
func (r *Resolver) readPreloadFile(f *preloadFile) bool {
	lines := preloadLines{resolver: r, seen: make(map[string]bool), room: make(map[*zone]int)}
	stamp, err := lines.read(&f.file)
	if errors.Is(err, fs.ErrNotExist) {
		f.stamp = fileStamp{}
	}
	if f.hasFailed(err) {
		r.logger().Warn("reading a file of names to preload failed", zap.String("file", f.path), zap.Error(err))
	}
	if err != nil {
		return false
	}
	f.stamp, f.names, f.leftOut = stamp, lines.names, lines.leftOut
	if lines.ignored > 0 {
		r.logger().Warn("lines of a file of names to preload are ignored", zap.String("file", f.path),
			zap.Int("ignored", lines.ignored), zap.Int("first_line", lines.firstIgnored), zap.Error(lines.firstError))
	}
	return true
}

// preloadLines takes the names from the lines of a file. Of the file it keeps nothing else.
type preloadLines struct {
	resolver *Resolver
	names    []string
	seen     map[string]bool // those of names
	room     map[*zone]int   // how many of each zone there are in names
	leftOut  map[*zone]int   // how many there was no room for

	number       int // of the line
	ignored      int
	firstIgnored int
	firstError   error
}

// maxLine is how many octets a line may have before its comment.
const maxLine = 4096

// read reads a file and returns its stamp.
func (l *preloadLines) read(f *file) (fileStamp, error) {
	opened, stamp, err := f.open()
	if err != nil {
		return stamp, err
	}
	defer opened.Close()
	limited := &io.LimitedReader{R: opened, N: maxFile + 1} // it may grow meanwhile
	in := bufio.NewReaderSize(limited, maxLine)
	for {
		line, isCut, err := in.ReadLine()
		switch {
		case limited.N <= 0:
			return stamp, errTooLarge(f.path)
		case errors.Is(err, io.EOF):
			return stamp, nil
		case err != nil:
			return stamp, err
		}
		l.add(line, isCut)
		for isCut && err == nil {
			_, isCut, err = in.ReadLine()
		}
	}
}

// add takes the name from a line, which may have been cut.
func (l *preloadLines) add(line []byte, isCut bool) {
	l.number++
	before, _, hasComment := strings.Cut(string(line), "#")
	name := strings.TrimSpace(before)
	if name == "" && (hasComment || !isCut) {
		return
	}
	normal, err := preloadName(name)
	if isCut && !hasComment {
		err = errors.New("the line is too long")
	}
	switch {
	case err != nil:
		if l.ignored++; l.ignored == 1 {
			l.firstIgnored, l.firstError = l.number, err
		}
		return
	case l.seen[normal]:
		return
	}
	z := l.resolver.zoneOf(normal)
	if l.room[z] == l.resolver.config.CacheSize {
		if l.leftOut == nil {
			l.leftOut = make(map[*zone]int)
		}
		l.leftOut[z]++
		return
	}
	l.room[z]++
	normal = strings.Clone(normal) // it may be a part of the line
	l.seen[normal] = true
	l.names = append(l.names, normal)
}

// checkPreloadFiles reads the files of names again that have changed.
func (r *Resolver) checkPreloadFiles() {
	changed := false
	for _, f := range r.preloadFiles {
		if f.changed() && r.readPreloadFile(f) {
			changed = true
		}
	}
	if !changed {
		return
	}
	names := r.preloads()
	for z := range r.all {
		z.cache.SetPreload(names[z])
	}
}

// preloads returns the names to preload, by zone: those of the configuration first.
func (r *Resolver) preloads() map[*zone][]string {
	names := make(map[*zone][]string)
	seen := make(map[string]bool)
	add := func(list []string) {
		for _, name := range list {
			if _, ok := r.local(name); ok || seen[name] || isPreloadFile(name) {
				continue
			}
			seen[name] = true
			z := r.zoneOf(name)
			names[z] = append(names[z], name)
		}
	}
	add(r.config.Preload)
	leftOut := make(map[*zone]int)
	for _, f := range r.preloadFiles {
		add(f.names)
		for z, n := range f.leftOut {
			leftOut[z] += n
		}
	}
	if len(r.preloadFiles) > 0 {
		for suffix, z := range r.named() {
			if n := len(names[z]) + leftOut[z]; n > r.config.CacheSize {
				r.logger().Warn("too many names to preload: the last ones are left out", zap.String("zone", suffix),
					zap.Int("names", n), zap.Int("cache_size", r.config.CacheSize))
			}
		}
	}
	return names
}
