package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"holdfast/api"
	"holdfast/internal/state"
)

type snapshotCmd struct {
	Save    snapshotSaveCmd    `cmd:"" help:"Save the whole store to a file."`
	Restore snapshotRestoreCmd `cmd:"" help:"Replace the whole store by a file's content."`
	Inspect snapshotInspectCmd `cmd:"" help:"Verify a snapshot and tell what is in it; needs no agent."`
	Verify  snapshotVerifyCmd  `cmd:"" help:"Verify snapshots, plain and scheduled ones; needs no agent."`
}

type snapshotSaveCmd struct {
	connection
	Stale bool   `help:"From this node's replica, leader or not."`
	File  string `arg:"" help:"Where to; must not exist." type:"path"`
}

func (*snapshotSaveCmd) Help() string {
	return "Example: holdfast snapshot save /root/before-upgrade.snap"
}

func (c *snapshotSaveCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		info, err := c.save(con, client)
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(info)
		}
		_, err = fmt.Fprintf(con.out, "saved and verified: index %d, %d records, %d bytes\n", info.Index, info.Records, info.Bytes)
		return err
	})
}

// save writes to a temporary file beside the target and gives it its name
// once it is verified: what has the name is whole.
func (c *snapshotSaveCmd) save(con *console, client *api.Client) (state.Info, error) {
	if _, err := os.Lstat(c.File); err == nil {
		return state.Info{}, fmt.Errorf("%s exists already: nothing was saved", c.File)
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.File), ".holdfast-snapshot-*")
	if err != nil {
		return state.Info{}, err
	}
	defer os.Remove(tmp.Name()) // nothing there after the link
	defer tmp.Close()
	if err := client.SnapshotSave(con.ctx, tmp, c.Stale); err != nil {
		return state.Info{}, err
	}
	if _, err := tmp.Seek(0, 0); err != nil {
		return state.Info{}, err
	}
	info, err := state.Inspect(tmp)
	if err != nil {
		return state.Info{}, fmt.Errorf("what arrived is no whole snapshot: %w", err)
	}
	// Link, unlike rename, never replaces a file that appeared meanwhile.
	return info, errors.Join(tmp.Sync(), os.Link(tmp.Name(), c.File))
}

type snapshotRestoreCmd struct {
	connection
	snapshotFile
	File string `arg:"" help:"The snapshot." type:"existingfile"`
}

func (*snapshotRestoreCmd) Help() string {
	return "Example: holdfast snapshot restore /root/before-upgrade.snap\n\nEverything written since the snapshot is lost. The file is verified before anything changes."
}

func (c *snapshotRestoreCmd) Run(con *console) error {
	if _, err := c.inspect(c.File); err != nil {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	plain, file, err := c.snapshotFile.open(c.File)
	if err != nil {
		return err
	}
	defer file.Close()
	return c.ask(func(client *api.Client) error {
		if err := client.SnapshotRestore(con.ctx, plain); err != nil {
			return err
		}
		return con.done(c.JSON, "restored")
	})
}

type snapshotInspectCmd struct {
	snapshotFile
	JSON bool   `name:"json" help:"Print JSON."`
	File string `arg:"" help:"The snapshot." type:"existingfile"`
}

func (*snapshotInspectCmd) Help() string {
	return "Example: holdfast snapshot inspect before-upgrade.snap"
}

func (c *snapshotInspectCmd) Run(con *console) error {
	info, err := c.inspect(c.File)
	if err != nil {
		return err
	}
	if c.JSON {
		return con.json(info)
	}
	fmt.Fprintf(con.out, "index %d, format %d, %d bytes, SHA-256 %s: verified\n", info.Index, info.Format, info.Bytes, info.SHA256)
	if info.Cluster != nil {
		fmt.Fprintf(con.out, "cluster %s, %s\n", info.Cluster.Name, info.Cluster.ID)
	}
	rows := make([][]string, 0, len(info.Tables))
	for _, t := range info.Tables {
		rows = append(rows, []string{t.Name, strconv.FormatUint(t.Records, 10), strconv.FormatInt(t.Bytes, 10)})
	}
	return con.table([]string{"TABLE", "RECORDS", "BYTES"}, rows)
}
