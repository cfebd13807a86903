package resolver

import (
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"caddytarget/internal/dnscache"
	"caddytarget/internal/dnsclient"
	"caddytarget/internal/dnsname"
	"caddytarget/internal/snapshot"
)

// This file is what is saved of a resolver. The sections of the file are
//
//	zone  the suffix of a zone, the hashes of its nameservers, the names in its cache,
//	      those used last first
//	srch  what names without search domain were found to be short for
//	…     that of a Part
//
// and all durations are counted from the moment when it was saved.
const (
	zoneSection   = "zone"
	searchSection = "srch"

	// maxRecordSize is more than one name of a zone, or one of a search, may take.
	maxRecordSize = 2*maxSavedAddrs*16 + maxSavedServices*(maxTarget+16) + 4*dnsname.MaxLen

	// maxSavedAddrs and maxSavedServices are how many addresses of a type and records of
	// a service one name may have, and maxSavedServers how many nameservers a zone.
	maxSavedAddrs    = 1000
	maxSavedServices = 1000
	maxSavedServers  = 1000

	// maxTarget is how long the text of a service's target may be, each octet of which
	// may be escaped.
	maxTarget = 4 * (dnsname.MaxLen + 1)
)

// serverHash stands for a nameserver, whose text may have a secret in its path. It
// depends on how the nameserver proves who it is, too.
type serverHash [16]byte

// hashOf returns the hash of a nameserver.
func (r *Resolver) hashOf(server dnsclient.Nameserver) serverHash {
	text := server.String()
	if hasCertificate(server) {
		text += "\n" + r.memory.rootsDigest
	}
	sum := sha256.Sum256([]byte(text))
	return serverHash(sum[:])
}

// serversOf returns the hashes of the nameservers of a zone.
func (r *Resolver) serversOf(z *zone) (all []serverHash) {
	for _, server := range z.client.Nameservers() {
		all = append(all, r.hashOf(server))
	}
	return all
}

// identity returns a text that is equal for resolvers whose zones and nameservers are the
// same, however they are asked. It shows nothing of them.
func (r *Resolver) identity() string { return r.memory.identity }

func (r *Resolver) newIdentity() string {
	sum := sha256.New()
	for suffix, z := range r.named() {
		sum.Write([]byte(suffix + "\n"))
		if z == &r.zone && r.config.asksSystem() {
			sum.Write([]byte("system\n"))
			continue
		}
		for _, hash := range r.serversOf(z) {
			sum.Write(hash[:])
		}
		sum.Write([]byte("\n"))
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// While a zone is written, others may use the processor: after so many names there is a
// pause, but not at the end, when time is short.
const (
	pausedAfter = 256
	pause       = time.Millisecond
)

// savedServers returns the hashes that are written of those of the nameservers of a zone.
func savedServers(servers []serverHash) []serverHash {
	return servers[:min(len(servers), maxSavedServers)]
}

// appendZone writes a zone, with the names of others that are not known here. It returns
// how many names it has written.
func (r *Resolver) appendZone(w *snapshot.Writer, suffix string, z *zone, from *others) (n int) {
	w.Begin(zoneSection)
	w.Text(suffix)
	servers := savedServers(r.serversOf(z))
	w.Uint(uint64(len(servers)))
	for _, hash := range servers {
		w.Octets(hash[:])
	}
	most := r.maxNames()
	done := 0
	add := func(record *dnscache.Record) bool {
		if n == most || w.Room() < maxRecordSize {
			return false
		}
		if done++; done%pausedAfter == 0 && !r.memory.ending.Load() {
			time.Sleep(pause)
		}
		if isSavable(record.Name) {
			n++
			appendRecord(w, record)
		}
		return true
	}
	for record := range z.cache.Records() {
		if !add(&record) {
			return n
		}
	}
	for record := range from.of(suffix, servers, most) {
		if r.mayServe(&record) && !z.cache.Has(record.Name, record.Service) && !add(&record) {
			return n
		}
	}
	return n
}

// maxNames returns how many names a zone may have, those to preload included.
func (r *Resolver) maxNames() int {
	return r.config.CacheSize + max(r.config.CacheSize, len(r.config.Preload))
}

// mayServe reports whether a record may serve, at least while asking fails.
func (r *Resolver) mayServe(record *dnscache.Record) bool {
	return max(record.TTL[0], record.TTL[1])+max(r.config.Stale, 0) > 0
}

func sameServers(a, b []serverHash) bool { return isSubset(a, b) && isSubset(b, a) }

// isSubset reports whether b has all of a.
func isSubset(a, b []serverHash) bool {
	return !slices.ContainsFunc(a, func(hash serverHash) bool { return !slices.Contains(b, hash) })
}

// The first number of a record has these bits.
const (
	isService = 1 << iota
	hasFirstTTL
	hasSecondTTL
	recordBits = 1<<iota - 1
)

func appendRecord(w *snapshot.Writer, r *dnscache.Record) {
	bits := uint64(0)
	if r.Service {
		bits |= isService
	}
	for i, ttl := range r.TTL {
		if ttl != 0 {
			bits |= hasFirstTTL << i
		}
	}
	w.Uint(bits)
	w.Text(r.Name)
	w.Seconds(r.Used)
	for i, ttl := range r.TTL {
		if ttl == 0 {
			continue
		}
		w.Seconds(ttl)
		addrs := r.Addrs[i]
		w.Uint(uint64(len(addrs)))
		for _, addr := range addrs {
			w.Octets(addr.AsSlice())
		}
	}
	if !r.Service {
		return
	}
	w.Uint(uint64(len(r.Services)))
	for _, s := range r.Services {
		w.Text(s.Target)
		for _, n := range []uint16{s.Port, s.Priority, s.Weight} {
			w.Uint(uint64(n))
		}
	}
}

// savedZone is a zone that was read from a file.
type savedZone struct {
	suffix  string
	servers []serverHash
	names   snapshot.Reader // at the first one; all of them can be read
}

// records yields the names, most of them at most.
func (z *savedZone) records(most int) iter.Seq[dnscache.Record] {
	return func(yield func(dnscache.Record) bool) {
		r := z.names
		for ; r.More() && most > 0; most-- {
			if !yield(readRecord(&r)) {
				return
			}
		}
	}
}

// readZone reads a section and checks all of it.
func readZone(section *snapshot.Section) (z savedZone, err error) {
	r := section.Reader()
	z.suffix = r.Text(dnsname.MaxLen)
	for range r.Uint(maxSavedServers) {
		hash := r.Octets(len(serverHash{}))
		if r.Err() != nil {
			break
		}
		z.servers = append(z.servers, serverHash(hash))
	}
	for z.names = *r; r.More(); {
		readRecord(r)
	}
	return z, r.Err()
}

func readRecord(r *snapshot.Reader) (record dnscache.Record) {
	bits := r.Uint(recordBits)
	record.Service = bits&isService != 0
	record.Name = readName(r)
	record.Used = max(0, r.Seconds())
	for i := range record.TTL {
		if bits&(hasFirstTTL<<i) == 0 {
			continue
		}
		if record.TTL[i] = r.Seconds(); record.TTL[i] == 0 {
			record.TTL[i] = -1 // less than a second
		}
		size := 4 + 12*i
		for range r.Uint(maxSavedAddrs) {
			addr, ok := netip.AddrFromSlice(r.Octets(size))
			if !ok {
				return record
			}
			record.Addrs[i] = append(record.Addrs[i], addr)
		}
	}
	if !record.Service {
		return record
	}
	for range r.Uint(maxSavedServices) {
		var s net.SRV
		s.Target = r.Text(maxTarget) // as hostile as one that a nameserver gave
		for _, n := range []*uint16{&s.Port, &s.Priority, &s.Weight} {
			*n = uint16(r.Uint(1<<16 - 1))
		}
		if r.Err() != nil {
			return record
		}
		record.Services = append(record.Services, s)
	}
	return record
}

// readName reads a name in normal form.
func readName(r *snapshot.Reader) string {
	name := r.Text(dnsname.MaxLen)
	if !isSavable(name) {
		r.Fail()
	}
	return name
}

// isSavable reports whether a text may be a name in normal form.
func isSavable(name string) bool {
	return name != "" && len(name) <= dnsname.MaxLen &&
		!strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' || 'A' <= c && c <= 'Z' })
}

// savedName is what a name was found to be short for.
type savedName struct {
	name string
	found
}

// writeTo writes what names were found to be short for, with those of others that are not
// known here.
func (s *searchList) writeTo(w *snapshot.Writer, now time.Time, others []savedName) {
	w.Begin(searchSection)
	s.mu.RLock()
	defer s.mu.RUnlock()
	left := maxFound
	add := func(name string, f found) {
		if left == 0 || w.Room() < maxRecordSize || !isSavable(name) || !isSavable(f.name) {
			return
		}
		left--
		w.Text(name)
		w.Text(f.name)
		w.Seconds(max(0, now.Sub(f.at)))
	}
	for name, f := range s.found {
		add(name, f)
	}
	for _, other := range others {
		if _, known := s.found[other.name]; !known {
			add(other.name, other.found)
		}
	}
}

// readSearch reads what names were found to be short for.
func readSearch(section *snapshot.Section, savedAt time.Time) (names []savedName, err error) {
	r := section.Reader()
	for r.More() && len(names) < maxFound {
		n := savedName{name: readName(r), found: found{name: readName(r)}}
		n.at = savedAt.Add(-max(0, r.Seconds()))
		if r.Err() == nil {
			names = append(names, n)
		}
	}
	return names, r.Err()
}

// add adds what names were found to be short for, unless it is known, or the search list
// is another one by now.
func (s *searchList) add(names iter.Seq[savedName]) {
	for n := range names {
		if !slices.Contains(slices.Collect(s.candidates(n.name)), n.found.name) {
			continue
		}
		s.mu.Lock()
		if _, ok := s.found[n.name]; !ok && len(s.found) < maxFound {
			s.found[n.name] = n.found
		}
		s.mu.Unlock()
	}
}
