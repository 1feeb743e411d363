// Command demo brings up the reference cluster on this machine, kills its
// leader, and tells what users saw. With -keep it leaves the cluster up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"holdfast/lab/site"
)

func main() {
	if site.Init() {
		return
	}
	binary := flag.String("holdfast", "build/holdfast", "the program")
	file := flag.String("config", "examples/scibian.yaml", "the cluster file")
	keep := flag.Bool("keep", false, "leave the cluster up until Ctrl-C, and kill nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := show(ctx, *binary, *file, *keep)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

func show(ctx context.Context, binary, file string, keep bool) (err error) {
	s, err := newSite(ctx, binary, file)
	if err != nil {
		return err
	}
	story := &story{site: s, out: os.Stdout, began: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, story.evidence())
		}
		err = errors.Join(err, s.Close())
	}()
	if err := story.coldStart(ctx); err != nil {
		return err
	}
	if keep {
		return story.keepUp(ctx)
	}
	if err := story.loseLeader(ctx); err != nil {
		return err
	}
	return story.table()
}

func newSite(ctx context.Context, binary, file string) (*site.Site, error) {
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(binary, "/") {
		binary = wd + "/" + binary
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("%w (make build makes it)", err)
	}
	return site.New(ctx, site.Options{
		Binary: binary, File: file, Networks: []string{"administration", "management"},
	})
}

// story tells what happens, and collects the figures for the table at its end.
type story struct {
	site  *site.Site
	out   io.Writer
	began time.Time
	rows  []row
}

type row struct {
	what, measured, target string
	met                    bool
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "[%6.2fs] %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// within notes a duration and its target.
func (s *story) within(what string, took, target time.Duration) {
	s.rows = append(s.rows, row{
		what: what, measured: took.Round(time.Millisecond).String(),
		target: "< " + target.String(), met: took < target,
	})
}

// exactly notes a count and its target.
func (s *story) exactly(what string, count, target int, detail string) {
	s.rows = append(s.rows, row{
		what: what, measured: strings.TrimSpace(fmt.Sprint(count, " ", detail)),
		target: fmt.Sprint(target), met: count == target,
	})
}

// table ends the story. A target that was missed is an error.
func (s *story) table() error {
	fmt.Fprintln(s.out)
	w := tabwriter.NewWriter(s.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "WHAT\tMEASURED\tTARGET\t")
	var missed []string
	for _, r := range s.rows {
		verdict := "ok"
		if !r.met {
			verdict = "MISSED"
			missed = append(missed, fmt.Sprintf("%s: %s, allowed %s", r.what, r.measured, r.target))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.what, r.measured, r.target, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(missed) > 0 {
		return fmt.Errorf("missed: %s%s", strings.Join(missed, "; "), underLoad())
	}
	return nil
}

// underLoad says how busy the machine was in the last minute, when more
// programs wanted its processors than it has; "" otherwise.
func underLoad() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return loadRemark(string(text), runtime.NumCPU())
}

// loadRemark reads the first figure of /proc/loadavg.
func loadRemark(loadavg string, processors int) string {
	var load float64
	if _, err := fmt.Sscan(loadavg, &load); err != nil || load <= float64(processors) {
		return ""
	}
	return fmt.Sprintf(" (the machine's load was %.0f on %d processors: times are judged on an idle one)", load, processors)
}

// evidence keeps the agents' last words of a story that went wrong.
func (s *story) evidence() error {
	for _, n := range s.site.Nodes {
		lines := strings.Split(strings.TrimSpace(n.Log()), "\n")
		fmt.Fprintf(s.out, "\nthe last lines of %s:\n  %s\n", n.Name(), strings.Join(lines[max(0, len(lines)-15):], "\n  "))
	}
	return nil
}

// keepUp leaves the cluster to the person at the terminal.
func (s *story) keepUp(ctx context.Context) error {
	fmt.Fprintf(s.out, "\nThe cluster stays up until Ctrl-C. In another terminal, as root:\n\n")
	for _, n := range s.site.Nodes {
		fmt.Fprintf(s.out, "  nsenter -t %d -a            # a shell on %s (%s)\n", n.Host.PID(), n.Name(), n.Addr())
	}
	fmt.Fprintf(s.out, "  nsenter -t %d -a            # a shell on the client: dig apt.service.virtual\n", s.site.Client.PID())
	fmt.Fprintf(s.out, "\nOn a node, %s status is where to begin; its log is below %s/logs.\n", s.site.Binary(), s.site.Lab.Dir())
	<-ctx.Done()
	return nil
}
