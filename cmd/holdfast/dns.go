package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"holdfast/dns"
	"holdfast/internal/admin"
)

type dnsCmd struct {
	Status dnsStatusCmd `cmd:"" help:"Where the unit has the cluster's state from, and how old it is."`
	Record dnsRecordCmd `cmd:"" help:"Add, delete and list static records."`
	Zone   dnsZoneCmd   `cmd:"" help:"Print a zone as this node serves it, or list the zones."`
	Check  dnsCheckCmd  `cmd:"" help:"Compare a zone with a hosts file, a zone file or another server; exit status 6 when they differ."`
	Cache  dnsCacheCmd  `cmd:"" help:"Look into the cache of names from elsewhere, and empty it."`
	Query  dnsQueryCmd  `cmd:"" help:"Ask this node's server, as any client of it."`
	Trace  dnsTraceCmd  `cmd:"" help:"Ask it, and tell how the answer comes about."`
	Top    dnsTopCmd    `cmd:"" help:"Watch what is asked for a while: the most frequent names, clients and answers."`
}

// dnsSocket asks the DNS unit on this machine. It is embedded in every command
// that does.
type dnsSocket struct {
	Socket string `default:"/run/holdfast/dns.sock" env:"HOLDFAST_DNS_SOCKET" help:"Admin socket of the DNS server on this machine."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// maxDNSAnswer bounds what is read of an answer, in bytes: a zone of some
// hundred thousand names.
const maxDNSAnswer = 64 << 20

// ask makes a request and decodes the answer into v; errors have the exit
// status that scripts rely on.
func (d *dnsSocket) ask(ctx context.Context, method, path string, body, v any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, admin.BaseURL+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	client := admin.Client(d.Socket)
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		var transport *url.Error
		if errors.As(err, &transport) {
			err = transport.Err // the URL says nothing of a socket
		}
		return &exitError{exitUnreachable, err}
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxDNSAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if response.StatusCode == http.StatusOK {
		return json.Unmarshal(answer, v)
	}
	refusal := errors.New(strings.TrimSpace(string(answer)))
	switch response.StatusCode {
	case http.StatusNotFound:
		return &exitError{exitNotFound, refusal}
	case http.StatusServiceUnavailable:
		return &exitError{exitNoLeader, refusal}
	}
	return refusal
}

type dnsRecordCmd struct {
	Add  dnsRecordAddCmd  `cmd:"" help:"Put a record into the store: every node answers it at once."`
	Del  dnsRecordDelCmd  `cmd:"" help:"Take a record out of the store."`
	List dnsRecordListCmd `cmd:"" help:"List the static records of the cluster file and the store."`
}

// recordWords are a record on the command line.
type recordWords struct {
	dnsSocket
	Record []string `arg:"" help:"OWNER [TTL] TYPE DATA, as in a zone file; a name without a trailing dot is in the cluster's domain."`
}

// change asks for a change and prints what was written.
func (c *recordWords) change(con *console, method, verb string) error {
	var written []string
	request := map[string]string{"record": strings.Join(c.Record, " ")}
	if err := c.ask(con.ctx, method, "/v1/dns/records", request, &written); err != nil {
		return err
	}
	if c.JSON {
		return con.json(written)
	}
	for _, record := range written {
		if _, err := fmt.Fprintf(con.out, "%s %s\n", verb, printable(record)); err != nil {
			return err
		}
	}
	return nil
}

type dnsRecordAddCmd struct{ recordWords }

func (*dnsRecordAddCmd) Help() string {
	return "Examples:\n" +
		"  holdfast dns record add www CNAME fbservice1\n" +
		"  holdfast dns record add 'db[1-3]' 60 A '10.1.0.[51-53]'\n" +
		"  holdfast dns record add 10.1.0.51 PTR db1.hpc.example.com.\n" +
		"  holdfast dns record add @ TXT '\"v=spf1 -all\"'"
}

func (c *dnsRecordAddCmd) Run(con *console) error { return c.change(con, "POST", "added") }

type dnsRecordDelCmd struct{ recordWords }

func (*dnsRecordDelCmd) Help() string { return "Example: holdfast dns record del www CNAME fbservice1" }

func (c *dnsRecordDelCmd) Run(con *console) error { return c.change(con, "DELETE", "deleted") }

type dnsRecordListCmd struct{ dnsSocket }

func (*dnsRecordListCmd) Help() string { return "Example: holdfast dns record list" }

func (c *dnsRecordListCmd) Run(con *console) error {
	var records []dns.RecordReport
	if err := c.ask(con.ctx, "GET", "/v1/dns/records", nil, &records); err != nil {
		return err
	}
	if c.JSON {
		return con.json(records)
	}
	rows := make([][]string, 0, len(records))
	for _, r := range records {
		rows = append(rows, []string{r.Record, r.From})
	}
	return con.table([]string{"RECORD", "FROM"}, rows)
}

type dnsZoneCmd struct {
	dnsSocket
	Zone string `arg:"" optional:"" help:"The zone; without one the zones are listed."`
}

func (*dnsZoneCmd) Help() string {
	return "Examples:\n  holdfast dns zone\n  holdfast dns zone hpc.example.com >hpc.zone"
}

func (c *dnsZoneCmd) Run(con *console) error {
	if c.Zone == "" {
		var zones []string
		if err := c.ask(con.ctx, "GET", "/v1/dns/zones", nil, &zones); err != nil {
			return err
		}
		if c.JSON {
			return con.json(zones)
		}
		_, err := fmt.Fprintln(con.out, strings.Join(zones, "\n"))
		return err
	}
	text, err := c.text(con.ctx, c.Zone)
	switch {
	case err != nil:
		return err
	case c.JSON:
		return con.json(text)
	}
	_, err = io.WriteString(con.out, text)
	return err
}

// text is a zone in zone file form.
func (d *dnsSocket) text(ctx context.Context, zone string) (text string, err error) {
	err = d.ask(ctx, "GET", "/v1/dns/zone/"+url.PathEscape(zone), nil, &text)
	return text, err
}

type dnsCheckCmd struct {
	dnsSocket
	Zone     string `arg:"" help:"The zone."`
	Hosts    string `xor:"with" required:"" type:"existingfile" help:"Compare its addresses with this hosts file." placeholder:"FILE"`
	ZoneFile string `xor:"with" required:"" type:"existingfile" help:"Compare it with this zone file." placeholder:"FILE"`
	Server   string `xor:"with" required:"" help:"Compare it with what this server transfers (AXFR)." placeholder:"ADDR[:PORT]"`
}

func (*dnsCheckCmd) Help() string {
	return "Examples:\n" +
		"  holdfast dns check hpc.example.com --hosts /etc/hosts\n" +
		"  holdfast dns check hpc.example.com --zone-file /var/lib/bind/hpc.zone\n" +
		"  holdfast dns check 0.1.10.in-addr.arpa --server 10.1.0.5"
}

// checkTimeout bounds the comparison with another server.
const checkTimeout = 30 * time.Second

func (c *dnsCheckCmd) Run(con *console) error {
	ours, err := c.text(con.ctx, c.Zone)
	if err != nil {
		return err
	}
	drift, err := c.compare(con.ctx, ours)
	if err != nil {
		return err
	}
	if c.JSON {
		err = con.json(drift)
	} else {
		for _, line := range drift.Missing {
			fmt.Fprintln(con.out, "missing here: "+printable(line))
		}
		for _, line := range drift.Extra {
			fmt.Fprintln(con.out, "only here:    "+printable(line))
		}
	}
	if err == nil && !drift.IsEmpty() {
		err = &exitError{exitDegraded, fmt.Errorf("%s differs: %d records are missing here, %d are only here", c.Zone, len(drift.Missing), len(drift.Extra))}
	}
	return err
}

func (c *dnsCheckCmd) compare(ctx context.Context, ours string) (dns.Drift, error) {
	if c.Server != "" {
		addr, err := netip.ParseAddrPort(c.Server)
		if plain, notPort := netip.ParseAddr(c.Server); notPort == nil {
			addr, err = netip.AddrPortFrom(plain, dns.Port), nil
		}
		if err != nil {
			return dns.Drift{}, &exitError{exitUsage, fmt.Errorf("--server: %q is no address", c.Server)}
		}
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		return dns.CompareServer(ctx, ours, c.Zone, addr)
	}
	path, compare := c.ZoneFile, dns.CompareZone
	if c.Hosts != "" {
		path, compare = c.Hosts, dns.CompareHosts
	}
	file, err := os.Open(path)
	if err != nil {
		return dns.Drift{}, err
	}
	defer file.Close()
	return compare(ours, file, c.Zone)
}

type dnsCacheCmd struct {
	Dump  dnsCacheDumpCmd  `cmd:"" help:"List the remembered answers."`
	Flush dnsCacheFlushCmd `cmd:"" help:"Forget remembered answers."`
	Stats dnsCacheStatsCmd `cmd:"" help:"What the cache holds, and may."`
}

// cacheBelow picks answers of a domain.
type cacheBelow struct {
	dnsSocket
	Below string `arg:"" optional:"" default:"." help:"Only names in this domain."`
}

func (c *cacheBelow) path() string { return "/v1/dns/cache?below=" + url.QueryEscape(c.Below) }

type dnsCacheDumpCmd struct{ cacheBelow }

func (*dnsCacheDumpCmd) Help() string { return "Example: holdfast dns cache dump example.org" }

func (c *dnsCacheDumpCmd) Run(con *console) error {
	var entries []dns.CacheEntry
	if err := c.ask(con.ctx, "GET", c.path(), nil, &entries); err != nil {
		return err
	}
	if c.JSON {
		return con.json(entries)
	}
	rows := make([][]string, 0, len(entries))
	for _, e := range entries {
		left := ago(time.Duration(e.Left * float64(time.Second)))
		if e.Left <= 0 {
			left = "stale for " + ago(time.Duration(-e.Left*float64(time.Second)))
		}
		rows = append(rows, []string{e.Name, e.Type, e.Rcode, strconv.Itoa(e.Records), left, strconv.FormatUint(uint64(e.Hits), 10), e.Domain})
	}
	return con.table([]string{"NAME", "TYPE", "RCODE", "RECORDS", "LEFT", "HITS", "FORWARDED FOR"}, rows)
}

type dnsCacheFlushCmd struct{ cacheBelow }

func (*dnsCacheFlushCmd) Help() string {
	return "Examples:\n  holdfast dns cache flush\n  holdfast dns cache flush example.org"
}

func (c *dnsCacheFlushCmd) Run(con *console) error {
	var done struct {
		Removed int `json:"removed"`
	}
	if err := c.ask(con.ctx, "DELETE", c.path(), nil, &done); err != nil {
		return err
	}
	if c.JSON {
		return con.json(done)
	}
	_, err := fmt.Fprintf(con.out, "forgot %d answers\n", done.Removed)
	return err
}

type dnsCacheStatsCmd struct{ dnsSocket }

func (*dnsCacheStatsCmd) Help() string { return "Example: holdfast dns cache stats --json" }

func (c *dnsCacheStatsCmd) Run(con *console) error {
	var stats dns.CacheStats
	if err := c.ask(con.ctx, "GET", "/v1/dns/cache/stats", nil, &stats); err != nil {
		return err
	}
	if c.JSON {
		return con.json(stats)
	}
	_, err := fmt.Fprintf(con.out, "%d answers, %.1f of %.1f MiB\n", stats.Entries, float64(stats.Bytes)/(1<<20), float64(stats.Room)/(1<<20))
	return err
}
