package raftstore

import "testing"

func TestSuccessorAnswersAndHasTheLog(t *testing.T) {
	for name, c := range map[string]struct{ raft, want string }{
		"the first in order":                 {"fb1/a!+ fb2/b+ fb3/c+", "fb2"},
		"not one that is down":               {"fb1/a!+ fb2/b+~ fb3/c+", "fb3"},
		"not one without a vote":             {"fb1/a!+ fb2/b fb3/c+", "fb3"},
		"rather one with the whole log":      {"fb1/a!+ fb2/b+< fb3/c+", "fb3"},
		"one that lags, if there is only it": {"fb1/a!+ fb2/b+~ fb3/c+<", "fb3"},
		"nobody":                             {"fb1/a!+ fb2/b+~ fb3/c", ""},
	} {
		if got, ok := parseView(t, 3, c.raft, "").successor(); got.Name != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got.Name, ok, c.want)
		}
	}
}
