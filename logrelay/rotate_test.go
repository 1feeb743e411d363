package logrelay

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
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

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
