package lab

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The lab and the init of a host talk over a SOCK_SEQPACKET socket pair: one
// JSON document a packet, file descriptors as SCM_RIGHTS. Its end is the
// host's power cord: init leaves when it reads end of file.

// maxMessage bounds a packet; the kernel's default send buffer holds 208 KiB.
const maxMessage = 160 << 10

// bootMessage is the first packet to init: what the host is to look like.
type bootMessage struct {
	Name    string
	Root    string   // an empty directory to mount the host's root on
	Disk    string   // holds the persistent directories
	Persist []string // absolute paths that live on the disk
	Expose  []string // paths of the machine, shown read-only
	Hosts   string   // the text of /etc/hosts
}

// startMessage asks init for a process; its standard input, output and error
// travel with it.
type startMessage struct {
	ID   uint64
	Argv []string
	Env  []string
	Dir  string
	User string
}

// initMessage is what init says. Booted answers the bootMessage; Started, with
// a pidfd, or Err answers the startMessage of that ID; Exited tells the end
// of a process that was started.
type initMessage struct {
	ID      uint64
	Err     string
	Booted  bool
	Started bool
	Exited  bool
	PID     int // in the host's PID namespace
	Status  uint32
}

func send(conn *net.UnixConn, message any, fds ...int) error {
	data, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		return fmt.Errorf("a message of %d bytes; at most %d", len(data), maxMessage)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(data, rights, nil)
	return err
}

// receive reads one packet into message and returns the descriptors that came
// with it, close-on-exec.
func receive(conn *net.UnixConn, message any) ([]int, error) {
	data := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(8*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	if oobn > 0 {
		if fds, err = parseRights(oob[:oobn]); err != nil {
			return nil, err
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeAll(fds)
		return nil, fmt.Errorf("a truncated message")
	}
	if err := json.Unmarshal(data[:n], message); err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		some, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

// unixConn turns f, one end of a socket pair, into a connection, and closes f.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
