package ntpproxy

import (
	"fmt"
	"strings"
	"time"

	"holdfast/internal/health"
	"holdfast/ntpproxy/discipline"
)

// sayAgain is how often a condition is said anew whose figures changed and
// nothing else: each time is a line of the log.
const sayAgain = 15 * time.Minute

// spoken is what conditions that hold figures said. It is pure.
type spoken map[string]saying

// saying is what one said and when.
type saying struct {
	about string
	at    time.Duration
}

// due tells whether a condition is to be raised at a time that never goes back:
// it stands anew, is about something else, or is old.
func (s *spoken) due(condition, about string, now time.Duration) bool {
	was, said := (*s)[condition]
	if said && was.about == about && now-was.at < sayAgain {
		return false
	}
	if *s == nil {
		*s = spoken{}
	}
	(*s)[condition] = saying{about, now}
	return true
}

// over notes that a condition stands no more.
func (s *spoken) over(condition string) { delete(*s, condition) }

// roughly is a time in two digits, as it is said to people.
func roughly(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d.Abs()/unit >= 100 {
		unit *= 10
	}
	return d.Round(unit)
}

// sayPanic says that the clock is too far off to be corrected.
func (k *keeper) sayPanic(err error) {
	if k.spoken.due(conditionPanic, "", k.server.elapsed()) {
		k.server.board.Raise(conditionPanic, health.Error, err.Error())
	}
}

// sayFalsetickers names the sources that contradict the others.
func (k *keeper) sayFalsetickers(report *Kept) {
	var names, figures []string
	majority := false
	for i, source := range report.Sources {
		majority = majority || source.State >= discipline.Outlier
		if source.State == discipline.Falseticker && report.Synchronised {
			names = append(names, k.names[i])
			figures = append(figures, fmt.Sprintf("%s is off by about %v", k.names[i], roughly(source.Offset)))
		}
	}
	board := k.server.board
	if len(names) == 0 {
		board.Clear(conditionFalseticker)
		k.spoken.over(conditionFalseticker)
		return
	}
	if !k.spoken.due(conditionFalseticker, fmt.Sprint(majority, names), k.server.elapsed()) {
		return
	}
	if text := strings.Join(figures, "; "); majority {
		board.Raise(conditionFalseticker, health.Warning, "sources that the majority outvotes: "+text)
	} else {
		board.Raise(conditionFalseticker, health.Error, "the sources contradict each other and there is no majority, so that none is believed and the clock runs on by itself: take those out of ntp.sources that are wrong, or add others: "+text)
	}
}
