package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"holdfast/internal/state"
	"holdfast/internal/telemetry"
	"holdfast/lab/stall"
)

func TestConsulsClientFiresAndFollowsEvents(t *testing.T) {
	c := newCell(t)
	event := c.consul().Event()
	id, _, err := event.Fire(&consul.UserEvent{Name: "deploy", Payload: []byte("v1"), NodeFilter: "n1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, meta, err := event.List("", nil)
	if err != nil || len(list) != 1 || list[0].ID != id || string(list[0].Payload) != "v1" || list[0].NodeFilter != "n1" {
		t.Fatalf("%+v %v", list, err)
	}
	if want := event.IDToIndex(id); meta.LastIndex != want {
		t.Errorf("index %d; the client makes %d of the ID", meta.LastIndex, want)
	}
	woken := make(chan []*consul.UserEvent, 1)
	go func() {
		list, _, err := event.List("deploy", &consul.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute})
		if err != nil {
			t.Error(err)
		}
		woken <- list
	}()
	c.blocked(1)
	for _, name := range []string{"other", "deploy"} { // the first must not wake
		if _, _, err := event.Fire(&consul.UserEvent{Name: name}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if list := <-woken; len(list) != 2 || list[1].Name != "deploy" || list[1].ID == id {
		t.Errorf("woken with %+v", list)
	}
	if _, _, err := event.Fire(&consul.UserEvent{Name: "big", Payload: make([]byte, 600)}, nil); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("too large: %v", err)
	}
	deaf := c.as(c.tokenFor(`event "other" { policy = "read" }`)).Event()
	if list, _, err := deaf.List("", nil); err != nil || len(list) != 1 {
		t.Errorf("a token that may hear of one: %+v %v", list, err)
	}
	if _, _, err := deaf.Fire(&consul.UserEvent{Name: "other"}, nil); !denied(err) {
		t.Errorf("a token that may not fire: %v", err)
	}
}

func TestMonitorShowsTheLogToWhoMayOperate(t *testing.T) {
	tail := telemetry.NewTail(slog.DiscardHandler)
	c := newCell(t, func(_ *Config, deps *Deps) { deps.Logs = tail })
	ctx, cancel := context.WithCancel(t.Context())
	lines, err := c.admin().Agent().Monitor("debug", ctx.Done(), nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a line of the log", func() bool {
		slog.New(tail).Debug("hello", "service", "test")
		select {
		case line := <-lines:
			return strings.Contains(line, "msg=hello service=test")
		default:
			return false
		}
	})
	cancel()
	if code, _, text := c.get("/v1/agent/monitor"); code != 403 {
		t.Errorf("over loopback without a token: %d %s", code, text)
	}
	request, err := http.NewRequestWithContext(t.Context(), "GET", "http://n1/v1/agent/monitor?loglevel=loud", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if code, text := c.overSocket(request); code != 400 || !strings.Contains(text, "Unknown log level") {
		t.Errorf("%d %s", code, text)
	}
}

func TestMonitorEndsWithTheServer(t *testing.T) {
	stall.Test(t, "").Repeat(t, "a stop while the log is followed", 3, stopTimeout/4, func() (from, to time.Time, missed error) {
		return stopUnderMonitor(t)
	})
}

// stopUnderMonitor stops a server whose log is followed, and tells when that began
// and ended, and what was missed: that it ends soon, and the answer as a whole one.
func stopUnderMonitor(t *testing.T) (from, to time.Time, missed error) {
	t.Helper()
	c := newCell(t, func(_ *Config, deps *Deps) { deps.Logs = telemetry.NewTail(slog.DiscardHandler) })
	secret := c.tokenFor(`agent "n1" { policy = "read" }`)
	request, err := http.NewRequestWithContext(t.Context(), "GET", c.url+"/v1/agent/monitor", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Consul-Token", secret)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	from = time.Now()
	c.stop()
	rest, err := io.ReadAll(response.Body)
	to = time.Now()
	if len(rest) > 0 {
		t.Errorf("after %s there is another line: %q", to.Sub(from), rest)
	}
	if took := to.Sub(from); took > stopTimeout || err != nil {
		missed = fmt.Errorf("it took %v and ended with %v", took, err)
	}
	return from, to, missed
}

func TestOperatorTellsOfServersKeysAndUsage(t *testing.T) {
	c := withAgent(t)
	operator := c.admin().Operator()
	usage, _, err := operator.Usage(nil)
	if err != nil || usage.Usage["foobar"].Nodes != 1 || usage.Usage["foobar"].ServiceInstances != 1 {
		t.Errorf("usage: %+v %v", usage, err)
	}
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Failed)})
	reply, err := operator.AutopilotServerHealth(nil)
	if err != nil || reply.Healthy || len(reply.Servers) != 2 || !reply.Servers[0].Healthy || !reply.Servers[0].Leader {
		t.Errorf("health: %+v %v", reply, err)
	}
	pilot, err := operator.AutopilotState(nil)
	if err != nil || pilot.Healthy || pilot.Leader != "id-n1" || pilot.Servers["id-n2"].Status != "non-voter" {
		t.Errorf("state: %+v %v", pilot, err)
	}
	config, err := operator.AutopilotGetConfiguration(nil)
	if err != nil || !config.CleanupDeadServers || config.ServerStabilizationTime.Duration() != 10*time.Second {
		t.Errorf("configuration: %+v %v", config, err)
	}
	if err := operator.AutopilotSetConfiguration(config, nil); err == nil || !strings.Contains(err.Error(), "there is nothing to set") {
		t.Errorf("set: %v", err)
	}
	keys, err := operator.KeyringList(nil)
	if err != nil || len(keys) != 1 || keys[0].NumNodes != 3 || keys[0].PrimaryKeys["old"] != 3 {
		t.Errorf("keys: %+v %v", keys, err)
	}
	for _, change := range []func(string, *consul.WriteOptions) error{operator.KeyringInstall, operator.KeyringUse, operator.KeyringRemove} {
		if err := change("new", nil); err != nil {
			t.Error(err)
		}
		if err := change("", nil); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("no key: %v", err)
		}
	}
	if got := strings.Join(c.agent.keys, ", "); got != "install new, use new, remove new" {
		t.Errorf("the keyring was told: %s", got)
	}
	if err := c.consul().Operator().KeyringInstall("new", nil); !denied(err) {
		t.Errorf("over loopback: %v", err)
	}
}

// pilot keeps a configuration as a store would.
type pilot struct{ config AutopilotConfig }

func (p *pilot) AutopilotConfig() AutopilotConfig { return p.config }
func (p *pilot) SetAutopilotConfig(_ context.Context, config AutopilotConfig, cas *uint64) error {
	if cas != nil && *cas != p.config.ModifyIndex {
		return state.ErrConflict
	}
	p.config = config
	p.config.ModifyIndex++
	return nil
}

func TestAutopilotsSettingsAreChangedWhereTheStoreTakesThem(t *testing.T) {
	c := newCell(t, func(_ *Config, deps *Deps) {
		deps.Autopilot = &pilot{AutopilotConfig{LastContactThreshold: "200ms", ServerStabilizationTime: "10s", ModifyIndex: 7}}
	})
	operator := c.admin().Operator()
	config, err := operator.AutopilotGetConfiguration(nil)
	if err != nil {
		t.Fatal(err)
	}
	config.MinQuorum = 3
	if ok, err := operator.AutopilotCASConfiguration(config, nil); err != nil || !ok {
		t.Errorf("%t %v", ok, err)
	}
	if ok, err := operator.AutopilotCASConfiguration(config, nil); err != nil || ok {
		t.Errorf("a second time on the same index: %t %v", ok, err)
	}
	if changed, err := operator.AutopilotGetConfiguration(nil); err != nil || changed.MinQuorum != 3 || changed.LastContactThreshold.Duration() != 200*time.Millisecond {
		t.Errorf("%+v %v", changed, err)
	}
}
