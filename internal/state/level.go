package state

import (
	"encoding/binary"
	"fmt"
)

// Feature levels keep programs of different versions on one log. A command has
// the level since which programs can read it; FeatureLevel is the highest that
// this program reads. The store has a level of its own (Cluster.Feature), which
// an admin raises when all servers can read it, and nobody proposes a command
// above that.

// BaseLevel is the level of a store whose record does not say another.
const BaseLevel = 1

// Level is the store's level at this snapshot.
func (s *Snapshot) Level() int {
	if c := s.Cluster(); c != nil {
		return max(BaseLevel, c.Feature)
	}
	return BaseLevel
}

// levelOf is the level of a kind of command; false when this program does not
// know the kind.
func levelOf(k kind) (int, bool) {
	if k >= kindRegister && k <= kindTransact {
		return BaseLevel, true
	}
	return futureLevelOf(k)
}

// LevelError says that a command can't be proposed at the store's level. It is
// ErrInvalid.
type LevelError struct {
	Kind  uint64 // of the command
	Needs int    // level; 0: this program does not know the command
	Store int    // level
}

func (e *LevelError) Error() string {
	if e.Needs == 0 {
		return fmt.Sprintf("%v: command of kind %d is of a newer program than the leader's", ErrInvalid, e.Kind)
	}
	return fmt.Sprintf("%v: command of kind %d needs feature level %d, the store is at %d: when all servers run a new version, raise it (holdfast operator feature-level raise)",
		ErrInvalid, e.Kind, e.Needs, e.Store)
}

// Unwrap makes it ErrInvalid.
func (e *LevelError) Unwrap() error { return ErrInvalid }

// MayPropose refuses, with a *LevelError, an encoded command that the store's
// level does not allow. It looks at the header alone; what has none is for
// Decode to refuse.
func MayPropose(encoded []byte, level int) error {
	if len(encoded) < 2 || encoded[0] != commandFormat {
		return nil
	}
	k, n := binary.Uvarint(encoded[1:])
	if n <= 0 {
		return nil
	}
	needs := 0
	if k <= 0xff {
		needs, _ = levelOf(kind(k))
	}
	if needs == 0 || needs > level {
		return &LevelError{Kind: k, Needs: needs, Store: level}
	}
	return nil
}
