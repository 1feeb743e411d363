package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"holdfast/internal/peer"
	"holdfast/internal/state"
)

func TestSealedIsWhatWasSealed(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	for _, size := range []int{0, 1, sealChunk - 1, sealChunk, sealChunk + 1, 3 * sealChunk} {
		plain := make([]byte, size)
		rand.NewChaCha8([32]byte{}).Read(plain)
		sealed := sealBytes(t, secret, plain)
		r, err := OpenSealed(iotest.HalfReader(bytes.NewReader(sealed)), secret)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v, %d came back", size, err, len(got))
		}
		if size > 100 && bytes.Contains(sealed, plain[:50]) {
			t.Errorf("%d bytes: the plain text is in the file", size)
		}
	}
}

func sealBytes(t *testing.T, secret, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := Seal(&out, secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, iotest.OneByteReader(bytes.NewReader(plain))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestSealedThatWasTouchedDoesNotOpen(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	plain := make([]byte, 2*sealChunk+100)
	sealed := sealBytes(t, secret, plain)
	head, chunk := len(sealMagic)+sealSalt, sealChunk+16
	swapped := bytes.Clone(sealed)
	copy(swapped[head:], sealed[head+chunk:head+2*chunk])
	copy(swapped[head+chunk:], sealed[head:head+chunk])
	wrong := bytes.Clone(sealed)
	wrong[head+5] ^= 1
	salt := bytes.Clone(sealed)
	salt[len(sealMagic)] ^= 1
	for name, c := range map[string]struct{ secret, sealed []byte }{
		"another key":                        {bytes.Repeat([]byte{8}, 32), sealed},
		"a flipped bit":                      {secret, wrong},
		"a flipped salt":                     {secret, salt},
		"exchanged chunks":                   {secret, swapped},
		"the last one gone":                  {secret, sealed[:head+2*chunk]},
		"all but the head":                   {secret, sealed[:head]},
		"cut in a chunk":                     {secret, sealed[:head+chunk+7]},
		"something behind":                   {secret, append(bytes.Clone(sealed), 0)},
		"no sealed file":                     {secret, plain},
		"a first chunk as a file of its own": {secret, sealed[:head+chunk]},
	} {
		r, err := OpenSealed(bytes.NewReader(c.sealed), c.secret)
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Seal(io.Discard, []byte("short")); err == nil {
		t.Error("a short secret is taken")
	}
}

func FuzzOpenSealed(f *testing.F) {
	secret := bytes.Repeat([]byte{7}, 32)
	var out bytes.Buffer
	w, err := Seal(&out, secret)
	if err != nil {
		f.Fatal(err)
	}
	_, _ = w.Write([]byte("plain"))
	_ = w.Close()
	f.Add(out.Bytes())
	f.Add([]byte(sealMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := OpenSealed(bytes.NewReader(data), secret)
		if err != nil {
			return
		}
		if got, err := io.ReadAll(r); err == nil && !bytes.Equal(data, out.Bytes()) {
			t.Fatalf("%q opens as %q", data, got)
		}
	})
}

// there reads ages of snapshots, such as "1h 7h".
func there(t *testing.T, now time.Time, ages string) (list []backup) {
	t.Helper()
	for _, age := range strings.Fields(ages) {
		d, err := time.ParseDuration(age)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, backup{age, now.Add(-d)})
	}
	return list
}

func TestScheduleOfSnapshots(t *testing.T) {
	now := time.Date(2026, 11, 25, 18, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		ages, outdated string
		due            bool
	}{
		"none yet":                      {"", "", true},
		"one that is young":             {"5h59m", "", false},
		"one that is six hours old":     {"6h", "", true},
		"a day of them":                 {"1h 7h 13h 19h", "", false},
		"older ones go":                 {"1h 7h 13h 19h 25h 31h", "25h 31h", false},
		"the newest stays, however old": {"400h 500h", "500h", true},
		"a clock that was ahead":        {"-9h", "", true},
		"and one that is behind now":    {"-9h 2h 30h", "30h", false},
	} {
		list := there(t, now, c.ages)
		var old []string
		for _, f := range defaultBackups().outdated(list, now) {
			old = append(old, f.name)
		}
		if got := strings.Join(old, " "); got != c.outdated || defaultBackups().due(list, now) != c.due {
			t.Errorf("%s: outdated %q, want %q; due %v, want %v", name, got, c.outdated, !c.due, c.due)
		}
	}
}

func TestScheduledSnapshotsAreSealedVerifiedAndKeptForADay(t *testing.T) {
	h := newHosts(t, 1, 1)
	dir := filepath.Join(t.TempDir(), "backups")
	o := h.all["fb1"].start(func(c *Config) { c.Backups = Backups{Directory: dir, Every: 6 * time.Hour, Keep: 24 * time.Hour} })
	h.leader()
	o.put("k", "a value nobody else may read")
	eventually(t, "the schedule begins", func() error { // its next look is in a minute
		if list, err := filepath.Glob(filepath.Join(dir, "*.snapshot")); err != nil || len(list) == 0 {
			return errors.New("there is none yet")
		}
		return nil
	})
	if err := os.WriteFile(filepath.Join(dir, o.store.config.tempName()+"77"), nil, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	now := time.Now()
	for hour := range 40 {
		if err := o.store.backUpOnce(t.Context(), now.Add(time.Duration(hour)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 5 && len(files) != 4 {
		t.Fatalf("%d files, want those of a day: %v", len(files), err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil || bytes.Contains(data, []byte("nobody else")) {
			t.Fatalf("%s: %v, or it can be read by everybody", f.Name(), err)
		}
		trust, err := peer.Load(o.pki)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := OpenSealed(bytes.NewReader(data), trust.GossipKey())
		if err != nil {
			t.Fatal(err)
		}
		copied := state.New()
		if err := copied.Restore(plain); err != nil {
			t.Fatal(err)
		}
		if e, _ := copied.Snapshot().Entry(nil, "k"); e == nil || string(e.Value) != "a value nobody else may read" {
			t.Errorf("%s: %+v", f.Name(), e)
		}
		if st, err := f.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f.Name(), st.Mode(), err)
		}
	}
}

func TestBackupThatFailsIsACondition(t *testing.T) {
	h := newHosts(t, 1, 1)
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := h.all["fb1"].start(func(c *Config) {
		c.Backups = Backups{Directory: filepath.Join(blocked, "below"), Every: time.Hour, Keep: time.Hour}
	})
	h.leader().put("k", "v")
	eventually(t, "the condition", func() error {
		if c := o.condition(conditionBackup); !strings.Contains(c, blocked) {
			return fmt.Errorf("%q", c)
		}
		return nil
	})
}
