package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// The file with the last content, all numbers big-endian:
//
//	"holdfast unit 1\n" | header length uint32 | header, in JSON | CRC-32C of these
//	a snapshot, as state.Snapshot.WritePart writes it
const diskMagic = "holdfast unit 1\n"

// maxHeader bounds the header: the members of a large cluster.
const maxHeader = 4 << 20

// diskHeader is what the file has beside the tables.
type diskHeader struct {
	Unit    string         `json:"unit"`
	Touched time.Time      `json:"touched"` // when a leader confirmed it
	Members []state.Member `json:"members"`
	Index   uint64         `json:"index,omitempty"` // of the log; the tables may end earlier
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// savedMark says what the file holds.
type savedMark struct {
	version uint64
	touched time.Time
}

// keepSaved writes the file now and then, and judges the age, until ctx ends.
func (r *Replica) keepSaved(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var last time.Time
	for {
		r.judge()
		select {
		case <-ctx.Done():
			return
		case <-second.C:
		}
		if time.Since(last) >= saveChanged {
			r.save()
			last = time.Now()
		}
	}
}

// judge raises the condition, or ends it.
func (r *Replica) judge() {
	s := r.Status()
	switch {
	case s.Confirmed && s.Age < staleAfter:
		r.deps.Board.Clear(Condition)
	case time.Since(s.Since) < staleAfter && !s.FromDisk:
		// It has just begun.
	case r.config.Optional && !s.Confirmed:
		// It never had one, and its site may want none.
	case !s.Confirmed:
		r.deps.Board.Raise(Condition, health.Error, "this unit has no state of the cluster: none came, and none was on the disk: "+s.Error)
	default:
		r.deps.Board.Raise(Condition, health.Warning, "this unit goes on with the state that a leader confirmed last at "+
			time.Now().Add(-s.Age).UTC().Format(time.RFC3339)+": "+orElse(s.Error, "the store has no leader"))
	}
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// save writes the file when it would be another. A state that was never
// confirmed is not worth to be kept.
func (r *Replica) save() {
	snap := r.store.Snapshot()
	now := time.Now()
	age, ok := snap.Age(now)
	mark := savedMark{snap.Version(), now.Add(-age)}
	r.mu.Lock()
	have := r.saved
	r.mu.Unlock()
	if !ok || mark.version == have.version && mark.touched.Sub(have.touched) < saveAnyway {
		return
	}
	err := durable.ReplaceFunc(r.config.Path, 0o600, func(w io.Writer) error { return r.write(w, snap, mark.touched) })
	if err != nil {
		r.deps.Log.Error("the state was not kept on the disk", "path", r.config.Path, "error", err)
		return
	}
	r.mu.Lock()
	r.saved = mark
	r.mu.Unlock()
}

func (r *Replica) write(w io.Writer, snap *state.Snapshot, touched time.Time) error {
	header, err := json.Marshal(diskHeader{r.config.Unit, touched, snap.Members(), snap.Index()})
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32([]byte(diskMagic), uint32(len(header)))
	b = append(b, header...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if _, err := w.Write(b); err != nil {
		return err
	}
	_, err = snap.WriteTo(w)
	return err
}

// load fills the store from the file.
func (r *Replica) load() {
	file, err := os.Open(r.config.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		defer file.Close()
		err = r.read(file)
	}
	if err != nil {
		r.deps.Log.Error("the state on the disk can't be read and is left out", "path", r.config.Path, "error", err)
	}
}

func (r *Replica) read(from io.Reader) error {
	header, err := readHeader(from)
	if err != nil {
		return err
	}
	if header.Unit != r.config.Unit {
		return fmt.Errorf("it is of unit %.64q", header.Unit)
	}
	if err := r.store.Restore(from); err != nil {
		return err
	}
	r.store.SetMembers(header.Members)
	if now := time.Now(); header.Touched.After(now) {
		header.Touched = now // the clock was put back
	}
	r.store.Touch(header.Touched)
	r.store.Advance(header.Index)
	r.moved(r.store.Snapshot().Index(), true)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.FromDisk = true
	return nil
}

func readHeader(from io.Reader) (header diskHeader, err error) {
	start := make([]byte, len(diskMagic)+4)
	if _, err := io.ReadFull(from, start); err != nil {
		return header, fmt.Errorf("stream: header: %w", err)
	}
	if !bytes.HasPrefix(start, []byte(diskMagic)) {
		return header, errors.New("stream: the file is no unit's state")
	}
	length := binary.BigEndian.Uint32(start[len(diskMagic):])
	if length > maxHeader {
		return header, fmt.Errorf("stream: a header of %d bytes", length)
	}
	body, err := readBody(from, int(length)+4, nil)
	if err != nil {
		return header, fmt.Errorf("stream: header: %w", err)
	}
	text, sum := body[:length], binary.BigEndian.Uint32(body[length:])
	if crc32.Update(crc32.Checksum(start, castagnoli), castagnoli, text) != sum {
		return header, errors.New("stream: the header is damaged")
	}
	err = json.Unmarshal(text, &header)
	return header, err
}
