package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeStore is a store in memory.
type fakeStore struct {
	mu           sync.Mutex
	data         []byte
	stamp        Stamp
	saves, loads int
	err          error         // of all calls
	saveErr      error         // of Save
	loadErr      error         // of Load
	saved        func()        // is called after the next Save, which has not returned
	looked       int           // how often for old files
	more         int64         // octets that it adds
	slow         time.Duration // before each call, whatever its context says
}

func (s *fakeStore) call() (unlock func(), err error) {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	time.Sleep(slow)
	s.mu.Lock()
	return s.mu.Unlock, s.err
}

func (s *fakeStore) Stat(context.Context) (Stamp, error) {
	unlock, err := s.call()
	defer unlock()
	if err == nil && s.data == nil {
		err = fs.ErrNotExist
	}
	return s.stamp, err
}

func (s *fakeStore) Load(context.Context) ([]byte, error) {
	unlock, err := s.call()
	defer unlock()
	s.loads++
	return s.data, cmp.Or(err, s.loadErr)
}

func (s *fakeStore) Save(_ context.Context, data []byte) error {
	unlock, err := s.call()
	defer func() {
		saved := s.saved
		s.saved = nil
		unlock()
		if saved != nil {
			saved()
		}
	}()
	if err = cmp.Or(err, s.saveErr); err == nil {
		s.data, s.stamp = data, Stamp{int64(len(data)) + s.more, time.Now()}
		s.saves++
	}
	return err
}

func (s *fakeStore) DeleteOld(_ context.Context, age time.Duration) (int, error) {
	unlock, err := s.call()
	defer unlock()
	if s.looked++; age != keepFor {
		err = errors.New("another age")
	}
	if err != nil {
		return 0, err
	}
	return 2, nil
}

// counts returns how often there was a call that ended.
func (s *fakeStore) counts() (saves, loads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saves, s.loads
}

func (s *fakeStore) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// fakeOwner knows some words.
type fakeOwner struct {
	mu      sync.Mutex
	words   []string
	failed  []string
	deleted int
	changes atomic.Uint64
	lacks   bool // whatever file it is
}

func (o *fakeOwner) learn(words ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, word := range words {
		if !slices.Contains(o.words, word) {
			o.words = append(o.words, word)
		}
	}
	o.changes.Add(1)
}

func (o *fakeOwner) knows() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(slices.Sorted(slices.Values(o.words)), " ")
}

func (o *fakeOwner) failures() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.failed)
}

func (o *fakeOwner) Changes() uint64 { return o.changes.Load() }

func (o *fakeOwner) Deleted(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deleted += n
}

func (o *fakeOwner) Failed(what string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed = append(o.failed, fmt.Sprint(what, ": ", err))
}

func wordsOf(f *File) (words []string) {
	if f == nil {
		return nil
	}
	for _, s := range f.Sections {
		words = append(words, s.Reader().Text(100))
	}
	return words
}

func (o *fakeOwner) Restore(f *File) (int, error) {
	words := wordsOf(f)
	o.learn(words...)
	return len(words), nil
}

func (o *fakeOwner) Snapshot(others *File) (data []byte, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := slices.Concat(o.words, wordsOf(others))
	slices.Sort(all)
	w := NewWriter(time.Now(), 0)
	all = slices.Compact(all)
	for _, word := range all {
		w.Begin("word")
		w.Text(word)
	}
	return w.Finish(), len(all)
}

func (o *fakeOwner) Lacks(f *File) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	there := wordsOf(f)
	return o.lacks || slices.ContainsFunc(o.words, func(word string) bool { return !slices.Contains(there, word) })
}

// start starts a saver until the test ends.
func start(t *testing.T, store Store, words ...string) (*fakeOwner, *Saver) {
	o := new(fakeOwner)
	if len(words) > 0 {
		o.learn(words...)
	}
	s := NewSaver(o, time.Minute)
	s.Use(store)
	t.Cleanup(s.Close)
	s.Begin(nil)
	return o, s
}

func first(a, _ int) int { return a }

func second(_, b int) int { return b }

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// TestSaver: what one owner knows is known to the next one, and nothing is written if
// there is nothing new.
func TestSaver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, s := start(t, store)
		<-s.Loaded()
		time.Sleep(10 * time.Minute)
		want(t, "saves of nothing", first(store.counts()), 0)
		o.learn("a")
		time.Sleep(10 * time.Minute)
		want(t, "saves", first(store.counts()), 1)
		want(t, "loads of what it has saved", second(store.counts()), 0)
		o.learn("b")
		want(t, "error", s.Save(t.Context()), nil)
		want(t, "saves", first(store.counts()), 2)
		next, s := start(t, store)
		<-s.Loaded()
		want(t, "the next one knows", next.knows(), "a b")
		want(t, "failures", slices.Concat(o.failures(), next.failures()), "[]")
	})
}

// TestSeveralSavers: what each of several has saved is known to all after a restart.
func TestSeveralSavers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		for i := range 5 {
			start(t, store, fmt.Sprint("w", i))
		}
		time.Sleep(3 * time.Minute)
		_, s := start(t, store)
		<-s.Loaded()
		o, s := start(t, store)
		<-s.Loaded()
		want(t, "the next one knows", o.knows(), "w0 w1 w2 w3 w4")
	})
}

// knownIn returns what an owner knows that loads what is in a store.
func knownIn(t *testing.T, store Store) string {
	o, s := start(t, store)
	<-s.Loaded()
	s.Close()
	return o.knows()
}

// finalSave is how long the end of a process waits for it.
const finalSave = 5 * time.Second

// TestSavedAtOnce: several processes that save at the same time, as at the end of all of
// them, lose nothing, and it takes none of them long.
func TestSavedAtOnce(t *testing.T) {
	for _, slow := range []time.Duration{0, time.Millisecond, 50 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			store := &fakeStore{slow: slow}
			var owners []*fakeOwner
			var savers []*Saver
			for i := range 5 {
				o, s := start(t, store, "w"+strings.Repeat("w", i)) // files of other sizes
				owners, savers = append(owners, o), append(savers, s)
			}
			time.Sleep(10 * time.Minute) // they know of each other
			want(t, "known", knownIn(t, store), "w ww www wwww wwwww")
			var saving sync.WaitGroup
			for i, o := range owners {
				o.learn(fmt.Sprint("x", i))
				saving.Go(func() {
					began := time.Now()
					want(t, "error", savers[i].Save(t.Context()), nil)
					if took := time.Since(began); took > finalSave {
						t.Errorf("with calls of %v, it took %v to save", slow, took)
					}
					savers[i].Close()
				})
			}
			saving.Wait()
			want(t, "known", knownIn(t, store), "w ww www wwww wwwww x0 x1 x2 x3 x4")
		})
	}
}

// TestSavedByOneThatEnded: what a process has saved that runs no longer is not lost while
// another one goes on, even if this one fails to save now and then.
func TestSavedByOneThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, _ := start(t, store, "a")
		_, ended := start(t, store, "b")
		time.Sleep(2 * time.Minute)
		want(t, "error", ended.Save(t.Context()), nil)
		ended.Close()
		for i := range 5 {
			o.learn(fmt.Sprint("c", i))
			if i == 2 {
				store.set(func() { store.saveErr = errors.New("full") })
			}
			time.Sleep(2 * time.Minute)
			store.set(func() { store.saveErr = nil })
			time.Sleep(2 * time.Minute)
		}
		want(t, "known", knownIn(t, store), "a b c0 c1 c2 c3 c4")
	})
}

// TestIdleSaver: a process with nothing new saves again what another one has lost, and
// otherwise nothing.
func TestIdleSaver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		start(t, store, "a")
		time.Sleep(2 * time.Minute)
		w := NewWriter(time.Now(), 0)
		w.Begin("word")
		w.Text("b")
		want(t, "error", store.Save(t.Context(), w.Finish()), nil)
		time.Sleep(4 * time.Minute)
		want(t, "known", knownIn(t, store), "a b")
		saves, loads := store.counts()
		time.Sleep(10 * time.Minute)
		after, loadsAfter := store.counts()
		want(t, "saves and loads of nothing new", fmt.Sprint(after-saves, loadsAfter-loads), "0 0")
	})
}

// TestOwnFile: a process with nothing new does not save again because its own file lacks
// something, as one that was saved soon after a purge may.
func TestOwnFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, _ := start(t, store, "a")
		_, other := start(t, store, "b")
		time.Sleep(2 * time.Minute)
		other.Close()
		o.mu.Lock()
		o.lacks = true
		o.mu.Unlock()
		o.learn("c")
		time.Sleep(2 * time.Minute)
		saves, _ := store.counts()
		time.Sleep(10 * time.Minute)
		want(t, "saves of nothing new", first(store.counts())-saves, 0)
		want(t, "known", knownIn(t, store), "a b c")
	})
}

// TestFollowingSaver: a saver that follows another one in the process does not take its file
// for that of another process, and loses nothing of what is in it.
func TestFollowingSaver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, before := start(t, store, "a")
		time.Sleep(2 * time.Minute)
		for i := range 3 {
			if i == 1 {
				_, other := start(t, store, "b")
				want(t, "error", other.Save(t.Context()), nil)
				other.Close()
			}
			if i == 2 {
				o.learn("c")
				time.Sleep(2 * time.Minute)
			}
			next := NewSaver(o, time.Minute)
			next.Use(store)
			next.Begin(before)
			before.Close()
			<-next.Loaded()
			o.learn("d")
			time.Sleep(2 * time.Minute)
			want(t, "others are known", next.shared.Load(), i > 0)
			want(t, "known", knownIn(t, store), []string{"a d", "a b d", "a b c d"}[i])
			before = next
		}
		before.Close()
	})
}

// TestUnreadable: a store that can be written but not read is left alone if others save to
// it, which is reported once.
func TestUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, _ := start(t, store, "a")
		_, ended := start(t, store, "b")
		time.Sleep(2 * time.Minute)
		want(t, "error", ended.Save(t.Context()), nil)
		ended.Close()
		o.learn("c")
		time.Sleep(2 * time.Minute)
		store.set(func() { store.loadErr = errors.New("unreadable") })
		for range 5 {
			o.learn("d")
			time.Sleep(2 * time.Minute)
		}
		store.set(func() { store.loadErr = nil })
		want(t, "known", knownIn(t, store), "a b c")
		time.Sleep(2 * time.Minute)
		want(t, "known once it can be read", knownIn(t, store), "a b c d")
		want(t, "failures", o.failures(), "[loading: unreadable]")
	})
}

// TestReplacedAtOnce: a file that takes the place of one that was saved just now, and is as
// large, is seen to be another one.
func TestReplacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fileOf := func(words ...string) []byte {
			o := new(fakeOwner)
			o.learn(words...)
			data, _ := o.Snapshot(nil)
			return data
		}
		store := new(fakeStore)
		o, _ := start(t, store, "a")
		time.Sleep(2 * time.Minute)
		want(t, "error", store.Save(t.Context(), fileOf("b")), nil)
		time.Sleep(2 * time.Minute)
		o.learn("c")
		store.set(func() { store.saved = func() { _ = store.Save(t.Context(), fileOf("a", "b", "d")) } })
		time.Sleep(4 * time.Minute)
		want(t, "known", knownIn(t, store), "a b c d")
	})
}

// TestOtherSizes: a store whose sizes are not those of files, since it encrypts them, is
// not taken for one to which another process saves.
func TestOtherSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{more: 16}
		o, s := start(t, store, "a")
		for i := range 5 {
			o.learn(fmt.Sprint("b", i))
			time.Sleep(2 * time.Minute)
		}
		if saves, loads := store.counts(); loads > saves {
			t.Errorf("%d loads and %d saves, want each file loaded once at most", loads, saves)
		}
		want(t, "others are known", s.shared.Load(), false)
		want(t, "known", knownIn(t, store), "a b0 b1 b2 b3 b4")
	})
}

// TestFailingStore: a store that fails is reported once, until it works again, and does
// not lose what is there.
func TestFailingStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		_, s := start(t, store, "a")
		want(t, "error", s.Save(t.Context()), nil)
		s.Close()
		store.set(func() { store.err = errors.New("gone") })
		o, s := start(t, store, "b")
		<-s.Loaded()
		synctest.Wait()
		want(t, "failures", o.failures(), "[loading: gone]")
		store.set(func() { store.err = nil })
		time.Sleep(3 * time.Minute)
		want(t, "known once it works", o.knows(), "a b")
		store.set(func() { store.err = errors.New("full") })
		for range 10 {
			o.learn("c")
			time.Sleep(2 * time.Minute)
		}
		want(t, "failures", o.failures(), "[loading: gone saving: full]")
		store.set(func() { store.err = nil })
		time.Sleep(2 * time.Minute)
		s.Close()
		o, s = start(t, store)
		<-s.Loaded()
		want(t, "the next one knows", o.knows(), "a b c")
	})
}

// TestSlowStore: a store that does not answer is called once at a time, and holds up
// neither the end nor the start.
func TestSlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{slow: time.Hour}
		o, s := start(t, store, "a")
		time.Sleep(10 * time.Minute)
		select {
		case <-s.Loaded():
		default:
			t.Error("readers still wait for what does not come")
		}
		want(t, "failures", o.failures(), "[loading: the storage does not answer]")
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Save(ctx); err == nil {
			t.Error("saved by a store that does not answer")
		}
		s.Close()
		want(t, "the end took", time.Since(began), time.Second)
		time.Sleep(3 * time.Hour) // until the call ends that was given up
	})
}

// TestUnusableFile: a file that cannot be used is reported and replaced.
func TestUnusableFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{data: []byte("something else"), stamp: Stamp{14, time.Now()}}
		o, s := start(t, store, "a")
		<-s.Loaded()
		time.Sleep(2 * time.Minute)
		want(t, "failures", o.failures(), "[ignoring: it is no snapshot]")
		want(t, "loads", second(store.counts()), 1)
		s.Close()
		store.set(func() { store.stamp.Size = MaxSize + 1 })
		o, s = start(t, store, "b")
		<-s.Loaded()
		want(t, "failures", o.failures(), fmt.Sprintf("[ignoring: it has %d octets, more than %d]", MaxSize+1, MaxSize))
		want(t, "loads of what is too large", second(store.counts()), 1)
	})
}

// TestStatus: what was saved and loaded last, and why it could not be.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, s := start(t, store, "a", "b")
		<-s.Loaded()
		want(t, "status at the start", s.Status(), Status{})
		time.Sleep(2 * time.Minute)
		status := s.Status()
		if saved := status.Saved; saved.N != 2 || saved.Size != len(store.data) || time.Since(saved.At) > 2*time.Minute || saved.From != saved.At {
			t.Errorf("saved %+v", saved)
		}
		store.set(func() { store.err = errors.New("gone") })
		o.learn("c")
		time.Sleep(2 * time.Minute)
		if failed := s.Status(); failed.Saved != status.Saved || fmt.Sprint(failed.Err) != "gone" || time.Since(failed.ErrAt) > 2*time.Minute {
			t.Errorf("after a failure the status is %+v", failed)
		}
		store.set(func() { store.err = nil })
		time.Sleep(2 * time.Minute)
		status = s.Status()
		if status.Saved.N != 3 || status.Err != nil || !status.ErrAt.IsZero() || status.Loaded != (Transfer{}) {
			t.Errorf("after it the status is %+v", status)
		}
		time.Sleep(time.Second)
		_, s = start(t, store)
		<-s.Loaded()
		loaded := s.Status().Loaded
		if loaded.N != 3 || loaded.Size != len(store.data) || !loaded.At.Equal(time.Now()) || loaded.At.Sub(loaded.From) < time.Second {
			t.Errorf("loaded %+v", loaded)
		}
		s.turn <- struct{}{} // while it is busy
		_ = s.Status()
		<-s.turn
		store.set(func() { store.data = []byte("something else") })
		_, s = start(t, store)
		<-s.Loaded()
		want(t, "error of a file that is ignored", s.Status().Err, "it is no snapshot")
	})
}

// TestDeleteOld: it is looked for old files after a file was saved, once a day.
func TestDeleteOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, s := start(t, store)
		looks := func() string {
			store.mu.Lock()
			defer store.mu.Unlock()
			o.mu.Lock()
			defer o.mu.Unlock()
			return fmt.Sprint(store.looked, " ", o.deleted)
		}
		time.Sleep(72 * time.Hour)
		want(t, "looks and files while nothing is saved", looks(), "0 0")
		for range 60 {
			o.learn("a")
			time.Sleep(time.Hour)
		}
		want(t, "looks and files", looks(), "3 6")
		store.set(func() { store.slow = 100 * time.Hour })
		o.learn("b")
		time.Sleep(24 * time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = s.Save(ctx)
		s.Close()
		time.Sleep(300 * time.Hour) // until the call ends that was given up
		want(t, "looks and files", looks(), "3 6")
	})
}

// TestNoStore: without a store there is nothing to wait for; one that comes later is used.
func TestNoStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fakeStore)
		o, s := start(t, nil, "a")
		<-s.Loaded()
		time.Sleep(2 * time.Minute)
		s.Use(store)
		time.Sleep(2 * time.Minute)
		want(t, "saves", first(store.counts()), 1)
		want(t, "failures", o.failures(), "[]")
		never := NewSaver(o, time.Minute)
		never.Close()
		<-never.Loaded()
	})
}
