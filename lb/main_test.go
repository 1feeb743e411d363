package lb

import (
	"testing"

	"holdfast/lab"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}
