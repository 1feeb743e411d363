package run

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
)

// TestAClosedGateWaitsForWhoIsInsideAndLetsNobodyElseIn: with a bare WaitGroup
// for a gate the last request would run after the end.
func TestAClosedGateWaitsForWhoIsInsideAndLetsNobodyElseIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		goOn, served := make(chan struct{}), 0
		handler := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++; <-goOn }))
		ask := func() int {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
			return w.Code
		}
		first, closed := make(chan int, 1), make(chan struct{})
		go func() { first <- ask() }()
		synctest.Wait()
		go func() { defer close(closed); g.Close() }()
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("it does not wait for who is inside")
		default:
		}
		if code := ask(); code != http.StatusServiceUnavailable || served != 1 {
			t.Errorf("who came while the end waits: %d, %d served", code, served)
		}
		close(goOn)
		<-closed
		if code := <-first; code != http.StatusOK {
			t.Errorf("who was inside: %d", code)
		}
		g.Close() // again
	})
}

// TestAGateMayCloseWhileOthersComeIn: under the race detector it would find what
// it says of a WaitGroup whose first Add meets a Wait.
func TestAGateMayCloseWhileOthersComeIn(t *testing.T) {
	for range 100 {
		var g Gate
		var inside, after sync.WaitGroup
		ended := false // written once all are out
		for range 4 {
			after.Go(func() {
				if !g.Begin() {
					return
				}
				defer g.End()
				if ended {
					t.Error("it was let in after the end")
				}
			})
		}
		inside.Go(func() { g.Close(); ended = true })
		inside.Wait()
		after.Wait()
	}
}
