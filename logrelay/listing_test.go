package logrelay

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/lab"
)

// TestAFolderThatCanNotBeReadStopsNoFiles, in virtual time: one of a host, in which
// its file that is written may be. Files of others are put away, and so many as are
// kept stay; but nothing goes for its age, and no empty folder, until it can be
// read. It fails where an incomplete listing is taken for nothing, or for all there
// is.
func TestAFolderThatCanNotBeReadStopsNoFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{host}/{app}.log"}}`)
		defer x.end()
		lab.WithoutFileRights(t, func() {
			o := beginFiles(t, x)
			old := time.Now().AddDate(-1, 0, 0)
			away := "cn1/sshd.log." + old.UTC().Format(rotatedTime) + zstSuffix
			writtenAt(t, x.hosts, away, old)
			writtenAt(t, x.hosts, "cn2/sshd.log", old)
			unread, empty := filepath.Join(x.hosts, "cn3"), filepath.Join(x.hosts, "cn4")
			if err := errors.Join(os.Mkdir(unread, 0), os.Mkdir(empty, 0o755), os.Chtimes(empty, old, old)); err != nil {
				t.Fatal(err)
			}
			look := func(can bool) string {
				t.Helper()
				if err := o.rotator.tidy(); (err == nil) != can {
					t.Errorf("it can be read %v: %v", can, err)
				}
				if err := o.retire(); err != nil {
					t.Error(err)
				}
				<-time.After(outlivedFor)
				_ = os.Chmod(unread, 0o700)
				list := strings.Join(filesBelow(t, x.hosts), " ")
				if !can {
					_ = os.Chmod(unread, 0)
				}
				return list
			}
			look(false)
			if list := look(false); !strings.Contains(list, away) || !strings.Contains(list, "cn2/sshd.log.") || !strings.Contains(list, "cn4/") {
				t.Errorf("while it can't be read there are %s", list)
			}
			if err := os.Chmod(unread, 0o700); err != nil {
				t.Fatal(err)
			}
			look(true)
			if list := look(true); strings.Contains(list, away) || strings.Contains(list, "cn4/") {
				t.Errorf("when it can be read there are %s", list)
			}
		})
	})
}
