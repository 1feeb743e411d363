package logrelay

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// losses count what does not come through, or not whole, and what is kept for
// those who don't take it.
type losses struct {
	cut, lost    [viaLast + 1]prometheus.Counter // lines, of inputs
	panics       [viaLast + 1]prometheus.Counter // of inputs
	broken       *prometheus.CounterVec          // lines, of outputs
	letGo        *prometheus.CounterVec          // lines, of outputs
	removed      *prometheus.CounterVec          // files that were put away, by reason
	waitingBytes *prometheus.GaugeVec            // of outputs
}

func newLosses(reg prometheus.Registerer) (l losses, err error) {
	vector := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	cut := vector("holdfast_logs_cut_lines_total", "Lines of more than 128 KiB, which were cut, by input.", "input")
	lost := vector("holdfast_logs_lost_lines_total", "Lines that no sender keeps and that are lost: the disk refused them, the journal had no room for them in time, nobody had read them at the end of the relay, or something panicked over them; by input.", "input")
	l.letGo = vector("holdfast_logs_let_go_lines_total", "Lines that were kept for a target no more, though it had not taken them, by output.", "output")
	l.removed = vector("holdfast_logs_removed_files_total", "Log files that were put away and then removed, by reason: count, or space.", "reason")
	l.waitingBytes = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "holdfast_logs_waiting_bytes", Help: "Bytes of the journal that are kept for an output, by output.",
	}, []string{"output"})
	l.broken = vector("holdfast_logs_failed_lines_total", "Lines that an output could not handle, and that another stands in the place of: bugs; by output.", "output")
	panics := vector("holdfast_logs_panics_total", "Datagrams and connections whose handling panicked: bugs; by input.", "input")
	for _, c := range []prometheus.Collector{cut, lost, l.broken, panics, l.letGo, l.removed, l.waitingBytes} {
		if err := reg.Register(c); err != nil {
			return l, fmt.Errorf("logrelay: register metrics: %w", err)
		}
	}
	for via := viaRELP; via <= viaLast; via++ {
		l.cut[via], l.lost[via] = cut.WithLabelValues(inputName(via)), lost.WithLabelValues(inputName(via))
		l.panics[via] = panics.WithLabelValues(inputName(via))
	}
	return l, nil
}

// cutLines counts lines of an input that were too long, and sets their number
// to nought.
func (l *losses) cutLines(via uint8, n *int) {
	if *n > 0 {
		l.cut[via].Add(float64(*n))
		*n = 0
	}
}
