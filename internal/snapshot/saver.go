package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Store is a place for one file, which several processes may share. Its methods may take
// long, and need not end with their context. The file of the last one who saved it counts.
type Store interface {
	// Stat returns the size of the file and when it was saved. The error is
	// fs.ErrNotExist if there is none.
	Stat(ctx context.Context) (Stamp, error)
	Load(ctx context.Context) ([]byte, error)
	Save(ctx context.Context, data []byte) error

	// DeleteOld deletes files of other owners that were saved so long before the one of this
	// store, and returns how many.
	DeleteOld(ctx context.Context, age time.Duration) (int, error)
}

// Stamp changes when a file is saved.
type Stamp struct {
	Size     int64
	Modified time.Time
}

// Owner is whose knowledge is saved and loaded.
type Owner interface {
	// Restore takes over what was saved, and returns of how many things.
	Restore(f *File) (n int, err error)

	// Snapshot returns what is to be saved, of so many things. If others is not nil, it is
	// the file that is replaced. It has what other processes know, which should not be lost.
	Snapshot(others *File) (data []byte, n int)

	// Lacks reports whether a file does not have all that Snapshot would return, and has
	// room for it.
	Lacks(f *File) bool

	// Changes returns a number that changes when there is something new to be saved.
	Changes() uint64

	// Deleted is called with how many files of other owners were deleted.
	Deleted(n int)

	// Failed is called with why a file cannot be loaded, is ignored or cannot be saved:
	// once, until it works again.
	Failed(what string, err error)
}

// What fails, for Owner.Failed.
const (
	Loading  = "loading"  // the store cannot be read
	Ignoring = "ignoring" // the file cannot be used
	Saving   = "saving"   // the store cannot be written
)

const (
	// callTimeout is how long one call of a store may take before it has failed.
	callTimeout = time.Minute

	// maxLoads is how often it is tried to load a file before it is overwritten.
	maxLoads = 3

	// keepFor is how long a file is kept that is not saved any more, since no process has its
	// configuration. deleteInterval is how often it is looked for such files at most.
	keepFor        = 30 * 24 * time.Hour
	deleteInterval = 24 * time.Hour

	// maxLooks is how often it is looked at the end whether another process has replaced the
	// file, and minSettle how long before.
	maxLooks  = 10
	minSettle = 100 * time.Millisecond
)

// Saver loads a file once and then saves it now and then. All work is done in the
// background, so that a store that is slow or gone holds up nothing.
//
// Several processes may save to one store without a lock. Each of them reads the file that
// it replaces, once it has seen one there that is not its own, and keeps what it has of
// others. Two that do so at the same time may still lose what one of them has written. That
// one sees it when it saves the next time, or at the end a moment later, and saves again.
type Saver struct {
	owner    Owner
	interval time.Duration
	store    atomic.Pointer[Store]
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
	begin    sync.Once
	loaded   chan struct{} // closed after the first try
	turn     chan struct{} // for one that loads or saves: guards all below

	loads   int // tries that failed
	done    bool
	seen    Stamp
	changes uint64        // when it was last saved
	took    time.Duration // to save it
	calling chan struct{} // for one call of a store, which may have been given up
	failed  string        // what has been reported
	deleted time.Time     // when it was looked for old files

	// For the saver that comes after this one, too.
	sum    atomic.Pointer[[sha256.Size]byte] // of the file that was last saved or loaded
	shared atomic.Bool                       // other processes save to the store, too

	statusMu sync.Mutex
	status   Status
}

// Status is how loading and saving went.
type Status struct {
	Saved, Loaded Transfer // the last ones that worked; zero: there was none

	// Err is why the file could not be loaded, used or saved, the last time it was tried;
	// nil: it could.
	Err   error
	ErrAt time.Time
}

// Transfer is a file that was saved or loaded.
type Transfer struct {
	At   time.Time
	From time.Time // when it was saved
	N    int       // how many things are in it
	Size int       // octets
}

// Status returns how loading and saving went. It does not wait for a store.
func (s *Saver) Status() Status {
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	return s.status
}

func (s *Saver) setStatus(change func(*Status)) {
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	change(&s.status)
}

// NewSaver returns a saver that saves about once in each interval, if there is something
// new.
func NewSaver(owner Owner, interval time.Duration) *Saver {
	s := &Saver{owner: owner, interval: interval, loaded: make(chan struct{}), turn: make(chan struct{}, 1), calling: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Use sets the store; nil: none.
func (s *Saver) Use(store Store) {
	if store == nil {
		s.store.Store(nil)
		return
	}
	s.store.Store(&store)
}

// Begin begins to load the file, and then to save it. If what is in it is known already,
// since the owner took over from the one of another saver, it only saves: then before is
// that saver, and nil otherwise. Begin may be called many times.
func (s *Saver) Begin(before *Saver) {
	s.begin.Do(func() {
		if before != nil {
			s.sum.Store(before.sum.Load())
			s.shared.Store(before.shared.Load())
		}
		if s.store.Load() == nil || before != nil {
			s.done = true
			close(s.loaded)
		}
		s.running.Go(s.run)
	})
}

// Loaded returns a channel that is closed when the file was loaded or cannot be.
func (s *Saver) Loaded() <-chan struct{} { return s.loaded }

// Close ends the saver. It does not save, and does not wait for a store.
func (s *Saver) Close() {
	s.cancel()
	s.begin.Do(func() { close(s.loaded) })
	s.running.Wait()
}

// run loads and saves until the saver is closed.
func (s *Saver) run() {
	select {
	case <-s.loaded:
	default:
		_ = s.exclusively(s.ctx, s.load)
		close(s.loaded)
	}
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(s.interval*9/10 + rand.N(s.interval/5+1)):
			_ = s.exclusively(s.ctx, func(ctx context.Context, store Store) {
				if s.save(ctx, store) {
					s.deleteOld(ctx, store)
				}
			})
		}
	}
}

// exclusively calls f, but not while another call is in progress.
func (s *Saver) exclusively(ctx context.Context, f func(context.Context, Store)) error {
	store := s.store.Load()
	if store == nil {
		return nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	f(ctx, *store)
	return ctx.Err()
}

// errSilent is the error of a call of a store that has not ended.
var errSilent = errors.New("the storage does not answer")

// call calls a store, which may not notice that ctx ends: then it goes on alone, and until
// it ends no other call begins.
func call[T any](ctx context.Context, s *Saver, f func(ctx context.Context) (T, error)) (value T, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errSilent)
	defer cancel()
	select {
	case s.calling <- struct{}{}:
	case <-ctx.Done():
		return value, context.Cause(ctx)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-s.calling }()
		value, err := f(ctx)
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return value, context.Cause(ctx)
	}
}

// load loads the file and hands it to the owner.
func (s *Saver) load(ctx context.Context, store Store) {
	f, what, err := s.read(ctx, store, false)
	n := 0
	if err == nil && f != nil {
		if n, err = s.owner.Restore(f); err != nil {
			what = Ignoring
		}
	}
	if ctx.Err() != nil {
		return
	}
	s.loads++
	if err != nil {
		s.report(what, err)
	} else {
		if f != nil {
			loaded := Transfer{At: time.Now(), From: f.SavedAt, N: n, Size: f.Size()}
			s.setStatus(func(status *Status) { status.Loaded = loaded })
		}
		s.succeeded()
	}
	if f != nil {
		sum := f.sum // without the rest of the file
		s.sum.Store(&sum)
	}
	s.done = err == nil || what == Ignoring || s.loads == maxLoads
}

// read reads the file, unless it is the one that was saved or read last, which is read only
// if again is set. It returns nil if there is none; what says what failed.
func (s *Saver) read(ctx context.Context, store Store, again bool) (f *File, what string, err error) {
	stamp, err := call(ctx, s, store.Stat)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", nil
	case err != nil:
		return nil, Loading, err
	case stamp == s.seen && !again:
		return nil, "", nil
	case stamp.Size > MaxSize:
		s.seen = stamp
		return nil, Ignoring, tooLarge(stamp.Size)
	}
	data, err := call(ctx, s, store.Load)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", nil
	case err != nil:
		return nil, Loading, err
	}
	s.seen = stamp
	if f, err = Parse(data, time.Now()); err != nil {
		return nil, Ignoring, err
	}
	return f, "", nil
}

// Save saves the file at the end, if there is something new. If other processes save to the
// store, too, it looks until none of them has replaced the file for a moment, and saves again
// what one of them has lost. The error is that of ctx.
func (s *Saver) Save(ctx context.Context) error {
	return s.exclusively(ctx, func(ctx context.Context, store Store) {
		s.save(ctx, store)
		last := s.sum.Load()
		for i := 0; i < maxLooks && s.shared.Load(); i++ {
			// longer than it may take those that have read the file before
			settle := minSettle + 2*s.took
			select {
			case <-time.After(settle + rand.N(settle)):
			case <-ctx.Done():
				return
			}
			others, _, _ := s.read(ctx, store, true)
			if others == nil || last != nil && *last == others.sum {
				return
			}
			sum := others.sum
			last = &sum
			if s.owner.Lacks(others) {
				if !s.write(ctx, store, others) {
					return
				}
				last = s.sum.Load()
			}
		}
	})
}

// save saves the file if there is something new, or something is missing in the file of
// another process. It reports whether it did.
func (s *Saver) save(ctx context.Context, store Store) bool {
	if !s.done {
		if s.load(ctx, store); !s.done {
			return false
		}
	}
	// a file that cannot be used was reported before, or is of a process that was started
	// later; it is replaced
	others, what, err := s.read(ctx, store, false)
	if others != nil && !s.isOwn(others) {
		s.shared.Store(true)
	}
	merge := s.shared.Load()
	isNew := s.owner.Changes() != s.changes
	if isNew && merge && others == nil && err == nil {
		others, what, err = s.read(ctx, store, true)
	}
	switch {
	case !isNew && (others == nil || !merge || s.isOwn(others) || !s.owner.Lacks(others)):
		return false
	case merge && what == Loading: // what others know would be lost
		s.reportUnlessEnded(ctx, what, err)
		return false
	case !merge:
		others = nil // it has nothing but what this process knew
	}
	return s.write(ctx, store, others)
}

// isOwn reports whether a file is the one that this saver, or the one before it, has saved or
// loaded last.
func (s *Saver) isOwn(f *File) bool {
	sum := s.sum.Load()
	return sum != nil && *sum == f.sum
}

// write saves the file, and reports whether that has worked.
func (s *Saver) write(ctx context.Context, store Store, others *File) bool {
	began := time.Now()
	changes := s.owner.Changes()
	data, n := s.owner.Snapshot(others)
	_, err := call(ctx, s, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, store.Save(ctx, data)
	})
	if err != nil {
		s.reportUnlessEnded(ctx, Saving, err)
		return false
	}
	s.changes = changes
	sum := sumOf(data)
	s.sum.Store(&sum)
	now := time.Now()
	s.setStatus(func(status *Status) { status.Saved = Transfer{At: now, From: now, N: n, Size: len(data)} })
	s.succeeded()
	s.took = time.Since(began)
	s.seen = Stamp{}
	if s.shared.Load() {
		return true // the stamp may be that of another file by now
	}
	if stamp, err := call(ctx, s, store.Stat); err == nil && stamp.Size == int64(len(data)) {
		s.seen = stamp
	}
	return true
}

// deleteOld deletes files that are not saved any more. If that fails, it is tried again
// later.
func (s *Saver) deleteOld(ctx context.Context, store Store) {
	if !s.deleted.IsZero() && time.Since(s.deleted) < deleteInterval {
		return
	}
	s.deleted = time.Now()
	n, _ := call(ctx, s, func(ctx context.Context) (int, error) { return store.DeleteOld(ctx, keepFor) })
	if n > 0 {
		s.owner.Deleted(n)
	}
}

// reportUnlessEnded reports a failure, unless it is that ctx has ended.
func (s *Saver) reportUnlessEnded(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		s.report(what, err)
	}
}

// report reports a failure, but not that a store that cannot be read cannot be written
// either.
func (s *Saver) report(what string, err error) {
	if s.failed == "" || s.failed == Ignoring && what != Ignoring {
		s.owner.Failed(what, err)
	}
	s.failed = what
	now := time.Now()
	s.setStatus(func(status *Status) { status.Err, status.ErrAt = err, now })
}

// succeeded ends what was reported.
func (s *Saver) succeeded() {
	s.failed = ""
	s.setStatus(func(status *Status) { status.Err, status.ErrAt = nil, time.Time{} })
}
