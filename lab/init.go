package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"strconv"
	"sync"
	"syscall"
)

const (
	initArgv0   = "holdfast-lab-init" // argv[0] of a host's first process
	initControl = 3                   // its end of the control socket
	hostPath    = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Init runs the first process of a host, when this process was started as
// that, and returns true after the host lost its power: the caller then
// returns from main or TestMain at once. In every other process it returns
// false without doing anything. Call it first, before flags are parsed.
func Init() bool {
	if len(os.Args) == 0 || os.Args[0] != initArgv0 || os.Getpid() != 1 {
		return false
	}
	if err := initMain(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err) // the host's console log
	}
	return true
}

func initMain() error {
	// What follows is inherited by nobody.
	syscall.CloseOnExec(initControl)
	conn, err := unixConn(os.NewFile(initControl, "control"))
	if err != nil {
		return fmt.Errorf("init: open the control socket: %w", err)
	}
	defer conn.Close()
	var boot bootMessage
	if _, err := receive(conn, &boot); err != nil {
		return fmt.Errorf("init: read what to boot: %w", err)
	}
	if err := makeRoot(boot); err != nil {
		err = fmt.Errorf("init of %s: %w", boot.Name, err)
		return errors.Join(err, send(conn, initMessage{Err: err.Error()}))
	}
	if err := os.Setenv("PATH", hostPath); err != nil { // for exec.LookPath
		return err
	}
	p := &processes{conn: conn, ids: make(map[int]uint64)}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go p.reap(children)
	if err := send(conn, initMessage{Booted: true}); err != nil {
		return fmt.Errorf("init of %s: %w", boot.Name, err)
	}
	return p.serve()
}

// processes are those that init started, by PID, with the lab's names for them.
type processes struct {
	conn *net.UnixConn

	// mu is held from the start of a process until its Started was sent, so
	// that no Exited comes before it.
	mu  sync.Mutex
	ids map[int]uint64
}

// serve starts what the lab asks for until the lab is gone.
func (p *processes) serve() error {
	for {
		var m startMessage
		fds, err := receive(p.conn, &m)
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("init: read a request: %w", err)
		}
		err = p.start(m, fds)
		closeAll(fds)
		if err != nil {
			err = send(p.conn, initMessage{ID: m.ID, Err: err.Error()})
		}
		if err != nil {
			return fmt.Errorf("init: answer a request: %w", err)
		}
	}
}

// start starts a process and tells the lab. An error is what the lab has not
// been told yet.
func (p *processes) start(m startMessage, fds []int) error {
	if len(m.Argv) == 0 || len(fds) != 3 {
		return fmt.Errorf("%d arguments and %d descriptors; want a command and three", len(m.Argv), len(fds))
	}
	path, err := exec.LookPath(m.Argv[0])
	if err != nil {
		return err
	}
	credential, err := lookupUser(m.User)
	if err != nil {
		return err
	}
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir:   m.Dir,
		Env:   m.Env,
		Files: []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: credential, PidFD: &pidfd},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(path, m.Argv, attr)
	if err != nil {
		return &os.PathError{Op: "exec", Path: path, Err: err}
	}
	defer syscall.Close(pidfd)
	p.ids[pid] = m.ID
	return send(p.conn, initMessage{ID: m.ID, Started: true, PID: pid}, pidfd)
}

// reap collects the dead: those that were started, and the orphans that a
// daemon leaves to init.
func (p *processes) reap(children <-chan os.Signal) {
	for range children {
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			p.exited(pid, status)
		}
	}
}

func (p *processes) exited(pid int, status syscall.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, ok := p.ids[pid]
	if !ok {
		return
	}
	delete(p.ids, pid)
	if err := send(p.conn, initMessage{ID: id, Exited: true, PID: pid, Status: uint32(status)}); err != nil {
		fmt.Fprintf(os.Stderr, "lab: init: report the end of process %d: %v\n", pid, err)
	}
}

// lookupUser returns the credential of a user of the host, nil for root.
func lookupUser(name string) (*syscall.Credential, error) {
	if name == "" || name == "root" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: uid %q: %w", name, u.Uid, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: gid %q: %w", name, u.Gid, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
