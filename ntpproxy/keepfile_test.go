package ntpproxy

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"holdfast/internal/kernel/clock"
)

// A disk on which nothing is ever written to its end holds up neither the
// corrections nor the end of the server.
func TestHungDiskHoldsUpNeitherTheSteeringNorItsEnd(t *testing.T) {
	source := newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String()
	c := newFakeClock(t, 0, 0)
	f := keeping(t, c, keepDiscipline, source)
	hang, hung := make(chan struct{}), make(chan struct{}, 100)
	f.server.files.through = func(write func() error) error {
		hung <- struct{}{}
		<-hang
		return write()
	}
	path := filepath.Join(f.server.config.StateDir, driftFile)
	t.Run("serving", func(t *testing.T) {
		f.serve(t) // fails the test unless Run ends
		f.server.files.save(path, func() error { return nil })
		<-hung
		eventually(t, "the clock is corrected all the same", func() bool {
			k := f.server.Kept()
			return k != nil && k.Updates > 3
		})
	})
	if _, err := os.Stat(path); err == nil {
		t.Error("the drift was written past the disk that hangs")
	}
	close(hang)
	if err := f.server.files.wait(atMost); err != nil {
		t.Fatal(err)
	}
	if d, err := readDrift(path); err != nil || d.skew == 0 {
		t.Errorf("when the disk is back the drift is %+v, %v", d, err)
	}
}

// A list of leap seconds that can't be read to its end, as of a disk that died,
// holds up neither what is served nor the end of the server.
func TestListThatIsNeverReadHoldsUpNeitherServingNorItsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leap-seconds.list")
	if err := os.WriteFile(path, []byte("#@ 3960057600\n3644697600 36\n3692217600 37\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, testCluster(t, "ntp:\n", "ntp:\n  leap: {list: "+path+"}\n"), "127.0.0.1:0")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil { // to be opened when there is somebody who writes
		t.Fatal(err)
	}
	f.server.leapsAt = -leapsEvery
	t.Run("serving", func(t *testing.T) {
		f.serve(t) // fails the test unless Run ends
		lost := clock.State{}
		f.kernel.Store(&lost)
		eventually(t, "clients are told what the kernel says now", func() bool { return f.server.Standing().Stratum == 0 })
	})
	if f.server.reads.wait(0) == nil {
		t.Error("the list is not being read: this test is of that")
	}
	writer, err := os.OpenFile(path, os.O_WRONLY, 0) // blocks until it is being read
	if err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	if err := f.server.reads.wait(atMost); err != nil {
		t.Fatal(err)
	}
	if !raised(f.board, conditionLeapList) {
		t.Error("a list that is empty is nothing to speak of")
	}
}

func TestOfEachFileTheLatestContentIsWrittenAndOneAtATime(t *testing.T) {
	s := &saver{log: slog.New(slog.DiscardHandler)}
	var mu sync.Mutex
	var wrote []string
	under, hang, begun := 0, make(chan struct{}), make(chan struct{}, 10)
	s.through = func(write func() error) error {
		mu.Lock()
		under++
		if under > 1 {
			t.Error("two are written at once")
		}
		mu.Unlock()
		begun <- struct{}{}
		<-hang
		err := write()
		mu.Lock()
		under--
		mu.Unlock()
		return err
	}
	save := func(path, content string) {
		s.save(path, func() error { wrote = append(wrote, path+content); return nil })
	}
	save("a", "1")
	<-begun
	save("a", "2")
	save("b", "1")
	save("a", "3")
	if err := s.wait(0); err == nil || !strings.Contains(err.Error(), "a, b") {
		t.Errorf("while the disk hangs: %v, want an error that names a and b", err)
	}
	close(hang)
	if err := s.wait(atMost); err != nil {
		t.Fatal(err)
	}
	slices.Sort(wrote)
	if !slices.Equal(wrote, []string{"a1", "a3", "b1"}) {
		t.Errorf("written %v, want what was under way and the latest", wrote)
	}
	save("c", "1")
	if err := s.wait(atMost); err != nil || !slices.Contains(wrote, "c1") {
		t.Errorf("after a pause written %v, %v", wrote, err)
	}
}
