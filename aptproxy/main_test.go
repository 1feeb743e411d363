package aptproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/lab"
)

// What makes this test binary a process of a lab host.
const (
	serveEnv  = "APTPROXY_TEST_SERVE"  // a proxy: the cluster file
	originEnv = "APTPROXY_TEST_ORIGIN" // an origin: the directory that is served
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Getenv(serveEnv) != "":
		err = serveMain(os.Getenv(serveEnv))
	case os.Getenv(originEnv) != "":
		err = http.ListenAndServe(":80", http.FileServer(http.Dir(os.Getenv(originEnv))))
	default:
		if !lab.Init() {
			m.Run()
		}
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveMain(path string) error {
	file, err := cluster.Load(path, map[string]cluster.SectionValidator{Section: ValidateSection})
	if err != nil {
		return err
	}
	s, err := New(Config{Node: "server", Dir: "/var/lib/holdfast/apt", Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:3142")}}, Deps{
		File: file, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	s.fresh = 0 // every update sees what the origin has
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return s.Run(ctx, func() { fmt.Println("ready") })
}
