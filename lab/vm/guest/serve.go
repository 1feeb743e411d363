package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"

	"holdfast/lab/vm/channel"
)

// drainTime is how long after the end of a process its output is waited for:
// a daemon that it left behind may hold the pipe open.
const drainTime = time.Second

// pause waits a little for what the kernel does in its own time.
func pause() { time.Sleep(5 * time.Millisecond) }

// processes are those that run for the test.
type processes struct {
	conn *channel.Conn

	// mu is held from the start of a process until its Started was sent, so
	// that its end is never reported before.
	mu    sync.Mutex
	byPID map[int]*process
	byID  map[uint32]*process
}

type process struct {
	id      uint32
	pid     int
	stdin   *input
	drained chan struct{} // closed at the end of standard output and error
}

// serve does what the test asks for until the test is gone.
func serve(conn *channel.Conn) error {
	p := &processes{conn: conn, byPID: make(map[int]*process), byID: make(map[uint32]*process)}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go p.reap(children)
	for {
		f, err := conn.Receive()
		if err != nil {
			return err
		}
		if err := p.handle(f); err != nil {
			if err := conn.Send(channel.Frame{Kind: channel.Failed, ID: f.ID, Data: []byte(err.Error())}); err != nil {
				return err
			}
		}
	}
}

func (p *processes) handle(f channel.Frame) error {
	if f.Kind == channel.Start {
		return p.start(f)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	proc := p.byID[f.ID]
	if proc == nil {
		return nil // it ended while this was on its way
	}
	switch f.Kind {
	case channel.Stdin:
		proc.stdin.add(f.Data)
		return nil
	case channel.Signal:
		if len(f.Data) != 4 {
			return errors.New("a signal has four bytes")
		}
		// Its number can be nobody else's: it is not reaped while mu is held.
		sig := int32(binary.BigEndian.Uint32(f.Data))
		if sig < 0 { // the whole group
			return syscall.Kill(-proc.pid, syscall.Signal(-sig))
		}
		return syscall.Kill(proc.pid, syscall.Signal(sig))
	default:
		return fmt.Errorf("a frame of kind %d", f.Kind)
	}
}

func (p *processes) start(f channel.Frame) error {
	var m channel.StartMessage
	if err := json.Unmarshal(f.Data, &m); err != nil {
		return err
	}
	if len(m.Args) == 0 {
		return errors.New("no program")
	}
	file, err := exec.LookPath(m.Args[0])
	if err != nil {
		return err
	}
	credential, err := lookupUser(m.User)
	if err != nil {
		return err
	}
	var theirs, ours [3]*os.File
	defer func() { closeAll(theirs[:]) }()
	for i := range theirs {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(ours[:])
			return err
		}
		theirs[i], ours[i] = w, r
		if i == 0 {
			theirs[i], ours[i] = r, w
		}
	}
	attr := &syscall.ProcAttr{
		Dir:   m.Dir,
		Env:   m.Env,
		Files: []uintptr{theirs[0].Fd(), theirs[1].Fd(), theirs[2].Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: credential},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(file, m.Args, attr)
	if err != nil {
		closeAll(ours[:])
		return &os.PathError{Op: "exec", Path: file, Err: err}
	}
	proc := &process{id: f.ID, pid: pid, stdin: newInput(ours[0]), drained: make(chan struct{})}
	p.byPID[pid], p.byID[f.ID] = proc, proc
	var data [4]byte
	binary.BigEndian.PutUint32(data[:], uint32(pid))
	err = p.conn.Send(channel.Frame{Kind: channel.Started, ID: f.ID, Data: data[:]})
	go p.copyOutput(proc, ours[1], ours[2])
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func (p *processes) copyOutput(proc *process, stdout, stderr *os.File) {
	defer close(proc.drained)
	var wg sync.WaitGroup
	for kind, file := range map[channel.Kind]*os.File{channel.Stdout: stdout, channel.Stderr: stderr} {
		wg.Go(func() {
			defer file.Close()
			buf := make([]byte, 64<<10)
			for {
				n, err := file.Read(buf)
				if n > 0 && p.conn.Send(channel.Frame{Kind: kind, ID: proc.id, Data: buf[:n]}) != nil {
					return
				}
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}

// reap collects the dead: those that were started, and the orphans that a
// daemon leaves to the first process.
func (p *processes) reap(children <-chan os.Signal) {
	for range children {
		for {
			p.mu.Lock()
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			proc := p.byPID[pid]
			if proc != nil {
				delete(p.byPID, pid)
				delete(p.byID, proc.id)
			}
			p.mu.Unlock()
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			if proc != nil {
				go p.ended(proc, status)
			}
		}
	}
}

func (p *processes) ended(proc *process, status syscall.WaitStatus) {
	proc.stdin.close()
	select {
	case <-proc.drained:
	case <-time.After(drainTime):
	}
	var data [4]byte
	binary.BigEndian.PutUint32(data[:], uint32(status))
	if err := p.conn.Send(channel.Frame{Kind: channel.Exited, ID: proc.id, Data: data[:]}); err != nil {
		fmt.Println("guest: report the end of a process:", err)
	}
}

// lookupUser returns the credential of a user, nil for root.
func lookupUser(name string) (*syscall.Credential, error) {
	if name == "" || name == "root" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
