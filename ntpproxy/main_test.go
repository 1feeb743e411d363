package ntpproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/kernel/clock"
	"holdfast/lab"
)

// serveEnv makes this test binary a server of a lab host: it names the cluster
// file. The kernel's clock is taken for synchronised, whatever it is.
const serveEnv = "NTPPROXY_TEST_SERVE"

// askEnv makes it ask a source, host:port, as the discipline does, and print
// what it learned.
const askEnv = "NTPPROXY_TEST_ASK"

func TestMain(m *testing.M) {
	if path := os.Getenv(serveEnv); path != "" {
		if err := serveMain(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if source := os.Getenv(askEnv); source != "" {
		sample, packet, from, err := exchange(context.Background(), source)
		fmt.Println("from", from, "stratum", sample.Stratum, "reference", netip.AddrFrom4(packet.ReferenceID), "leap", packet.Leap, "error", err,
			"off", time.Until(sample.Server).Abs() < time.Second)
		return
	}
	if lab.Init() {
		return
	}
	m.Run()
}

func serveMain(path string) error {
	file, err := cluster.Load(path, map[string]cluster.SectionValidator{Section: ValidateSection})
	if err != nil {
		return err
	}
	s, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:123"), netip.MustParseAddrPort("[::]:123")}}, Deps{
		File: file, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: prometheus.NewRegistry(),
		Kernel: func() (clock.State, error) { return synchronised, nil },
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return s.Run(ctx, func() { fmt.Println("ready") })
}

// peers is where hack/peers unpacked real NTP programs.
func peers(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../build/peers/root")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "../complete")); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("the peers are missing, run hack/peers: %v", err)
		}
		t.Skipf("the peers are missing, run hack/peers: %v", err)
	}
	return root
}
