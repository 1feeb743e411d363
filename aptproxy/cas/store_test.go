package cas

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// writeEnv makes this test binary a process that fills the store of that
// directory until it is killed.
const writeEnv = "CAS_TEST_WRITE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writeEnv); dir != "" {
		fmt.Fprintln(os.Stderr, fill(dir))
		os.Exit(1)
	}
	if dir := os.Getenv(verifyEnv); dir != "" {
		if err := verify(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	m.Run()
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t testing.TB, dir string, options Options) *Store {
	t.Helper()
	options.Log = quiet()
	s, err := Open(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t testing.TB, s *Store, data []byte) Sum {
	t.Helper()
	sum, err := s.Put(data, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// read gives a blob's content; nil when the store has none.
func read(t testing.TB, s *Store, sum Sum) []byte {
	t.Helper()
	b, err := s.Open(sum)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer b.File.Close()
	data, err := io.ReadAll(b.File)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestABlobIsThereAfterARestartWithTheTimeOfItsServer(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	modified := time.Unix(1_700_000_000, 0)
	sum, err := s.Put([]byte("content"), modified)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	b, err := s.Open(sum)
	if err != nil {
		t.Fatal(err)
	}
	defer b.File.Close()
	if b.Size != 7 || !b.Modified.Equal(modified) {
		t.Errorf("%+v", b)
	}
}

// TestDamageIsFoundBeforeItIsServed damages a blob in the ways that disks and
// crashes do, in the running process and between two.
func TestDamageIsFoundBeforeItIsServed(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"a flipped bit": func(d []byte) []byte { d[len(d)/2] ^= 4; return d },
		"a zeroed tail": func(d []byte) []byte { clear(d[len(d)-512:]); return d },
		"truncated":     func(d []byte) []byte { return d[:len(d)-1] },
		"empty":         func([]byte) []byte { return nil },
		"longer":        func(d []byte) []byte { return append(d, 0) },
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", name, restart), func(t *testing.T) {
				dir := t.TempDir()
				s := open(t, dir, Options{})
				data := bytes.Repeat([]byte("0123456789"), 1000)
				sum, other := put(t, s, data), put(t, s, []byte("other"))
				path := s.path(sum)
				if err := os.Chmod(path, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(bytes.Clone(data)), 0o600); err != nil {
					t.Fatal(err)
				}
				if restart {
					_ = s.Close()
					s = open(t, dir, Options{})
				}
				if got := read(t, s, sum); got != nil {
					t.Errorf("a damaged blob was opened: %d bytes", len(got))
				}
				if _, err := os.Stat(filepath.Join(dir, "quarantine", sum.String())); err != nil {
					t.Errorf("it is not in quarantine: %v", err)
				}
				if string(read(t, s, other)) != "other" {
					t.Error("another blob was lost")
				}
				if again := put(t, s, data); !bytes.Equal(read(t, s, again), data) {
					t.Error("the blob can't be stored again")
				}
			})
		}
	}
}

func TestVerifyFindsWhatChangedBehindTheInodesBack(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	good, bad := put(t, s, []byte("good")), put(t, s, []byte("bad"))
	// Bits that rot leave the inode as it is; the proof pretends that.
	if err := os.Chmod(s.path(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(bad), []byte("BAD"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.path(bad))
	if err != nil {
		t.Fatal(err)
	}
	p := proofOf(info)
	s.blobs[bad].proof.Store(&p)
	report, err := s.Verify(context.Background(), 0)
	if err != nil || report.Checked != 2 || len(report.Bad) != 1 || report.Bad[0] != bad.String() {
		t.Errorf("%+v, %v", report, err)
	}
	if read(t, s, bad) != nil || read(t, s, good) == nil {
		t.Error("the wrong blob went into quarantine")
	}
}

func TestABlobWithAnotherHashIsNotStored(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	w, err := s.Create(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	want := Sum(sha256.Sum256([]byte("y")))
	if err := w.Commit(want, time.Time{}); !errors.Is(err, ErrMismatch) {
		t.Errorf("error %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Has(want); ok {
		t.Error("it is in the store")
	}
	left, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestEvictionTakesTheUnneededAndLongestUnused(t *testing.T) {
	now := time.Unix(1000, 0)
	ranks := map[Sum]Rank{}
	s := open(t, t.TempDir(), Options{Max: 1000, Now: func() time.Time { return now }, Rank: func(sum Sum) Rank { return ranks[sum] }})
	blob := func(c byte) Sum {
		now = now.Add(time.Second)
		return put(t, s, bytes.Repeat([]byte{c}, 240))
	}
	pinned, needed, old, recent := blob('p'), blob('n'), blob('o'), blob('r')
	ranks[pinned], ranks[needed] = Pinned, Referenced
	blob('x')
	for sum, want := range map[Sum]bool{pinned: true, needed: true, old: false, recent: true} {
		if _, ok := s.Has(sum); ok != want {
			t.Errorf("blob of rank %d is there: %v, want %v", ranks[sum], ok, want)
		}
	}
	for _, c := range []byte("abcdefgh") {
		blob(c)
	}
	if _, ok := s.Has(pinned); !ok {
		t.Error("a pinned blob was evicted")
	}
	if _, err := s.Put(make([]byte, 800), time.Time{}); !errors.Is(err, ErrFull) {
		t.Errorf("a blob that has no room beside the pinned: %v", err)
	}
	if st := s.Stats(); st.Bytes > 1000 || !st.Full {
		t.Errorf("%+v", st)
	}
}

func TestALostOrDamagedIndexCostsNoBlob(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"lost":     os.Remove,
		"empty":    func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"garbage":  func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("garbage "), 8192), 0o600) },
		"cut":      func(p string) error { return os.Truncate(p, 5000) },
		"half old": func(p string) error { return spoil(p, 4096*2+100) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			sum := put(t, s, []byte("content"))
			s.SetName("http://example.com/x", Entry{Sum: sum})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(dir, "index.db")); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, Options{})
			if string(read(t, s, sum)) != "content" {
				t.Error("the blob was lost with the index")
			}
			s.SetName("http://example.com/y", Entry{Sum: sum})
			s.Flush()
			if e, ok := s.Name("http://example.com/y"); !ok || e.Sum != sum {
				t.Error("the new index doesn't work")
			}
		})
	}
}

// spoil overwrites some bytes in the middle of a file.
func spoil(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, 3000), at)
	return errors.Join(err, f.Close())
}

func TestNamesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.SetName("a", Entry{ETag: "1"})
	s.SetName("b", Entry{ETag: "2"})
	s.Flush()
	s.SetName("a", Entry{ETag: "3"})
	s.ForgetName("b")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	a, ok := s.Name("a")
	if _, had := s.Name("b"); !ok || a.ETag != "3" || had {
		t.Errorf("%+v, %v; b: %v", a, ok, had)
	}
}

// fill writes blobs of any size and prints each sum when it is committed.
func fill(dir string) error {
	s, err := Open(dir, Options{Log: quiet()})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		data := bytes.Repeat(fmt.Appendf(nil, "%d %d ", rand.Uint64(), i), 1+i%5000)
		sum, err := s.Put(data, time.Time{})
		if err != nil {
			return err
		}
		s.SetName(fmt.Sprint(i), Entry{Sum: sum})
		if i%7 == 0 {
			s.Flush()
		}
		fmt.Println(sum)
	}
}

func TestKilledAtAnyMomentItLosesNothingThatWasCommitted(t *testing.T) {
	kills := 200
	if testing.Short() {
		kills = 20
	}
	dir := t.TempDir()
	var committed []Sum
	for i := range kills {
		committed = append(committed, killed(t, dir, time.Duration(rand.IntN(8_000_000)))...)
		if i%20 != 19 {
			continue
		}
		s := open(t, dir, Options{})
		for _, sum := range committed {
			if _, ok := s.Has(sum); !ok {
				t.Fatalf("after %d kills a committed blob is gone", i+1)
			}
		}
		report, err := s.Verify(context.Background(), 0)
		if err != nil || len(report.Bad) > 0 || report.Checked < len(committed) {
			t.Fatalf("after %d kills: %+v, %v", i+1, report, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(committed) < kills {
		t.Errorf("only %d blobs were committed: the test kills too early", len(committed))
	}
}

// killed fills the store, kills who fills it a while after its first commit,
// and gives what it had committed.
func killed(t *testing.T, dir string, after time.Duration) (list []Sum) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writeEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 65)
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	for {
		if sum, ok := parseSum(string(line[:64])); ok {
			list = append(list, sum)
		}
		if _, err := io.ReadFull(out, line); err != nil {
			_ = cmd.Wait() // killed
			return list
		}
	}
}

// FuzzIndex opens a store whose index is anything.
func FuzzIndex(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(dir, Options{Log: quiet()})
	if err != nil {
		f.Fatal(err)
	}
	s.SetName("a", Entry{ETag: "1"})
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "index.db"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(0, []byte("garbage"))
	f.Add(4096, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0})
	f.Add(8192+16, []byte{1, 2, 3, 4})
	f.Add(12288, bytes.Repeat([]byte{0}, 4096))
	f.Fuzz(func(t *testing.T, at int, damage []byte) {
		index := bytes.Clone(good)
		if at < 0 || at >= len(index) {
			return
		}
		copy(index[at:], damage)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "index.db"), index, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, Options{Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		sum := put(t, s, []byte("x"))
		s.SetName("b", Entry{Sum: sum})
		s.Flush()
		if e, ok := s.Name("b"); !ok || e.Sum != sum {
			t.Error("a name set is lost")
		}
		_ = s.Close()
	})
}
