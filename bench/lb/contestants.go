package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"holdfast/lab"
)

// contestant is a program that both directors run.
type contestant struct {
	name  string
	start func(h *lab.Host, priority int) (*lab.Proc, error)
}

const clusterFile = `schema: 1
cluster: lab
domain: lab.example.com
networks:
  adm: {prefix: 10.1.0.0/24}
roles:
  director: {voters: 1, run: []}
  server: {agent: false}
nodes:
  d[1-2]: {role: director, addresses: {adm: "10.1.0.[1-2]"}}
  r[1-3]: {role: server, addresses: {adm: "10.1.0.[11-13]"}}
vips:
  front:
    network: adm
    address: 10.1.0.100
    vrid: 20
    version: 3
    advertise: 1s
    members: "d[1-2]"
    vrrp: {priority: {d1: 250, d2: 200}}
lb:
  services:
    echo: {vip: front, port: 7, servers: "r[1-3]", scheduler: rr, inhibit: false, check: {tcp: true, every: 1s, timeout: 1s}}
    udp:  {vip: front, port: 9, protocol: udp, servers: "r[1-3]", scheduler: rr}
`

func (b *bed) holdfast() contestant {
	return contestant{"holdfast", func(h *lab.Host, _ int) (*lab.Proc, error) {
		if err := h.Write("/etc/holdfast/cluster.yaml", []byte(clusterFile)); err != nil {
			return nil, err
		}
		return h.Start(lab.Cmd{Name: "agent", Args: []string{
			b.binary, "agent", "--only", "net", "--config", "/etc/holdfast/cluster.yaml", "--node", h.String(), "--run-dir", "/run/holdfast",
		}})
	}}
}

// keepalivedFile has the same timers, checks, schedulers and synchronisation.
func keepalivedFile(priority int) string {
	var f strings.Builder
	fmt.Fprintf(&f, `global_defs {
    vrrp_version 3
    lvs_sync_daemon eth0 front id 51
}
vrrp_instance front {
    state BACKUP
    interface eth0
    virtual_router_id 20
    priority %d
    advert_int 1
    virtual_ipaddress {
        10.1.0.100/32
    }
}
`, priority)
	for _, service := range []struct {
		protocol string
		port     int
		check    string
	}{{"TCP", 7, "TCP_CHECK {\n            connect_timeout 1\n            retry 0\n        }"}, {"UDP", 9, ""}} {
		fmt.Fprintf(&f, "virtual_server 10.1.0.100 %d {\n    delay_loop 1\n    lb_algo rr\n    lb_kind DR\n    protocol %s\n", service.port, service.protocol)
		for i := range servers {
			fmt.Fprintf(&f, "    real_server 10.1.0.%d %d {\n        weight 1\n        %s\n    }\n", 11+i, service.port, service.check)
		}
		f.WriteString("}\n")
	}
	return f.String()
}

func (b *bed) keepalived(version string) contestant {
	return contestant{"keepalived " + version, func(h *lab.Host, priority int) (*lab.Proc, error) {
		if err := h.Write("/etc/keepalived/keepalived.conf", []byte(keepalivedFile(priority))); err != nil {
			return nil, err
		}
		return h.Start(lab.Cmd{Name: "keepalived", Args: []string{
			"/usr/sbin/keepalived", "--use-file", "/etc/keepalived/keepalived.conf", "--dont-fork", "--log-console", "--no-syslog",
		}})
	}}
}

// start starts a program on both directors, the better one first.
func (b *bed) start(c contestant) (all []*lab.Proc, err error) {
	for i, priority := range []int{250, 200} {
		p, err := c.start(b.directors[i], priority)
		if err != nil {
			return all, err
		}
		all = append(all, p)
	}
	return all, nil
}

// clean ends a program's processes and takes away what it left.
func (b *bed) clean(ctx context.Context, procs []*lab.Proc) error {
	var errs []error
	for _, p := range procs {
		_ = p.Stop(ctx) // its exit status is its own affair
	}
	for _, d := range b.directors {
		_, err := d.Run(ctx, "sh", "-c", "ipvsadm -C; ipvsadm --stop-daemon master; ipvsadm --stop-daemon backup; ip address flush dev eth0 to 10.1.0.100/32; rm -rf /run/holdfast; echo 0 >/proc/sys/net/ipv4/vs/backup_only; true")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
