package vrrp

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/runfile"
)

// standingOrders are what admins asked for by Pull and Yield. They are good until
// Release or the next boot, over restarts of the process: a line an order,
//
//	BOOT-ID pull|yield ROUTER
type standingOrders struct {
	path    string
	boot    string
	given   map[string]EventKind
	changed bool // the file is to be written again
	text    []byte
}

func openOrders(dir string, at runfile.Origin) *standingOrders {
	o := &standingOrders{path: filepath.Join(dir, ordersFile), boot: at.Boot, given: map[string]EventKind{}}
	o.text, _ = os.ReadFile(o.path) // none: nothing was asked for
	for line := range strings.Lines(string(o.text)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != at.Boot {
			continue
		}
		switch fields[1] {
		case "pull":
			o.given[fields[2]] = Pull
		case "yield":
			o.given[fields[2]] = Yield
		}
	}
	return o
}

// give gives the orders again to a machine that was just started.
func (o *standingOrders) give(l *loop) {
	for i, in := range l.instances {
		if kind, ok := o.given[in.settings.Name]; ok {
			in.log.Info("an admin's order stands", "order", orderWord(kind))
			l.step(Event{Kind: kind, At: time.Now(), Router: i})
		}
	}
}

// keep writes down what the machine goes by, where that changed.
func (o *standingOrders) keep(l *loop) {
	if !o.changed {
		return
	}
	o.changed = false
	var text []byte
	for i, in := range l.instances {
		switch s := l.machine.Status(i); {
		case s.Pulled:
			text = fmt.Appendf(text, "%s pull %s\n", o.boot, in.settings.Name)
		case s.Yielded:
			text = fmt.Appendf(text, "%s yield %s\n", o.boot, in.settings.Name)
		}
	}
	if bytes.Equal(text, o.text) {
		return
	}
	if err := runfile.Replace(o.path, text); err != nil {
		l.log.Error("an admin's order is not remembered over a restart", "error", err)
		return
	}
	o.text = text
}
