package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"
)

func TestStreamGivesOutputWhileTheProgramRuns(t *testing.T) {
	r, dir := runner(t)
	path := script(t, dir, "talks", "#!/bin/sh\necho one\nexec sleep 600\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	enough := errors.New("enough")
	err := r.Stream(ctx, Command{Argv: []string{path}}, func(out io.Reader) error {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "one\n" {
			return fmt.Errorf("%q, %w", line, err)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}

func TestStreamSaysHowTheProgramEnded(t *testing.T) {
	r, dir := runner(t)
	read := func(out io.Reader) error {
		_, err := io.Copy(io.Discard, out)
		return err
	}
	var exit *ExitError
	path := script(t, dir, "fails", "#!/bin/sh\necho out\necho why >&2\nexit 3\n")
	if err := r.Stream(t.Context(), Command{Argv: []string{path}}, read); !errors.As(err, &exit) || exit.Code != 3 || exit.Stderr != "why" {
		t.Errorf("%v", err)
	}
	if err := r.Stream(t.Context(), Command{Argv: []string{"/bin/true"}}, read); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	path = script(t, dir, "stays", "#!/bin/sh\necho out\nexec sleep 600\n")
	if err := r.Stream(ctx, Command{Argv: []string{path}}, func(out io.Reader) error {
		_, err := bufio.NewReader(out).ReadString('\n')
		cancel()
		return err
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
