package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"holdfast/internal/state"
)

// Types of frames.
const (
	frameWhere   = 'W'
	frameStart   = 'S'
	framePiece   = 's'
	frameEnd     = 'e'
	frameCommand = 'C'
	frameMembers = 'M'
	frameBeat    = 'B'
)

// maxFrame is the longest body, in bytes: a command with its index.
const maxFrame = state.MaxCommand + 8

// pieceSize is how much of a snapshot a frame carries.
const pieceSize = 64 << 10

// Beat says how fresh the source is.
type Beat struct {
	Position  uint64        `json:"position"`  // the last entry of the log that was sent, or passed over
	Confirmed bool          `json:"confirmed"` // a leader has confirmed the source's state since it started
	Age       time.Duration `json:"age_ns"`    // since a leader did
	Leader    string        `json:"leader,omitempty"`
}

// Where is how far and how fresh a source is.
type Where struct {
	Store     string        `json:"store"` // UUID of the store; "" none yet
	Index     uint64        `json:"index"` // the last entry of the log that is in it
	Confirmed bool          `json:"confirmed"`
	Age       time.Duration `json:"age_ns"` // since a leader confirmed it
	Leader    string        `json:"leader,omitempty"`
}

// whereOf tells it of a snapshot.
func whereOf(snap *state.Snapshot, leader string) Where {
	w := Where{Index: snap.Index(), Leader: leader}
	w.Age, w.Confirmed = snap.Age(time.Now())
	if c := snap.Cluster(); c != nil {
		w.Store = c.ID
	}
	return w
}

// writeFrame writes one frame; body is at most maxFrame bytes.
func writeFrame(w io.Writer, kind byte, body []byte) error {
	if len(body) > maxFrame {
		return fmt.Errorf("stream: a frame of %d bytes", len(body))
	}
	header := [5]byte{0: kind}
	binary.BigEndian.PutUint32(header[1:], uint32(len(body)))
	if _, err := w.Write(header[:]); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// readFrame reads one frame, into buffer when it is large enough.
func readFrame(r io.Reader, buffer []byte) (kind byte, body []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length > maxFrame {
		return 0, nil, fmt.Errorf("stream: a frame of %d bytes, more than %d", length, maxFrame)
	}
	body, err = readBody(r, int(length), buffer)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return header[0], body, err
}

// readBody takes no more memory than what came justifies.
func readBody(r io.Reader, length int, buffer []byte) ([]byte, error) {
	body := buffer[:0]
	for len(body) < length {
		n := min(length-len(body), pieceSize)
		body = append(body, make([]byte, n)...)
		if _, err := io.ReadFull(r, body[len(body)-n:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}

// pieces writes what it is given as frames of a snapshot.
type pieces struct{ w io.Writer }

func (p pieces) Write(b []byte) (written int, err error) {
	for len(b) > 0 {
		n := min(len(b), pieceSize)
		if err := writeFrame(p.w, framePiece, b[:n]); err != nil {
			return written, err
		}
		written, b = written+n, b[n:]
	}
	return written, nil
}

// snapshotReader reads the pieces of a snapshot up to its end.
type snapshotReader struct {
	r    io.Reader
	rest []byte
	done bool
	seen func() // called at each piece
}

func (s *snapshotReader) Read(b []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.done {
			return 0, io.EOF
		}
		kind, body, err := readFrame(s.r, nil)
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		case kind == frameEnd:
			s.done = true
		case kind == framePiece:
			s.rest = body
		default:
			return 0, fmt.Errorf("stream: frame %q within a snapshot", kind)
		}
		s.seen()
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
