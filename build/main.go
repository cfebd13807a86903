// Command build makes the caddy binary that xcaddy.json describes, in the
// current folder. With arguments it then runs caddy with them:
//
//	go run ./build          # build ./caddy
//	go run ./build run      # build ./caddy and run it with the Caddyfile here
//
// If ./caddy was built from the same files in the same way, it is not built again.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/xcaddy"
)

// binary is what is built.
const binary = "caddy"

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
	caddy := exec.Command("./"+binary, os.Args[1:]...)
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

// build builds the binary, unless it is there already.
func build(ctx context.Context) error {
	data, err := os.ReadFile("xcaddy.json")
	if err != nil {
		return err
	}
	var builder xcaddy.Builder
	if err := json.Unmarshal(data, &builder); err != nil {
		return fmt.Errorf("reading xcaddy.json: %w", err)
	}
	// xcaddy builds in a folder of its own
	var folders []string
	for i, r := range builder.Replacements {
		if !strings.HasPrefix(r.New.String(), ".") {
			continue
		}
		path, err := filepath.Abs(r.New.String())
		if err != nil {
			return err
		}
		builder.Replacements[i] = xcaddy.NewReplace(r.Old.String(), path)
		folders = append(folders, path)
	}

	begun := time.Now()
	inputs, err := hashInputs(data, folders)
	if err != nil {
		// what is wrong with the files, the compiler says better
		log.Printf("comparing ./%s with the files here: %v", binary, err)
	}
	if inputs != "" && isBuiltFrom(binary, inputs) {
		log.Printf("./%s is up to date: delete it to build it again", binary)
		return nil
	}

	log.Printf("Building ./%s: four to five minutes on two cores the first time, while Go fetches and compiles all of Caddy; after that some seconds.", binary)
	finished := make(chan struct{})
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		reportProgress(os.Stderr, begun, finished)
	}()
	err = builder.Build(ctx, binary)
	close(finished)
	<-reported
	if err != nil {
		return err
	}
	log.Printf("Built ./%s in %s.", binary, time.Since(begun).Round(time.Second))
	if inputs == "" {
		return nil
	}
	return recordInputs(binary, inputs)
}

// reportProgress writes a line every 15 seconds until the build has finished.
func reportProgress(w io.Writer, begun time.Time, finished <-chan struct{}) {
	ticker := time.NewTicker(15 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-finished:
			return
		case <-ticker.C:
			fmt.Fprintf(w, "still building after %s\n", time.Since(begun).Round(time.Second))
		}
	}
}
