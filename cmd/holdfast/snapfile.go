package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"holdfast/discovery"
	"holdfast/internal/peer"
	"holdfast/internal/state"
	"holdfast/raftstore"
)

// snapshotFile is a snapshot on this machine, plain or sealed.
type snapshotFile struct {
	Key     string `name:"key-file" type:"path" default:"/etc/holdfast/pki/gossip.key" help:"A gossip key of the cluster; a scheduled snapshot needs the one that was in use when it was made, plain ones need none."`
	Keyring string `name:"keyring-dir" type:"path" default:"/var/lib/holdfast" env:"HOLDFAST_DATA_DIR" help:"The data directory of an agent, whose gossip keys are tried, too."`
}

// open returns the plain content of a file; close the closer.
func (s *snapshotFile) open(path string) (io.Reader, io.Closer, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	buffered := bufio.NewReader(file)
	if head, _ := buffered.Peek(8); !raftstore.IsSealed(head) {
		return buffered, file, nil
	}
	keys, err := s.keys()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s is sealed with the cluster's gossip key, and --key-file can't be read: %w", path, err), file.Close())
	}
	plain, err := raftstore.OpenSealed(buffered, keys...)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	return plain, file, nil
}

// keys are those that may open a sealed snapshot: that of the file, and those that
// the gossip has come to use since.
func (s *snapshotFile) keys() ([][]byte, error) {
	key, err := peer.ReadGossipKey(s.Key)
	ring, unread := discovery.GossipKeys(s.Keyring, key)
	switch {
	case err != nil: // a keyring counts where a key was configured
		return nil, err
	case unread != nil:
		return [][]byte{key}, nil
	}
	return append(ring, key), nil
}

// inspect verifies a file to its end.
func (s *snapshotFile) inspect(path string) (state.Info, error) {
	plain, file, err := s.open(path)
	if err != nil {
		return state.Info{}, err
	}
	defer file.Close()
	info, err := state.Inspect(plain)
	if err != nil {
		return state.Info{}, fmt.Errorf("%s: %w", path, err)
	}
	return info, nil
}

type snapshotVerifyCmd struct {
	snapshotFile
	JSON  bool     `name:"json" help:"Print JSON."`
	Files []string `arg:"" help:"Snapshots, or directories of scheduled ones." type:"existingpath"`
}

func (*snapshotVerifyCmd) Help() string {
	return "Example: holdfast snapshot verify /var/lib/holdfast/snapshots\n\n" +
		"Reads every snapshot to its end, as a restore would, and restores nothing. Exit status 1 when one is bad, or there is none."
}

// verified is what became of one file.
type verified struct {
	File    string `json:"file"`
	Index   uint64 `json:"index"`
	Records uint64 `json:"records"`
	Problem string `json:"problem,omitempty"`
}

func (c *snapshotVerifyCmd) Run(con *console) error {
	all, err := c.verify()
	if err != nil {
		return err
	}
	bad := 0
	rows := make([][]string, 0, len(all))
	for _, v := range all {
		verdict := "verified"
		if v.Problem != "" {
			verdict = v.Problem
			bad++
		}
		rows = append(rows, []string{v.File, strconv.FormatUint(v.Index, 10), strconv.FormatUint(v.Records, 10), verdict})
	}
	if c.JSON {
		err = con.json(all)
	} else {
		err = con.table([]string{"FILE", "INDEX", "RECORDS", "VERDICT"}, rows)
	}
	switch {
	case err != nil:
		return err
	case len(all) == 0:
		return errors.New("there is no snapshot")
	case bad > 0:
		return fmt.Errorf("%d of %d snapshots are bad", bad, len(all))
	}
	return nil
}

func (c *snapshotVerifyCmd) verify() ([]verified, error) {
	all := []verified{}
	for _, path := range c.Files {
		files := []string{path}
		if st, err := os.Stat(path); err != nil {
			return nil, err
		} else if st.IsDir() {
			if files, err = filepath.Glob(filepath.Join(path, "*.snapshot")); err != nil {
				return nil, err
			}
		}
		for _, file := range files {
			v := verified{File: file}
			info, err := c.inspect(file)
			if v.Index, v.Records = info.Index, info.Records; err != nil {
				v.Problem = err.Error()
			}
			all = append(all, v)
		}
	}
	return all, nil
}
