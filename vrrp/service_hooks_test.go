package vrrp_test

import (
	"fmt"
	"testing"
	"time"
)

const hookVIP = `vips:
  web:
    network: lan
    address: 10.9.0.100
    vrid: 51
    members: "n[1-3]"
    prefer: n1
    advertise: 100ms
    vrrp:
      track: [{file: /run/weight, every: 100ms, weight: 1}]
      notify: {script: [/etc/hooks/notify, first], master: /etc/hooks/notify_master.d, stop: /etc/hooks/notify_stop.d, user: nobody}
`

func TestHooksAreToldInOrderWithKeepalivedsWords(t *testing.T) {
	b := newBed(t, 1, hookVIP)
	n := b.nodes[0]
	n.run("sh", "-c", `mkdir -p /etc/hooks/notify_master.d /etc/hooks/notify_stop.d && touch /run/told && chmod 666 /run/told`)
	say := func(path, words string) {
		b.must(n.host.Write(path, []byte("#!/bin/sh\n"+words+"\n")))
		n.run("chmod", "755", path)
	}
	say("/etc/hooks/notify", `echo "$(id -un) $*" >>/run/told`)
	say("/etc/hooks/notify_master.d/20-second", `echo "20 $*" >>/run/told`)
	say("/etc/hooks/notify_master.d/10-first", `echo "10 $*" >>/run/told`)
	say("/etc/hooks/notify_master.d/readme.txt", `echo "never" >>/run/told`)
	say("/etc/hooks/notify_stop.d/bye", `echo "bye $*" >>/run/told`)
	b.start(n)
	b.awaitHolder(3*time.Second, vip, n)
	b.must(n.host.Write("/run/weight", []byte("5\n")))
	b.within(2*time.Second, "the file's number counts", func() error {
		if got := n.metric(`holdfast_vrrp_priority{router="web"}`); got != "254" {
			return fmt.Errorf("the priority is %s", got)
		}
		return nil
	})
	ctx := t.Context()
	b.must(n.proc.Stop(ctx))
	want := `nobody first INSTANCE web BACKUP 253
10 INSTANCE web MASTER 253
20 INSTANCE web MASTER 253
nobody first INSTANCE web MASTER 253
bye INSTANCE web STOP 254
nobody first INSTANCE web STOP 254
`
	if got := n.run("cat", "/run/told"); got != want {
		t.Errorf("hooks were told\n%swant\n%s", got, want)
	}
}
