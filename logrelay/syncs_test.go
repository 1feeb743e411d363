package logrelay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/kernel/filesystem"
)

// takeAll has the files' output take what is in the journal.
func takeAll(t *testing.T, x *stage, o *files) {
	t.Helper()
	reader := x.j.Reader(o.next)
	defer reader.Close()
	for {
		block, ok, err := reader.TryNext()
		if err == nil && ok {
			err = o.take(block)
		}
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
	}
}

// namesDisk is what a disk has of names: those that were in a folder when it was
// last synced. Whatever was written into a file is there.
type namesDisk struct {
	dir, files string // the folder, and links to what was in it, by number
	folders    map[string][]os.DirEntry
	numbers    map[string]string
	links      int
}

func newNamesDisk(t *testing.T, dir string) *namesDisk {
	return &namesDisk{dir: dir, files: t.TempDir(), folders: map[string][]os.DirEntry{}, numbers: map[string]string{}}
}

// sync is syncFolder, and remembers what the folder has.
func (d *namesDisk) sync(root *os.Root, name string) error {
	if err := syncFolder(root, name); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(d.dir, name))
	d.folders[name] = entries
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		file := path.Join(name, e.Name())
		d.links++
		d.numbers[file] = itoa(d.links)
		err = errors.Join(err, os.Link(filepath.Join(d.dir, file), filepath.Join(d.files, d.numbers[file])))
	}
	return err
}

// cut is a power cut: the folder has what the disk has.
func (d *namesDisk) cut(t *testing.T) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(d.dir), d.restore(".")); err != nil {
		t.Fatal(err)
	}
}

func (d *namesDisk) restore(name string) error {
	err := os.Mkdir(filepath.Join(d.dir, name), 0o755)
	for _, e := range d.folders[name] {
		file := path.Join(name, e.Name())
		if e.IsDir() {
			err = errors.Join(err, d.restore(file))
			continue
		}
		err = errors.Join(err, os.Link(filepath.Join(d.files, d.numbers[file]), filepath.Join(d.dir, file)))
	}
	return err
}

// TestAPowerCutTakesNoNamesThatLinesNeed: the disk has the names of the last sync
// of each folder, and all lines are in the files afterwards. It fails if the names
// of new files, or of those that were put away, are not synced, be it since another
// could not be: the undo of a new file cuts off the old one that has its name again.
// It fails, too, if one that can't be put away stops the output, or is tried again
// at once.
func TestAPowerCutTakesNoNamesThatLinesNeed(t *testing.T) {
	for name, step := range map[string]func(t *testing.T, x *stage, o *files){
		"new": func(*testing.T, *stage, *files) {},
		"full": func(t *testing.T, x *stage, o *files) {
			if list := filesBelow(t, x.hosts); len(list) != 2 {
				t.Fatalf("nothing is put away: %q", list)
			}
		},
		"one refused": func(t *testing.T, x *stage, o *files) {
			if list := filesBelow(t, x.hosts); len(list) != 3 || !strings.Contains(list[0], "/cn1/test.log.") || !strings.HasSuffix(list[1], "/cn2/test.log") {
				t.Fatalf("not one of two is put away: %q", list)
			}
		},
		"past": func(t *testing.T, x *stage, o *files) {
			list, long := filesBelow(t, x.hosts), time.Now().Add(-2*retireAfter)
			for _, name := range list {
				if err := os.Chtimes(filepath.Join(x.hosts, name), long, long); err != nil {
					t.Fatal(err)
				}
			}
			var past []pastFile
			for _, name := range list {
				past = append(past, pastFile{name, long})
			}
			o.rotator.past.set(past)
			if err := o.retire(); err != nil {
				t.Fatal(err)
			}
			if later := filesBelow(t, x.hosts); len(later) != 2 || slices.Equal(later, list) {
				t.Fatalf("nothing is put away: %q", later)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newStage(t, `{files: {path: "{year}/{month}/{day}/{host}/{app}.log"}}`)
				defer x.end()
				if name == "full" || name == "one refused" {
					x.s.settings.rotate.bytes = 1
				}
				disk := newNamesDisk(t, x.hosts)
				begin := func(lines ...string) *files {
					t.Helper()
					<-time.After(time.Second) // what is put away has another time in its name
					x.store(lines...)
					o, err := x.s.newFiles(x.j)
					if err == nil {
						o.well, o.syncs.folder = func() {}, disk.sync
						err = o.begin()
					}
					if err != nil {
						t.Fatal(err)
					}
					takeAll(t, x, o)
					return o
				}
				o := begin("<13>Nov 25 12:00:00 cn1 test: 1", "<13>Nov 25 12:00:00 cn2 test: 2")
				now := time.Now().UTC()
				way := filepath.Join(x.hosts, now.Format("2006/01/02"), "cn2", "test.log."+now.Format(rotatedTime))
				if name == "one refused" {
					if err := os.Mkdir(way, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if err := o.checkpoint(); err != nil {
					t.Fatal(err)
				}
				step(t, x, o)
				x.store("<13>Nov 25 12:00:00 cn1 test: 3", "<13>Nov 25 12:00:00 cn2 test: 4")
				takeAll(t, x, o)
				if err := o.flush(); err != nil {
					t.Fatal(err)
				}
				for _, f := range o.open {
					if f.rotate && name == "one refused" && strings.Contains(f.name, "cn2") {
						t.Error("what was refused is tried again at once")
					}
				}
				o.end() // no checkpoint
				disk.cut(t)
				o = begin("<13>Nov 25 12:00:00 cn1 test: 5")
				defer o.end()
				if err := o.checkpoint(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]string{"1", "2", "3", "4", "5"}, texts(t, x.hosts)); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestARemovedFolderCostsNoLineThatComesAfter: somebody removes today's folder
// while its files are open, once seen by a checkpoint, and once by what closes
// files when there are too many. It fails if lines go on into files that have no
// name, or if the cursor moves behind them.
func TestARemovedFolderCostsNoLineThatComesAfter(t *testing.T) {
	for _, most := range []int{100, 1} {
		t.Run(fmt.Sprintf("%d may be open", most), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newStage(t, `{files: {path: "{year}/{host}.log"}}`)
				defer x.end()
				o, err := x.s.newFiles(x.j)
				if err != nil {
					t.Fatal(err)
				}
				o.most = most
				begin := func() (end func() error) {
					ctx, cancel := context.WithCancel(x.ctx)
					ended := make(chan error, 1)
					go func() { ended <- o.run(ctx, func() {}) }()
					synctest.Wait()
					return func() error { defer cancel(); <-time.After(2 * syncEvery); cancel(); return <-ended }
				}
				end := begin()
				x.store("<13>Nov 25 12:00:00 cn1 test: before")
				<-time.After(2 * syncEvery)
				if diff := cmp.Diff([]string{"before"}, texts(t, x.hosts)); diff != "" {
					t.Fatal(diff)
				}
				if err := os.RemoveAll(filepath.Join(x.hosts, time.Now().UTC().Format("2006"))); err != nil {
					t.Fatal(err)
				}
				x.store("<13>Nov 25 12:00:00 cn1 test: 1", "<13>Nov 25 12:00:00 cn2 test: 2")
				if err := end(); !errors.Is(err, errRemoved) {
					t.Errorf("the output says %v", err)
				}
				end = begin()
				x.store("<13>Nov 25 12:00:00 cn1 test: 3")
				if err := end(); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff([]string{"1", "2", "3"}, texts(t, x.hosts)); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestARemovedFileThatGetsNoMoreLinesIsClosed: its descriptor, and what it has on
// the disk, are let go.
func TestARemovedFileThatGetsNoMoreLinesIsClosed(t *testing.T) {
	x := newStage(t, `{files: {path: "{year}/{host}.log"}}`)
	defer x.end()
	o := beginFiles(t, x)
	f, err := fileOf(o, "cn1")
	if err != nil {
		t.Fatal(err)
	}
	o.rotator.past.set([]pastFile{{name: f.name}})
	if err := errors.Join(os.Remove(filepath.Join(x.hosts, f.name)), o.retire()); err != nil {
		t.Fatal(err)
	}
	if len(o.open) != 0 || f.file.Close() == nil {
		t.Errorf("%d files are open", len(o.open))
	}
}

// TestManyFilesAreSyncedTogether, by a checkpoint and when there are more than may
// be open; few are synced one by one, and so are those of another file system. It
// fails if each of many waits for the disk, or if one is not synced at all.
func TestManyFilesAreSyncedTogether(t *testing.T) {
	for _, test := range []struct {
		name                    string
		hosts, most             int
		elsewhere               bool
		wantFiles, wantTogether int
	}{
		{"few", manyFiles - 1, 1000, false, manyFiles - 1, 0},
		{"many", manyFiles, 1000, false, 0, 1},
		{"many of another file system", manyFiles, 1000, true, manyFiles, 0},
		{"more than may be open", 16*manyFiles + 1, 16 * manyFiles, false, 0, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newStage(t, `{}`)
				defer x.end()
				o := beginFiles(t, x)
				o.most = test.most
				files, together := 0, 0
				o.syncs.file = func(file *os.File) error { files++; return file.Sync() }
				o.syncs.all = func(folder *os.File) error { together++; return filesystem.Sync(folder) }
				if test.elsewhere {
					o.device++
				}
				var lines []string
				for n := range test.hosts {
					lines = append(lines, fmt.Sprintf("<13>Nov 25 12:00:00 cn%d test: x", n))
				}
				x.store(lines...)
				for range 2 { // nothing is left to do the second time
					takeAll(t, x, o)
					if err := o.checkpoint(); err != nil {
						t.Fatal(err)
					}
				}
				if files != test.wantFiles || together != test.wantTogether {
					t.Errorf("%d files were synced, and %d times all, want %d and %d", files, together, test.wantFiles, test.wantTogether)
				}
				for _, f := range o.open {
					if f.unsynced {
						t.Fatalf("%s is not synced", f.name)
					}
				}
			})
		})
	}
}

// TestManyFoldersAreSyncedTogether: with the host in the path, each new file has one
// of its own. It fails if each of many waits for the disk, if a folder of another
// file system is left out, or if one that somebody removed is told of.
func TestManyFoldersAreSyncedTogether(t *testing.T) {
	for _, test := range []struct {
		name                      string
		hosts                     int
		elsewhere                 bool
		wantFolders, wantTogether int // one by one, beside the files' own folder, and together
	}{
		{"few", manyFiles - 1, false, manyFiles - 1, 0},
		{"many", manyFiles, false, 0, 1},
		{"many of another file system", manyFiles, true, manyFiles, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := newStage(t, `{files: {path: "{host}/{app}.log"}}`)
			defer x.end()
			o := beginFiles(t, x)
			folders, together := 0, 0
			o.syncs.folder = func(root *os.Root, name string) error { folders++; return syncFolder(root, name) }
			o.syncs.all = func(folder *os.File) error { together++; return filesystem.Sync(folder) }
			if test.elsewhere {
				o.device++
			}
			for n := range test.hosts {
				if _, err := o.fileOf(named(fmt.Sprintf("cn%d", n), "sshd", time.Now())); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.RemoveAll(filepath.Join(x.hosts, "cn1")), o.syncFolders()); err != nil {
				t.Fatal(err)
			}
			if folders != 1+test.wantFolders || together != test.wantTogether || len(o.folders) != 0 {
				t.Errorf("%d folders were synced, and %d times all, want %d and %d; %d are left", folders, together, 1+test.wantFolders, test.wantTogether, len(o.folders))
			}
		})
	}
}

// TestAFileThatIsToBePutAwayIsClosedLast: when it is closed for want of room, it
// stays as it is until its next line. It fails if the one without a line for the
// longest time is closed whatever it is.
func TestAFileThatIsToBePutAwayIsClosedLast(t *testing.T) {
	x := newStage(t, `{}`)
	defer x.end()
	o := beginFiles(t, x)
	o.most = 3
	open := func(host string) {
		t.Helper()
		if _, err := fileOf(o, host); err != nil {
			t.Fatal(err)
		}
	}
	for _, host := range []string{"cn1", "cn2", "cn3"} {
		open(host)
	}
	o.open["cn1.log"].rotate = true
	for _, step := range []struct {
		host string
		want []string
	}{
		{"cn4", []string{"cn1.log", "cn3.log", "cn4.log"}},
		{"cn5", []string{"cn1.log", "cn4.log", "cn5.log"}},
	} {
		open(step.host)
		if diff := cmp.Diff(step.want, slices.Sorted(maps.Keys(o.open))); diff != "" {
			t.Errorf("with %s: %s", step.host, diff)
		}
	}
	for _, f := range o.open {
		f.rotate = true
	}
	if open("cn6"); len(o.open) != 3 || o.open["cn6.log"] == nil || o.open["cn1.log"] != nil {
		t.Errorf("where all are, the oldest goes: %v", slices.Sorted(maps.Keys(o.open)))
	}
}
