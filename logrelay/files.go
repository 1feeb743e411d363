package logrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/logrelay/journal"
)

// Bounds of the files' output.
const (
	flushBytes = 4 << 20 // buffered lines after which they are written
	flushEvery = 50 * time.Millisecond
	syncBytes  = 256 << 20 // written bytes after which the cursor moves
	syncEvery  = 10 * time.Second
	fileSuffix = ".log"
)

// filesConfig is where per-host files go, and when they are rotated.
type filesConfig struct {
	dir    string
	undo   string // where the undo file goes: the journal's directory
	rotate rotateConfig
	owner  ownership
	format lineFormat
}

// files writes every line into its host's file, once, whatever crashes: the
// cursor moves after the files are synced, and what was written since is cut
// off and written again. It belongs to one goroutine.
type files struct {
	config  filesConfig
	syncs   syncs
	journal *journal.Journal
	cursor  *journal.Cursor
	names   *names
	rules   *rules
	log     *slog.Logger
	bugs    *bugs
	metrics *outputMetrics
	rotator *rotator
	layout  *layout
	paths   *paths
	apps    apps
	now     func() time.Time

	root     *os.Root
	folder   *os.File // that of root
	device   uint64   // its file system
	access   access
	undo     *undo
	open     map[string]*hostFile // by their paths
	path     []byte               // room to write one
	folders  map[string]bool      // in which there are names that are not durable yet
	blocked  blocked
	dirty    []*hostFile // with buffered lines
	buffers  buffers
	buffered int
	since    time.Time     // something is buffered; zero: nobody looked
	most     int           // files open at once
	turn     uint64        // counts lines
	until    time.Time     // the relay ends, and the files with it; zero: it does not
	catchUp  time.Duration // of tests; 0: catchUpMost
	written  int64         // since the cursor moved
	next     uint64
	synced   time.Time
	line     line
	well     func() // called after each write that went well
	silence  *silence
	gaps     *gaps
	missing  prometheus.Counter
	asked    *asked
}

// hostFile is a file of a host.
type hostFile struct {
	name     string // its path below the folder
	file     *os.File
	size     int64
	buf      []byte // nil: it has no buffered lines
	unsynced bool
	born     time.Time // when its first line was written
	voice    *voice
	used     uint64 // turn of its last line
	rotate   bool
	again    time.Time // when it is next tried to put it away, once that was refused
}

// run writes until ctx ends; then everything is synced. An error is a file
// system that refused; nothing is lost, and run can be called again.
func (o *files) run(ctx context.Context, well func()) error {
	o.well = well
	if err := o.begin(); err != nil {
		return err
	}
	defer o.end()
	reader := o.journal.Reader(o.next)
	defer reader.Close()
	for {
		if o.ending(ctx.Err() != nil) {
			return o.checkpoint()
		}
		block, err := o.read(ctx, reader)
		switch {
		case err != nil && ctx.Err() != nil:
			return o.checkpoint()
		case err != nil:
			return err
		}
		if err := o.take(block); err != nil {
			return err
		}
		if o.due() {
			if err := o.flush(); err != nil {
				return err
			}
		}
		if o.written >= syncBytes || o.now().Sub(o.synced) >= syncEvery {
			if err := o.checkpoint(); err != nil {
				return err
			}
		}
	}
}

// read returns the next block. While there is none, it writes what is buffered
// and moves the cursor when it is time to.
func (o *files) read(ctx context.Context, reader *journal.Reader) (journal.Block, error) {
	for {
		if block, ok, err := reader.TryNext(); err != nil || ok {
			return block, err
		}
		wait := syncEvery
		if o.buffered > 0 {
			wait = flushEvery
		}
		idle, cancel := context.WithTimeout(ctx, wait)
		o.asked.ends(cancel)
		block, err := reader.Next(idle)
		ended := idle.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil || !ended {
			return block, err
		}
		if err := o.flush(); err != nil {
			return block, err
		}
		if o.asked.take() || o.written >= syncBytes || o.now().Sub(o.synced) >= syncEvery {
			if err := o.checkpoint(); err != nil {
				return block, err
			}
		}
	}
}

// begin makes the files as they were when the cursor last moved.
func (o *files) begin() (err error) {
	if o.access, err = o.config.owner.find(); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	if err := o.access.makeDir(o.config.dir, o.syncs.folder); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	if o.root, err = os.OpenRoot(o.config.dir); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	o.rules.begin()
	o.open, o.dirty, o.buffered, o.written, o.synced = map[string]*hostFile{}, nil, 0, 0, o.now()
	o.folders = map[string]bool{}
	o.since, o.until, o.next = time.Time{}, time.Time{}, o.cursor.Next()
	if err := o.paths.save(); err != nil {
		return errors.Join(fmt.Errorf("logrelay: files: %w", err), o.root.Close())
	}
	if o.undo, err = openUndo(o.config.undo, o.config.dir, o.next); err != nil {
		return errors.Join(fmt.Errorf("logrelay: files: %w", err), o.root.Close())
	}
	if err := o.undo.apply(o.root); err != nil {
		return errors.Join(fmt.Errorf("logrelay: files: %w", err), o.root.Close())
	}
	if o.folder, err = o.root.Open("."); err != nil {
		return errors.Join(fmt.Errorf("logrelay: files: %w", err), o.root.Close())
	}
	info, err := o.folder.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("logrelay: files: %w", err), o.folder.Close(), o.root.Close())
	}
	o.device = info.Sys().(*syscall.Stat_t).Dev // Linux
	return nil
}

// end closes what is open; what is not synced is undone by the next begin.
func (o *files) end() {
	for _, f := range o.open {
		_ = f.file.Close()
	}
	_ = o.undo.close()
	_ = o.folder.Close()
	_ = o.root.Close()
}

// take buffers a block's lines.
func (o *files) take(block journal.Block) (err error) {
	lines := 0
	failed := block.Each(func(number uint64, r journal.Record) bool {
		if number < o.next || r.Input == viaMark || !o.judge(number, r) {
			return true
		}
		var f *hostFile
		if f, err = o.fileOf(&o.line); err != nil {
			return false
		}
		f.voice.heard.Store(true)
		o.put(f)
		lines++
		return true
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	o.next = block.End()
	o.metrics.lines.Add(float64(lines))
	o.metrics.failed.Add(float64(o.rules.failures()))
	return nil
}

// put buffers the line for a file.
func (o *files) put(f *hostFile) {
	if len(f.buf) == 0 {
		o.dirty = append(o.dirty, f)
		if f.buf == nil {
			f.buf = o.buffers.take()
		}
	}
	before := len(f.buf)
	f.buf = append(o.render(f.buf, &o.line), '\n')
	o.buffered += len(f.buf) - before
}

// announce says in the hosts' files how many of their lines a limit left out.
// That comes before the cursor moves behind them: a crash forgets both or
// neither.
func (o *files) announce() error {
	lines := 0
	for _, left := range o.rules.leftOut() {
		o.line.announce(left)
		f, err := o.fileOf(&o.line)
		if err != nil {
			return err
		}
		o.put(f)
		o.metrics.lines.Inc()
		lines += left.lines
	}
	if lines > 0 {
		o.log.Warn("limits left lines out", "output", "files", "lines", lines)
	}
	return nil
}

// flush writes what is buffered.
func (o *files) flush() error {
	if len(o.dirty) == 0 {
		return nil
	}
	for _, f := range o.dirty {
		if o.undo.has(f.name) {
			continue
		}
		info, err := f.file.Stat() // somebody may have cut it off
		if err != nil {
			return fmt.Errorf("logrelay: files: %w", err)
		}
		f.size = info.Size()
		o.undo.note(f.name, f.size)
	}
	if err := o.undo.sync(); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	rotate := false
	for _, f := range o.dirty {
		n, err := f.file.Write(f.buf)
		if err != nil {
			return fmt.Errorf("logrelay: files: %w", err)
		}
		f.size += int64(n)
		o.written += int64(n)
		f.unsynced = true
		o.buffers.give(f.buf)
		f.buf = nil
		now := o.now()
		f.rotate = o.config.rotate.due(f.size, now.Sub(f.born)) && !now.Before(f.again)
		rotate = rotate || f.rotate
	}
	o.metrics.bytes.Add(float64(o.buffered))
	o.dirty, o.buffered, o.since = o.dirty[:0], 0, time.Time{}
	o.well()
	if rotate {
		// Between blocks only: the cursor can't stand within one.
		o.written = syncBytes
	}
	return nil
}

// checkpoint makes durable what is in the files, moves the cursor, and then
// rotates what is due.
func (o *files) checkpoint() error {
	o.synced = o.now()
	o.blocked.tell(o.synced)
	if err := errors.Join(o.announce(), o.flush()); err != nil {
		return err
	}
	o.written = 0
	if o.next == o.cursor.Next() {
		return o.retire()
	}
	if err := o.syncFiles(maps.Values(o.open)); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	if err := o.syncFolders(); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	if err := o.cursor.Commit(o.next); err != nil {
		return err
	}
	if err := o.undo.moved(o.next); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	if err := o.rotateDue(); err != nil {
		return err
	}
	return o.retire()
}

// syncFolders makes the names of new files durable, and of their folders.
func (o *files) syncFolders() error {
	err := errors.Join(o.syncs.folder(o.root, "."), o.syncNames(o.folders))
	if err == nil {
		clear(o.folders)
	}
	return err
}

// rotateDue puts away what is due. The new names are durable before a line makes
// a file of an old one: see retire. One that can't be renamed is told of, and
// written on for a while: it is about this name alone. An error is of names that
// are not durable.
func (o *files) rotateDue() error {
	folders, now := map[string]bool{}, o.now()
	var failed failures
	for name, f := range o.open {
		if !f.rotate {
			continue
		}
		if err := o.rotator.putAway(o.root, f.name, now); err != nil {
			failed.add(err)
			f.rotate, f.again = false, now.Add(tryBlocked)
			continue
		}
		failed.add(f.file.Close())
		folders[path.Dir(name)] = true
		delete(o.open, name)
	}
	if err := failed.err(); err != nil {
		o.log.Error("files that are full or old are not put away, and written on; tried again after a minute", "dir", o.config.dir, "error", err)
	}
	if err := o.syncNames(folders); err != nil {
		return fmt.Errorf("logrelay: files: rotate: %w", err)
	}
	return nil
}
