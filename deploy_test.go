package caddytarget

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"caddytarget/internal/command"
	"caddytarget/internal/testlab"
)

// The files that deploy caddytarget name versions, ports and paths that stand elsewhere.

func readFile(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// find returns what the group of a pattern matches in a text.
func find(t *testing.T, file, text, pattern string) string {
	t.Helper()
	parts := regexp.MustCompile(`(?m)` + pattern).FindStringSubmatch(text)
	if parts == nil {
		t.Fatalf("%s has nothing like %s", file, pattern)
	}
	return parts[1]
}

// TestDeployFiles checks that they agree with each other and with the code.
func TestDeployFiles(t *testing.T) {
	caddyfile, gomod := readFile(t, "deploy/Caddyfile"), readFile(t, "go.mod")
	has := func(file string, parts ...string) {
		t.Helper()
		text := readFile(t, file)
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s does not have %q", file, part)
			}
		}
	}
	goVersion := find(t, "go.mod", gomod, `^go (\d+\.\d+)`)
	caddyVersion := find(t, "go.mod", gomod, `^\tgithub.com/caddyserver/caddy/v2 (v\S+)`)
	site := find(t, "deploy/Caddyfile", caddyfile, `(?s)^http://:(\d+) \{[^}]*\blog\b`)
	health := find(t, "deploy/Caddyfile", caddyfile, `^http://:(\d+) \{\n\trespond /healthz 200\n\tmetrics /metrics`)

	var build struct {
		CaddyVersion string `json:"caddy_version"`
	}
	if err := json.Unmarshal([]byte(readFile(t, "xcaddy.json")), &build); err != nil {
		t.Fatal(err)
	}
	is(t, "version of Caddy in xcaddy.json", build.CaddyVersion, caddyVersion)
	has("docs/versions.md", "| Caddy | "+caddyVersion+" |", "| Go | "+goVersion+" |", caddyVersion+" is also the oldest")
	has("README.md", "xcaddy build "+caddyVersion, "Go "+goVersion)
	has("CONTRIBUTING.md", "You need Go "+goVersion+".")
	has(".github/workflows/ci.yml", "go-version-file: go.mod", " .ci/run\n", "docker build -f deploy/Dockerfile", "localhost:"+health+"/healthz",
		"https://169.254.169.254/' http://localhost:"+site+"/)")
	has("deploy/Dockerfile", "FROM golang:"+goVersion+" AS build\n", "RUN CGO_ENABLED=0 go run ./build\n", "EXPOSE "+site+" "+health+"\n",
		"COPY --from=build /src/deploy/Caddyfile /etc/caddy/Caddyfile\n", `CMD ["run", "--config", "/etc/caddy/Caddyfile"]`)
	has("deploy/caddytarget.service", "ExecStart=/usr/bin/caddy run --config /etc/caddy/Caddyfile\n", "AF_NETLINK", "deploy/Caddyfile /etc/caddy/Caddyfile")

	user := find(t, "deploy/Dockerfile", readFile(t, "deploy/Dockerfile"), `^USER ([1-9]\d*):`)
	manifest := readFile(t, "deploy/kubernetes.yaml")
	has("deploy/kubernetes.yaml", "runAsNonRoot: true", "runAsUser: "+user+"\n", "containerPort: "+site+"\n", "containerPort: "+health+"\n",
		`prometheus.io/port: "`+health+`"`, "port: "+site+"\n", "mountPath: /etc/caddy\n")
	has("deploy/kubernetes.yaml", "startupProbe:\n            exec:\n              command: [/usr/bin/caddy, target, ready]\n")
	for _, probe := range []string{"readinessProbe", "livenessProbe"} {
		is(t, probe, find(t, "deploy/kubernetes.yaml", manifest, probe+`:\n +httpGet:\n +path: (\S+)\n +port: health`), "/healthz")
	}
	_, config, _ := strings.Cut(manifest, "  Caddyfile: |\n")
	config, _, _ = strings.Cut(config, "---\n")
	is(t, "the Caddyfile in deploy/kubernetes.yaml", regexp.MustCompile(`(?m)^ {4}`).ReplaceAllString(config, ""), caddyfile)

	// what stops a server has to leave it the time that the Caddyfile says
	grace := find(t, "deploy/Caddyfile", caddyfile, `^\tgrace_period (\d+)s`)
	is(t, "grace_period", grace, "20")
	has("deploy/caddytarget.service", "TimeoutStopSec=30s\n")
	has("deploy/kubernetes.yaml", "terminationGracePeriodSeconds: 40\n")
}

// TestDeployRuns checks what deploy/Caddyfile serves, and the health check of the image.
func TestDeployRuns(t *testing.T) {
	w := newAdminWorld(t)
	w.dns.Has("www.example", "127.0.0.1")
	w.dns.Has("private.example", "10.1.2.3")
	backend := testlab.NewBackend(t, testlab.BackendConfig{CA: w.ca})
	health := testlab.FreePort(t)
	d := runDocumented(t, "deploy/Caddyfile", w,
		swap{"admin localhost:2019", ""},
		swap{"grace_period 20s", ""},
		swap{"metrics_targets", "metrics_targets\nresolver " + w.nameserver() + "\n}"},
		swap{"http://:8080", "http://:" + w.port},
		swap{"http://:8081", "http://:" + health},
		swap{"format filter {\n\t\t\trequest>headers delete\n\t\t}", "output file LOGFILE\nformat filter {\n\t\t\trequest>headers delete\n\t\t}"},
		swap{"ports 443", "ports 443 " + backend.Port + "\n" + w.trust()},
		swap{"timeout 30s", "timeout 1m"},
	)
	target := "https://www.example:" + backend.Port + "/x?key=secret"
	seen := d.send(200, "GET", "/", "", header("X-Target", target)).seen
	is(t, "path", seen.URI, "/x?key=secret")
	d.logs("target", "www.example:"+backend.Port, "failure", "", "reused", false)
	d.send(200, "GET", "/", "", header("X-Target", target))
	d.logs("target", "www.example:"+backend.Port, "failure", "", "reused", true)
	if strings.Contains(readFile(t, d.logFile), "secret") {
		t.Error("the log has the key of a target")
	}
	is(t, "body", d.send(403, "GET", "/", "", header("X-Target", "https://private.example/")).body, "403 destination_ip_prohibited")
	is(t, "body", d.send(403, "GET", "/", "", header("X-Target", "http://www.example/")).body, "403 http_request_denied")
	d.send(403, "GET", "/", "", header("X-Target", "https://169.254.169.254/"))

	// the health check of deploy/Dockerfile, here with the address of the admin API
	dockerfile := readFile(t, "deploy/Dockerfile")
	var check []string
	if err := json.Unmarshal([]byte(find(t, "deploy/Dockerfile", dockerfile, `^HEALTHCHECK .* CMD (\[.*\])$`)), &check); err != nil {
		t.Fatal(err)
	}
	is(t, "program", strings.Join(check[:2], " "), "/usr/bin/caddy target")
	status, _, errors := caddyTarget(t, append(check[2:], "--address", w.admin)...)
	if status != 0 {
		t.Errorf("got exit status %d of the health check, want 0: %s", status, errors)
	}
	status, _, _ = caddyTarget(t, append(check[2:], "--address", "127.0.0.1:"+testlab.FreePort(t))...)
	is(t, "exit status of the health check without a server", status, command.ExitNoServer)

	w.port = health
	d.send(200, "GET", "/healthz", "")
	metrics := d.send(200, "GET", "/metrics", "").body
	is(t, "metrics", strings.Contains(metrics, "caddy_target_"), true)
}
