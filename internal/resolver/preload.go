package resolver

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"go.uber.org/zap"
)

// preloadFile is a file of names to preload.
type preloadFile struct {
	file
	names   []string // in normal form
	failure string   // of the last try to read it; empty: it was read
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
	data, stamp, err := f.read()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			f.stamp = fileStamp{}
		}
		if f.failure != err.Error() {
			f.failure = err.Error()
			r.logger().Warn("reading a file of names to preload failed", zap.String("file", f.path), zap.Error(err))
		}
		return false
	}
	f.stamp, f.failure, f.names = stamp, "", nil
	ignored, firstLine, number := 0, 0, 0
	var firstError error
	for line := range strings.Lines(string(data)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		name := strings.TrimSpace(line)
		if name == "" {
			continue
		}
		normal, err := preloadName(name)
		if err != nil {
			if ignored++; ignored == 1 {
				firstLine, firstError = number, err
			}
			continue
		}
		f.names = append(f.names, normal)
	}
	if ignored > 0 {
		r.logger().Warn("lines of a file of names to preload are ignored", zap.String("file", f.path),
			zap.Int("ignored", ignored), zap.Int("first_line", firstLine), zap.Error(firstError))
	}
	return true
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
	for _, f := range r.preloadFiles {
		add(f.names)
	}
	if len(r.preloadFiles) > 0 {
		for suffix, z := range r.named() {
			if n := len(names[z]); n > r.config.CacheSize {
				r.logger().Warn("too many names to preload: the last ones are left out", zap.String("zone", suffix),
					zap.Int("names", n), zap.Int("cache_size", r.config.CacheSize))
			}
		}
	}
	return names
}
