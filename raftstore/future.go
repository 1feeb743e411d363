//go:build holdfast_future

package raftstore

import (
	"net/url"

	"holdfast/internal/state"
)

// futureOperation is the command that programs without the tag can't read.
func futureOperation(name string, args url.Values) (state.Command, bool) {
	return state.Future{Key: args.Get("key"), Value: []byte(args.Get("value"))}, name == "future"
}
