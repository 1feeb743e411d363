package lab

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bootTimeout = time.Minute      // a machine that does many things at once, and stands still now and then
	killTimeout = 30 * time.Second // of processes in an uninterruptible wait
)

// session is a host from its power on to its power off: its init process, the
// socket to it, its network namespace, and the processes started in it.
type session struct {
	pid    int
	init   *exec.Cmd
	conn   *net.UnixConn
	netns  *os.File
	handle *netlink.Handle

	boot chan error    // one message: the host is up, or why not
	dead chan struct{} // closed when init and all other processes are gone

	mu       sync.Mutex
	serial   uint64
	starting map[uint64]chan error
	procs    map[uint64]*Proc
}

// startSession starts the init of a host in new namespaces.
func startSession(logDir string, boot bootMessage) (*session, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make the control socket: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	conn, err := unixConn(os.NewFile(uintptr(pair[0]), "control"))
	if err != nil {
		return nil, err
	}
	console, err := os.OpenFile(filepath.Join(logDir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer console.Close()
	s := &session{
		conn: conn, boot: make(chan error, 1), dead: make(chan struct{}),
		starting: make(map[uint64]chan error), procs: make(map[uint64]*Proc),
	}
	if err := s.spawn(theirs, console); err != nil {
		return nil, errors.Join(fmt.Errorf("start its init: %w", err), conn.Close())
	}
	go s.read()
	if err := s.open(boot); err != nil {
		return nil, errors.Join(err, s.kill())
	}
	return s, nil
}

// spawn starts init and a goroutine that waits for its end. The parent-death
// signal comes at the end of the thread that forked, so that goroutine keeps
// its thread as long as the host lives. It is the second line: init also ends
// when the control socket closes.
func (s *session) spawn(control, console *os.File) error {
	s.init = &exec.Cmd{
		Path: "/proc/self/exe",
		// Init reads no flags; a test binary whose TestMain forgot to call it
		// must not run its tests, and make labs, all over again.
		Args:       []string{initArgv0, "-test.run=^$"},
		Env:        []string{"PATH=" + hostPath, "GOMAXPROCS=2", "GOTRACEBACK=all"},
		Dir:        "/",
		ExtraFiles: []*os.File{control}, // initControl
		Stdout:     console,
		Stderr:     console,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID,
			Pdeathsig:  syscall.SIGKILL,
			Setsid:     true,
		},
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.init.Start()
		started <- err
		if err != nil {
			return
		}
		// Its status says nothing: it was killed. Init is gone after every
		// other process of its namespace (pid_namespaces(7)).
		_ = s.init.Wait()
		close(s.dead)
	}()
	if err := <-started; err != nil {
		return err
	}
	s.pid = s.init.Process.Pid
	return nil
}

func (s *session) open(boot bootMessage) error {
	var err error
	if s.netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", s.pid)); err != nil {
		return err
	}
	if s.handle, err = netlink.NewHandleAt(netns.NsHandle(s.netns.Fd()), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	return send(s.conn, boot)
}

// booted waits until init is ready to start processes.
func (s *session) booted() error {
	select {
	case err := <-s.boot:
		return err
	case <-time.After(bootTimeout):
		return fmt.Errorf("not up after %s", bootTimeout)
	}
}

// read dispatches what init says, until the host is dead.
func (s *session) read() {
	var err error
	for err == nil {
		var m initMessage
		var fds []int
		if fds, err = receive(s.conn, &m); err == nil {
			s.handleMessage(m, fds)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		err = ErrOff
	}
	// Nobody can talk to the host any more.
	if killErr := s.init.Process.Kill(); killErr != nil && !errors.Is(killErr, os.ErrProcessDone) {
		err = errors.Join(err, killErr)
	}
	<-s.dead
	s.lost(err)
}

func (s *session) handleMessage(m initMessage, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case m.Booted:
		s.boot <- nil
	case m.Started && len(fds) == 1:
		s.procs[m.ID].started(m.PID, fds[0])
		fds = nil
		s.starting[m.ID] <- nil
		delete(s.starting, m.ID)
	case m.Exited:
		s.procs[m.ID].exited(syscall.WaitStatus(m.Status))
		delete(s.procs, m.ID)
	case m.ID == 0:
		s.boot <- errors.New(m.Err)
	default:
		s.starting[m.ID] <- errors.New(m.Err)
		delete(s.starting, m.ID)
		delete(s.procs, m.ID)
	}
	closeAll(fds)
}

// lost ends everything that waits for the host.
func (s *session) lost(err error) {
	select {
	case s.boot <- fmt.Errorf("its init ended (does main or TestMain begin with lab.Init?): %w", err):
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.starting {
		c <- err
		delete(s.procs, id)
	}
	for _, p := range s.procs {
		p.exited(syscall.WaitStatus(syscall.SIGKILL))
	}
	clear(s.starting)
	clear(s.procs)
}

// start asks init for a process, and waits for the answer.
func (s *session) start(p *Proc, m startMessage, files []*os.File) error {
	answer := make(chan error, 1)
	s.mu.Lock()
	s.serial++
	m.ID = s.serial
	s.starting[m.ID], s.procs[m.ID] = answer, p
	s.mu.Unlock()
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	if err := send(s.conn, m, fds...); err != nil {
		s.mu.Lock()
		delete(s.starting, m.ID)
		delete(s.procs, m.ID)
		s.mu.Unlock()
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed) {
			return ErrOff
		}
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-s.dead:
	}
	return ErrOff
}

// kill ends init and with it every process of the host, and lets go of its
// namespaces. What the test itself opened inside lives on without a cable.
func (s *session) kill() error {
	err := s.init.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-s.dead:
	case <-time.After(killTimeout):
		err = errors.Join(err, fmt.Errorf("processes that SIGKILL does not end within %s", killTimeout))
	}
	if s.handle != nil {
		s.handle.Close()
	}
	if s.netns != nil {
		err = errors.Join(err, s.netns.Close())
	}
	return errors.Join(err, s.conn.Close())
}

// root is the host's / as the machine sees it.
func (s *session) root() string { return "/proc/" + strconv.Itoa(s.pid) + "/root" }

func (s *session) writeFile(path string, data []byte) error {
	return writeIn(s.root(), path, data)
}

// statusText says how a process ended.
func statusText(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "killed by " + cmp.Or(unix.SignalName(status.Signal()), status.Signal().String())
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}
