package main

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/raftstore"
)

type pkiRotateCmd struct {
	Status rotateStatusCmd `cmd:"" help:"Where the change of the authority stands, and what each server has got."`
	Begin  rotateBeginCmd  `cmd:"" help:"Make a second authority. The old one issues as before."`
	Switch rotateSwitchCmd `cmd:"" help:"Have the new authority issue; refused while a server does not trust it."`
	Finish rotateFinishCmd `cmd:"" help:"Drop the old authority; refused while a server has a certificate of it."`
}

func (*pkiRotateCmd) Help() string {
	return "The cluster goes over to a new authority without a restart, in three steps. After each one all certificates are issued and\n" +
		"installed, and are in force within a minute, or at once with 'holdfast config reload':\n\n" +
		"  holdfast pki rotate begin  --ca DIR         then: holdfast pki issue ..., copy, and the same for admins and log clients\n" +
		"  holdfast pki rotate switch --ca DIR         then: likewise\n" +
		"  holdfast pki rotate finish --ca DIR         then: likewise\n\n" +
		"Between the steps, and within them, everything works for as long as you like: nodes trust both authorities.\n" +
		"Join tokens made before the switch are good until finish: make them anew in between.\n" +
		"A server that is down meanwhile must be given new files and be restarted before it can come back."
}

// rotation is what the commands that ask the servers have in common.
type rotation struct {
	connection
	CA      string   `required:"" name:"ca" help:"Directory of the authority (holdfast pki init)." placeholder:"DIR"`
	Config  string   `default:"/etc/holdfast/cluster.yaml" help:"The cluster file: it lists who is asked."`
	Without []string `help:"Go on without this server, which does not answer. It is refused by the others until it is given new files and restarted. May be repeated." placeholder:"NODE"`
}

// serverTrust is what a server said.
type serverTrust struct {
	Name    string             `json:"name"`
	Answers bool               `json:"answers"`
	Trust   *raftstore.Trusted `json:"trust,omitempty"`
}

// ask asks every server of the file and of the store, by way of one agent.
func (c *rotation) askAll(con *console) (list []serverTrust, err error) {
	file, err := cluster.Load(c.Config, sections())
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	var peers []raftstore.Peer
	if err := c.ask(func(client *api.Client) error {
		return client.StoreOperation(con.ctx, "peers", url.Values{}, false, &peers)
	}); err != nil {
		return nil, fmt.Errorf("ask the servers what they trust: %w", err)
	}
	for _, node := range file.Servers() {
		list = append(list, serverTrust{Name: node.Name})
	}
	for _, p := range peers {
		i := slices.IndexFunc(list, func(s serverTrust) bool { return strings.EqualFold(s.Name, p.Name) })
		if i < 0 {
			list, i = append(list, serverTrust{Name: p.Name}), len(list)
		}
		list[i].Answers, list[i].Trust = p.Reachable, p.Trust
	}
	return list, nil
}

// unready says which servers are not ready for a step; nil: all are.
func unready(list []serverTrust, without []string, wanted string, ready func(*raftstore.Trusted) bool) error {
	var missing []string
	for _, s := range list {
		switch {
		case s.Trust != nil && ready(s.Trust):
		case s.Answers && s.Trust == nil:
			missing = append(missing, s.Name+" does not say whom it trusts (plain text, or an older program: install this version)")
		case s.Answers:
			missing = append(missing, s.Name+" "+wanted)
		case slices.ContainsFunc(without, func(n string) bool { return strings.EqualFold(n, s.Name) }):
		default:
			missing = append(missing, s.Name+" does not answer (start it, or name it with --without)")
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return errors.New("refused: " + strings.Join(missing, "; "))
}

const notThere = "no change of the authority is under way: holdfast pki rotate begin"

type rotateStatusCmd struct{ rotation }

func (*rotateStatusCmd) Help() string {
	return "Example: holdfast pki rotate status --ca /root/holdfast-ca --config cluster.yaml --server https://fbservice1:8501 --pki /root/issued/alice\n\n" +
		"Without --server the agent on this machine is asked."
}

func (c *rotateStatusCmd) Run(con *console) error {
	at, err := peer.RotationOf(c.CA)
	if err != nil {
		return err
	}
	servers, err := c.askAll(con)
	if err != nil {
		return err
	}
	if c.JSON {
		return con.json(struct {
			peer.Rotation
			Servers []serverTrust `json:"servers"`
		}{at, servers})
	}
	fmt.Fprintln(con.out, rotationSentence(at))
	rows := make([][]string, 0, len(servers))
	for _, s := range servers {
		row := []string{s.Name, "does not answer", "-", "-"}
		if s.Answers {
			row[1] = "does not tell"
		}
		if s.Trust != nil {
			row = []string{s.Name, strings.Join(s.Trust.Authorities, " "), s.Trust.Issuer, s.Trust.Expires.Format(time.DateOnly)}
		}
		rows = append(rows, row)
	}
	return con.table([]string{"NODE", "TRUSTS", "CERTIFICATE BY", "ENDS"}, rows)
}

func rotationSentence(at peer.Rotation) string {
	switch at.Step {
	case peer.RotationBegun:
		return fmt.Sprintf("begun: from %s, which issues, to %s; when all servers trust both: holdfast pki rotate switch", at.Old, at.New)
	case peer.RotationSwitched:
		return fmt.Sprintf("switched: from %s to %s, which issues; when all servers have a certificate by it: holdfast pki rotate finish", at.Old, at.New)
	}
	return fmt.Sprintf("one authority, %s, until %s", at.Old, at.Expires.Format(time.DateOnly))
}

type rotateBeginCmd struct {
	JSON bool   `name:"json" help:"Print JSON."`
	CA   string `required:"" name:"ca" help:"Directory of the authority (holdfast pki init)." placeholder:"DIR"`
}

func (*rotateBeginCmd) Help() string {
	return "Example: holdfast pki rotate begin --ca /root/holdfast-ca\n\nWhat is issued from now on makes its node trust both authorities. Cut short, it can be typed again."
}

func (c *rotateBeginCmd) Run(con *console) error {
	at, err := peer.RotateBegin(c.CA)
	return con.rotated(c.JSON, at, err, "next: holdfast pki issue for all, copy them to the nodes, then holdfast pki rotate switch")
}

func (c *console) rotated(asJSON bool, at peer.Rotation, err error, next string) error {
	if err != nil {
		return err
	}
	if asJSON {
		return c.json(at)
	}
	_, err = fmt.Fprintf(c.out, "%s\n%s\n", rotationSentence(at), next)
	return err
}

type rotateSwitchCmd struct{ rotation }

func (*rotateSwitchCmd) Help() string {
	return "Example: holdfast pki rotate switch --ca /root/holdfast-ca --config cluster.yaml --server https://fbservice1:8501 --pki /root/issued/alice\n\n" +
		"All servers are asked first. Frontends and log clients can't be asked: see to it that they have got the new files, too."
}

func (c *rotateSwitchCmd) Run(con *console) error {
	at, err := peer.RotationOf(c.CA)
	if err != nil {
		return err
	}
	if at.Step == peer.RotationNone {
		return errors.New("rotate switch: " + notThere)
	}
	servers, err := c.askAll(con)
	if err != nil {
		return err
	}
	err = unready(servers, c.Without, "does not trust the new authority "+at.New+" yet (issue, copy, wait a minute)",
		func(t *raftstore.Trusted) bool { return slices.Contains(t.Authorities, at.New) })
	if err != nil {
		return fmt.Errorf("rotate switch: %w", err)
	}
	at, err = peer.RotateSwitch(c.CA)
	return con.rotated(c.JSON, at, err, "next: holdfast pki issue for all, admins too, copy them to the nodes, then holdfast pki rotate finish")
}

type rotateFinishCmd struct{ rotation }

func (*rotateFinishCmd) Help() string {
	return "Example: holdfast pki rotate finish --ca /root/holdfast-ca --config cluster.yaml --server https://fbservice1:8501 --pki /root/issued/alice\n\n" +
		"All servers are asked first. The old authority's key is removed. A node drops the old authority when it gets what is issued\n" +
		"afterwards: it then closes, counts and tells what connections hang on it.\n" +
		"Frontends and log clients can't be asked: those with a certificate of the old authority are refused from then on."
}

func (c *rotateFinishCmd) Run(con *console) error {
	at, err := peer.RotationOf(c.CA)
	if err != nil {
		return err
	}
	if at.Step == peer.RotationNone { // or it was cut short after its last look at the servers
		done, err := peer.RotateFinish(c.CA)
		if err != nil {
			return errors.New("rotate finish: " + notThere)
		}
		return con.rotated(c.JSON, done, nil, "finished what was cut short")
	}
	servers, err := c.askAll(con)
	if err != nil {
		return err
	}
	err = unready(servers, c.Without, "has no certificate by the new authority "+at.New+" yet (issue, copy, wait a minute)",
		func(t *raftstore.Trusted) bool { return t.Issuer == at.New })
	if err == nil {
		err = c.ownCertificate(at)
	}
	if err != nil {
		return fmt.Errorf("rotate finish: %w", err)
	}
	at, err = peer.RotateFinish(c.CA)
	return con.rotated(c.JSON, at, err, "next: holdfast pki issue for all, copy them to the nodes: each drops the old authority when it has them")
}

// ownCertificate keeps the admin from locking himself out.
func (c *rotateFinishCmd) ownCertificate(at peer.Rotation) error {
	if !strings.HasPrefix(c.Server, "https:") {
		return nil
	}
	own, err := peer.Load(c.PKI)
	if err != nil {
		return err
	}
	if _, issuer := own.Authorities(); issuer != at.New {
		return fmt.Errorf("refused: your own certificate in %s is by the old authority: issue it again (holdfast pki issue --admin %s)", c.PKI, own.Identity().Name)
	}
	return nil
}
