package raftstore

import (
	"errors"
	"fmt"
	"io"
)

// After the TLS handshake the dialling side sends a hello and the listening
// side a verdict; only then do Raft or RPC bytes flow. Both are small, length
// prefixed and complete, so that nobody has to guess what the other is.
//
//	hello   = "HFST" version kind 5×string   (cluster, name, id, store, target)
//	verdict = "HFST" version code 3×string   (reason, id, store)
//	string  = length(1) bytes
//
// In both the id may end in " reads=N store=M": the highest feature level that
// the sender reads, and that of its store. The first programs leave it out, and
// do not look at what follows the id.
const (
	preambleMagic   = "HFST"
	preambleVersion = 1
)

// streamKind is what a connection carries.
type streamKind byte

const (
	kindRaft streamKind = 'R' // hashicorp/raft's NetworkTransport
	kindRPC  streamKind = 'H' // HTTP/2
	// kindFollow is HTTP of a node that is no server: the only kind for which
	// an agent's certificate will do.
	kindFollow streamKind = 'F'
)

func (k streamKind) String() string {
	switch k {
	case kindRaft:
		return "raft"
	case kindRPC:
		return "rpc"
	case kindFollow:
		return "follow"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// hello is what a server says of itself and whom it wants.
type hello struct {
	Kind    streamKind
	Cluster string // name of the cluster
	Name    string // of the sending node
	ID      string // of the sending node
	Store   string // cluster ID of the sender's store, "" while it has none
	// Target is the node ID that a raft connection is meant for. A server that
	// was wiped listens at its old address under a new ID; it must not answer,
	// and above all not vote, for what it was.
	Target string
	levels
}

// levels are the feature levels of a server; see state.FeatureLevel.
type levels struct {
	Reads int // highest that it reads
	At    int // of its store
}

// verdict is the answer to a hello.
type verdict struct {
	Refused refusal // refusedNot: accepted
	Reason  string  // for the log of the other side
	ID      string  // node ID of the server that answers
	Store   string  // its store
	levels
}

// refusal says why a connection was refused; also the metric's label.
type refusal byte

const (
	refusedNot       refusal = iota
	refusedTLS               // no handshake, or a certificate that is not good
	refusedRole              // a certificate of an agent or an admin
	refusedPreamble          // not our protocol, or another version of it
	refusedTimeout           // silence
	refusedCluster           // a node of another cluster
	refusedStore             // of the same cluster's name, but of another store
	refusedTarget            // meant for a server that is not here
	refusedBusy              // too many at once
	refusedAuthority         // a certificate of an authority that we don't, or no longer, believe
	refusedLevel             // a program too old for the store
	refusedUnknown           // a code of a newer version
)

func (r refusal) String() string {
	names := [...]string{"", "tls", "role", "preamble", "timeout", "cluster", "store", "target", "busy", "authority", "level"}
	if int(r) < len(names) {
		return names[r]
	}
	return "unknown"
}

// refusals lists the reasons a listener can have.
func refusals() []refusal {
	return []refusal{refusedTLS, refusedRole, refusedPreamble, refusedTimeout, refusedCluster, refusedStore, refusedTarget, refusedBusy, refusedAuthority, refusedLevel}
}

// errPreamble: the other side does not speak our protocol.
var errPreamble = errors.New("not a Holdfast server's greeting")

func (h hello) encode() ([]byte, error) {
	return encodePreamble(byte(h.Kind), h.Cluster, h.Name, h.levels.behind(h.ID), h.Store, h.Target)
}

func (v verdict) encode() ([]byte, error) {
	reason := v.Reason
	if len(reason) > 255 {
		reason = reason[:255]
	}
	return encodePreamble(byte(v.Refused), reason, v.levels.behind(v.ID), v.Store)
}

func encodePreamble(code byte, fields ...string) ([]byte, error) {
	b := append([]byte(preambleMagic), preambleVersion, code)
	for _, f := range fields {
		if len(f) > 255 {
			return nil, fmt.Errorf("greeting: a field of %d bytes, at most 255 are possible", len(f))
		}
		b = append(append(b, byte(len(f))), f...)
	}
	return b, nil
}

// readHello reads no byte beyond the hello: what follows is another reader's.
func readHello(r io.Reader) (hello, error) {
	var h hello
	code, err := readPreamble(r, &h.Cluster, &h.Name, &h.ID, &h.Store, &h.Target)
	h.Kind = streamKind(code)
	h.ID, h.levels = cutLevels(h.ID)
	if err == nil && h.Kind != kindRaft && h.Kind != kindRPC && h.Kind != kindFollow {
		err = fmt.Errorf("%w: it wants a connection of %v", errPreamble, h.Kind)
	}
	return h, err
}

func readVerdict(r io.Reader) (verdict, error) {
	var v verdict
	code, err := readPreamble(r, &v.Reason, &v.ID, &v.Store)
	v.Refused = min(refusal(code), refusedUnknown)
	v.ID, v.levels = cutLevels(v.ID)
	return v, err
}

// readPreamble reads at most 6 + 256 bytes a field.
func readPreamble(r io.Reader, fields ...*string) (code byte, err error) {
	var head [len(preambleMagic) + 2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	if string(head[:len(preambleMagic)]) != preambleMagic {
		return 0, fmt.Errorf("%w: it begins with %q", errPreamble, head[:len(preambleMagic)])
	}
	if version := head[len(preambleMagic)]; version != preambleVersion {
		return 0, fmt.Errorf("%w: protocol version %d, ours is %d", errPreamble, version, preambleVersion)
	}
	var buf [255]byte
	for _, f := range fields {
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return 0, err
		}
		n := int(buf[0])
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return 0, err
		}
		*f = string(buf[:n])
	}
	return head[len(head)-1], nil
}
