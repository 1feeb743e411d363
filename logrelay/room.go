package logrelay

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
)

const conditionRemoved = "logs.files-removed"

// room tells of files that are removed, and by condition of those that went
// before their time, since too little of the disk was free. It belongs to the
// rotator's goroutine; nil counts nothing and raises nothing.
type room struct {
	board   *health.Board
	removed *prometheus.CounterVec
	early   int // removed for space since there was room
}

// took notes a file that was removed.
func (r *room) took(log *slog.Logger, name string, tooMany bool) {
	reason := "count"
	if tooMany {
		log.Info("removed a log file: its host has more than are kept, or it is older than those would be", "file", name)
	} else {
		reason = "space"
		log.Warn("removed a log file before its time: too little of the disk is free", "file", name)
	}
	if r == nil {
		return
	}
	r.removed.WithLabelValues(reason).Inc()
	if !tooMany {
		r.early++
	}
}

// look tells how it stands. free is what is free in dir now, in percent, and
// floor what ought to be.
func (r *room) look(dir string, free, floor float64) {
	switch {
	case r == nil || r.early == 0:
	case free >= floor+shortMargin:
		r.early = 0
		r.board.Clear(conditionRemoved)
	default:
		r.board.Raise(conditionRemoved, health.Warning, fmt.Sprintf(
			"%d log files that were put away in %s were removed before their time, since less than %.0f %% of the disk, or of its inodes, were free (logs.files.free_percent): make room, or keep fewer (logs.files.keep)",
			r.early, dir, floor))
	}
}
