package trace

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	// MaxListeners is how many may listen to a Hub at a time.
	MaxListeners = 8

	// buffered is how many events wait for a listener before some are dropped.
	buffered = 256
)

var (
	// ErrTooMany is returned to a listener beyond MaxListeners.
	ErrTooMany = errors.New("too many listeners")

	// ErrClosed is returned by a Hub that was closed.
	ErrClosed = errors.New("closed")
)

// Hub passes events to listeners. It is safe for concurrent use. The zero value is ready
// to use.
type Hub struct {
	listeners atomic.Pointer[[]*Listener] // never changed, but replaced; nil: there is none

	mu     sync.Mutex // held to replace listeners
	closed bool
}

// Listener gets the events of a Hub until it is closed.
type Listener struct {
	hub     *Hub
	filter  Filter
	events  chan *Event
	dropped atomic.Uint64
	ended   chan struct{}
	once    sync.Once
}

// Filter chooses events by the hosts of their targets. The zero value chooses all.
type Filter struct {
	Host  string // this host, or with Below those below it
	Below bool
}

func (f *Filter) matches(e *Event) bool {
	if f.Host == "" {
		return true
	}
	return slices.ContainsFunc(e.hosts, func(host string) bool {
		if !f.Below {
			return host == f.Host
		}
		rest, ok := strings.CutSuffix(host, f.Host)
		return ok && len(rest) > 1 && strings.HasSuffix(rest, ".")
	})
}

// Listening reports whether there is a listener, at the cost of one atomic load.
func (h *Hub) Listening() bool { return h.listeners.Load() != nil }

// Listen adds a listener, which has to be closed. The error is ErrTooMany or ErrClosed.
func (h *Hub) Listen(f Filter) (*Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.list()
	switch {
	case h.closed:
		return nil, ErrClosed
	case len(list) >= MaxListeners:
		return nil, ErrTooMany
	}
	l := &Listener{hub: h, filter: f, events: make(chan *Event, buffered), ended: make(chan struct{})}
	list = append(slices.Clone(list), l)
	h.listeners.Store(&list)
	return l, nil
}

// list returns the listeners; the slice must not be written to.
func (h *Hub) list() []*Listener {
	if list := h.listeners.Load(); list != nil {
		return *list
	}
	return nil
}

// Publish passes an event to the listeners whose filters choose it. It waits for none of
// them. The event must not be changed any more.
func (h *Hub) Publish(e *Event) {
	for _, l := range h.list() {
		if !l.filter.matches(e) {
			continue
		}
		select {
		case l.events <- e:
		default:
			l.dropped.Add(1)
		}
	}
}

// Disconnect ends all listeners. Others may come.
func (h *Hub) Disconnect() {
	for _, l := range h.list() {
		l.Close()
	}
}

// Close ends all listeners. No others may come.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.Disconnect()
}

// Events returns the channel of the listener's events. It is never closed.
func (l *Listener) Events() <-chan *Event { return l.events }

// Dropped returns how many events the listener was too slow for.
func (l *Listener) Dropped() uint64 { return l.dropped.Load() }

// Ended returns a channel that is closed when the listener is.
func (l *Listener) Ended() <-chan struct{} { return l.ended }

// Close ends the listener. It may be called more than once.
func (l *Listener) Close() {
	l.once.Do(func() {
		h := l.hub
		h.mu.Lock()
		defer h.mu.Unlock()
		list := slices.DeleteFunc(slices.Clone(h.list()), func(other *Listener) bool { return other == l })
		if len(list) == 0 {
			h.listeners.Store(nil)
		} else {
			h.listeners.Store(&list)
		}
		close(l.ended)
	})
}
