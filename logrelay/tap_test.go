package logrelay

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// tap writes down what a sender's connection gave us, behind TLS: the judge of
// whether a line that is missing ever came.
type tap struct {
	net.Conn
	file *os.File
}

// tapInto makes a Server's tap that writes one file for each connection.
func tapInto(dir string) func(net.Conn) net.Conn {
	return func(conn net.Conn) net.Conn {
		file, err := os.CreateTemp(dir, "tap")
		if err != nil {
			panic(err)
		}
		return &tap{conn, file}
	}
}

func (c *tap) NetConn() net.Conn { return c.Conn }

func (c *tap) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

func (c *tap) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if _, failed := c.file.Write(b[:n]); failed != nil {
		panic(failed)
	}
	return n, err
}

func (c *tap) Close() error {
	_ = c.file.Close()
	return c.Conn.Close()
}

// came are the sequence numbers that each connection gave us, in its order.
func came(t *testing.T, dir string) (connections [][]int) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "tap*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var list []int
		for _, m := range sequence.FindAllSubmatch(b, -1) {
			n, err := strconv.Atoi(string(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
		connections = append(connections, list)
	}
	return connections
}

// unsent are the numbers below end that a sender passed over in the midst of a
// connection that was well: it sent the one before and the one behind next to
// each other. What is missing at the edge of a connection, or was sent, is an
// error: that may be of our making.
func unsent(connections [][]int, got []int, end int) (list []int, err error) {
	have := map[int]bool{}
	for _, n := range got {
		have[n] = true
	}
	passed := map[int]bool{}
	sent := map[int]bool{}
	for _, numbers := range connections {
		for i, n := range numbers {
			sent[n] = true
			for between := n + 1; i+1 < len(numbers) && between < numbers[i+1]; between++ {
				passed[between] = true
			}
		}
	}
	for n := range end {
		switch {
		case have[n]:
		case sent[n]:
			return nil, fmt.Errorf("line %d came and is not there", n)
		case passed[n]:
			list = append(list, n)
		default:
			return nil, fmt.Errorf("line %d is missing at the edge of a connection", n)
		}
	}
	return list, nil
}

func TestWhoseLossALineIs(t *testing.T) {
	for _, test := range []struct {
		connections [][]int
		got         []int
		want        []int
		fails       bool
	}{
		{[][]int{{0, 1, 2}, {2, 3}}, []int{0, 1, 2, 3}, nil, false},
		{[][]int{{0, 2}, {2, 3}}, []int{0, 2, 3}, []int{1}, false}, // passed over by the sender
		{[][]int{{0, 1, 2}, {2, 3}}, []int{0, 2, 3}, nil, true},    // sent, and ours
		{[][]int{{0}, {2, 3}}, []int{0, 2, 3}, nil, true},          // in its hand when we ended
		{[][]int{{0, 1, 2}}, []int{0, 1, 2}, nil, true},            // the last did not come
	} {
		list, err := unsent(test.connections, test.got, 4)
		if !slices.Equal(list, test.want) || (err != nil) != test.fails {
			t.Errorf("%v: %v, %v", test, list, err)
		}
	}
}
