package vm

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
)

// One machine, and in it what most of its users do: hosts of package lab, with
// what the host's own kernel may lack.
func TestInside(t *testing.T) {
	Inside(t, Options{Modules: []string{"ip_vs_rr", "sch_netem", "nfsd", "nfsv4"}}, func(t *testing.T) {
		t.Run("environment", testEnvironmentInside)
		t.Run("ipvs", testIPVSBetweenHostsInside)
		t.Run("nfs", testNFSBetweenHostsInside)
	})
}

func testEnvironmentInside(t *testing.T) {
	if _, err := os.Stat("inside_test.go"); err != nil {
		t.Errorf("the working directory is not the package's: %v", err)
	}
	if err := Probe(); err == nil || !strings.Contains(err.Error(), "virtual machine already") {
		t.Errorf("a machine in a machine: %v", err)
	}
	if os.Getpid() == 1 {
		t.Error("the test is the first process")
	}
}

// A director balances by direct routing between itself and two others; all
// hold the address, and only the director answers for it.
func testIPVSBetweenHostsInside(t *testing.T) {
	const vip = "10.1.0.100"
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	client := host(t, l, "client", "10.1.0.9")
	director := host(t, l, "f1", "10.1.0.1")
	shell(t, director, "ip addr add "+vip+"/32 dev eth0")
	servers := []*lab.Host{director, host(t, l, "f2", "10.1.0.2"), host(t, l, "f3", "10.1.0.3")}
	for _, h := range servers[1:] {
		shell(t, h, `echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
			echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
			ip addr add `+vip+`/32 dev lo`)
	}
	shell(t, director, "ipvsadm -A -t "+vip+":22 -s rr")
	for _, h := range servers {
		serveName(t, h, vip+":22")
		shell(t, director, "ipvsadm -a -g -t "+vip+":22 -r "+h.Addr("adm").String())
	}
	if table := shell(t, director, "ipvsadm -Ln"); strings.Count(table, "Route   1") != 3 || strings.Count(table, "->") != 4 {
		t.Errorf("ipvsadm shows\n%s", table)
	}
	answers := make(map[string]int)
	for range 12 {
		answers[ask(t, client, vip+":22")]++
	}
	for _, h := range servers {
		if answers[h.String()] != 4 {
			t.Errorf("of 12 connections the hosts answered %v, want 4 each", answers)
		}
	}
	if err := director.Delay("adm", 20*time.Millisecond); err != nil {
		t.Errorf("netem, which the machine's kernel has: %v", err)
	}
}

// The machine's NFS server in one host, its client in another: each network
// namespace has a server of its own.
func testNFSBetweenHostsInside(t *testing.T) {
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	server, client := host(t, l, "server", "10.1.0.1"), host(t, l, "client", "10.1.0.2")
	shell(t, server, `
		mkdir -p /srv/data /run/rpc_pipefs
		mount -t tmpfs data /srv/data && echo there >/srv/data/file
		mount -t nfsd nfsd /proc/fs/nfsd
		mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
		echo "-3 +4" >/proc/fs/nfsd/versions
		touch /var/lib/nfs/etab /var/lib/nfs/rmtab
		nfsdcld # which says that no client is to be waited for: no grace period
		rpc.mountd -N 3
		exportfs -o rw,sync,no_subtree_check,no_root_squash,fsid=0 10.1.0.0/24:/srv/data
		echo 2 >/proc/fs/nfsd/threads`)
	out := shell(t, client, `
		mount -t nfs4 -o vers=4.2 10.1.0.1:/ /mnt
		cat /mnt/file
		echo back >/mnt/answer
		umount /mnt`)
	if answer := shell(t, server, "cat /srv/data/answer; echo 0 >/proc/fs/nfsd/threads"); out != "there\n" || answer != "back\n" {
		t.Errorf("the client read %q, the server %q", out, answer)
	}
}

func host(t *testing.T, l *lab.Lab, name, address string) *lab.Host {
	t.Helper()
	h, err := l.AddHost(name, lab.On("adm", address+"/24"))
	must(t, err)
	return h
}

func shell(t *testing.T, h *lab.Host, script string) string {
	t.Helper()
	out, err := h.Run(limited(t), "sh", "-ec", script)
	must(t, err)
	return out
}

// serveName answers every connection with the host's name.
func serveName(t *testing.T, h *lab.Host, address string) {
	t.Helper()
	listener, err := h.Listen("tcp", address)
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			_, _ = conn.Write([]byte(h.String())) // the client sees what is missing
			conn.Close()
		}
	}()
}

func ask(t *testing.T, from *lab.Host, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", address)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	name := make([]byte, 100)
	n, err := conn.Read(name)
	must(t, err)
	return string(name[:n])
}
