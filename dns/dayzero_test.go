package dns

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// timed is a fixture of day zero whose time a test moves.
func timed(t *testing.T) (f *fixture, pass func(time.Duration)) {
	t.Helper()
	f = newFixture(t, testCluster(t, ""), &catalog{t: t, store: state.New()})
	now := time.Now()
	f.server.compiler.now = func() time.Time { return now }
	return f, func(d time.Duration) { now = now.Add(d) }
}

// gives are the addresses that a name has.
func (f *fixture) gives(name string) (rcode int, addrs []string) {
	f.t.Helper()
	m := f.ask(name, dns.TypeA)
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			addrs = append(addrs, a.A.String())
		}
	}
	return m.Rcode, addrs
}

func (f *fixture) wants(when, name string, rcode int, addrs ...string) {
	f.t.Helper()
	if got, list := f.gives(name); got != rcode || len(list) != len(addrs) {
		f.t.Errorf("%s: %s: %s %v, want %s %v", when, name, dns.RcodeToString[got], list, dns.RcodeToString[rcode], addrs)
	}
}

func TestANodeOfDayZeroAnswersUntilItHasTheStoreItself(t *testing.T) {
	f, pass := timed(t)
	f.gossip("fbservice1=alive")
	f.wants("alone", "apt.service.virtual", dns.RcodeSuccess, "10.1.0.1")
	pass(time.Minute)
	f.gossip("fbservice1=alive", "fbservice2=alive@4c8b5f9e") // it has formed the store
	f.wants("when the gossip tells of a store", "apt.service.virtual", dns.RcodeSuccess, "10.1.0.1", "10.1.0.2")
	f.apply(state.SetCluster{Cluster: state.Cluster{ID: "4c8b5f9e", Name: "scibian", Feature: 1}})
	f.store.Touch(time.Now())
	f.wants("when it has the store", "apt.service.virtual", dns.RcodeSuccess, "10.1.0.1", "10.1.0.2")
	f.node("fbservice2", "10.1.0.2", "apt:3142")
	f.wants("when the second has registered", "apt.service.virtual", dns.RcodeSuccess, "10.1.0.2")
}

func TestANodeThatComesLateAnswersNothingFromTheFile(t *testing.T) {
	f, pass := timed(t)
	f.gossip("fbservice1=alive") // for the moment that joining takes
	f.wants("before it heard anybody", "apt.service.virtual", dns.RcodeSuccess, "10.1.0.1")
	pass(time.Second)
	f.gossip("fbservice1=alive", "fbservice2=alive@4c8b5f9e")
	f.wants("when it heard of the store", "apt.service.virtual", dns.RcodeServerFailure)
	pass(time.Hour)
	f.gossip("fbservice1=alive", "fbservice2=alive@4c8b5f9e", "fbservice3=alive@4c8b5f9e")
	f.wants("an hour later", "apt.service.virtual", dns.RcodeServerFailure)
}

func TestAServiceThatWasTakenOffIsNotAnsweredFromTheFile(t *testing.T) {
	f, _ := timed(t)
	f.apply(state.SetCluster{Cluster: state.Cluster{ID: "4c8b5f9e", Name: "scibian", Feature: 1}})
	f.store.Touch(time.Now())
	f.gossip("fbservice1=alive@4c8b5f9e", "fbservice2=alive@4c8b5f9e")
	f.node("fbservice1", "10.1.0.1", "apt:3142", "web-boot:3138")
	f.node("fbservice2", "10.1.0.2", "apt:3142")
	f.wants("registered", "web-boot.service.virtual", dns.RcodeSuccess, "10.1.0.1")
	f.apply(state.Deregister{Node: "fbservice1", Services: []string{"web-boot"}})
	f.wants("taken off", "web-boot.service.virtual", dns.RcodeNameError)
}
