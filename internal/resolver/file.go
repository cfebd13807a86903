package resolver

import (
	"fmt"
	"io"
	"os"
	"time"
)

// fileCheckInterval is how often it is checked whether the files have changed.
const fileCheckInterval = 5 * time.Second

// file is a file that is read again when it changes.
type file struct {
	path    string
	stamp   fileStamp // of what was read
	failure string    // of the last try to read it; empty: it was read
}

// maxFile is how many octets a file may have.
const maxFile = 64 << 20

// fileStamp is what changes when a file is written or replaced; zero: there is no file.
type fileStamp struct {
	size  int64
	mtime time.Time
}

func stampOf(info os.FileInfo) fileStamp { return fileStamp{info.Size(), info.ModTime()} }

// changed reports whether there is something else to be read than was read.
func (f *file) changed() bool {
	info, err := os.Stat(f.path)
	if err != nil {
		return f.stamp != fileStamp{}
	}
	return stampOf(info) != f.stamp
}

// open opens the file, and returns its stamp, to be kept when what is in it has taken effect.
// The stamp is taken first: a file that is written meanwhile has changed. It does not wait
// for a writer, as for that of a named pipe.
func (f *file) open() (*os.File, fileStamp, error) {
	if err := checkFile(f.path); err != nil { // opening a device may have an effect
		return nil, fileStamp{}, err
	}
	opened, err := os.OpenFile(f.path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, fileStamp{}, err
	}
	info, err := opened.Stat()
	switch {
	case err != nil:
	case !isFile(info):
		err = errNoFile(f.path)
	case info.Size() > maxFile:
		err = errTooLarge(f.path)
	default:
		return opened, stampOf(info), nil
	}
	_ = opened.Close()
	return nil, fileStamp{}, err
}

// read returns what is in the file, and its stamp as open does.
func (f *file) read() ([]byte, fileStamp, error) {
	opened, stamp, err := f.open()
	if err != nil {
		return nil, fileStamp{}, err
	}
	defer opened.Close()
	data, err := io.ReadAll(io.LimitReader(opened, maxFile+1))
	if err == nil && len(data) > maxFile {
		return nil, fileStamp{}, errTooLarge(f.path)
	}
	return data, stamp, err
}

// hasFailed notes how reading the file went. It reports whether that is a failure which the
// try before did not have.
func (f *file) hasFailed(err error) bool {
	before := f.failure
	if f.failure = ""; err != nil {
		f.failure = err.Error()
	}
	return err != nil && f.failure != before
}

// checkFile returns an error if there is something else than a file at a path. That there is
// nothing, or that it is not known what, is none.
func checkFile(path string) error {
	if info, err := os.Stat(path); err == nil && !isFile(info) {
		return errNoFile(path)
	}
	return nil
}

// isFile reports whether something is a regular file, or the null device, which stands for
// an empty one.
func isFile(info os.FileInfo) bool {
	if info.Mode().IsRegular() {
		return true
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && os.SameFile(info, null)
}

func errNoFile(path string) error { return fmt.Errorf("%s is not a regular file", path) }

func errTooLarge(path string) error {
	return fmt.Errorf("%s is larger than %d octets", path, maxFile)
}

// watchFiles reads files again when they change.
func (r *Resolver) watchFiles() {
	ticker := time.NewTicker(fileCheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-ticker.C:
			r.checkFiles()
		}
	}
}

func (r *Resolver) checkFiles() {
	if r.hostsFile.changed() {
		r.readHosts()
	}
	r.checkResolvConf()
	r.checkPreloadFiles()
}
