package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// monitorTime is how long the emulator may take for a command of its monitor.
const monitorTime = 20 * time.Second

// monitor speaks QMP, the emulator's own control protocol
// (https://www.qemu.org/docs/master/interop/qmp-spec.html): JSON, a line each.
type monitor struct {
	mu    sync.Mutex // one command at a time
	conn  net.Conn
	lines *bufio.Reader
}

type monitorMessage struct {
	Return *json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

func newMonitor(conn net.Conn) *monitor {
	return &monitor{conn: conn, lines: bufio.NewReader(conn)}
}

// open ends the negotiation of capabilities.
func (m *monitor) open() error {
	return m.run("qmp_capabilities", nil)
}

// run runs a command that has no result. What else the emulator says, its
// greeting and its events, is passed over.
func (m *monitor) run(command string, arguments map[string]any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	data, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if err := m.conn.SetDeadline(time.Now().Add(monitorTime)); err != nil {
		return err
	}
	if _, err := m.conn.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("monitor: %s: %w", command, err)
	}
	for {
		line, err := m.lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("monitor: %s: %w", command, err)
		}
		var answer monitorMessage
		if err := json.Unmarshal(line, &answer); err != nil {
			return fmt.Errorf("monitor: %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("monitor: %s: %w", command, errors.New(answer.Error.Desc))
		case answer.Return != nil:
			return nil
		}
	}
}
