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
	Inside(t, Options{Modules: []string{"ip_vs_rr", "sch_netem", "nft_numgen"}}, func(t *testing.T) {
		t.Run("environment", testEnvironmentInside)
		t.Run("ipvs", testIPVSBetweenHostsInside)
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
	host := func(name, address string) *lab.Host {
		h, err := l.AddHost(name, lab.On("adm", address+"/24"))
		must(t, err)
		return h
	}
	shell := func(h *lab.Host, script string) string {
		t.Helper()
		out, err := h.Run(limited(t), "sh", "-ec", script)
		must(t, err)
		return out
	}
	client := host("client", "10.1.0.9")
	director := host("f1", "10.1.0.1")
	shell(director, "ip addr add "+vip+"/32 dev eth0")
	servers := []*lab.Host{director, host("f2", "10.1.0.2"), host("f3", "10.1.0.3")}
	for _, h := range servers[1:] {
		shell(h, `echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
			echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
			ip addr add `+vip+`/32 dev lo`)
	}
	shell(director, "ipvsadm -A -t "+vip+":22 -s rr")
	for _, h := range servers {
		serveName(t, h, vip+":22")
		shell(director, "ipvsadm -a -g -t "+vip+":22 -r "+h.Addr("adm").String())
	}
	if table := shell(director, "ipvsadm -Ln"); strings.Count(table, "Route   1") != 3 || strings.Count(table, "->") != 4 {
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
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", address)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	name := make([]byte, 100)
	n, err := conn.Read(name)
	must(t, err)
	return string(name[:n])
}
