package guard

import (
	"errors"
	"strconv"
	"testing"
)

func TestCheckPort(t *testing.T) {
	for _, test := range []struct {
		name    string
		ports   []string
		allowed []uint16
		refused []uint16
	}{
		{"any", nil, []uint16{80, 443, 8080, 65535}, []uint16{0}},
		{"listed although bad", []string{"1", "22", "6660-6669"}, []uint16{1, 22, 6667}, []uint16{25, 80}},
		{"one", []string{"443"}, []uint16{443}, []uint16{0, 1, 80, 442, 444, 65535}},
		{"several", []string{"80", "443", "8000-8999"}, []uint16{80, 443, 8000, 8500, 8999}, []uint16{0, 79, 81, 7999, 9000}},
		{"overlapping", []string{"100-200", "150-250", "200"}, []uint16{100, 200, 201, 250}, []uint16{99, 251}},
		{"ends", []string{"1", "65535"}, []uint16{1, 65535}, []uint16{0, 2, 65534}},
		{"all", []string{"1-65535"}, []uint16{1, 65535}, []uint16{0}},
		{"range of one", []string{"443-443"}, []uint16{443}, []uint16{442, 444}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := compile(t, Config{Ports: test.ports})
			for _, p := range test.allowed {
				if err := r.CheckPort(p); err != nil {
					t.Error(err)
				}
			}
			for _, p := range test.refused {
				var refusal *Refusal
				if err := r.CheckPort(p); !errors.As(err, &refusal) {
					t.Errorf("port %d: got %v, want a refusal", p, err)
				} else if want := (Refusal{Kind: KindPort, Value: strconv.Itoa(int(p)), Rule: RulePorts}); *refusal != want {
					t.Errorf("port %d: got %+v, want %+v", p, *refusal, want)
				}
			}
		})
	}
}

// TestBadPorts refuses the ports of other protocols unless they are listed.
func TestBadPorts(t *testing.T) {
	byDefault, all := compile(t, Config{}), compile(t, Config{Ports: []string{"1-65535"}})
	for _, port := range []uint16{1, 21, 22, 25, 53, 110, 143, 465, 587, 993, 2049, 5060, 6000, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080} {
		var refusal *Refusal
		if err := byDefault.CheckPort(port); !errors.As(err, &refusal) || refusal.Rule != RuleBadPort {
			t.Errorf("port %d: %v, want rule %s", port, err, RuleBadPort)
		}
		if err := all.CheckPort(port); err != nil {
			t.Errorf("port %d is listed: %v", port, err)
		}
	}
	bad := 0
	for port := 1; port < 1<<16; port++ {
		if byDefault.CheckPort(uint16(port)) != nil {
			bad++
		}
	}
	if bad != 82 {
		t.Errorf("%d ports are bad, want the 82 of the standard beside 0", bad)
	}
}

func TestCheckScheme(t *testing.T) {
	for _, test := range []struct {
		name    string
		schemes []string
		allowed []string
		refused []string
	}{
		{"default", nil, []string{"http", "https"}, []string{"h2c", "", "HTTP", "ftp", "file", "gopher", "http:", "https "}},
		{"https only", []string{"https"}, []string{"https"}, []string{"http", "h2c", ""}},
		{"h2c only", []string{"h2c"}, []string{"h2c"}, []string{"http", "https"}},
		{"all, some twice", []string{"h2c", "HTTP", "https", "http"}, []string{"http", "https", "h2c"}, []string{"h2", "ws"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := compile(t, Config{Schemes: test.schemes})
			for _, s := range test.allowed {
				if err := r.CheckScheme(s); err != nil {
					t.Error(err)
				}
			}
			for _, s := range test.refused {
				var refusal *Refusal
				if err := r.CheckScheme(s); !errors.As(err, &refusal) {
					t.Errorf("scheme %q: got %v, want a refusal", s, err)
				} else if want := (Refusal{Kind: KindScheme, Value: s, Rule: RuleSchemes}); *refusal != want {
					t.Errorf("scheme %q: got %+v, want %+v", s, *refusal, want)
				}
			}
		})
	}
}

func TestCompileErrors(t *testing.T) {
	for entry, want := range map[string]string{
		"":          `port "" is not a number from 1 to 65535`,
		"0":         `port "0" is not a number from 1 to 65535`,
		"65536":     `port "65536" is not a number from 1 to 65535`,
		"-1":        `port "" is not a number from 1 to 65535`,
		"+80":       `port "+80" is not a number from 1 to 65535`,
		"http":      `port "http" is not a number from 1 to 65535`,
		"80,443":    `port "80,443" is not a number from 1 to 65535`,
		"80-":       `port "" is not a number from 1 to 65535`,
		"0-80":      `port "0" is not a number from 1 to 65535`,
		"80-443-1":  `port "443-1" is not a number from 1 to 65535`,
		"8999-8000": "the range ends before it begins",
	} {
		checkCompileError(t, Config{Ports: []string{"443", entry}}, `ports: entry `+strconv.Quote(entry)+`: `+want)
	}
	for _, entry := range []string{"", "ftp", "h2", "https://", "*"} {
		checkCompileError(t, Config{Schemes: []string{"http", entry}}, `schemes: entry `+strconv.Quote(entry)+`: unknown scheme: want http, https or h2c`)
	}
}

// TestConfigIsCopied changes the configuration after it was compiled.
func TestConfigIsCopied(t *testing.T) {
	c := Config{Allow: []string{"example.com"}, Ports: []string{"443"}}
	r := compile(t, c)
	c.Allow[0], c.Ports[0] = "example.org", "80"
	if r.CheckName("example.com") != nil || r.CheckName("example.org") == nil || r.CheckPort(443) != nil {
		t.Error("the rules follow the configuration")
	}
}
