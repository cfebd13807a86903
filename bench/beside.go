package main

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"caddytarget/internal/testlab"
)

// The load of beside, and how many names are known before it begins.
const (
	besideNames = 100_000
	besideRate  = 1500 // requests a second
	besideUsed  = 1000 // names that they are for
)

// beside measures requests while the gateway lists or saves all names that it knows,
// between times in which it does not.
func beside(l *lab) {
	l.names.ttl = 24 * 3600
	b := l.startBackends(fewAddrs, testlab.BackendConfig{})
	window := time.Duration(*seconds) * time.Second
	l.options = fmt.Sprintf("family ipv4\n\t\t\tcache_size %d\n\t\t\tpersist ", besideNames+1000)

	start := func(persist string) (kept *process, g *gatewayRun) {
		options := l.options
		l.options += persist
		g = l.startGateway("")
		l.options, kept, l.process = options, l.process, nil
		url := "http://" + g.address + "/"
		if failed := each(url, besideNames, func(i int) string { return fmt.Sprintf("http://d%d.test:%d", i, b.port) }); failed > 0 {
			fmt.Printf("  %d of %d names could not be looked up\n", failed, besideNames)
		}
		return kept, g
	}
	load := func(g *gatewayRun) *result {
		return openLoop("http://"+g.address+"/", besideRate, window, func() string { return fmt.Sprintf("http://d%d.test:%d", rand.N(besideUsed), b.port) }, never)
	}
	show := func(about string, runs [3][]*result, more string) {
		var p99 [3][]float64
		for i, list := range runs {
			failed, sent := 0, 0
			for _, r := range list {
				p99[i] = append(p99[i], r.quantile(.99).Seconds()*1e3)
				failed, sent = failed+r.Failed, sent+r.Sent
			}
			fmt.Printf("  %-26s p99 %5.2f ms (%.2f to %.2f), %d of %d failed\n", []string{"without", about, "without, once more"}[i],
				median(p99[i]), slices.Min(p99[i]), slices.Max(p99[i]), failed, sent)
		}
		fmt.Printf("  p99 over that without, medians of %d: %.2f, once more %.2f; %s\n", len(p99[0]), median(ratios(p99[1], p99[0])), median(ratios(p99[2], p99[0])), more)
	}

	quiet, without := start("off")
	load(without)
	var runs [3][]*result
	pages, all := 0, 0
	for range *rounds {
		runs[0] = append(runs[0], load(without))
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				n := listNames(without.admin, stop)
				if n == 0 {
					return
				}
				pages, all = pages+n, all+1
			}
		}()
		runs[1] = append(runs[1], load(without))
		close(stop)
		<-ended
		runs[2] = append(runs[2], load(without))
	}
	show("all names being listed", runs, fmt.Sprintf("%d pages, all names %d times", pages, all))

	saving, with := start(fmt.Sprintf("%ds", *seconds))
	load(with)
	runs = [3][]*result{}
	saves := 0
	for range *rounds {
		runs[0] = append(runs[0], load(without))
		before := newest(l.dir)
		runs[1] = append(runs[1], load(with))
		if newest(l.dir).After(before) {
			saves++
		}
		runs[2] = append(runs[2], load(without))
	}
	show("all names being saved", runs, fmt.Sprintf("saved in %d of %d times of %s", saves, *rounds, window))
	for _, p := range []*process{quiet, saving} {
		p.end()
	}
}

// listNames lists all names page by page, and returns how many pages that took; 0 if
// stop was closed meanwhile.
func listNames(admin int, stop <-chan struct{}) (pages int) {
	after := ""
	for {
		select {
		case <-stop:
			return 0
		default:
		}
		res, err := http.Get(fmt.Sprintf("http://%s/target/names?limit=1000&after=%s", address(admin), url.QueryEscape(after)))
		must(err)
		text, err := io.ReadAll(res.Body)
		must(err)
		res.Body.Close()
		pages++
		_, rest, more := strings.Cut(string(text[max(0, len(text)-1000):]), `"next":"`)
		if !more {
			return pages
		}
		after, _, _ = strings.Cut(rest, `"`)
	}
}

// newest returns when the newest file of saved names below a directory was written.
func newest(dir string) (t time.Time) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(path, "/caddytarget/dns/") {
			if info, err := d.Info(); err == nil && info.ModTime().After(t) {
				t = info.ModTime()
			}
		}
		return nil
	})
	return t
}
