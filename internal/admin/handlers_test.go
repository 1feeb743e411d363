package admin

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
)

// TestNoHandlerBeginsOnceARunWaitsForThem, nor outlives it, also one that panics: a
// request that comes while the last ones end is told so. A sync.WaitGroup lets it in
// beside the Wait, which may then return before it.
func TestNoHandlerBeginsOnceARunWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, called := make(chan struct{}), 0
		h := &Handlers{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			called++
			<-release
			if r.URL.Path == "/panic" {
				panic(http.ErrAbortHandler)
			}
		})}
		ask := func(path string) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			return w.Code
		}
		first := make(chan int, 1)
		go func() { first <- ask("/") }()
		go func() {
			defer func() { _ = recover() }()
			ask("/panic")
		}()
		synctest.Wait()
		over := make(chan struct{})
		go func() {
			defer close(over)
			h.Wait()
		}()
		synctest.Wait()
		if code := ask("/"); code != http.StatusServiceUnavailable || called != 2 {
			t.Errorf("a late request: status %d, and %d are called, want 503 and 2", code, called)
		}
		select {
		case <-over:
			t.Error("the wait ended before the handlers did")
		default:
		}
		close(release)
		<-over
		if code := <-first; code != http.StatusOK {
			t.Errorf("the first request: status %d", code)
		}
		h.Wait() // once more ends at once
	})
}
