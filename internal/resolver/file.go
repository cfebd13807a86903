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
	path  string
	stamp fileStamp // of what was read
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

// read returns what is in the file, and its stamp, to be kept when it has taken
// effect. The stamp is taken first: a file that is written meanwhile has changed.
func (f *file) read() ([]byte, fileStamp, error) {
	opened, err := os.Open(f.path)
	if err != nil {
		return nil, fileStamp{}, err
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return nil, fileStamp{}, err
	}
	data, err := io.ReadAll(io.LimitReader(opened, maxFile+1))
	if err == nil && len(data) > maxFile {
		return nil, fileStamp{}, fmt.Errorf("%s is larger than %d octets", f.path, maxFile)
	}
	return data, stampOf(info), err
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
