package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast/dns"
)

// dnsQuestion is a question on the command line.
type dnsQuestion struct {
	dnsSocket
	Name string     `arg:"" help:"The name, in full."`
	Type string     `arg:"" optional:"" default:"A" help:"The type: A, AAAA, SRV, PTR, TYPE65 ..."`
	From netip.Addr `help:"Answer as this client is answered." placeholder:"ADDRESS"`
	TCP  bool       `name:"tcp" help:"Answer as over TCP: nothing is cut."`
}

func (c *dnsQuestion) put(con *console, what string) error {
	words := url.Values{"name": {c.Name}, "type": {c.Type}}
	if c.From.IsValid() {
		words.Set("from", c.From.String())
	}
	if c.TCP {
		words.Set("tcp", "1")
	}
	var reply dns.Reply
	if err := c.ask(con.ctx, "GET", "/v1/dns/"+what+"?"+words.Encode(), nil, &reply); err != nil {
		return err
	}
	if c.JSON {
		return con.json(reply)
	}
	for _, step := range reply.Trace {
		fmt.Fprintln(con.out, "- "+printable(step))
	}
	took := time.Duration(reply.Seconds * float64(time.Second)).Round(time.Microsecond)
	fmt.Fprintf(con.out, "%s (%s), %d bytes, %v\n", printable(reply.Rcode), strings.Join(reply.Flags, " "), reply.Bytes, took)
	for _, why := range reply.Why {
		fmt.Fprintln(con.out, "because  "+printable(why))
	}
	for _, section := range []struct {
		label   string
		records []string
	}{{"", reply.Answer}, {"authority  ", reply.Ns}, {"additional  ", reply.Extra}} {
		for _, record := range section.records {
			if _, err := fmt.Fprintln(con.out, section.label+printable(record)); err != nil {
				return err
			}
		}
	}
	return nil
}

type dnsQueryCmd struct{ dnsQuestion }

func (*dnsQueryCmd) Help() string {
	return "It goes the way of a client's question, past sockets alone.\n\n" +
		"Examples:\n" +
		"  holdfast dns query apt.service.virtual\n" +
		"  holdfast dns query _ldap._tcp.service.virtual SRV\n" +
		"  holdfast dns query www.example.org AAAA --from 10.1.2.3"
}

func (c *dnsQueryCmd) Run(con *console) error { return c.put(con, "query") }

type dnsTraceCmd struct{ dnsQuestion }

func (*dnsTraceCmd) Help() string {
	return "It tells which zone or forwarders are responsible, what the checks and the gossip say of each instance,\n" +
		"what the cache holds, and what each forwarder answers now.\n\n" +
		"Example: holdfast dns trace apt.service.virtual"
}

func (c *dnsTraceCmd) Run(con *console) error { return c.put(con, "trace") }

type dnsTopCmd struct {
	dnsSocket
	For   time.Duration `default:"5s" help:"How long to watch, at most 1m."`
	Limit int           `default:"10" help:"How many of each kind to list."`
}

func (*dnsTopCmd) Help() string {
	return "Examples:\n  holdfast dns top\n  watch -n 0 holdfast dns top --for 2s"
}

func (c *dnsTopCmd) Run(con *console) error {
	var top dns.Top
	path := "/v1/dns/top?" + url.Values{"for": {c.For.String()}, "limit": {strconv.Itoa(c.Limit)}}.Encode()
	if err := c.ask(con.ctx, "GET", path, nil, &top); err != nil {
		return err
	}
	if c.JSON {
		return con.json(top)
	}
	all := top.Seen + top.Missed
	fmt.Fprintf(con.out, "%d answers in %.1f s, %.0f/s; %d of them looked at\n", all, top.Seconds, float64(all)/max(top.Seconds, 0.001), top.Seen)
	for _, kind := range []struct {
		label  string
		counts []dns.Count
	}{{"NAME", top.Names}, {"CLIENT", top.Clients}, {"TYPE", top.Types}, {"RCODE", top.Rcodes}, {"ZONE", top.Zones}, {"SOURCE", top.Sources}} {
		rows := make([][]string, 0, len(kind.counts))
		for _, n := range kind.counts {
			rows = append(rows, []string{strconv.FormatUint(n.Count, 10), fmt.Sprintf("%.1f %%", 100*float64(n.Count)/float64(max(top.Seen, 1))), n.What})
		}
		fmt.Fprintln(con.out)
		if err := con.table([]string{"COUNT", "SHARE", kind.label}, rows); err != nil {
			return err
		}
	}
	return nil
}
