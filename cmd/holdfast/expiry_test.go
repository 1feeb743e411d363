package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/peer"
)

const day = 24 * time.Hour

// An authority lives thirty years, a certificate as long as it was issued for:
// each is a condition in its last thirty days, and an error when it is over.
func TestACertificateOrAnAuthorityThatEndsSoonIsACondition(t *testing.T) {
	ca, dir := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "fb1")
	if err := peer.Init(ca, "foobar"); err != nil {
		t.Fatal(err)
	}
	if err := peer.Issue(ca, dir, peer.Request{Identity: peer.Identity{Name: "fb1", Role: peer.RoleServer}, Validity: 40 * day}); err != nil {
		t.Fatal(err)
	}
	trust, err := peer.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	synctest.Test(t, func(t *testing.T) { // its clock says 2000, when all certificates are valid
		board := health.NewBoard(time.Now, nil, nil)
		certs, err := newCertificates(trust, board, slog.New(slog.DiscardHandler), prometheus.NewPedanticRegistry())
		if err != nil {
			t.Fatal(err)
		}
		bubble := time.Now()
		var shift atomic.Int64
		certs.now = func() time.Time { return started.Add(time.Duration(shift.Load()) + time.Since(bubble)) }
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- certs.watch(ctx) }()
		shows := func(what, condition string, severity health.Severity, words string) {
			t.Helper()
			time.Sleep(2 * expiryInterval)
			synctest.Wait()
			for _, c := range board.Conditions() {
				if c.Name != condition {
					continue
				}
				if words == "" || c.Severity != severity || !strings.Contains(c.Message, words) {
					t.Errorf("%s: %+v, want %q", what, c, words)
				}
				return
			}
			if words != "" {
				t.Errorf("%s: %+v, want %q", what, board.Conditions(), words)
			}
		}
		shows("40 days left", conditionExpiry, "", "")
		shift.Store(int64(9 * day))
		shows("31 days left", conditionExpiry, "", "")
		shift.Store(int64(11 * day))
		shows("29 days left", conditionExpiry, health.Warning, "this node's certificate ends on")
		shift.Store(int64(41 * day))
		shows("it is over", conditionExpiry, health.Error, "over")
		shows("the authority has long", conditionAuthority, "", "")
		authority := trust.AuthorityExpires().Sub(started)
		shift.Store(int64(authority - 31*day))
		shows("the authority has 31 days", conditionAuthority, "", "")
		shift.Store(int64(authority - 29*day))
		shows("the authority has 29 days", conditionAuthority, health.Warning, "the cluster's authority ends on")
		shift.Store(int64(authority + day))
		shows("the authority is over", conditionAuthority, health.Error, "pki rotate begin")
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
