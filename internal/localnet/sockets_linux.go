package localnet

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Sockets finds the sockets on which this process listens, also those that it did not open
// itself. It remembers which of the machine's listening sockets are this process's: the
// kernel lists those of a port in microseconds, while it takes milliseconds to search all
// open descriptors. The zero value is ready.
type Sockets struct {
	mu     sync.Mutex
	own    map[uint64]listener
	others map[uint64]struct{}

	ports atomic.Pointer[map[uint16]struct{}] // of own
}

// mayHear reports whether a socket of this process listened on a port when the descriptors
// were last searched, or whether they never were. It takes nanoseconds; hearing is
// exact.
func (s *Sockets) mayHear(port uint16) bool {
	ports := s.ports.Load()
	if ports == nil {
		return true
	}
	_, ok := (*ports)[port]
	return ok
}

// maxOthers bounds what is remembered of sockets that are not this process's.
const maxOthers = 4096

// hearing returns the sockets at which a connection to an address of this machine
// may end.
func (s *Sockets) hearing(a netip.AddrPort) ([]uint64, error) {
	ids, err := listening(a.Port())
	if err == nil {
		if list, ok := s.remembered(ids, a); ok {
			return list, nil
		}
	}
	own, err := ownListeners()
	if err != nil {
		return nil, err
	}
	s.remember(own, ids)
	var list []uint64
	for id, l := range own {
		if l.hears(a) {
			list = append(list, id)
		}
	}
	return list, nil
}

// remembered returns the sockets among ids that are this process's and hear an address. If
// one of them is unknown, or the descriptors were not searched yet, ok is false.
func (s *Sockets) remembered(ids []uint64, a netip.AddrPort) (list []uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		return nil, false
	}
	for _, id := range ids {
		l, own := s.own[id]
		if _, other := s.others[id]; !own && !other {
			return nil, false
		}
		if own && l.hears(a) {
			list = append(list, id)
		}
	}
	return list, true
}

// remember stores the sockets of this process, and those among ids that are not.
func (s *Sockets) remember(own map[uint64]listener, ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = own
	ports := make(map[uint16]struct{}, len(own))
	for _, l := range own {
		ports[l.Addr.Port()] = struct{}{}
	}
	s.ports.Store(&ports)
	if s.others == nil || len(s.others) > maxOthers {
		s.others = make(map[uint64]struct{})
	}
	for _, id := range ids {
		if _, ok := own[id]; !ok && id != 0 { // 0: the kernel shows no ID
			s.others[id] = struct{}{}
		}
	}
}

// An inet_diag_req, which is for both families at once, and what is read of an
// inet_diag_msg.
const (
	tcpDiag         = 18 // TCPDIAG_GETSOCK
	diagRequestSize = 60
	diagPort        = 4  // offset of idiag_sport, in network order
	diagStates      = 52 // offset of idiag_states
	diagInode       = 68 // offset of idiag_inode in the reply
)

// listening returns the IDs of all sockets that listen on a port, those of other
// processes too.
func listening(port uint16) (ids []uint64, err error) {
	query := make([]byte, diagRequestSize)
	binary.BigEndian.PutUint16(query[diagPort:], port)
	binary.NativeEndian.PutUint32(query[diagStates:], 1<<unix.BPF_TCP_LISTEN)
	err = ask(unix.NETLINK_SOCK_DIAG, newRequest(tcpDiag, unix.NLM_F_DUMP, query), func(_ uint16, data []byte) {
		if len(data) >= diagInode+4 {
			ids = append(ids, uint64(binary.NativeEndian.Uint32(data[diagInode:])))
		}
	})
	return ids, err
}

// ownListeners finds the listening sockets among the open descriptors.
func ownListeners() (map[uint64]listener, error) {
	end, err := descriptorsEnd()
	if err != nil {
		return nil, err
	}
	own := make(map[uint64]listener)
	for fd := range end {
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 0 {
			continue
		}
		if l, ok := listenerOf(fd); ok {
			own[l.ID] = l
		}
	}
	return own, nil
}

// listenerOf describes a listening socket, if it is one of TCP.
func listenerOf(fd int) (l listener, ok bool) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return l, false
	}
	switch at := name.(type) {
	case *unix.SockaddrInet4:
		l.Addr = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		l.OnlyIPv6 = err == nil && only != 0
		l.Addr = netip.AddrPortFrom(netip.AddrFrom16(at.Addr).Unmap(), uint16(at.Port))
	default:
		return l, false
	}
	l.ID, err = socketID(fd)
	return l, err == nil
}

// socketID returns the number of a socket's inode.
func socketID(fd int) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return 0, err
	}
	return stat.Ino, nil
}

// maxDescriptors is how many descriptors are searched where the kernel does not show how many
// there are.
const maxDescriptors = 1 << 20

// descriptorsEnd returns a number that is greater than all open descriptors.
func descriptorsEnd() (int, error) {
	if n, err := descriptorTableSize(); err == nil {
		return n, nil
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	return int(min(limit.Max, maxDescriptors)), nil
}

// descriptorTableSize returns the size of the process's table of descriptors.
func descriptorTableSize() (int, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if size, ok := strings.CutPrefix(lines.Text(), "FDSize:"); ok {
			return strconv.Atoi(strings.TrimSpace(size))
		}
	}
	return 0, fmt.Errorf("no FDSize in %s", f.Name())
}
