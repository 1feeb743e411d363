package logrelay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"

	"holdfast/logrelay/journal"
)

// What two nodes say to each other, over mutual TLS. Numbers are little-endian
// and are those of the sender's journal.
//
//	sender:   magic[8] journal[16] length[1] name
//	receiver: next[8]                  the first line it lacks; 0: it has none
//	sender:   first[8] end[8] count[4] length[4] payload[length]
//	receiver: next[8]                  all before it are on its disk
//
// A payload is count records as the journal has them. end may be greater than
// first+count: what lies between is none of the receiver's business. Where end is
// first, the sender has nothing behind it: that is not answered.
const (
	replicaMagic  = "HOLDREP1"
	replicaHeader = 24
)

// greeting is what a sender says first.
type greeting struct {
	journal [16]byte
	node    string
}

func (g greeting) append(dst []byte) []byte {
	dst = append(append(dst, replicaMagic...), g.journal[:]...)
	return append(append(dst, byte(len(g.node))), g.node...)
}

func readGreeting(r io.Reader) (g greeting, err error) {
	head := make([]byte, len(replicaMagic)+len(g.journal)+1)
	if _, err := io.ReadFull(r, head); err != nil {
		return g, err
	}
	if !bytes.HasPrefix(head, []byte(replicaMagic)) {
		return g, refusedError{fmt.Errorf("it begins with %q, want %q: another version of Holdfast, or no log relay", head[:len(replicaMagic)], replicaMagic)}
	}
	copy(g.journal[:], head[len(replicaMagic):])
	name := make([]byte, head[len(head)-1])
	if _, err := io.ReadFull(r, name); err != nil {
		return g, err
	}
	if g.node = string(name); g.node == "" || safeName(g.node) != g.node {
		return g, refusedError{fmt.Errorf("%q is no node's name", name)}
	}
	return g, nil
}

// shipment is lines on their way to another node.
type shipment struct {
	first, end uint64
	count      int
	payload    []byte
}

// all tells whether the shipment says that there is no more.
func (s shipment) all() bool { return s.first == s.end }

func (s shipment) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, s.first)
	dst = binary.LittleEndian.AppendUint64(dst, s.end)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(s.count))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(s.payload)))
	return append(dst, s.payload...)
}

// readShipment reads into buf, which grows as the bytes come, not as the header
// promises.
func readShipment(r io.Reader, buf *bytes.Buffer) (s shipment, err error) {
	var head [replicaHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return s, err
	}
	s.first, s.end = binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint64(head[8:])
	count, length := binary.LittleEndian.Uint32(head[16:]), binary.LittleEndian.Uint32(head[20:])
	if length > journal.MaxBlock || uint64(count) > s.end-s.first || s.end < s.first {
		return s, fmt.Errorf("a shipment of %d lines from %d to %d in %d bytes: want no more lines than numbers, in %d bytes at most", count, s.first, s.end, length, journal.MaxBlock)
	}
	buf.Reset()
	if _, err := io.CopyN(buf, r, int64(length)); err != nil {
		return s, err
	}
	s.count, s.payload = int(count), buf.Bytes()
	return s, nil
}

// Records of the journal that came from another node have its input with
// this bit set. A mark says how far it has come.
const (
	viaOther uint8 = 0x80
	viaMark  uint8 = 0x7f
)

// progress is how far a node has another's journal.
type progress struct {
	Journal [16]byte `json:"journal"`
	Next    uint64   `json:"next"`
}

// markOf is the record of a progress. begins: it is of the first shipment of a
// connection, which does not say that the one before is on the other node's disk.
func markOf(node string, p progress, begins bool) journal.Record {
	r := journal.Record{Input: viaMark, Data: appendMark(nil, node, p)}
	if begins {
		r.Source = netip.IPv4Unspecified()
	}
	return r
}

// beginsAnew tells whether a mark is of a connection's first shipment.
func beginsAnew(mark journal.Record) bool { return mark.Source.IsValid() }

// appendMark writes the progress about a node as a record's data.
func appendMark(dst []byte, node string, p progress) []byte {
	dst = binary.LittleEndian.AppendUint64(append(dst, p.Journal[:]...), p.Next)
	return append(dst, node...)
}

func parseMark(b []byte) (node string, p progress, ok bool) {
	if len(b) < 25 {
		return "", p, false
	}
	copy(p.Journal[:], b)
	p.Next = binary.LittleEndian.Uint64(b[16:])
	return string(b[24:]), p, true
}
