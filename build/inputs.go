package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// goVariables are the variables of `go env` that change a binary.
var goVariables = []string{
	"GOVERSION", "GOOS", "GOARCH", "GOARM", "GOAMD64", "GOARM64", "CGO_ENABLED", "GOEXPERIMENT", "GOFLAGS", "GOTOOLCHAIN",
}

// hashInputs returns a hash of all that a binary is made of: the configuration of xcaddy,
// the settings of Go, and of the modules in some folders go.mod, go.sum and the files of
// their packages, without those of tests. Other modules cannot change: go.sum has them.
func hashInputs(config []byte, folders []string) (string, error) {
	hash := sha256.New()
	add := func(name string, data []byte) {
		fmt.Fprintf(hash, "%s\n%d\n", name, len(data))
		hash.Write(data)
	}
	add("xcaddy.json", config)
	settings, err := exec.Command("go", append([]string{"env"}, goVariables...)...).Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	add("go env", settings)
	for _, variable := range slices.Sorted(slices.Values(os.Environ())) {
		if strings.HasPrefix(variable, "XCADDY_") {
			add("environment", []byte(variable))
		}
	}
	for _, folder := range folders {
		files, err := packageFiles(folder)
		if err != nil {
			return "", err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			add(file, data)
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// packageFiles returns the files of the module in a folder that its package there is
// compiled from, with those of the packages that it imports, and go.mod and go.sum.
func packageFiles(folder string) ([]string, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=Dir,GoFiles,CgoFiles,OtherFiles,EmbedFiles,Module", ".")
	cmd.Dir = folder
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	list, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	files := []string{filepath.Join(folder, "go.mod")}
	if _, err := os.Stat(filepath.Join(folder, "go.sum")); err == nil {
		files = append(files, filepath.Join(folder, "go.sum"))
	}
	decoder := json.NewDecoder(bytes.NewReader(list))
	for {
		var pkg struct {
			Dir                                       string
			GoFiles, CgoFiles, OtherFiles, EmbedFiles []string
			Module                                    *struct{ Main bool }
		}
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			return files, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if pkg.Module == nil || !pkg.Module.Main {
			continue
		}
		for _, name := range slices.Concat(pkg.GoFiles, pkg.CgoFiles, pkg.OtherFiles, pkg.EmbedFiles) {
			files = append(files, filepath.Join(pkg.Dir, name))
		}
	}
}

// built is what the file beside a binary says of it.
type built struct {
	Inputs   string // the hash of what it was made of
	Size     int64  // in octets
	Modified int64  // in nanoseconds since 1970
}

// builtFile returns the name of the file beside a binary.
func builtFile(binary string) string { return "." + binary + ".built" }

// isBuiltFrom reports whether a binary is the one that was made of inputs.
func isBuiltFrom(binary, inputs string) bool {
	data, err := os.ReadFile(builtFile(binary))
	if err != nil {
		return false
	}
	var b built
	info, err := os.Stat(binary)
	return err == nil && json.Unmarshal(data, &b) == nil && b == built{inputs, info.Size(), info.ModTime().UnixNano()}
}

// recordInputs writes the file beside a binary that was just made.
func recordInputs(binary, inputs string) error {
	info, err := os.Stat(binary)
	if err != nil {
		return err
	}
	data, err := json.Marshal(built{inputs, info.Size(), info.ModTime().UnixNano()})
	if err != nil {
		return err
	}
	return os.WriteFile(builtFile(binary), append(data, '\n'), 0o644)
}
