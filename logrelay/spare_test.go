package logrelay

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/lab"
)

// TestANameThatCanNotBeOpenedStopsNoOtherHost, in virtual time: a file where the
// folder is to be, a folder where the file is to be, links that lead out of the
// folder or nowhere, a pipe, and rights that are missing. The lines go into the host's
// spare file, nothing goes out of the folder, a condition tells, and when the way
// is free the file is used. It fails if such an error ends the output, or if the
// name is never tried again.
func TestANameThatCanNotBeOpenedStopsNoOtherHost(t *testing.T) {
	outside := t.TempDir()
	for name, block := range map[string]func(dir string) error{
		"file":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "cn1"), nil, 0o600) },
		"folder": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "cn1", "test.log"), 0o755) },
		"link":   func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "cn1")) },
		"loop":   func(dir string) error { return os.Symlink("cn1", filepath.Join(dir, "cn1")) },
		"pipe": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "cn1"), 0o755), syscall.Mkfifo(filepath.Join(dir, "cn1", "test.log"), 0o666))
		},
		"pipe with a reader": func(dir string) error {
			pipe := filepath.Join(dir, "cn1", "test.log")
			if err := errors.Join(os.Mkdir(filepath.Join(dir, "cn1"), 0o755), syscall.Mkfifo(pipe, 0o666)); err != nil {
				return err
			}
			file, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
			t.Cleanup(func() { _ = file.Close() })
			return err
		},
		"rights": func(dir string) error { return os.Mkdir(filepath.Join(dir, "cn1"), 0o555) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lab.WithoutFileRights(t, func() {
					x := newStage(t, `{files: {path: "{host}/{app}.log"}}`)
					defer x.end()
					o, board := beginFiles(t, x), x.s.board
					way := filepath.Join(x.hosts, "cn1")
					if err := block(x.hosts); err != nil {
						t.Fatal(err)
					}
					store := func(text string) {
						t.Helper()
						x.store("<13>Nov 25 12:00:00 cn1 test: "+text, "<13>Nov 25 12:00:00 cn2 test: "+text)
						takeAll(t, x, o)
						if err := o.checkpoint(); err != nil {
							t.Fatal(err)
						}
						if err := o.checkpoint(); err != nil { // tells of this one's names
							t.Fatal(err)
						}
					}
					has := func(name string, want ...string) {
						t.Helper()
						b, err := os.ReadFile(filepath.Join(x.hosts, name))
						got := []string{}
						for line := range strings.Lines(string(b)) {
							_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
							got = append(got, text)
						}
						if !slices.Equal(got, want) {
							t.Errorf("%s has %q, want %q (%v)", name, got, want, err)
						}
					}
					store("1")
					store("2")
					has("cn1+.log", "1", "2")
					has("cn2/test.log", "1", "2")
					told := board.Conditions()
					if len(told) != 1 || told[0].Name != conditionBlocked || !strings.Contains(told[0].Message, "cn1") || !strings.Contains(told[0].Message, "cn1/test.log") && name != "rights" {
						t.Errorf("conditions: %+v", told)
					}
					if list := filesBelow(t, outside); !slices.Equal(list, []string{"./"}) {
						t.Errorf("outside there are %q", list)
					}
					if err := os.RemoveAll(way); err != nil {
						t.Fatal(err)
					}
					<-time.After(tryBlocked)
					store("3")
					has("cn1+.log", "1", "2")
					has("cn1/test.log", "3")
					has("cn2/test.log", "1", "2", "3")
					if told := board.Conditions(); len(told) != 0 {
						t.Errorf("when the way is free: %+v", told)
					}
				})
			})
		})
	}
}

// TestASpareFileIsNoOtherHosts: whatever path and hosts there are, and it is put
// away and removed as what an earlier path left, also below the folder that was
// the files' before. It fails where such a one is nobody's.
func TestASpareFileIsNoOtherHosts(t *testing.T) {
	for _, text := range []string{defaultPath, "{host}/{app}.log", "{year}/{host}.log"} {
		p, ok := layoutOf(t, text).place("cn1"+spareSuffix, time.Now())
		if !ok || !p.past || !p.earlier || !strings.HasSuffix(p.group, "/cn1") {
			t.Errorf("%s: %+v, %v", text, p, ok)
		}
	}
	// Where dir was /var/log/old/hosts, and is /var/log.
	l := layoutOf(t, defaultPath, "old/hosts/{host}.log")
	for name, want := range map[string]bool{"cn1+.log": true, "old/cn1+.log": true, "old/hosts/cn1+.log": true, "new/cn1+.log": false, "old/hosts/x/cn1+.log": false} {
		if p, ok := l.place(name, time.Now()); ok != want || ok && !p.past {
			t.Errorf("below a folder that was: %s: %+v, %v", name, p, ok)
		}
	}
	for _, claimed := range []string{"cn1+", "cn1+.log", "CN1+.LOG"} {
		if name := safeName(claimed); strings.ContainsRune(name, folderMark) {
			t.Errorf("%q is a host's name: %q", claimed, name)
		}
	}
}

// TestWhatStandsWhereAFileWasStopsNoBeginning: of a name that is undone. It fails
// if only a name that is not there is passed over; but a file that can't be cut is
// told of, since its lines would be there twice, and only where there is something to
// cut off.
func TestWhatStandsWhereAFileWasStopsNoBeginning(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), os.Mkdir(filepath.Join(dir, "folder.log"), 0o755),
		os.Symlink("/", filepath.Join(dir, "link")), os.Symlink("loop.log", filepath.Join(dir, "loop.log")),
		syscall.Mkfifo(filepath.Join(dir, "pipe.log"), 0o666),
		os.WriteFile(filepath.Join(dir, "cn1.log"), []byte("kept, and more"), 0o600), os.WriteFile(filepath.Join(dir, "cn2.log"), []byte("kept, and more"), 0o400),
	); err != nil {
		t.Fatal(err)
	}
	u := &undo{dir: t.TempDir(), sizes: map[string]int64{"file/sshd.log": 0, "folder.log": 0, "link/cn1.log": 0, "loop.log": 0, "gone.log": 0, "pipe.log": 0, "cn1.log": 4}}
	if err := u.apply(root); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "cn1.log"))
	if diff := cmp.Diff("kept", string(b)); diff != "" || err != nil {
		t.Error(diff, err)
	}
	lab.WithoutFileRights(t, func() {
		u.sizes["cn2.log"] = int64(len("kept, and more"))
		if err := u.apply(root); err != nil {
			t.Errorf("one that can't be opened, and need not be: %v", err)
		}
		u.sizes["cn2.log"] = 4
		if err := u.apply(root); !errors.Is(err, os.ErrPermission) {
			t.Errorf("one that can't be opened: %v", err)
		}
	})
}
