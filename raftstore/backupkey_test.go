package raftstore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"holdfast/internal/state"
)

// sealedWith seals a text; an earlier version's salt says nothing of the secret.
func sealedWith(t *testing.T, secret []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := Seal(&out, secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("plain")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestSealedSnapshotOpensWithWhicheverKeyItIs(t *testing.T) {
	a, b, c := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)
	sealed := sealedWith(t, b)
	for name, keys := range map[string][][]byte{"alone": {b}, "first": {b, a}, "last": {a, c, b}} {
		r, err := OpenSealed(bytes.NewReader(sealed), keys...)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != "plain" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	id, err := SecretID(b)
	if err != nil || bytes.Contains(b, id) || !bytes.Equal(sealed[len(sealMagic)+sealSalt-sealID:][:sealID], id) {
		t.Errorf("the head does not name the key %x, %v", id, err)
	}
	r, err := OpenSealed(bytes.NewReader(sealed), a, c)
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "it names the key "+hexOf(id)) {
		t.Errorf("with other keys: %v", err)
	}
	if _, err := OpenSealed(bytes.NewReader(sealed)); !errors.Is(err, ErrSealed) {
		t.Errorf("without a key: %v", err)
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var out []byte
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

// A snapshot is sealed with the key that the gossip has when it is made, not with
// the one of the start, which may be what was leaked.
func TestScheduledSnapshotIsSealedWithTheKeyOfItsTime(t *testing.T) {
	h := newHosts(t, 1, 1)
	dir := t.TempDir()
	leaked, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	var mu sync.Mutex
	key, keyErr := leaked, error(nil)
	is := func(k []byte, err error) {
		mu.Lock()
		key, keyErr = k, err
		mu.Unlock()
	}
	o := h.all["fb1"].start(func(c *Config) {
		c.Backups = Backups{Directory: dir, Every: time.Hour, Keep: 24 * time.Hour}
		c.BackupKey = func() ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			return key, keyErr
		}
	})
	h.leader()
	o.put("k", "v")
	eventually(t, "the schedule begins", func() error { // its next look is in a minute
		if list, err := filepath.Glob(filepath.Join(dir, "*"+backupSuffix)); err != nil || len(list) == 0 {
			return errors.New("there is none yet")
		}
		return nil
	})
	now := time.Now()
	opens := func(secret []byte) (n int) {
		files, err := filepath.Glob(filepath.Join(dir, "*"+backupSuffix))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := OpenSealed(f, secret)
			if err == nil {
				_, err = state.Inspect(plain)
			}
			if f.Close(); err == nil {
				n++
			}
		}
		return n
	}
	if err := o.store.backUpOnce(t.Context(), now); err != nil || opens(leaked) != 1 {
		t.Fatalf("%v, %d open with the first key", err, opens(leaked))
	}
	is(fresh, nil)
	if err := o.store.backUpOnce(t.Context(), now.Add(2*time.Hour)); err != nil || opens(leaked) != 1 || opens(fresh) != 1 {
		t.Errorf("%v, %d open with the key that was taken out of use, %d with the new one", err, opens(leaked), opens(fresh))
	}
	is(nil, errTest)
	if err := o.store.backUpOnce(t.Context(), now.Add(4*time.Hour)); !errors.Is(err, errTest) {
		t.Errorf("the key can't be told: %v", err)
	}
}

// Servers that share a directory leave each other's snapshots and half-written
// files alone, and each keeps its own schedule.
func TestServersShareADirectoryOfSnapshots(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 25, 18, 0, 0, 0, time.UTC)
	one := Config{Cluster: "foobar", Node: "fb1", Backups: Backups{Directory: dir}}
	other := Config{Cluster: "foobar", Node: "fb2", Backups: Backups{Directory: dir}}
	if one.backupName(now) == other.backupName(now) {
		t.Fatal("two servers' snapshots have one name")
	}
	old := backupPrefix + "foobar-" + now.Format(backupTime) + backupSuffix // of an earlier version
	foreign := backupPrefix + "quux-fb1-" + now.Format(backupTime) + backupSuffix
	longer, elsewhere := Config{Cluster: "foobar", Node: "fb1-ib"}, Config{Cluster: "quux", Node: "fb1"} // names like ours
	keeps := []string{one.backupName(now), other.backupName(now), old, foreign,
		other.tempName() + "77", longer.tempName() + "77", elsewhere.tempName() + "77", one.tempName() + "x",
		backupTemp + "fb1-77", backupTemp + "fb1-ib-77", backupTemp + "fb2-77", backupTemp + "123"} // of earlier versions
	for _, name := range append(slices.Clone(keeps), one.tempName()+"77", backupTemp+"fb1-78", backupTemp+"456") {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, age := range map[string]time.Duration{
		backupTemp + "456": 25 * time.Hour, backupTemp + "123": time.Hour, backupTemp + "fb1-78": 25 * time.Hour, backupTemp + "fb1-77": time.Hour,
		backupTemp + "fb1-ib-77": 25 * time.Hour, backupTemp + "fb2-77": 25 * time.Hour, longer.tempName() + "77": 25 * time.Hour, elsewhere.tempName() + "77": 25 * time.Hour,
	} {
		if err := os.Chtimes(filepath.Join(dir, name), now, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	there, err := one.listBackups(now)
	if err != nil || len(there) != 2 {
		t.Errorf("ours are %v, %v; want our own and the one that says no name", there, err)
	}
	for _, b := range there {
		if b.name != old && b.name != one.backupName(now) || !b.at.Equal(now) {
			t.Errorf("%s of %v", b.name, b.at)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, f := range files {
		left = append(left, f.Name())
	}
	slices.Sort(keeps)
	if !slices.Equal(left, keeps) {
		t.Errorf("left are %v, want %v", left, keeps)
	}
}

// What was written is read back from the disk, not from memory.
func TestWrittenFileIsForgottenByTheCache(t *testing.T) {
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == 0x01021994 {
		const why = "%s is in memory alone (tmpfs): set TMPDIR to a directory on a disk"
		if os.Getenv("CI") != "" {
			t.Fatalf(why, path)
		}
		t.Skipf(why, path)
	}
	inMemory := func() (pages int) {
		mapped, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Munmap(mapped) }()
		present := make([]byte, size/os.Getpagesize())
		if _, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), size, uintptr(unsafe.Pointer(&present[0]))); errno != 0 {
			t.Fatal(errno)
		}
		for _, p := range present {
			pages += int(p & 1)
		}
		return pages
	}
	before := inMemory()
	forgetCached(f)
	if after := inMemory(); before == 0 || after > before/2 {
		t.Errorf("%d pages were in memory, and %d are", before, after)
	}
}
