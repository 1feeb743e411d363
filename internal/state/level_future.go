//go:build holdfast_future

package state

// With the tag holdfast_future the program is one of a later version, as far as
// an upgrade can tell: it reads one feature level more than it else does, with
// one command more. Tests of mixed versions build it; nobody else does.

// FeatureLevel is the highest feature level that this program can read.
const FeatureLevel = 2

const kindFuture kind = 250

// Future sets a key, as KV does. A program without the tag does not know it.
type Future struct {
	Key   string `codec:"key"`
	Value []byte `codec:"value"`
}

func (Future) kind() kind { return kindFuture }

func futureLevelOf(k kind) (int, bool) {
	if k == kindFuture {
		return FeatureLevel, true
	}
	return 0, false
}

func decodeFuture(k uint64, body []byte) (Command, error) {
	if k != uint64(kindFuture) {
		return nil, nil
	}
	return decodeCommand[Future](body)
}

func (t *tx) future(cmd Command) error {
	if c, ok := cmd.(Future); ok {
		return t.kv(KV{Verb: Set, Entry: Entry{Key: c.Key, Value: c.Value}})
	}
	return invalid("no such command: %T", cmd)
}
