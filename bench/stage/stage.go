// Package stage is a site for a benchmark: the binary under test as `reservoir dev up` runs
// it, with the appliance's image, and its command line to speak to it.
package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Stage is up until it is closed.
type Stage struct {
	Scratch string // a folder that goes with the stage
	Dir     string // of the federation, as `dev --dir`
	binary  string
}

// Up a stage. layout is the OCI layout of the appliance; flags are further ones of `dev up`.
func Up(ctx context.Context, binary, layout string, flags ...string) (s *Stage, err error) {
	scratch, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	s = &Stage{Scratch: scratch, Dir: filepath.Join(scratch, "dev"), binary: binary}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Down(ctx))
		}
	}()
	if err := os.Setenv("RESERVOIR_CONFIG", filepath.Join(scratch, "contexts.yaml")); err != nil {
		return nil, err
	}
	if _, err := s.Run(ctx, append([]string{"dev", "up", "--detach", "--dir", s.Dir}, flags...)...); err != nil {
		return nil, err
	}
	_, err = s.Run(ctx, "image", "push", layout, "appliance")
	return s, err
}

// Down ends the stage, also when ctx is over.
func (s *Stage) Down(ctx context.Context) error {
	_, err := s.Run(context.WithoutCancel(ctx), "dev", "down", "--dir", s.Dir)
	return errors.Join(err, os.RemoveAll(s.Scratch))
}

// Deploy a manifest and wait until its service is ready. flags are further ones of `service
// deploy`.
func (s *Stage) Deploy(ctx context.Context, manifest string, flags ...string) error {
	file := filepath.Join(s.Scratch, "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		return err
	}
	_, err := s.Run(ctx, append([]string{"service", "deploy", file, "--wait"}, flags...)...)
	return err
}

// Run a command: what it prints.
func (s *Stage) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.binary, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("reservoir %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return string(out), nil
}

// List is what a command lists.
func List[T any](ctx context.Context, s *Stage, args ...string) (all []T, err error) {
	out, err := s.Run(ctx, append(args, "-o", "json")...)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("read what reservoir %s lists: %w", strings.Join(args, " "), err)
	}
	return all, nil
}
