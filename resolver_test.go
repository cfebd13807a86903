package caddytarget

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFilesAreReadAgain checks that a changed hosts file and resolv.conf take
// effect, and that an unreadable one changes nothing.
func TestFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	hosts, conf := filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
	stamp := time.Now()
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp = stamp.Add(time.Second) // file systems differ in how fine their times are
		if err := os.Chtimes(path, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	write(hosts, "192.0.2.1 a.test # one\n\nnonsense\n192.0.2.9\n")
	write(conf, "nameserver 192.0.2.53\n")
	r, err := Resolver{Hosts: hosts}.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.release() }()
	r.resolvConf = conf

	check := func(addrs, servers string) {
		t.Helper()
		r.checkFiles()
		list, _ := r.local("a.test")
		if got := fmt.Sprint(list); got != addrs {
			t.Errorf("addresses %s, want %s", got, addrs)
		}
		if got := fmt.Sprint(r.client.Nameservers()); got != servers {
			t.Errorf("nameservers %s, want %s", got, servers)
		}
	}
	check("[192.0.2.1]", "[192.0.2.53:53]")
	write(hosts, "192.0.2.2 A.test. b.test\n::ffff:192.0.2.3 a.test\n2001:db8::1 a.test\n")
	write(conf, "nameserver 192.0.2.54\n")
	check("[192.0.2.2 192.0.2.3 2001:db8::1]", "[192.0.2.54:53]")

	// a folder can be looked at but not read
	for _, path := range []string{hosts, conf} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	check("[192.0.2.2 192.0.2.3 2001:db8::1]", "[192.0.2.54:53]")
}

// TestLocal checks the names that are never asked for.
func TestLocal(t *testing.T) {
	for family, want := range map[string]string{
		"auto": "[127.0.0.1 ::1]", "ipv4": "[127.0.0.1]", "ipv6": "[::1]", "prefer_ipv6": "[127.0.0.1 ::1]",
	} {
		r, err := Resolver{Family: family, Hosts: "off", Nameservers: []string{"192.0.2.53"}}.acquire()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"localhost", "a.b.localhost"} {
			if a, err := r.lookup(t.Context(), name); err != nil || fmt.Sprint(a.addrs) != want || a.lookup != "hosts" {
				t.Errorf("%s: %s: %v, %v", family, name, a, err)
			}
		}
		for _, name := range []string{"a.onion", "invalid", "a.invalid"} {
			if a, err := r.lookup(t.Context(), name); err == nil {
				t.Errorf("%s: %v", name, a)
			}
		}
		if err := r.release(); err != nil {
			t.Error(err)
		}
	}
}
