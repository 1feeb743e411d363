package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"holdfast/lab/vm/channel"
)

// session is a machine from its power on to its end: its emulator, and the
// talk with the agent in it.
type session struct {
	*emulator
	conn *channel.Conn
	boot channel.BootMessage

	booted chan error    // one message: processes can be started, or why not
	gone   chan struct{} // closed when the agent says nothing more

	mu     sync.Mutex
	serial uint32
	procs  map[uint32]*Proc
	over   bool
}

func newSession(e *emulator, boot channel.BootMessage) *session {
	s := &session{
		emulator: e, conn: channel.New(e.agent), boot: boot,
		booted: make(chan error, 1), gone: make(chan struct{}), procs: make(map[uint32]*Proc),
	}
	go s.read()
	return s
}

// read dispatches what the agent says until the machine is off.
func (s *session) read() {
	for {
		f, err := s.conn.Receive()
		if err == nil {
			err = s.dispatch(f)
		}
		if err != nil {
			s.end(err)
			return
		}
	}
}

func (s *session) dispatch(f channel.Frame) error {
	switch f.Kind {
	case channel.Hello:
		return s.conn.SendJSON(channel.Boot, 0, s.boot)
	case channel.Booted:
		s.reportBoot(nil)
		return nil
	case channel.Failed:
		if f.ID == 0 {
			s.reportBoot(errors.New(string(f.Data)))
			return nil
		}
	}
	s.mu.Lock()
	p := s.procs[f.ID]
	if f.Kind == channel.Exited || f.Kind == channel.Failed {
		delete(s.procs, f.ID)
	}
	s.mu.Unlock()
	if p == nil {
		return nil // the output of a daemon whose parent ended
	}
	switch f.Kind {
	case channel.Stdout:
		p.stdout.write(f.Data)
	case channel.Stderr:
		p.stderr.write(f.Data)
	case channel.Failed:
		p.fail(errors.New(string(f.Data)))
	case channel.Started, channel.Exited:
		if len(f.Data) != 4 {
			return fmt.Errorf("a number of %d bytes", len(f.Data))
		}
		number := binary.BigEndian.Uint32(f.Data)
		if f.Kind == channel.Started {
			p.begin(int(number))
		} else {
			p.end(syscall.WaitStatus(number))
		}
	default:
		return fmt.Errorf("a frame of kind %d", f.Kind)
	}
	return nil
}

func (s *session) reportBoot(err error) {
	select {
	case s.booted <- err:
	default: // it was reported
	}
}

// end tells all who wait that the machine is off.
func (s *session) end(err error) {
	s.mu.Lock()
	procs := s.procs
	s.procs, s.over = nil, true
	s.mu.Unlock()
	close(s.gone)
	s.reportBoot(fmt.Errorf("it ended: %w", err))
	for _, p := range procs {
		p.fail(ErrOff)
	}
}

// add registers a process under a new number.
func (s *session) add(p *Proc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return ErrOff
	}
	s.serial++
	p.id, p.session = s.serial, s
	s.procs[p.id] = p
	return nil
}
