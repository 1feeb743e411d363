package logrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// putAway makes a folder with files of two hosts, and returns it.
func putAway(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{
		"cn1.log.20261121T000000.000.zst", "cn2.log.20261122T000000.000.zst", "cn1.log.20261123T000000.000.zst", "cn1.log.20261124T000000.000",
		"cn1.log", "cn2.log", "notes.txt", "cn3.log.old",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tidy is one look.
func (r *rotator) tidy() error {
	return r.look(func(root *os.Root, l *listing) error { return r.round(context.Background(), root, l) })
}

// layoutOf is that of a path, the default unless one is given, and of others
// before.
func layoutOf(t *testing.T, texts ...string) *layout {
	t.Helper()
	if len(texts) == 0 {
		texts = []string{defaultPath}
	}
	path, err := parsePath(texts[0])
	if err != nil {
		t.Fatal(err)
	}
	return newLayout(path, texts[1:])
}

// leftOf is what is left in a folder, in short.
func leftOf(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.NewReplacer("T000000.000", "", ".zst", "", "202611", "").Replace(e.Name()))
	}
	return strings.Join(names, " ")
}

// TestTheOldestFilesGoWhileTooLittleIsFree: of all hosts, one after the other,
// until the floor is reached; files that are written stay, and what is no log
// file of ours.
func TestTheOldestFilesGoWhileTooLittleIsFree(t *testing.T) {
	const ours = "cn1.log cn1.log.21 cn1.log.23 cn1.log.24 cn2.log cn2.log.22 cn3.log.old notes.txt"
	broken := errors.New("no such disk")
	for _, test := range []struct {
		name    string
		free    float64 // percent, and 3 more with each file that goes
		failed  error
		keep    int
		want    string
		wantErr error
	}{
		{"enough", 10, nil, 10, ours, nil},
		{"one is enough", 9.9, nil, 10, "cn1.log cn1.log.23 cn1.log.24 cn2.log cn2.log.22 cn3.log.old notes.txt", nil},
		{"two are", 6.9, nil, 10, "cn1.log cn1.log.23 cn1.log.24 cn2.log cn3.log.old notes.txt", nil},
		{"all are not", -100, nil, 10, "cn1.log cn2.log cn3.log.old notes.txt", nil},
		{"too many of a host", 50, nil, 1, "cn1.log cn1.log.24 cn2.log cn2.log.22 cn3.log.old notes.txt", nil},
		{"not known", 0, broken, 10, ours, broken},
		{"not known, and too many", 0, broken, 2, "cn1.log cn1.log.23 cn1.log.24 cn2.log cn2.log.22 cn3.log.old notes.txt", broken},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := putAway(t)
			r := newRotator(dir, rotateConfig{keep: test.keep, free: 10}, layoutOf(t), slog.New(slog.DiscardHandler))
			before := len(strings.Fields(leftOf(t, dir)))
			r.space = func(asked string) (float64, error) {
				if asked != dir {
					t.Errorf("%s is looked at", asked)
				}
				return test.free + 3*float64(before-len(strings.Fields(leftOf(t, dir)))), test.failed
			}
			if err := r.tidy(); !errors.Is(err, test.wantErr) {
				t.Errorf("%v, want %v", err, test.wantErr)
			}
			if diff := cmp.Diff(test.want, leftOf(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTheFloorIsLookedAtEveryMinute, in virtual time, though nothing is put
// away; and an unknown one costs no file.
func TestTheFloorIsLookedAtEveryMinute(t *testing.T) {
	dir := putAway(t)
	if err := os.Remove(filepath.Join(dir, "cn1.log.20261124T000000.000")); err != nil { // it would be compressed
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		r := newRotator(dir, rotateConfig{keep: 10, free: 10}, layoutOf(t), slog.New(slog.DiscardHandler))
		r.space = func(string) (float64, error) {
			if full.Load() {
				return 0, nil
			}
			return 50, nil
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		go r.run(ctx)
		<-time.After(10*time.Minute + time.Second)
		synctest.Wait()
		if got, want := leftOf(t, dir), "cn1.log cn1.log.21 cn1.log.23 cn2.log cn2.log.22 cn3.log.old notes.txt"; got != want {
			t.Errorf("with room there is %s", got)
		}
		full.Store(true)
		<-time.After(time.Minute)
		synctest.Wait()
		if got, want := leftOf(t, dir), "cn1.log cn2.log cn3.log.old notes.txt"; got != want {
			t.Errorf("a minute after the disk was full there is %s", got)
		}
	})
	free, err := freePercent(dir)
	if err != nil || free < 0 || free > 100 {
		t.Errorf("%v %% are free, %v", free, err)
	}
	if _, err := freePercent(filepath.Join(dir, "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// TestRoomIsMadeBeforeAndBetweenCompressing: compressing takes room first, so what
// is too much goes before, and where the disk fills up meanwhile, the oldest go,
// compressed or not. It fails where files are compressed first, where nobody looks
// until all are compressed, and where one that was compressed is looked for by its
// old name.
func TestRoomIsMadeBeforeAndBetweenCompressing(t *testing.T) {
	dir := t.TempDir()
	for _, day := range []string{"20", "21", "22", "23", "24"} {
		if err := os.WriteFile(filepath.Join(dir, "cn1.log.202611"+day+"T000000.000"), []byte(day), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (names, packed []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
			if strings.HasSuffix(e.Name(), zstSuffix) {
				packed = append(packed, e.Name())
			}
		}
		return names, packed
	}
	r := newRotator(dir, rotateConfig{every: 24 * time.Hour, keep: 4, free: 10}, layoutOf(t), discard())
	r.now = func() time.Time { return time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC) }
	looks := 0
	r.space = func(string) (float64, error) {
		names, packed := left()
		if looks++; looks == 1 && (len(names) != 4 || len(packed) > 0) {
			t.Errorf("before room was made there are %q", names)
		}
		if len(packed) == 2 || looks > 3 && len(names) > 1 { // full from then on
			return 0, nil
		}
		return 50, nil
	}
	if err := r.tidy(); err != nil {
		t.Fatal(err)
	}
	if names, _ := left(); len(names) != 1 || names[0] != "cn1.log.20261124T000000.000.zst" {
		t.Errorf("there are %q", names)
	}
}

// TestWhatIsPutAwayIsCompressedWithoutALook, in virtual time: a hundred files that
// are put away cost one look beside that of each minute, and a look asks what is
// free once, however many files there are. It fails where each file that is put away
// has all folders looked through, and where more than are kept wait for a minute.
func TestWhatIsPutAwayIsCompressedWithoutALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		write := func(name string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for n := range 100 {
			write(fmt.Sprintf("cn%d.log.19991201T000000.000.zst", n))
		}
		r := newRotator(dir, rotateConfig{every: maxEvery, keep: 10, free: 10}, layoutOf(t), discard())
		var looks atomic.Int32
		r.space = func(string) (float64, error) { looks.Add(1); return 50, nil }
		ctx, end := context.WithCancel(t.Context())
		defer end()
		go r.run(ctx)
		synctest.Wait()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for n := range 100 {
			name := fmt.Sprintf("cn%d.log", n)
			write(name)
			if err := r.putAway(root, name, time.Now()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if err := r.compressOne(ctx, "cn1.log."+time.Now().UTC().Format(rotatedTime)); err != nil {
			t.Errorf("one that is no longer there: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "cn99.log."+time.Now().UTC().Format(rotatedTime)+zstSuffix)); err != nil {
			t.Error(err)
		}
		if names := filesBelow(t, dir); len(names) != 200 || slices.ContainsFunc(names, func(name string) bool { return !strings.HasSuffix(name, zstSuffix) }) {
			t.Errorf("there are %q", names)
		}
		for _, step := range []struct {
			after time.Duration
			looks int32
		}{{leastRest - time.Millisecond, 1}, {2 * time.Millisecond, 2}, {lookEvery - time.Second, 2}, {time.Second, 3}} {
			<-time.After(step.after)
			synctest.Wait()
			if n := looks.Load(); n != step.looks {
				t.Errorf("after another %v there were %d looks, want %d", step.after, n, step.looks)
			}
		}
	})
	for took, want := range map[time.Duration]time.Duration{-time.Hour: leastRest, 0: leastRest, time.Second: 20 * time.Second, time.Hour: lookEvery} {
		if got := restAfter(took); got != want {
			t.Errorf("after a look of %v there is none for %v, want %v", took, got, want)
		}
	}
}

// TestALookEndsThoughThereIsMoreToCompress: what is too much is looked for once a
// minute, however much there is to compress, and the rest follows soon. Each look at
// the clock takes some seconds here. It fails where a look has no end, and where the
// next one waits for a minute.
func TestALookEndsThoughThereIsMoreToCompress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for n := range 10 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("cn%d.log.19991231T000000.000", n)), []byte("x\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := newRotator(dir, rotateConfig{every: maxEvery, keep: 10}, layoutOf(t), discard())
		var clock time.Duration
		r.now = func() time.Time { clock += lookEvery / 6; return time.Now().Add(clock) }
		packed := func() int {
			list, err := filepath.Glob(filepath.Join(dir, "*"+zstSuffix))
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		if err := r.tidy(); err != nil {
			t.Fatal(err)
		}
		if n := packed(); n == 0 || n > 6 {
			t.Errorf("%d files are compressed in a minute", n)
		}
		for range 3 {
			began := time.Now()
			r.took = 0
			if !r.left || !r.wait(t.Context()) || time.Since(began) > leastRest {
				t.Errorf("the next look comes after %v", time.Since(began))
			}
			if err := r.tidy(); err != nil {
				t.Fatal(err)
			}
			if packed() == 10 {
				break
			}
		}
		if n := packed(); n != 10 || r.left {
			t.Errorf("%d files are compressed at last, more %v", n, r.left)
		}
	})
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
