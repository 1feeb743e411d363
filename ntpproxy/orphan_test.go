package ntpproxy

import (
	"testing"
	"time"

	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

func TestNodesWithoutAnySourceFollowTheStoresLeader(t *testing.T) {
	_, silent := listenLocal(t)
	node := func(off time.Duration, name string) (*fixture, *fakeClock) {
		c := newFakeClock(t, off, 0)
		f := keeping(t, c, keepDiscipline, silent)
		f.server.config.Node = name
		f.server.leader = func() string { return "fbservice1" }
		return f, c
	}
	leader, _ := node(0, "fbservice1")
	leader.server.settings.Load().peers = []peer{{"fbservice2", nobody}}
	at := leader.serve(t)
	eventually(t, "the leader serves its own clock", func() bool {
		s := leader.server.Standing()
		return s.Stratum == 10 && s.Reference == orphanReference
	})
	follower, c := node(300*time.Millisecond, "fbservice2")
	follower.server.settings.Load().peers = []peer{{"fbservice1", at}}
	follower.serve(t)
	eventually(t, "the other follows", func() bool {
		k := follower.server.Kept()
		return k != nil && k.Phase == discipline.Orphan && k.Stratum == 11 && c.off(t).Abs() < time.Millisecond
	})
	for _, f := range []*fixture{leader, follower} {
		if !raised(f.board, conditionOrphan) {
			t.Error("nobody is told that the sources are gone")
		}
	}
	if got := follower.server.Tracking(); got.Phase != "orphan" || got.Leader != "fbservice1" {
		t.Errorf("an admin sees %+v", got)
	}
}

func TestOnlyANodeWithASourceOfItsOwnIsAnAuthority(t *testing.T) {
	k := &keeper{set: &settings{nodes: []ntp.Reference{{10, 1, 0, 2}}}}
	for reference, want := range map[ntp.Reference]discipline.Authority{
		{192, 0, 2, 1}: discipline.SourceAuthority, {10, 1, 0, 2}: discipline.NoAuthority,
		orphanReference: discipline.LeaderAuthority, aloneReference: discipline.NoAuthority,
	} {
		if got := k.authority(ntp.Packet{Stratum: 4, ReferenceID: reference}); got != want {
			t.Errorf("below %v: %v, want %v", reference, got, want)
		}
	}
}
