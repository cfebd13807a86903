package warm

import (
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"

	"caddytarget/internal/dnsname"
	"caddytarget/internal/snapshot"
)

// Part is the targets of the sites of one group, as a section of a file. The section has,
// for each target, the busiest first
//
//	the name of its site, its scheme, its host, its port, its score
//
// and nothing else of the requests.
type Part struct {
	list  *List
	group any
}

// Part returns the part of a group: see Site.Group.
func (l *List) Part(group any) *Part { return &Part{l, group} }

const (
	section = "warm"

	// maxAge is how long ago a list may have been saved that is loaded.
	maxAge = 24 * time.Hour

	maxSaved  = 100_000 // targets
	maxSite   = 1024    // octets of the name of a site
	maxScheme = 16
)

// Section returns the name of the section.
func (p *Part) Section() string { return section }

// Changes returns a number that changes with what is worth saving.
func (p *Part) Changes() uint64 {
	p.list.mu.RLock()
	defer p.list.mu.RUnlock()
	n := p.list.changes << 32
	for _, e := range p.list.entries {
		n += uint64(bits.Len64(e.score.Load()))
	}
	return n
}

// Write writes the section, if there are sites.
func (p *Part) Write(w *snapshot.Writer) {
	l := p.list
	bySite := make(map[string][]*entry)
	targets := make(map[string]int)
	l.mu.RLock()
	for t, e := range l.entries {
		if s := l.sites[t.Site]; s != nil && s.Group == p.group {
			bySite[t.Site] = append(bySite[t.Site], e)
			targets[t.Site] = s.Targets
		}
	}
	l.mu.RUnlock()
	if len(bySite) == 0 {
		return
	}
	w.Begin(section)
	written := 0
	for name, list := range bySite {
		if len(name) > maxSite {
			continue
		}
		for _, e := range busiest(list, targets[name]) {
			const larger = maxSite + maxScheme + dnsname.MaxLen + 64 // than one
			if written++; written > maxSaved || w.Room() < larger {
				return
			}
			w.Text(name)
			w.Text(e.target.Scheme)
			w.Text(e.target.Host)
			w.Uint(uint64(e.target.Port))
			w.Uint(e.score.Load())
		}
	}
}

// saved is a target that was read.
type saved struct {
	Target
	score uint64
}

// Read takes over the targets of a section that was written age ago. Each of them counts as
// called just now, unless the section is too old.
func (p *Part) Read(s *snapshot.Section, age time.Duration) error {
	var all []saved
	for r := s.Reader(); r.More() || r.Err() != nil; {
		var t saved
		t.Site, t.Scheme, t.Host = r.Text(maxSite), r.Text(maxScheme), r.Text(dnsname.MaxLen)
		t.Port, t.score = uint16(r.Uint(math.MaxUint16)), r.Uint(math.MaxUint64)
		if !isPlain(t.Scheme) || !isPlain(t.Host) || len(all) == maxSaved {
			r.Fail()
		}
		if err := r.Err(); err != nil {
			return err
		}
		all = append(all, t)
	}
	if age < maxAge {
		p.list.restore(all, p.group)
	}
	return nil
}

// isPlain reports whether a text may be a scheme or a host.
func isPlain(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("/?#@\\%", c) })
}

// restore adds targets that a group has saved. If the sites are not known yet, Use removes
// those that are not theirs.
func (l *List) restore(all []saved, group any) {
	now := l.now().UnixNano()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range slices.Backward(all) { // of two that are the same the first one counts
		if l.sites != nil && (l.sites[t.Site] == nil || l.sites[t.Site].Group != group) {
			continue
		}
		e := l.entries[t.Target]
		if e == nil {
			e = &entry{target: t.Target}
			if e.cold.Store(true); l.sites == nil {
				e.restored = group
			}
			l.entries[t.Target] = e
			l.counts[t.Site]++
		}
		e.score.Store(max(e.score.Load(), t.score))
		e.used.Store(now)
	}
	l.changes++
}
