//go:build linux

package pool

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"caddytarget/internal/testlab"
)

// fuzzTLS returns the configurations of client and backend.
func fuzzTLS(f *testing.F) (client, backend *tls.Config) {
	ca := testlab.NewAuthority(f)
	cert, err := ca.Issue("backend.example")
	if err != nil {
		f.Fatal(err)
	}
	return &tls.Config{RootCAs: ca.Pool()}, &tls.Config{Certificates: []tls.Certificate{*cert}, DynamicRecordSizingDisabled: true}
}

// held is a connection whose writes are held back while holding is set.
type held struct {
	*memConn
	holding bool
	octets  []byte
}

func (h *held) Write(p []byte) (int, error) {
	if h.holding {
		h.octets = append(h.octets, p...)
		return len(p), nil
	}
	return h.memConn.Write(p)
}

// secured is the first connection of a backend with TLS.
type secured struct {
	*tls.Conn
	held *held
	s    *stage
	part int // of each record that is sent by itself; 0: all of it
	over int // octets that are missing of the last record; 0: none
	raw  []byte
	wire [][]byte // what is sent at the next pause
}

// Write makes a record, which is sent in parts.
func (c *secured) Write(p []byte) (int, error) {
	if !c.held.holding {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p)
	record := c.held.octets
	c.held.octets = nil
	if c.part > 0 && c.part < len(record) {
		c.wire = append(c.wire, record[:c.part])
		record = record[c.part:]
	}
	c.wire = append(c.wire, record)
	return n, err
}

const (
	tlsPart   = 0x3f    // of the flags of TLS: where a record is cut
	tlsOld    = 1 << 6  // TLS 1.2
	tlsRaw    = 1 << 7  // the octets come instead of the handshake
	tlsOver   = 8       // and three more bits: how much the last record lacks
	tlsNoEnd  = 1 << 11 // no close_notify
	tlsTicket = 1 << 12 // no session tickets
	tlsJoin   = 1 << 13 // what is sent before a pause can be read at once
)

// replySecured is reply in records. Then come octets that are no record.
func (s *stage) replySecured(c *secured) {
	groups, _ := s.groups()
	c.held.holding = true
	for i, g := range groups {
		for _, segment := range g.segments {
			if len(segment) > 0 {
				_, _ = c.Write(segment)
			}
		}
		var end error
		if i == len(groups)-1 {
			switch s.end {
			case endClose, endShut:
				if !c.noEnd() {
					_ = c.Conn.CloseWrite()
					c.wire = append(c.wire, c.held.octets)
				}
				end = io.EOF
			case endReset, endLose:
				end = unix.ECONNRESET
			}
			if n := len(c.wire); c.over > 0 && n > 0 {
				last := c.wire[n-1]
				c.wire[n-1] = last[:len(last)-min(c.over, len(last)-1)]
			}
			c.wire = append(c.wire, c.raw)
		}
		if c.s.tlsFlags&tlsJoin != 0 {
			c.wire = [][]byte{slices.Concat(c.wire...)}
		}
		c.held.out.push(end, c.wire...)
		c.wire = nil
		if g.pause > 0 {
			time.Sleep(g.pause)
		}
	}
	c.held.holding, c.held.octets = false, nil
	switch s.end {
	case endClose:
		_ = c.held.Close()
	case endReset, endLose:
		if s.end == endLose {
			c.held.lose()
		}
		_ = c.held.closeWith(unix.ECONNRESET)
	}
}

func (c *secured) noEnd() bool { return c.s.tlsFlags&tlsNoEnd != 0 }

// FuzzResponseTLS is FuzzResponse over TLS: records are cut in parts or incomplete,
// and octets follow that are no record.
func FuzzResponseTLS(f *testing.F) {
	for i, reply := range replies() {
		if len(reply) > 5000 {
			continue
		}
		flags := []uint16{0, 5, 30, tlsOld, tlsOld | 3, 1 << tlsOver, tlsOld | 7<<tlsOver, tlsNoEnd, tlsTicket}[i%9]
		if i%2 == 0 {
			f.Add([]byte(reply), []byte{0x7f, 0x80}, uint16(0), flags, []byte(nil))
		}
		if i%8 == 0 {
			f.Add([]byte(reply), []byte{0x30}, uint16(endClose<<flagEnd), flags, []byte(nil))
		}
		if n := surplusAt(reply); n > 0 {
			cuts := bytes.Repeat([]byte{0x3f}, n/64)
			for _, last := range []byte{0, 0x80} {
				f.Add([]byte(reply), append(bytes.Clone(cuts), byte(n%64-1)|last), uint16(flagPost), flags, []byte(nil))
				f.Add([]byte(reply), append(bytes.Clone(cuts), byte(n%64-1)|last), uint16(0), flags|tlsJoin, []byte(nil))
			}
		}
	}
	clean := []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	for _, raw := range []string{"\x17", "\x17\x03\x03\x00\x20", "\x17\x03\x03\x00\x01x", "\x15\x03\x03\x00\x02\x01\x00", "HTTP/1.1 200 OK\r\n\r\n", "\x16\x03\x03\x00\x00", "\x14\x03\x03\x00\x01\x01"} {
		f.Add(clean, []byte(nil), uint16(0), uint16(0), []byte(raw))
		f.Add(clean, []byte{0x7f}, uint16(flagPost), uint16(tlsOld), []byte(raw))
		f.Add([]byte(raw), []byte{0x80}, uint16(0), uint16(tlsRaw), []byte(nil))
	}
	client, backend := fuzzTLS(f)
	f.Fuzz(func(t *testing.T, octets, cuts []byte, flags, tlsFlags uint16, raw []byte) {
		synctest.Test(t, func(t *testing.T) {
			pl := newPlan(octets, cuts, flags)
			s := newStage(t, pl)
			s.tlsFlags = tlsFlags
			over := int(tlsFlags>>tlsOver) & 7
			if groups, _ := pl.groups(); len(slices.Concat(groups[len(groups)-1].segments...)) == 0 {
				over = 0 // there is no last record
			}
			s.incomplete, s.foreign = over > 0, len(raw) > 0
			if tlsFlags&tlsRaw != 0 {
				s.incomplete, s.unasked = true, false
				s.together = false // see TestMaxPerKeyFailed
			}
			serverConfig := backend.Clone()
			if tlsFlags&tlsOld != 0 {
				serverConfig.MaxVersion = tls.VersionTLS12
			}
			serverConfig.SessionTicketsDisabled = tlsFlags&tlsTicket != 0
			s.serve = func(c net.Conn) {
				if tlsFlags&tlsRaw != 0 {
					_, _ = c.Read(make([]byte, 1))
					s.reply(c, c)
					_, _ = io.Copy(io.Discard, c)
					return
				}
				h := &held{memConn: c.(*memConn)}
				conn := &secured{Conn: tls.Server(h, serverConfig), held: h, s: s, part: int(tlsFlags & tlsPart), over: over, raw: raw}
				if conn.Conn.Handshake() == nil {
					s.follow(conn, h)
				}
			}
			s.later = func(c net.Conn) { s.laterOver(tls.Server(c, serverConfig)) }
			config := fuzzConfig()
			config.TLS = client.Clone()
			config.SessionCache = 10
			key := memKey
			key.ServerName, key.Protocol = "backend.example", TLS
			s.play(config, key)
		})
	})
}
