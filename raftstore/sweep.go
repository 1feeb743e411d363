package raftstore

import (
	"errors"
	"os"
	"path/filepath"
)

// sweep removes what a crash left half written in the data directory: spools of
// snapshots, which hold the store in plain text and may be as large, snapshots that
// Raft did not finish, and what was to replace other files. The caller holds the
// lock of the log, so that nobody writes them. What can't be removed is told and
// does no harm.
func (e *engine) sweep() {
	c := e.store.config
	var errs []error
	for _, pattern := range []string{
		filepath.Join(c.dir(), spoolRestore), filepath.Join(c.dir(), spoolRebuild),
		filepath.Join(c.dir(), snapshotsDir, "*"+snapshotTemp),
		filepath.Join(c.dir(), "."+beforeRestore+".*"), filepath.Join(c.dir(), "."+frontName+".[01].*"),
		filepath.Join(c.DataDir, "."+recordName+".*"), // internal/durable
	} {
		left, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, path := range left {
			e.store.log.Info("what an earlier run left half written is removed", "path", path)
			errs = append(errs, os.RemoveAll(path))
		}
	}
	dir := filepath.Join(c.dir(), snapshotsDir)
	_, partial, err := snapshotNames(dir)
	errs = append(errs, err)
	for _, name := range partial { // hashicorp/raft does not see them
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	if err := errors.Join(errs...); err != nil {
		e.store.log.Warn("what an earlier run left half written is there still", "error", err)
	}
}
