package dnscache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

const srv = "_http._tcp.x"

var (
	here  = net.SRV{Target: "here", Port: 80, Priority: 1, Weight: 2}
	there = net.SRV{Target: "there", Port: 81, Priority: 1, Weight: 1}
	last  = net.SRV{Target: "a", Port: 82, Priority: 2, Weight: 9}
)

// srv sets the records of a service.
func (f *fake) srv(name string, ttl time.Duration, records ...net.SRV) {
	f.set(name+" SRV", script{srv: records, ttl: ttl})
}

// wantSRV is wantAfter for services: "hit here:80".
func (w world) wantSRV(name string, wait time.Duration, want string) {
	w.Helper()
	start := time.Now()
	if got := w.getSRV(name); got != want {
		w.Errorf("%s: got %q, want %q", name, got, want)
	}
	if took := time.Since(start); took != wait {
		w.Errorf("%s: took %v, want %v", name, took, wait)
	}
	w.sleep(0)
}

func (w world) getSRV(name string) string {
	answer, err := w.LookupSRV(w.Context(), name)
	s := text(Answer{State: answer.State}, nil)
	for _, r := range answer.Records {
		s += fmt.Sprintf(" %s:%d", r.Target, r.Port)
	}
	if err != nil {
		s += " " + err.Error()
	}
	return s
}

// wantAskedSRV compares how often a service was asked for since the last time.
func (w world) wantAskedSRV(name string, want int) {
	w.Helper()
	if got := len(w.fake.questions(name, TypeSRV)); got != want {
		w.Errorf("%s: asked %d times for SRV, want %d", name, got, want)
	}
	w.wantAsked(name, 0, 0)
}

func TestServiceLife(t *testing.T) {
	cfg := Config{MinTTL: 2 * time.Second, MaxTTL: time.Minute, Stale: time.Hour, Refresh: -1}
	run(t, cfg, func(w world) {
		w.fake.set(srv+" SRV", script{srv: []net.SRV{last, there, here, there}, ttl: time.Hour, delay: 20 * time.Millisecond})
		w.wantSRV(srv, 20*time.Millisecond, "miss here:80 there:81 a:82")
		w.wantSRV(srv, 0, "hit here:80 there:81 a:82")
		w.wantAskedSRV(srv, 1)
		w.sleep(time.Minute - 1)
		w.wantSRV(srv, 0, "hit here:80 there:81 a:82")
		w.fake.srv(srv, 0, there)
		w.sleep(1)
		w.wantSRV(srv, 0, "stale here:80 there:81 a:82")
		w.wantSRV(srv, 0, "hit there:81")
		w.wantAskedSRV(srv, 1)
		w.sleep(2 * time.Second)
		w.fake.set(srv+" SRV", script{err: errServfail})
		w.wantSRV(srv, 0, "stale there:81")
		w.wantSRV(srv, 0, "stale there:81")
		w.wantAskedSRV(srv, 1) // the backoff
		w.sleep(2 * time.Minute)
		w.fake.set(srv+" SRV", script{hang: true})
		w.wantSRV(srv, 500*time.Millisecond, "stale there:81")
		w.sleep(time.Hour)
		w.wantSRV(srv, 5*time.Second, "miss context deadline exceeded")
		w.wantSRV(srv, 0, "hit context deadline exceeded")
		w.sleep(time.Minute)
		w.fake.set(srv+" SRV", script{err: nxdomain(20 * time.Second)})
		w.wantSRV(srv, 0, "miss nxdomain")
		w.sleep(20*time.Second - 1)
		w.wantSRV(srv, 0, "hit nxdomain")
		w.sleep(1)
		w.fake.set(srv+" SRV", script{})
		w.wantSRV(srv, 0, "miss no addresses")
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

// A service and a host of one name have nothing to do with each other.
func TestServiceAndHost(t *testing.T) {
	run(t, Config{Size: 2}, func(w world) {
		w.fake.a("x", time.Minute, a)
		w.fake.srv("x", time.Minute, here)
		w.want("x", "miss "+a)
		w.wantSRV("x", 0, "miss here:80")
		w.want("x", "hit "+a)
		w.wantSRV("x", 0, "hit here:80")
		if addrs, known := w.Peek("x"); !known || !slices.Equal(addrs, ips(a)) {
			t.Errorf("got %v, known %t; want %s", addrs, known, a)
		}
		if n := w.Len(); n != 2 {
			t.Errorf("%d names, want 2", n)
		}
		if err := w.check(); err != nil {
			t.Error(err)
		}
		w.want("y", "miss nodata") // evicts one of them, and finds it
		if n := w.Len(); n != 2 {
			t.Errorf("%d names, want 2", n)
		}
		if err := w.check(); err != nil {
			t.Error(err)
		}
	})
}

func TestServiceIsKeptFresh(t *testing.T) {
	run(t, Config{}, func(w world) {
		w.Start()
		w.fake.srv(srv, time.Second, here)
		w.wantSRV(srv, 0, "miss here:80")
		for range 100 {
			w.sleep(99 * time.Millisecond)
			w.wantSRV(srv, 0, "hit here:80")
		}
		w.fake.setOutage(true)
		w.fake.forget()
		w.sleep(10 * time.Minute)
		w.wantSRV(srv, 0, "stale here:80")
		w.wantAskedSRV(srv, 0)
		w.fake.setOutage(false)
		w.sleep(2 * wheelTick)
		w.wantSRV(srv, 0, "hit here:80")
		w.wantAskedSRV(srv, 1)
	})
}

func TestServiceCoalescing(t *testing.T) {
	run(t, Config{MaxLookups: 1}, func(w world) {
		w.fake.set(srv+" SRV", script{srv: []net.SRV{here}, ttl: time.Minute, delay: time.Second})
		var served atomic.Int32
		for range 1000 {
			go func() {
				if w.getSRV(srv) == "miss here:80" {
					served.Add(1)
				}
			}()
		}
		ctx, cancel := context.WithTimeout(w.Context(), time.Millisecond)
		defer cancel()
		if _, err := w.LookupSRV(ctx, srv); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		w.sleep(time.Second)
		if served.Load() != 1000 {
			t.Errorf("%d served, want 1000", served.Load())
		}
		w.wantAskedSRV(srv, 1)
		w.fake.set("SRV", script{hang: true})
		go w.getSRV("1")
		go w.getSRV("2")
		w.sleep(0)
		w.wantSRV("3", 0, "miss "+ErrOverloaded.Error())
		w.sleep(time.Minute)
	})
}

// Huge answers are cut to what is kept, always to the same part, and what they
// came in is not held on to.
func TestHugeAnswers(t *testing.T) {
	run(t, Config{Refresh: -1}, func(w world) {
		const n = 20_000
		addrs := ips(a)
		var records []net.SRV
		for i := range n {
			next := addrs[i].Next()
			addrs = append(addrs, next)
			records = append(records, net.SRV{Target: "x", Port: uint16(i), Priority: uint16(i / maxRecords)})
		}
		var before, beforeSRV string
		for i := range 3 {
			rand.Shuffle(n, func(i, j int) {
				addrs[i], addrs[j] = addrs[j], addrs[i]
				records[i], records[j] = records[j], records[i]
			})
			w.fake.set("x A", script{addrs: addrs, ttl: time.Second})
			w.fake.set("x AAAA", script{addrs: addrs, ttl: time.Second})
			w.fake.srv("x", time.Second, records...)
			w.get("x")
			w.getSRV("x")
			w.sleep(0)
			answer, err := w.Lookup(w.Context(), "x")
			if len(answer.Addrs) != 2*maxAddrs || cap(answer.Addrs) != 2*maxAddrs || err != nil {
				t.Errorf("%d addresses, room for %d, error %v; want %d", len(answer.Addrs), cap(answer.Addrs), err, 2*maxAddrs)
			}
			service, err := w.LookupSRV(w.Context(), "x")
			if len(service.Records) != maxRecords || service.Records[maxRecords-1].Priority != 0 || err != nil {
				t.Errorf("%d records, error %v; want %d of the first priority", len(service.Records), err, maxRecords)
			}
			got, gotSRV := fmt.Sprint(answer.Addrs), fmt.Sprint(service.Records)
			if i > 0 && (got != before || gotSRV != beforeSRV) {
				t.Error("got other addresses or records than before, want the same")
			}
			before, beforeSRV = got, gotSRV
			w.sleep(time.Second)
		}
	})
}
