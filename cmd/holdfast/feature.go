package main

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"

	"holdfast/api"
	"holdfast/raftstore"
)

type featureCmd struct {
	Show  featureShowCmd  `cmd:"" default:"withargs" help:"Print the store's level and what each server reads."`
	Raise featureRaiseCmd `cmd:"" help:"Raise the store's level; refused while a server can't read it."`
}

func (*featureCmd) Help() string {
	return "A new version may have commands that older ones can't read. It writes none of them until the store's feature level is raised,\n" +
		"and that is refused until every server, with a vote or without, runs a version that reads them.\n" +
		"After it older versions can't take part any more: they are refused, with the reason. The level never goes back.\n\n" +
		"An upgrade: holdfast operator rolling-restart -- ...; then holdfast operator feature-level raise."
}

type featureShowCmd struct{ connection }

func (*featureShowCmd) Help() string { return "Example: holdfast operator feature-level" }

func (c *featureShowCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		var st raftstore.LevelState
		if err := client.StoreOperation(con.ctx, "feature-level", nil, false, &st); err != nil {
			return err
		}
		return printLevels(con, c.JSON, st)
	})
}

type featureRaiseCmd struct {
	connection
	To int `help:"To this level; the highest that all servers read unless said." placeholder:"N"`
}

func (*featureRaiseCmd) Help() string { return "Example: holdfast operator feature-level raise" }

func (c *featureRaiseCmd) Run(con *console) error {
	args := url.Values{}
	if c.To != 0 {
		args.Set("to", strconv.Itoa(c.To))
	}
	return c.ask(func(client *api.Client) error {
		var st raftstore.LevelState
		if err := client.StoreOperation(con.ctx, "feature-level", args, true, &st); err != nil {
			return err
		}
		return printLevels(con, c.JSON, st)
	})
}

func printLevels(con *console, asJSON bool, st raftstore.LevelState) error {
	if asJSON {
		return con.json(st)
	}
	fmt.Fprintln(con.out, levelSentence(st))
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(st.Reads)) {
		rows = append(rows, []string{name, strconv.Itoa(st.Reads[name])})
	}
	for _, name := range st.Silent {
		rows = append(rows, []string{name, "does not answer"})
	}
	return con.table([]string{"NODE", "READS UP TO"}, rows)
}

func levelSentence(st raftstore.LevelState) string {
	switch {
	case st.Possible > st.Store:
		return fmt.Sprintf("feature level %d; all servers read %d: holdfast operator feature-level raise", st.Store, st.Possible)
	case len(st.Silent) > 0:
		return fmt.Sprintf("feature level %d; not all servers answer", st.Store)
	}
	return fmt.Sprintf("feature level %d", st.Store)
}
