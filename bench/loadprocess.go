package main

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"time"
)

// loadSpec is an open loop that runs in a process of its own, so that what is measured
// is not how busy this one is with nameservers and backends.
type loadSpec struct {
	Address  string
	Rate     int
	Duration time.Duration
	Values   string        // file with values of X-Target
	Zipf     bool          // the n-th of them is sent 1/n times as often as the first
	Timeout  time.Duration // of a request; default: clientTimeout
}

// loadValues is what that file holds.
type loadValues struct {
	Values []string
	Dead   []string // go to one request in a hundred, beside the others, and are not counted
}

// loadVar tells a process that it is one for a loadSpec.
const loadVar = "CADDYTARGET_BENCH_LOAD"

// valuesFile writes a file for a loadSpec.
func (l *lab) valuesFile(values, dead []string) string {
	f, err := os.CreateTemp(l.dir, "values-")
	must(err)
	defer f.Close()
	must(json.NewEncoder(f).Encode(loadValues{values, dead}))
	return f.Name()
}

// run runs the load in a process of its own.
func (s loadSpec) run() *result {
	spec, err := json.Marshal(s)
	must(err)
	self, err := os.Executable()
	must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), loadVar+"="+string(spec))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must(err)
	r := new(result)
	must(json.Unmarshal(out, r))
	return r
}

// here runs the load in this process and prints the result.
func (s loadSpec) here() {
	data, err := os.ReadFile(s.Values)
	must(err)
	var v loadValues
	must(json.Unmarshal(data, &v))
	must(json.NewEncoder(os.Stdout).Encode(s.load(v)))
}

// load sends the requests.
func (s loadSpec) load(v loadValues) *result {
	c := &conns{address: s.Address, limit: floodConns, timeout: s.Timeout}
	defer c.close()
	target := func() string { return v.Values[rand.N(len(v.Values))] }
	if s.Zipf {
		target = func() string { return v.Values[int(math.Pow(float64(len(v.Values)), rand.Float64()))-1] }
	}
	dead := never
	if len(v.Dead) > 0 {
		dead = func() (string, bool) { return v.Dead[rand.N(len(v.Dead))], rand.N(100) == 0 }
	}
	return openLoopBy(c.get, s.Rate, s.Duration, target, dead)
}
