package caddytarget

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/certmagic"

	"caddytarget/internal/testlab"
)

// redisStorage is a storage in a Redis server, as modules for it do it: one connection for
// all calls, each key a hash of the value and when it was stored, and locks that expire.
type redisStorage struct {
	Socket string `json:"socket,omitempty"`

	mu   sync.Mutex
	conn net.Conn // nil: none is open
	in   *bufio.Reader
}

func init() { caddy.RegisterModule(new(redisStorage)) }

func (*redisStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.test_redis", New: func() caddy.Module { return new(redisStorage) }}
}

func (s *redisStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.Args(&s.Socket) {
		return d.ArgErr()
	}
	return nil
}

func (s *redisStorage) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

// Cleanup implements caddy.CleanerUpper. Those who store later connect again.
func (s *redisStorage) Cleanup() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
	return nil
}

func (s *redisStorage) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// do sends a command and returns the reply: a string, an int64, nil or a list of them.
func (s *redisStorage) do(ctx context.Context, args ...string) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", s.Socket)
		if err != nil {
			return nil, err
		}
		s.conn, s.in = conn, bufio.NewReader(conn)
	}
	deadline, _ := ctx.Deadline()
	_ = s.conn.SetDeadline(deadline)
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	_, err := io.WriteString(s.conn, b.String())
	var reply any
	if err == nil {
		reply, err = readRedis(s.in)
	}
	var refused redisError
	if err != nil && !errors.As(err, &refused) {
		s.close()
	}
	return reply, err
}

// redisError is an error that Redis replied with.
type redisError string

func (e redisError) Error() string { return string(e) }

// readRedis reads a reply.
func readRedis(in *bufio.Reader) (any, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, errors.New("an empty reply")
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+':
		return rest, nil
	case '-':
		return nil, redisError(rest)
	}
	n, err := strconv.ParseInt(rest, 10, 64)
	switch {
	case err != nil || kind == ':':
		return n, err
	case n < 0:
		return nil, nil
	case kind == '$':
		data := make([]byte, n+2)
		_, err := io.ReadFull(in, data)
		return string(data[:n]), err
	case kind != '*':
		return nil, fmt.Errorf("a reply of kind %q", kind)
	}
	list := make([]any, n)
	for i := range list {
		if list[i], err = readRedis(in); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Store implements certmagic.Storage.
func (s *redisStorage) Store(ctx context.Context, key string, value []byte) error {
	_, err := s.do(ctx, "HSET", key, "value", string(value), "modified", strconv.FormatInt(time.Now().UnixNano(), 10))
	return err
}

// Load implements certmagic.Storage.
func (s *redisStorage) Load(ctx context.Context, key string) ([]byte, error) {
	reply, err := s.do(ctx, "HGET", key, "value")
	if value, ok := reply.(string); ok {
		return []byte(value), nil
	}
	return nil, errors.Join(err, fs.ErrNotExist)
}

// Delete implements certmagic.Storage.
func (s *redisStorage) Delete(ctx context.Context, key string) error {
	_, err := s.do(ctx, "DEL", key)
	return err
}

// Exists implements certmagic.Storage.
func (s *redisStorage) Exists(ctx context.Context, key string) bool {
	n, err := s.do(ctx, "EXISTS", key)
	return err == nil && n == int64(1)
}

// List implements certmagic.Storage.
func (s *redisStorage) List(ctx context.Context, prefix string, _ bool) (keys []string, err error) {
	reply, err := s.do(ctx, "KEYS", strings.TrimSuffix(prefix, "/")+"/*")
	list, _ := reply.([]any)
	for _, key := range list {
		keys = append(keys, fmt.Sprint(key))
	}
	return keys, err
}

// Stat implements certmagic.Storage.
func (s *redisStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	modified, err := s.do(ctx, "HGET", key, "modified")
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	text, ok := modified.(string)
	if !ok {
		return certmagic.KeyInfo{}, fs.ErrNotExist
	}
	size, err := s.do(ctx, "HSTRLEN", key, "value")
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	ns, err := strconv.ParseInt(text, 10, 64)
	n, _ := size.(int64)
	return certmagic.KeyInfo{Key: key, Modified: time.Unix(0, ns), Size: n, IsTerminal: true}, err
}

// redisLock is how long a lock of an instance holds that has died.
const redisLock = 10 * time.Second

// Lock implements certmagic.Locker.
func (s *redisStorage) Lock(ctx context.Context, name string) error {
	for {
		reply, err := s.do(ctx, "SET", "lock."+name, "", "NX", "PX", strconv.FormatInt(redisLock.Milliseconds(), 10))
		if err != nil || reply != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Unlock implements certmagic.Locker.
func (s *redisStorage) Unlock(ctx context.Context, name string) error {
	return s.Delete(ctx, "lock."+name)
}

// startRedis starts a Redis server and returns its socket. It keeps all in memory.
func startRedis(t *testing.T) (socket string) {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		needed(t, "no redis-server: %v", err)
	}
	dir := t.TempDir()
	socket = filepath.Join(dir, "redis.sock")
	cmd := exec.Command(binary, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir)
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("redis-server said:\n%s", output.String())
		}
	})
	s := &redisStorage{Socket: socket}
	testlab.Eventually(t, "Redis answers", func() bool {
		_, err := s.do(t.Context(), "PING")
		return err == nil
	})
	_ = s.Cleanup()
	return socket
}

// Interface guards
var (
	_ certmagic.Storage      = (*redisStorage)(nil)
	_ caddy.StorageConverter = (*redisStorage)(nil)
	_ caddy.CleanerUpper     = (*redisStorage)(nil)
	_ caddyfile.Unmarshaler  = (*redisStorage)(nil)
)
