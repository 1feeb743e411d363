// Package nbd serves a disk to an emulator over a socket: the network block
// device protocol, as far as QEMU's client speaks it
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: fixed
// newstyle negotiation, simple replies).
package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Backend is a disk. Its methods are called by one goroutine a connection.
type Backend interface {
	io.ReaderAt
	io.WriterAt
	Size() int64  // bytes
	Flush() error // returns when all that was written before is durable
}

const (
	magicServer  = 0x4e42444d41474943 // NBDMAGIC
	magicOption  = 0x49484156454f5054 // IHAVEOPT
	magicReply   = 0x3e889045565a9
	magicRequest = 0x25609513
	magicSimple  = 0x67446698
)

const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optionExportName = 1
	optionAbort      = 2
	optionInfo       = 6
	optionGo         = 7

	replyAck         = 1
	replyInfo        = 3
	replyUnsupported = 1<<31 + 1

	infoExport = 0

	// The export has flags; it takes flushes and writes that are flushed.
	transmission = 1<<0 | 1<<2 | 1<<3

	commandRead       = 0
	commandWrite      = 1
	commandDisconnect = 2
	commandFlush      = 3
	commandFUA        = 1 << 0 // a flag of a write: flush it
)

// maxRequest is the longest read or write in bytes; QEMU splits at 32 MiB.
const maxRequest = 32 << 20

// maxOption is the longest option in bytes; an export's name is at most 4096.
const maxOption = 8 << 10

// Serve serves the backend until the client leaves, which is no error.
func Serve(conn io.ReadWriter, b Backend) error {
	err := negotiate(conn, b)
	for err == nil {
		err = serveRequest(conn, b)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, errDisconnected) {
		return nil
	}
	return fmt.Errorf("nbd: %w", err)
}

var errDisconnected = errors.New("the client disconnected")

func negotiate(conn io.ReadWriter, b Backend) error {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(conn, flags[:]); err != nil {
		return err
	}
	zeroes := binary.BigEndian.Uint32(flags[:])&flagNoZeroes == 0
	for {
		done, err := negotiateOption(conn, b, zeroes)
		if done || err != nil {
			return err
		}
	}
}

// negotiateOption answers one option; done says that requests follow.
func negotiateOption(conn io.ReadWriter, b Backend, zeroes bool) (done bool, err error) {
	var header [16]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return false, err
	}
	option, length := binary.BigEndian.Uint32(header[8:]), binary.BigEndian.Uint32(header[12:])
	if magic := binary.BigEndian.Uint64(header[:]); magic != magicOption || length > maxOption {
		return false, fmt.Errorf("not an option: % x", header)
	}
	if _, err := io.CopyN(io.Discard, conn, int64(length)); err != nil {
		return false, err
	}
	export := binary.BigEndian.AppendUint64(nil, uint64(b.Size()))
	export = binary.BigEndian.AppendUint16(export, transmission)
	switch option {
	case optionExportName: // whatever it is called: there is one disk
		if zeroes {
			export = append(export, make([]byte, 124)...)
		}
		_, err := conn.Write(export)
		return true, err
	case optionInfo, optionGo:
		info := append([]byte{0, infoExport}, export...)
		if err := replyOption(conn, option, replyInfo, info); err != nil {
			return false, err
		}
		return option == optionGo, replyOption(conn, option, replyAck, nil)
	case optionAbort:
		return false, errors.Join(errDisconnected, replyOption(conn, option, replyAck, nil))
	default:
		return false, replyOption(conn, option, replyUnsupported, nil)
	}
}

func replyOption(conn io.Writer, option, kind uint32, data []byte) error {
	reply := binary.BigEndian.AppendUint64(nil, magicReply)
	reply = binary.BigEndian.AppendUint32(reply, option)
	reply = binary.BigEndian.AppendUint32(reply, kind)
	reply = binary.BigEndian.AppendUint32(reply, uint32(len(data)))
	_, err := conn.Write(append(reply, data...))
	return err
}

func serveRequest(conn io.ReadWriter, b Backend) error {
	var header [28]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return err
	}
	flags, command := binary.BigEndian.Uint16(header[4:]), binary.BigEndian.Uint16(header[6:])
	cookie := header[8:16]
	offset, length := binary.BigEndian.Uint64(header[16:]), binary.BigEndian.Uint32(header[24:])
	if binary.BigEndian.Uint32(header[:]) != magicRequest || length > maxRequest {
		return fmt.Errorf("not a request: % x", header)
	}
	inside := offset <= uint64(b.Size()) && uint64(length) <= uint64(b.Size())-offset
	var data []byte
	if command == commandWrite || command == commandRead && inside {
		data = make([]byte, length)
	}
	if command == commandWrite {
		if _, err := io.ReadFull(conn, data); err != nil {
			return err
		}
	}
	var err error
	switch {
	case command == commandDisconnect:
		return errDisconnected
	case command == commandFlush:
		err = b.Flush()
	case !inside:
		err = syscall.EINVAL
	case command == commandRead:
		_, err = b.ReadAt(data, int64(offset))
	case command == commandWrite:
		_, err = b.WriteAt(data, int64(offset))
		if err == nil && flags&commandFUA != 0 {
			err = b.Flush()
		}
	default:
		err = syscall.EINVAL
	}
	if command != commandRead || err != nil {
		data = nil
	}
	reply := binary.BigEndian.AppendUint32(nil, magicSimple)
	reply = binary.BigEndian.AppendUint32(reply, code(err))
	reply = append(append(reply, cookie...), data...)
	_, err = conn.Write(reply)
	return err
}

// code is an error on the wire: the numbers of Linux, of a few only.
func code(err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, syscall.EINVAL):
		return uint32(syscall.EINVAL)
	default:
		return uint32(syscall.EIO)
	}
}
