// Package channel is the language between a test and the agent inside its
// virtual machine: frames over one byte stream, a virtio serial port.
//
// The agent says [Hello] when the kernel is up, gets a [Boot], answers with
// [Booted] and then serves any number of processes side by side, each under an
// id that the test chose.
package channel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Port is the name of the serial port in the machine.
const Port = "holdfast.lab"

// Mark is the word of the kernel's command line that says to every process
// that it is inside a machine of the lab.
const Mark = "holdfast.lab=vm"

// Kind says what a frame is. The values of one test and its machine are from
// one build: they may change at any time.
type Kind byte

// To the machine: Boot, Start, Stdin, Signal. From it: the others.
const (
	Hello  Kind = iota + 1 // the kernel runs
	Boot                   // JSON of [BootMessage]
	Booted                 // processes can be started
	Start                  // JSON of [StartMessage]
	Started
	Stdin // no bytes: end of file
	Signal
	Stdout
	Stderr
	Exited // four bytes, the wait status
	Failed // text: what the frame with this id, or the boot, came to
)

// MaxData is the longest payload of a frame, in bytes.
const MaxData = 1 << 20

// Frame is one message.
type Frame struct {
	Kind Kind
	ID   uint32 // of a process; 0 for the machine
	Data []byte
}

// BootMessage says what the machine is.
type BootMessage struct {
	Name    string
	Kernel  string   // the host's directory with the kernel's lib/modules/RELEASE
	Modules []string // files below it, in the order in which to load them
	Expose  []string // files and directories of the host, shown at the same path
	NICs    []NIC
}

// NIC is a network interface: found by its hardware address, and renamed.
type NIC struct {
	Name  string
	MAC   string
	Addrs []string
}

// StartMessage is a process to start.
type StartMessage struct {
	Args []string
	Env  []string
	Dir  string
	User string
}

const headerLength = 9

// Conn reads and writes frames. Several goroutines may write; one reads.
type Conn struct {
	stream io.ReadWriter
	write  sync.Mutex
}

// New returns a connection over a stream.
func New(stream io.ReadWriter) *Conn { return &Conn{stream: stream} }

// Send writes one frame. It blocks while the other side doesn't read.
func (c *Conn) Send(f Frame) error {
	if len(f.Data) > MaxData {
		return fmt.Errorf("a frame of %d bytes is longer than %d", len(f.Data), MaxData)
	}
	buf := make([]byte, headerLength, headerLength+len(f.Data))
	buf[0] = byte(f.Kind)
	binary.BigEndian.PutUint32(buf[1:], f.ID)
	binary.BigEndian.PutUint32(buf[5:], uint32(len(f.Data)))
	c.write.Lock()
	defer c.write.Unlock()
	_, err := c.stream.Write(append(buf, f.Data...))
	return err
}

// SendJSON writes one frame whose payload is the JSON of v.
func (c *Conn) SendJSON(kind Kind, id uint32, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Send(Frame{Kind: kind, ID: id, Data: data})
}

// Receive reads one frame. At the end of the stream it returns [io.EOF].
func (c *Conn) Receive() (Frame, error) {
	var header [headerLength]byte
	if _, err := io.ReadFull(c.stream, header[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Kind: Kind(header[0]), ID: binary.BigEndian.Uint32(header[1:])}
	length := binary.BigEndian.Uint32(header[5:])
	if f.Kind < Hello || f.Kind > Failed || length > MaxData {
		return Frame{}, fmt.Errorf("not a frame: % x", header)
	}
	f.Data = make([]byte, length)
	if _, err := io.ReadFull(c.stream, f.Data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}
