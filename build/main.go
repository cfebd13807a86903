// Command build makes the caddy binary that xcaddy.json describes, in the
// current folder. With arguments it then runs caddy with them:
//
//	go run ./build          # build ./caddy
//	go run ./build run      # build ./caddy and run it with the Caddyfile here
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/caddyserver/xcaddy"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := build(ctx); err != nil {
		log.Fatal(err)
	}
	if len(os.Args) == 1 {
		return
	}
	caddy := exec.Command("./caddy", os.Args[1:]...)
	caddy.Stdin, caddy.Stdout, caddy.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := caddy.Start(); err != nil {
		log.Fatal(err)
	}
	go func() {
		<-ctx.Done()
		// on a terminal caddy has the interrupt already; a second one would
		// make it stop at once
		_ = caddy.Process.Signal(syscall.SIGTERM)
	}()
	if err := caddy.Wait(); err != nil {
		log.Fatal(err)
	}
}

func build(ctx context.Context) error {
	data, err := os.ReadFile("xcaddy.json")
	if err != nil {
		return err
	}
	var builder xcaddy.Builder
	if err := json.Unmarshal(data, &builder); err != nil {
		return err
	}
	// xcaddy builds in a folder of its own
	for i, r := range builder.Replacements {
		if !strings.HasPrefix(r.New.String(), ".") {
			continue
		}
		path, err := filepath.Abs(r.New.String())
		if err != nil {
			return err
		}
		builder.Replacements[i] = xcaddy.NewReplace(r.Old.String(), path)
	}
	return builder.Build(ctx, "caddy")
}
