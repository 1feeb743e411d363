package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/internal/durable"
	"holdfast/internal/peer"
)

type joinCmd struct {
	Servers   []string      `arg:"" help:"Servers that let nodes in, tried in turn, such as fbservice1 or https://fbservice1:8501." placeholder:"SERVER"`
	Token     string        `env:"HOLDFAST_JOIN_TOKEN" help:"The token (holdfast join-token create). Others on this machine can read command lines: --token-file is better." placeholder:"TOKEN"`
	TokenFile string        `type:"path" env:"HOLDFAST_JOIN_TOKEN_FILE" help:"A file with the token." placeholder:"FILE"`
	Node      string        `env:"HOLDFAST_NODE" help:"Which node of the cluster file this is; the hostname unless said." placeholder:"NAME"`
	PKI       string        `name:"pki" type:"path" default:"/etc/holdfast/pki" env:"HOLDFAST_PKI" help:"Where the certificate and keys go."`
	Config    string        `type:"path" default:"/etc/holdfast/cluster.yaml" env:"HOLDFAST_CONFIG" help:"Where the cluster file goes; one that is there stays."`
	Bind      string        `help:"The address of this node to ask from, where it has several." placeholder:"ADDR"`
	Wait      time.Duration `default:"1m" help:"How long to go on trying while no server answers."`
	Again     bool          `help:"Join although this node has a certificate: it gets a new one."`
	JSON      bool          `name:"json" help:"Print JSON."`
}

func (*joinCmd) Help() string {
	return "Examples:\n" +
		"  holdfast join fbservice1 fbservice2 --token-file /run/token    # on a bare node, before the agent starts\n" +
		"  ExecStartPre=/usr/bin/holdfast join fbservice1 --token-file /etc/holdfast/join.token   # a diskless node, at each boot\n\n" +
		"The node makes its own key; it gets a certificate, the gossip key and the cluster file. The server must be one whose agent has " +
		"--join-authority, and is known by the token. A node that has its certificate is left as it is, and no use of the token is taken."
}

func (c *joinCmd) Run(con *console) error {
	joining, err := c.prepare()
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("join: %w", err)}
	}
	_, fingerprint, _ := api.ParseJoinToken(joining.Token) // prepare has looked
	if c.complete() && peer.Installed(c.PKI, fingerprint) {
		return c.say(con, joining.Node, "", "has its certificate and its cluster file already")
	}
	ctx, cancel := context.WithTimeout(con.ctx, c.Wait)
	defer cancel()
	server, own, answer, err := c.ask(ctx, joining)
	var unreachable *api.UnreachableError
	switch {
	case errors.Is(err, errBelongs):
		return c.say(con, joining.Node, server, "has its certificate and its cluster file already; "+err.Error())
	case errors.As(err, &unreachable):
		return &exitError{exitUnreachable, fmt.Errorf("join: %w", err)}
	case err != nil:
		return fmt.Errorf("join: %w", err)
	}
	kept, err := c.install(own, answer)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if kept {
		return c.say(con, joining.Node, server, "has its certificate; "+c.Config+" was there and stays")
	}
	return c.say(con, joining.Node, server, "has its certificate and its cluster file")
}

// complete tells whether a certificate that can be used is all that this node
// may lack.
func (c *joinCmd) complete() bool {
	_, err := os.Stat(c.Config)
	return err == nil && !c.Again
}

// errBelongs ends the asking of a node that got new certificates by hand.
var errBelongs = errors.New("the token is of an authority that the cluster has dropped: make a new one")

// belongs tells whether a server that the token does not know is one that this
// node's certificates believe: the authority was changed, and only the token is
// old.
func (c *joinCmd) belongs(ctx context.Context, joining api.Joining) bool {
	if !c.complete() {
		return false
	}
	own, err := peer.Load(c.PKI)
	return err == nil && joining.Knows(ctx, own)
}

func (c *joinCmd) say(con *console, node, server, what string) error {
	if c.JSON {
		return con.json(map[string]string{"node": node, "server": server, "pki": c.PKI, "config": c.Config})
	}
	_, err := fmt.Fprintf(con.out, "%s %s\n", node, what)
	return err
}

func (c *joinCmd) prepare() (api.Joining, error) {
	joining := api.Joining{Token: strings.TrimSpace(c.Token), Node: c.Node}
	if c.TokenFile != "" {
		var err error
		if joining.Token, err = readToken(c.TokenFile); err != nil {
			return joining, err
		}
	}
	if joining.Token == "" {
		return joining, errors.New("give --token-file or --token")
	}
	if _, _, err := api.ParseJoinToken(joining.Token); err != nil {
		return joining, err
	}
	if joining.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return joining, err
		}
		joining.Node, _, _ = strings.Cut(name, ".")
	}
	if c.Bind != "" {
		var err error
		if joining.Bind, err = netip.ParseAddr(c.Bind); err != nil {
			return joining, fmt.Errorf("--bind %q: is no address", c.Bind)
		}
	}
	return joining, nil
}

// ask tries the servers in turn until one lets the node in, one refuses it, or
// the time is over.
func (c *joinCmd) ask(ctx context.Context, joining api.Joining) (server string, own *peer.Joining, answer api.JoinAnswer, err error) {
	var told error // by the servers in the round before
	for {
		var failed error
		for _, server := range c.Servers {
			joining.Server = serverURL(server)
			own, answer, err := joining.Ask(ctx)
			if err == nil {
				return joining.Server, own, answer, nil
			}
			if errors.Is(err, api.ErrOtherAuthority) && c.belongs(ctx, joining) {
				return joining.Server, nil, answer, errBelongs
			}
			var refused *api.Error
			if errors.As(err, &refused) && !worthAnother(refused) {
				return "", nil, answer, fmt.Errorf("%s: %w", joining.Server, err)
			}
			if said := cmp.Or(failed, told); ctx.Err() != nil && said != nil { // what they said before says more than that
				return "", nil, answer, said
			}
			failed = cmp.Or(failed, fmt.Errorf("%s: %w", joining.Server, err))
		}
		told = failed
		select {
		case <-ctx.Done():
			return "", nil, answer, failed
		case <-time.After(time.Second):
		}
	}
}

// worthAnother tells whether another server, or the same a little later, may
// say something else: one without the authority, without a leader, or when two
// nodes met at the token.
func worthAnother(refused *api.Error) bool { return refused.Status != 403 && refused.Status != 400 }

// serverURL makes "https://fbservice1:8501" of "fbservice1" and "fbservice1:8501".
func serverURL(server string) string {
	if strings.Contains(server, "://") {
		return server
	}
	if addr, err := netip.ParseAddr(server); err == nil {
		return "https://" + netip.AddrPortFrom(addr, 8501).String()
	}
	if !strings.Contains(server, ":") {
		server += ":8501"
	}
	return "https://" + server
}

// install puts the cluster file before the certificate: whoever finds the
// certificate finds the file.
func (c *joinCmd) install(own *peer.Joining, answer api.JoinAnswer) (kept bool, err error) {
	_, err = os.Stat(c.Config)
	switch {
	case err == nil:
		kept = true
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	default:
		if err := os.MkdirAll(filepath.Dir(c.Config), 0o755); err != nil {
			return false, err
		}
		if err := durable.Replace(c.Config, answer.Config, 0o644); err != nil {
			return false, err
		}
	}
	return kept, own.Install(c.PKI, answer.Joined)
}

type joinTokenCmd struct {
	Create joinTokenCreateCmd `cmd:"" help:"Make a token that lets bare nodes join (holdfast join). It is shown this once."`
	List   joinTokenListCmd   `cmd:"" help:"List the tokens, without their secrets."`
	Delete joinTokenDeleteCmd `cmd:"" help:"Take a token back. Nodes that joined with it stay."`
}

type joinTokenCreateCmd struct {
	connection
	Nodes       string        `help:"Node set that it is for; every node of the cluster file unless said." placeholder:"NODESET"`
	Uses        string        `default:"1" help:"How often it may be used, or 'any': for diskless nodes, which join at each boot." placeholder:"N"`
	Lifetime    time.Duration `default:"1h" help:"How long it is good."`
	Description string        `help:"For people."`
}

func (*joinTokenCreateCmd) Help() string {
	return "Examples:\n  holdfast join-token create --nodes fbservice4\n  holdfast join-token create --nodes 'fbservice[5-8]' --uses any --lifetime 8760h --description 'diskless, at each boot'"
}

func (c *joinTokenCreateCmd) Run(con *console) error {
	uses := -1
	if c.Uses != "any" {
		var err error
		if uses, err = strconv.Atoi(c.Uses); err != nil || uses < 1 {
			return &exitError{exitUsage, fmt.Errorf("--uses %q: want a number from 1 on, or any", c.Uses)}
		}
	}
	return c.ask(func(client *api.Client) error {
		made, err := client.MakeJoinToken(con.ctx, api.NewJoinToken{Description: c.Description, Nodes: c.Nodes, Uses: uses, Lifetime: c.Lifetime.String()})
		if api.NotFound(err) { // this node has no authority: nothing that was asked for is missing
			return errors.New(err.Error())
		}
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(made)
		}
		_, err = fmt.Fprintln(con.out, made.Token)
		return err
	})
}

type joinTokenListCmd struct{ connection }

func (*joinTokenListCmd) Help() string { return "Example: holdfast join-token list" }

func (c *joinTokenListCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		all, err := client.JoinTokens(con.ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(all)
		}
		rows := make([][]string, 0, len(all))
		for _, t := range all {
			uses := fmt.Sprint(t.Uses)
			if t.Uses < 0 {
				uses = "any"
			}
			rows = append(rows, []string{t.ID, cmp.Or(strings.Join(t.Nodes, ","), "all"), uses, t.Expires.Local().Format(time.DateTime), strings.Join(t.Used, ","), t.Description})
		}
		return con.table([]string{"ID", "NODES", "USES LEFT", "EXPIRES", "USED BY", "DESCRIPTION"}, rows)
	})
}

type joinTokenDeleteCmd struct {
	connection
	ID string `arg:"" help:"The token's ID, as list prints it."`
}

func (*joinTokenDeleteCmd) Help() string {
	return "Example: holdfast join-token delete 5f2c0a9e11d2b7c4"
}

func (c *joinTokenDeleteCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error { return client.DeleteJoinToken(con.ctx, c.ID) })
}
