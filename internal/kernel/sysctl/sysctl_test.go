package sysctl_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"holdfast/internal/kernel/sysctl"
	"holdfast/lab"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

func host(t *testing.T, l *lab.Lab, name string) (*lab.Host, *sysctl.Net) {
	t.Helper()
	h, err := l.AddHost(name, lab.On("adm"))
	if err != nil {
		t.Fatal(err)
	}
	var n *sysctl.Net
	if err := h.Do(func() (err error) { n, err = sysctl.Open(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return h, n
}

func TestSysctlsStayThoseOfTheirNamespace(t *testing.T) {
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	one, first := host(t, l, "one")
	_, second := host(t, l, "two")
	for _, name := range []string{"ipv4/conf/eth0/arp_ignore", "ipv6/conf/eth0/accept_dad", "ipv4/ip_nonlocal_bind"} {
		t.Run(name, func(t *testing.T) {
			for i, want := range []bool{true, false} {
				changed, err := first.Set(name, 1)
				if err != nil || changed != want {
					t.Fatalf("attempt %d to set it: changed %v, %v", i+1, changed, err)
				}
			}
			if v, err := first.Get(name); err != nil || v != 1 {
				t.Errorf("read back: %d, %v", v, err)
			}
			if v, err := second.Get(name); err != nil || v != 0 {
				t.Errorf("on another host: %d, %v", v, err)
			}
			err := one.Do(func() error {
				b, err := os.ReadFile("/proc/sys/net/" + name)
				if string(b) != "1\n" {
					t.Errorf("seen from inside: %q", b)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestGreaterOfAllAndInterfaceIsInForce(t *testing.T) {
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	_, n := host(t, l, "node")
	for _, c := range []struct{ all, own, want int }{{0, 0, 0}, {2, 1, 2}, {0, 1, 1}} {
		for iface, value := range map[string]int{"all": c.all, "eth0": c.own} {
			if _, err := n.Set(sysctl.Conf(sysctl.IPv4, iface, "arp_announce"), value); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := n.Effective(sysctl.IPv4, "eth0", "arp_announce"); err != nil || got != c.want {
			t.Errorf("all %d, interface %d: got %d, %v; want %d", c.all, c.own, got, err, c.want)
		}
	}
}

func TestUnknownSysctlDoesNotExist(t *testing.T) {
	n, err := sysctl.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, name := range []string{"ipv4/conf/nosuch0/arp_ignore", "ipv4/nosuch", "ipx/nosuch", "", "ipv4/../../kernel/pid_max"} {
		if v, err := n.Get(name); err == nil || (!strings.Contains(name, "..") && !errors.Is(err, os.ErrNotExist)) {
			t.Errorf("%q: got %d, %v", name, v, err)
		}
	}
}
