package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/logrelay"
	"holdfast/logrelay/relp"
)

const (
	// loadEnv makes this test binary a relay below a directory, with clients
	// that send to it for ever and print how much they were told is stored. The
	// number behind the directory goes into the lines.
	loadEnv = "LOGS_TEST_LOAD"
	// verifyEnv makes it a relay that starts anew below a directory, and prints
	// what is in its files.
	verifyEnv = "LOGS_TEST_VERIFY"

	clients = 8
)

// relay runs a relay below a directory. stop ends it as planned.
func relay(dir string) (addr string, s *logrelay.Server, stop func() error, err error) {
	free := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	s, err = logrelay.New(logrelay.Config{
		Node: "fb1", DataDir: dir, Dir: filepath.Join(dir, "hosts"), Listen: map[string][]netip.AddrPort{"relp": free},
	}, logrelay.Deps{
		File: cluster.Single("fb1", free[0].Addr()), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		return "", nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		return "", nil, nil, err
	}
	return s.Addrs("relp")[0].String(), s, func() error {
		cancel()
		return <-ended
	}, nil
}

func load(what string) error {
	dir, round, _ := strings.Cut(what, " ")
	addr, _, _, err := relay(dir)
	if err != nil {
		return err
	}
	var out sync.Mutex
	failed := make(chan error)
	for client := range clients {
		go func() {
			failed <- send(addr, client, round, func(count int) {
				out.Lock()
				defer out.Unlock()
				fmt.Printf("acknowledged %d %d\n", client, count)
			})
		}()
	}
	return <-failed
}

// send sends numbered lines for ever, with half a window unanswered.
func send(addr string, client int, round string, acknowledged func(count int)) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	var session relp.Client
	out := session.AppendOpen(nil)
	var in []byte
	count, room := 0, make([]byte, 4096)
	for next := 0; ; {
		for session.Waiting() < relp.Window/2 {
			out = session.AppendLine(out, fmt.Appendf(nil, "<13>Nov 25 12:00:00 client%d test: round=%s seq=%d.", client, round, next))
			next++
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
		out = out[:0]
		n, err := conn.Read(room)
		if err != nil {
			return err
		}
		in = append(in, room[:n]...)
		before := count
		for {
			frame, size, err := relp.Parse(in)
			if err != nil {
				return err
			}
			if size == 0 {
				break
			}
			in = in[size:]
			more, err := session.Step(frame)
			if err != nil {
				return err
			}
			count += more
		}
		if count > before {
			acknowledged(count)
		}
	}
}

var lineOf = regexp.MustCompile(`round=(\d+) seq=(\d+)\.\n`)

// verify prints, for each client and round, how many of its lines the files
// have from the first on, in order and once.
func verify(dir string) error {
	_, s, stop, err := relay(dir)
	if err != nil {
		return err
	}
	// What is in the journal reaches the files at the end at the latest.
	if err := stop(); err != nil {
		return err
	}
	status := s.Status()
	for _, o := range status.Outputs {
		if o.Name == "files" && o.Next != status.End {
			return fmt.Errorf("the files have %d of %d lines", o.Next, status.End)
		}
	}
	for client := range clients {
		b, err := os.ReadFile(filepath.Join(dir, "hosts", fmt.Sprintf("client%d.log", client)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		lines := lineOf.FindAllSubmatch(b, -1)
		if whole := bytes.Count(b, []byte{'\n'}); whole != len(lines) {
			return fmt.Errorf("%d of %d lines of client %d can't be read", whole-len(lines), whole, client)
		}
		for from := 0; from < len(lines); {
			round, n := string(lines[from][1]), 0
			for ; from < len(lines) && string(lines[from][1]) == round; n++ {
				if got, err := strconv.Atoi(string(lines[from][2])); err != nil || got != n {
					return fmt.Errorf("client %d round %s: line %s stands where %d should", client, round, lines[from][2], n)
				}
				from++
			}
			fmt.Printf("client%d round %s: %d in order\n", client, round, n)
		}
	}
	return nil
}
