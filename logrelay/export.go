package logrelay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Limits of what is kept of an entry of journald. What is more is passed over.
const (
	maxMessage = maxLine - 1024
	maxField   = 1024
)

// entry is what matters of an entry of journald, as `journalctl --output=export`
// writes it (systemd's JOURNAL_EXPORT_FORMATS).
type entry struct {
	cursor   string
	time     time.Time
	priority int // 0 to 7; 6 where none is said
	facility int // 0 to 23
	app      []byte
	pid      []byte
	uid      []byte
	unit     []byte
	message  []byte
}

// read reads one entry. io.EOF: there is none; an entry that breaks off is
// io.ErrUnexpectedEOF. Where it panics, e has what was read by then: first of all the
// cursor, with which journalctl begins each entry.
func (e *entry) read(r *bufio.Reader) error {
	*e = entry{priority: 6, facility: 1}
	var identifier, comm []byte
	began := false
	for {
		name, value, err := readField(r)
		switch {
		case errors.Is(err, io.EOF) && began:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case name == "" && e.cursor != "":
			if e.app = identifier; identifier == nil {
				e.app = comm
			}
			return nil
		case name == "" && !began:
			continue // an empty line in front
		case name == "":
			return errors.New("journald: an entry without a cursor")
		}
		began = true
		switch name {
		case "__CURSOR":
			e.cursor = string(value)
		case "__REALTIME_TIMESTAMP":
			if us, err := strconv.ParseInt(string(value), 10, 64); err == nil {
				e.time = time.UnixMicro(us)
			}
		case "PRIORITY":
			e.priority = number(value, 7, e.priority)
		case "SYSLOG_FACILITY":
			e.facility = number(value, 23, e.facility)
		case "SYSLOG_IDENTIFIER":
			identifier = value
		case "_COMM":
			comm = value
		case "_PID":
			e.pid = value
		case "_UID":
			e.uid = value
		case "_SYSTEMD_UNIT":
			e.unit = value
		case "MESSAGE":
			e.message = value
		}
	}
}

// number reads a number up to most; otherwise it is def.
func number(text []byte, most, def int) int {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 0 || n > most {
		return def
	}
	return n
}

// readField reads a field: "NAME=text", or "NAME", a length and as many bytes.
// An empty name is the end of an entry.
func readField(r *bufio.Reader) (name string, value []byte, err error) {
	head, equals := []byte(nil), false
	for {
		c, err := r.ReadByte()
		if err != nil {
			return "", nil, unexpected(err, len(head) > 0 || equals)
		}
		if c == '\n' || c == '=' {
			equals = c == '='
			break
		}
		if head = append(head, c); len(head) > maxField {
			return "", nil, fmt.Errorf("journald: a field's name of more than %d bytes", maxField)
		}
	}
	name = string(head)
	most := maxField
	if name == "MESSAGE" {
		most = maxMessage
	}
	switch {
	case equals && name == "":
		return "", nil, errors.New("journald: a field without a name")
	case equals:
		value, err = readText(r, most)
	case name != "":
		value, err = readBytes(r, most)
	}
	return name, value, unexpected(err, true)
}

// unexpected makes of an end within an entry what it is.
func unexpected(err error, within bool) error {
	if within && errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readText reads to the end of the line, and keeps most bytes at most.
func readText(r *bufio.Reader, most int) (text []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if err == nil {
			part = part[:len(part)-1]
		}
		text = append(text, part[:min(len(part), most-len(text))]...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return text, err
		}
	}
}

// readBytes reads a length and so many bytes, and keeps most at most.
func readBytes(r *bufio.Reader, most int) ([]byte, error) {
	var length [8]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint64(length[:])
	if size > 1<<32 { // journald takes 768 MiB
		return nil, fmt.Errorf("journald: a field of %d bytes", size)
	}
	value := make([]byte, min(size, uint64(most)))
	if _, err := io.ReadFull(r, value); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, int64(size)-int64(len(value))); err != nil {
		return nil, err
	}
	end, err := r.ReadByte()
	if err == nil && end != '\n' {
		err = errors.New("journald: a field that is longer than it says")
	}
	return value, err
}
