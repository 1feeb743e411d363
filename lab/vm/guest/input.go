package main

import (
	"os"
	"sync"
)

// input feeds a process's standard input without ever making the one reader of
// the channel wait for it.
type input struct {
	pipe *os.File
	wake chan struct{}

	mu      sync.Mutex
	pending []byte
	eof     bool
}

func newInput(pipe *os.File) *input {
	in := &input{pipe: pipe, wake: make(chan struct{}, 1)}
	go in.feed()
	return in
}

// add queues bytes; none of them is the end of file.
func (in *input) add(data []byte) {
	in.mu.Lock()
	in.pending = append(in.pending, data...)
	in.eof = in.eof || len(data) == 0
	in.mu.Unlock()
	in.notify()
}

// close forgets what was not read.
func (in *input) close() {
	in.mu.Lock()
	in.pending, in.eof = nil, true
	in.mu.Unlock()
	in.pipe.Close() // also ends a write that waits
	in.notify()
}

func (in *input) notify() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *input) feed() {
	defer in.pipe.Close()
	for range in.wake {
		in.mu.Lock()
		data, eof := in.pending, in.eof
		in.pending = nil
		in.mu.Unlock()
		if len(data) > 0 {
			if _, err := in.pipe.Write(data); err != nil {
				return // nobody reads any more
			}
		}
		if eof {
			return
		}
	}
}
