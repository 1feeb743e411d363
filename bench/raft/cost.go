package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// What a write costs is steadier than how many there are: other work on the
// machine slows both stores, and takes no processor time of theirs.

// ticks is how many a second has in which Linux counts a process's time, on all
// of its architectures (proc(5), CLK_TCK).
const ticks = 100

// processor is how long processes have run so far, on all processors together.
func processor(programs []*program) (total time.Duration, err error) {
	for _, p := range programs {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return 0, fmt.Errorf("processor time of a node: %w", err)
		}
		// The name, in brackets, may have blanks; user and system time are the
		// 12th and 13th field behind it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 13 {
			return 0, fmt.Errorf("processor time of a node: %q", stat)
		}
		for _, field := range fields[11:13] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("processor time of a node: %w", err)
			}
			total += time.Duration(n) * time.Second / ticks
		}
	}
	return total, nil
}

func (h *holdfast) programs() []*program { return h.nodes[:] }
func (e *etcd) programs() []*program     { return e.nodes[:] }

// profiler is a contestant that can say where its time goes.
type profiler interface {
	profile(ctx context.Context, node int, what string) ([]byte, error)
}

// profile asks for one of net/http/pprof's.
func (h *holdfast) profile(ctx context.Context, node int, what string) ([]byte, error) {
	return h.ask(ctx, node, http.MethodGet, "/debug/pprof/"+what, nil)
}

// profiled runs measure while every node takes a profile of its processor time,
// and writes these and those of its allocations to dir, as WHAT-NODE.cpu and
// .allocs; the leader's have "-leader" in their names. Profiles slow both the
// nodes and the client a little.
func profiled(ctx context.Context, dir, what string, p profiler, leader int, during time.Duration, measure func() error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := make(chan error, nodes)
	for i := range nodes {
		go func() {
			path := filepath.Join(dir, what+"-"+nodeName(i))
			if i == leader {
				path += "-leader"
			}
			errs <- profileTo(asWriter(ctx, i), p, i, path, during)
		}()
	}
	all := []error{measure()}
	for range nodes {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

func profileTo(ctx context.Context, p profiler, node int, path string, during time.Duration) error {
	for suffix, what := range map[string]string{".cpu": fmt.Sprintf("profile?seconds=%d", max(1, int(during.Seconds()))), ".allocs": "allocs"} {
		data, err := p.profile(ctx, node, what)
		if err == nil {
			err = os.WriteFile(path+suffix, data, 0o644)
		}
		if err != nil {
			return fmt.Errorf("profile %s: %w", nodeName(node), err)
		}
	}
	return nil
}
