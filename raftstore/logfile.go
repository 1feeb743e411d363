package raftstore

import (
	"errors"
	"fmt"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"holdfast/internal/boltfile"
)

// checkLogFile reads all pages of the log's file before bolt opens it. It also
// sees to it that nothing stands where nobody looks: a bucket or a key whose name
// flipped a bit is one that was never set, for who asks for it by name, and a vote
// would be forgotten. The name of a value of the stable store is in that value's
// checksum (checkedStable). A log from before the checksums has none at all.
func checkLogFile(path string) error {
	sound, wrong := 0, ""
	err := boltfile.CheckEach(path, func(bucket, key, value []byte) {
		switch string(bucket) {
		case "logs": // raftboltdb's; the entries are read one by one
		case "conf":
			if stableIntact(key, value) {
				sound++
			} else {
				wrong = fmt.Sprintf("%q", key)
			}
		default:
			sound, wrong = sound+1, fmt.Sprintf("%q in %q", key, bucket)
		}
	})
	if err == nil && sound > 0 && wrong != "" {
		err = fmt.Errorf("%w: %s is nothing that was written there", ErrDamaged, wrong)
	}
	if err != nil {
		return fmt.Errorf("the log: %w", asDamage(err))
	}
	return nil
}

// examineTerm refuses entries without a term of this server: hashicorp/raft writes
// the term before it takes the first entry of it.
func examineTerm(stable checkedStable, least uint64) error {
	_, err := stable.GetUint64([]byte("CurrentTerm"))
	if least > 0 && errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return fmt.Errorf("the votes: %w: there is no term, and there are entries of term %d", ErrDamaged, least)
	}
	return nil
}
