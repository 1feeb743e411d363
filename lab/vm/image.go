package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"holdfast/lab/vm/debian"
)

const (
	guestPackage = "holdfast/lab/vm/guest"
	guestFile    = "guest"
)

// image is what a machine boots: files of the cache.
type image struct {
	kernel, initrd string
	moduleDir      string
	modules        []string // to load, in this order
}

func newImage(ctx context.Context, modules []string) (image, error) {
	kernel, err := debian.Get(ctx)
	if err != nil {
		return image{}, err
	}
	cache, err := debian.CacheDir()
	if err != nil {
		return image{}, err
	}
	guest := filepath.Join(cache, guestFile)
	unlock, err := debian.Lock(guest + ".lock")
	if err != nil {
		return image{}, err
	}
	defer unlock()
	if err := goCommand(ctx, "build", "-race=false", "-trimpath", "-ldflags=-s -w", "-o", guest, guestPackage); err != nil {
		return image{}, err
	}
	i := image{kernel: kernel.Image(), moduleDir: kernel.ModuleDir()}
	if i.initrd, err = kernel.Initrd(guest); err != nil {
		return image{}, err
	}
	i.modules, err = kernel.Modules(modules...)
	return i, err
}

// goCommand builds something static, without the race detector: under
// emulation that would cost ten times what it costs anyway, and machines don't
// need the host's C library.
func goCommand(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
