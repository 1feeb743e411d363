package command

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestAHandlerIsEndedWithAllItStarted(t *testing.T) {
	dir := t.TempDir()
	pids := filepath.Join(dir, "pid")
	ctx, stop := context.WithCancel(t.Context())
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := Handle(ctx, nil, nil, io.Discard, io.Discard, "/bin/sh", "-c", "sleep 3600 & echo $! >"+pids+".new; mv "+pids+".new "+pids+"; wait")
		ended <- result{code, err}
	}()
	eventually(t, "its child", func() bool { _, err := os.Stat(pids); return err == nil })
	child := readPID(t, pids)
	stop()
	if got := <-ended; got.err != nil || got.code != 128+15 {
		t.Errorf("ended with %+v", got)
	}
	expectGone(t, child)
}

func TestAHandlersStatusAndStreamsAreItsOwn(t *testing.T) {
	var out, errOut bytes.Buffer
	code, err := Handle(t.Context(), []string{"A=b"}, []byte("given"), &out, &errOut, "sh", "-c", "cat; echo $A >&2; exit 9")
	if err != nil || code != 9 || out.String() != "given" || errOut.String() != "b\n" {
		t.Errorf("%d %v %q %q", code, err, &out, &errOut)
	}
	if _, err := Handle(t.Context(), nil, nil, &out, &errOut, "no-such-program"); err == nil {
		t.Error("a program that is not there ran")
	}
	if code, err := Handle(t.Context(), nil, bytes.Repeat([]byte("x"), 1<<20), &out, &errOut, "true"); err != nil || code != 0 {
		t.Errorf("one that does not read: %d %v", code, err)
	}
}
