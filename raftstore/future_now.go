//go:build !holdfast_future

package raftstore

import (
	"net/url"

	"holdfast/internal/state"
)

// futureOperation knows no operation; see internal/state/level_future.go.
func futureOperation(string, url.Values) (state.Command, bool) { return nil, false }
