package lb

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/kernel/ipvs"
)

// leftModel adds what Abandon asks of a model.
type leftModel struct{ *model }

func (m leftModel) Ours() (all []ipvs.Observed, err error) {
	for _, s := range m.tables {
		all = append(all, ipvs.Observed{Service: s})
	}
	return all, nil
}

func TestAKilledDirectorGoesOnAndThenDirectsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		key := ipvs.ByAddr(ipvs.TCP, netip.MustParseAddrPort("10.1.0.100:22"))
		server := func(addr string) ipvs.Server {
			return ipvs.Server{Addr: netip.MustParseAddrPort(addr), Method: ipvs.Route, Weight: 3}
		}
		m.tables = []ipvs.Service{{Key: key, Scheduler: "rr", Servers: []ipvs.Server{server("10.1.0.1:22"), server("10.1.0.2:22")}}}
		l := leftover{tables: leftModel{m}, addresses: m, sysctls: modelSysctls{m}, log: slog.New(slog.DiscardHandler)}
		done := make(chan error, 1)
		go func() { done <- l.abandon(t.Context(), time.Second) }()
		synctest.Wait()
		if on, _ := m.get(BackupOnly); on != 0 || m.tables[0].Servers[0].Weight != 3 || m.tables[0].Servers[1].Weight != 0 {
			t.Errorf("at once: backup_only %d, servers %v; what is under way goes on, and nobody new goes elsewhere", on, m.tables[0].Servers)
		}
		time.Sleep(time.Second)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if on, _ := m.get(BackupOnly); on != 1 {
			t.Errorf("after the handover backup_only is %d", on)
		}
		m.said = nil
		if err := l.abandon(t.Context(), time.Second); err != nil || len(m.said) != 0 {
			t.Errorf("the second time: %v, %v", m.said, err)
		}
	})
}

func TestWhoWorksIsNotAbandoned(t *testing.T) {
	dir := t.TempDir()
	f, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second lock: %v", err)
	}
	f.Close()
	again, err := lock(dir)
	if err != nil {
		t.Errorf("after the end of the first: %v", err)
	}
	again.Close()
}
