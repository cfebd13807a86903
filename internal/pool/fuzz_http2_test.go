//go:build linux

package pool

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"caddytarget/internal/health"
)

// frames makes frames of HTTP/2 out of fuzzed octets.
type frames struct {
	fr      *http2.Framer
	buf     *bytes.Buffer
	program []byte
	block   bytes.Buffer
	enc     *hpack.Encoder
	data    map[uint32][]byte // all that was sent as DATA of a stream
	raw     bool              // there is more
}

func newFrames(program []byte) *frames {
	f := &frames{buf: new(bytes.Buffer), program: program, data: make(map[uint32][]byte)}
	f.fr = http2.NewFramer(f.buf, nil)
	f.fr.AllowIllegalWrites = true
	f.enc = hpack.NewEncoder(&f.block)
	return f
}

// next returns an octet of the program.
func (f *frames) next() byte {
	if len(f.program) == 0 {
		return 0
	}
	b := f.program[0]
	f.program = f.program[1:]
	return b
}

func (f *frames) stream() uint32 {
	return []uint32{1, 3, 0, 2, 5, 1, 1, 1<<31 - 1}[f.next()&7]
}

func (f *frames) number() uint32 {
	return []uint32{0, 1, 2, 100, 16384, 65535, 1 << 20, 1<<31 - 1}[f.next()&7]
}

func (f *frames) octets() []byte {
	n := min(int(f.next()), len(f.program))
	b := f.program[:n]
	f.program = f.program[n:]
	return b
}

// header returns a block of fields. None of them is kept in the table, so that
// what comes later does not depend on it.
func (f *frames) header() []byte {
	f.block.Reset()
	field := func(name, value string) {
		_ = f.enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true})
	}
	b := f.next()
	if status := []string{"200", "204", "100", "103", "101", "000", "099", "1000", "999", "abc", "", "304", "200", "200", "-1"}; int(b&15) < len(status) {
		field(":status", status[b&15])
	}
	for range b >> 4 & 3 {
		switch c := f.next(); c & 15 {
		case 0:
			field("content-length", "5")
		case 1:
			field("content-length", "0")
		case 2:
			field(":status", "201")
		case 3:
			field("connection", "close")
		case 4:
			field("transfer-encoding", "chunked")
		case 5:
			field("Upper", "x")
		case 6:
			field("x-token", "/second")
		case 7:
			field("trailer", "x-t")
		case 8:
			field(string(f.octets()), string(f.octets()))
		case 9:
			for range 1001 {
				field("a", "b")
			}
		case 10:
			field("x-a", strings.Repeat("a", 300<<10))
		case 11:
			field("content-encoding", "gzip")
		case 12:
			field(":path", "/")
		case 13:
			field("content-length", "-1")
		default:
			field("x-a", "b")
		}
	}
	if b&0x40 != 0 {
		f.block.Write(f.octets()) // of any kind
	}
	return bytes.Clone(f.block.Bytes())
}

// sent reports whether a body may be that of a stream; a request that was refused
// may have got another one.
func (f *frames) sent(body []byte) bool {
	for _, data := range f.data {
		if bytes.HasPrefix(data, body) {
			return true
		}
	}
	return len(body) == 0
}

// frame appends the next frame.
func (f *frames) frame() {
	b := f.next()
	end, whole := b&0x10 != 0, b&0x20 == 0
	switch b & 15 {
	case 0, 1, 2:
		id, block := f.stream(), f.header()
		first := block
		if len(first) > 16384 {
			first = first[:16384]
		}
		rest := block[len(first):]
		_ = f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: whole && len(rest) == 0, PadLength: b >> 6})
		for len(rest) > 0 {
			n := min(len(rest), 16384)
			_ = f.fr.WriteContinuation(id, whole && n == len(rest), rest[:n])
			rest = rest[n:]
		}
	case 3, 4:
		id, p := f.stream(), f.octets()
		f.data[id] = append(f.data[id], p...)
		if b&0x80 != 0 {
			_ = f.fr.WriteDataPadded(id, end, p, make([]byte, b>>6))
		} else {
			_ = f.fr.WriteData(id, end, p)
		}
	case 5:
		_ = f.fr.WriteRSTStream(f.stream(), http2.ErrCode(f.next()&15))
	case 6:
		_ = f.fr.WriteSettings(http2.Setting{ID: http2.SettingID(f.next() & 15), Val: f.number()})
	case 7:
		_ = f.fr.WriteSettingsAck()
	case 8:
		_ = f.fr.WritePing(end, [8]byte{f.next()})
	case 9:
		_ = f.fr.WriteGoAway(f.stream(), http2.ErrCode(f.next()&15), f.octets())
	case 10:
		_ = f.fr.WriteWindowUpdate(f.stream(), f.number())
	case 11:
		_ = f.fr.WritePushPromise(http2.PushPromiseParam{StreamID: f.stream(), PromiseID: f.stream(), BlockFragment: f.header(), EndHeaders: whole})
	case 12:
		_ = f.fr.WriteContinuation(f.stream(), whole, f.header())
	case 13:
		_ = f.fr.WritePriority(f.stream(), http2.PriorityParam{StreamDep: f.stream(), Weight: f.next()})
	case 14:
		id, p := f.stream(), bytes.Repeat([]byte("data "), 1000)
		for range 1 + b>>6 { // much
			f.data[id] = append(f.data[id], p...)
			_ = f.fr.WriteData(id, false, p)
		}
	default:
		kind := http2.FrameType(f.next())
		f.raw = f.raw || kind == http2.FrameData
		_ = f.fr.WriteRawFrame(kind, http2.Flags(f.next()), f.stream(), f.octets())
	}
}

// all returns all frames in segments.
func (f *frames) all() (segments [][]byte) {
	for len(f.program) > 0 && len(segments) < 500 {
		f.buf.Reset()
		f.frame()
		segments = append(segments, bytes.Clone(f.buf.Bytes()))
	}
	return segments
}

const (
	h2Join    = 1 << 3  // all frames are in one segment
	h2Unasked = 1 << 4  // they come before the request
	h2NoHello = 1 << 5  // there are no SETTINGS before them
	h2Pause   = 1 << 6  // there is a pause between them
	h2Body    = 1 << 7  // the request has a body
	h2Drop    = 1 << 8  // the client does not read the response
	h2Cancel  = 1 << 9  // the client goes away
	h2Head    = 1 << 10 // the request is HEAD
)

// answer2 answers requests over HTTP/2 with their path.
func answer2(fr *http2.Framer, w io.Writer) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	out := http2.NewFramer(w, nil)
	for {
		frame, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if !frame.StreamEnded() {
				continue // none of these requests has a body
			}
			path := frame.PseudoValue("path")
			block.Reset()
			for _, field := range []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "x-token", Value: path}} {
				field.Sensitive = true
				_ = enc.WriteField(field)
			}
			_ = out.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.StreamID, BlockFragment: block.Bytes(), EndHeaders: true})
			_ = out.WriteData(frame.StreamID, true, []byte(path))
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = out.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = out.WritePing(true, frame.Data)
			}
		}
	}
}

// reader2 reads the client's preface and returns what reads its frames.
func reader2(c net.Conn) *http2.Framer {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
		return nil
	}
	fr := http2.NewFramer(nil, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return fr
}

func hello2(w io.Writer) { _ = http2.NewFramer(w, nil).WriteSettings() }

// FuzzHTTP2: the same as FuzzResponse over HTTP/2, where a backend may send what
// looks like the response to a request that has not come yet.
func FuzzHTTP2(f *testing.F) {
	log.SetOutput(io.Discard) // net/http says what it has against a backend
	f.Cleanup(func() { log.SetOutput(os.Stderr) })
	n := 0
	ok := "\x00\x00\x00"        // HEADERS of the first stream, 200
	done := "\x13\x00\x05hello" // DATA and the end of it
	for _, program := range []string{
		"", ok + done, "\x10\x00\x00", ok, ok + "\x03\x00\x05hello",
		"\x00\x00\x02" + ok + done, "\x00\x00\x03" + ok + done, "\x00\x00\x04" + ok + done, "\x10\x00\x05", "\x10\x00\x06", "\x10\x00\x07", "\x10\x00\x09", "\x10\x00\x0a", "\x10\x00\x0e", "\x10\x00\x0f",
		strings.Repeat("\x00\x00\x03", 120) + ok + done,
		ok + done + "\x00\x01\x10\x06\x13\x01\x04evil", "\x00\x01\x10\x06\x13\x01\x04evil" + ok + done, ok + done + ok + "\x13\x00\x04evil", ok + done + "\x00\x03\x00\x13\x03\x04evil",
		"\x05\x00\x07", "\x05\x00\x00", ok + "\x05\x00\x00", ok + done + "\x05\x00\x08", "\x09\x00\x00\x00", "\x09\x02\x00\x00", ok + "\x09\x00\x00\x00" + done, ok + done + "\x09\x00\x00\x00",
		"\x06\x03\x00" + ok + done, "\x06\x04\x07" + ok + done, "\x06\x05\x00", "\x06\x01\x00" + ok + done, "\x06\x02\x01" + ok + done, "\x06\x08\x01" + ok + done,
		"\x08\x01" + ok + done, strings.Repeat("\x08\x01", 200) + ok + done, "\x0a\x00\x00", "\x0a\x02\x00", "\x0a\x02\x07" + ok + done, "\x0a\x00\x07" + ok + done, "\x0b\x00\x03\x00" + ok + done,
		"\x20\x00\x00\x0c\x00\x0f" + done, "\x20\x00\x00" + done, "\x0d\x00\x00\x01" + ok + done, "\x0e\x00", ok + "\xce\x00\xce\x00\xce\x00" + done,
		"\x00\x00\x10\x00" + done, "\x00\x00\x10\x00\x13\x00\x06hello!", "\x10\x00\x10\x00", "\x00\x00\x10\x01" + done, "\x00\x00\x10\x09" + done, "\x00\x00\x10\x0a" + done, "\x00\x00\x10\x05" + done,
		"\x00\x00\x10\x03" + done, "\x00\x00\x10\x04" + done, "\x00\x00\x10\x0b" + done, "\x00\x00\x20\x00\x0d" + done, "\x00\x00\x10\x07\x03\x00\x05hello\x10\x00\x1f\x0e", ok + "\x03\x00\x05hello\x10\x00\x10\x06",
		"\x0f\x00\x00\x00\x09whatever!", "\x0f\xfe\x00\x00\x00" + ok + done, "\x0f\x01\x05\x00\x03\xff\xff\xff", "\x00\x00\x40\x04\xff\xff\xff\x7f", "\x83\x00\x05hello" + ok, ok + "\xd3\x00\x05hello",
	} {
		for _, flags := range []uint16{0, h2Join, h2Unasked, endClose, h2Pause | endReset, h2Body, h2Drop | endShut, h2Cancel | h2Pause, h2Head, h2NoHello} {
			if n++; n%3 > 0 {
				f.Add([]byte(program), []byte(nil), flags)
			}
		}
	}
	for _, raw := range []string{"HTTP/1.1 200 OK\r\n\r\n", "\x00\x00\x00\x04\x00\x00\x00\x00", "\xff\xff\xff\x00\x00\x00\x00\x00\x01", "\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88"} {
		f.Add([]byte(nil), []byte(raw), uint16(0))
		f.Add([]byte(ok+done), []byte(raw), uint16(h2Join))
		f.Add([]byte(nil), []byte(raw), uint16(h2NoHello|endClose))
	}
	f.Fuzz(func(t *testing.T, program, raw []byte, flags uint16) {
		synctest.Test(t, func(t *testing.T) { play2(t, program[:min(len(program), maxFuzz)], raw, flags) })
	})
}

// replyHTTP2 returns what serves the first connection: it sends the segments and then raw.
func (s *stage) replyHTTP2(segments [][]byte, raw []byte, is func(flag uint16) bool) func(net.Conn) {
	return func(c net.Conn) {
		in := reader2(c)
		if in == nil {
			return
		}
		out := c.(*memConn).out
		if !is(h2NoHello) {
			hello2(c)
		}
		for !is(h2Unasked) { // until the request has come
			frame, err := in.ReadFrame()
			if err != nil {
				return
			}
			if f, ok := frame.(*http2.SettingsFrame); ok && !f.IsAck() && !is(h2NoHello) {
				_ = http2.NewFramer(c, nil).WriteSettingsAck()
			}
			if f, ok := frame.(*http2.MetaHeadersFrame); ok && f.StreamEnded() {
				break
			}
			if f, ok := frame.(*http2.DataFrame); ok && f.StreamEnded() {
				break
			}
		}
		switch all := append(segments, raw); {
		case is(h2Join):
			out.push(nil, slices.Concat(all...))
		case is(h2Pause):
			for _, segment := range all {
				out.push(nil, segment)
				time.Sleep(fuzzPause)
			}
		default:
			out.push(nil, all...)
		}
		switch s.end {
		case endClose, endShut:
			out.push(io.EOF)
		case endReset, endLose:
			_ = c.(*memConn).closeWith(unix.ECONNRESET)
		}
		s.isSent()
		if s.end == endStay || s.end == endShut {
			answer2(in, c)
		}
	}
}

// play2 plays a program of frames and raw octets.
func play2(t *testing.T, program, raw []byte, flags uint16) {
	is := func(flag uint16) bool { return flags&flag != 0 }
	s := newStage(t, &plan{end: int(flags&7) % ends})
	fr := newFrames(program)
	segments := fr.all()
	pauses := time.Duration(0)
	if is(h2Pause) {
		pauses = time.Duration(len(segments)) * fuzzPause
	}
	s.serve = s.replyHTTP2(segments, raw, is)
	s.later = func(c net.Conn) {
		if in := reader2(c); in != nil {
			hello2(c)
			answer2(in, c)
		}
	}
	p := New(fuzzConfig(), health.New(), NewLimits(0, nil))
	p.Dial = s.dial
	key := memKey
	key.Protocol = HTTP2
	order := &Order{Key: key, Target: key.Host, Last: true}

	timeout := 2 * time.Second
	if is(h2Cancel) {
		timeout = fuzzCancel
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	method, body := http.MethodGet, io.Reader(nil)
	switch {
	case is(h2Body):
		method, body = http.MethodPost, strings.NewReader("body")
	case is(h2Head):
		method = http.MethodHead
	}
	req, err := http.NewRequestWithContext(traced1(ctx, t), method, "http://backend.example/first", body)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	res, err := p.RoundTrip(req, order)
	if took := time.Since(start); took > min(timeout, fuzzHeader+pauses+fuzzRead) {
		t.Errorf("RoundTrip took %v, want less: %v", took, err)
	}
	retried := s.n.Load() > 1 // the response may be that of another connection
	if err == nil {
		if res.StatusCode < 100 || res.StatusCode > 999 || res.StatusCode == http.StatusSwitchingProtocols {
			t.Errorf("status %d, want 100 to 999", res.StatusCode)
		}
		if !is(h2Drop) {
			got, err := io.ReadAll(res.Body)
			if took := time.Since(start); took > timeout {
				t.Errorf("reading the body took %v, want less: %v", took, err)
			}
			if len(raw) == 0 && !fr.raw && !retried && !res.Uncompressed && !fr.sent(got) && res.Header.Get("X-Token") != "/first" {
				t.Errorf("body %q, want one that was sent", got)
			}
		}
		_ = res.Body.Close()
	} else if _, ok := err.(*Error); !ok {
		t.Errorf("an error of type %T, want *Error: %v", err, err)
	}
	<-s.sent
	synctest.Wait() // until all was read: it may be for the stream of the next request
	next2(t, p, order, "/second", false)
	next2(t, p, order, "/third", false)
	other := *order
	other.Key.Host = "other.example"
	next2(t, p, &other, "/other", true)
	synctest.Wait()
	p.checkIdle(t)
	p.Close()
	s.wg.Wait()
	time.Sleep(2 * sweepInterval) // the sweeper may have to end by itself
	synctest.Wait()
	p.checkEmpty(t)
}

// next2 sends another request, which may fail unless it must not, but gets no response
// but its own.
func next2(t *testing.T, p *Pool, order *Order, path string, must bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://backend.example"+path, nil)
	start := time.Now()
	res, err := p.RoundTrip(req, order)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("%s took %v, want less", path, took)
	}
	if err != nil {
		if must {
			t.Errorf("%s: %v, want a response", path, err)
		}
		return
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK || res.Header.Get("X-Token") != path || err == nil && string(body) != path || !strings.HasPrefix(path, string(body)) {
		t.Errorf("%s got %q, %q, %q, %v, want its own response", path, res.Status, res.Header, body, err)
	}
}
