package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestATokenReadsLogsAndOnlyOneThatMayWriteActs: operator:read looks at lines
// and outputs, operator:write pauses and replays; another has neither, and over
// HTTPS nobody looks without a token. Log lines are nothing for any client that
// may read the catalog.
func TestATokenReadsLogsAndOnlyOneThatMayWriteActs(t *testing.T) {
	c := newCell(t)
	c.server.relay = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	tokens := map[string]string{
		"reader": c.tokenFor(`operator = "read"`), "writer": c.tokenFor(`operator = "write"`),
		"other": c.tokenFor(`key_prefix "" { policy = "write" }`), "nobody": "", "unknown": "no-such-token",
	}
	for _, test := range []struct {
		who, method, path string
		code              int
	}{
		{"reader", "GET", "query", 200},
		{"reader", "GET", "status", 200},
		{"reader", "GET", "summary", 200},
		{"reader", "POST", "pause", 403},
		{"reader", "POST", "replay?output=siem&from=2026-01-01T00:00:00Z", 403},
		{"writer", "GET", "query", 200},
		{"writer", "POST", "pause", 200},
		{"writer", "POST", "replay?output=siem&from=2026-01-01T00:00:00Z", 200},
		{"other", "GET", "query", 403},
		{"other", "POST", "flush", 403},
		{"nobody", "GET", "query", 403},
		{"nobody", "POST", "resume", 403},
		{"unknown", "GET", "query", 403},
	} {
		request := httptest.NewRequestWithContext(t.Context(), test.method, "http://localhost"+logsPath+test.path, nil)
		request.RequestURI = logsPath + test.path
		if token := tokens[test.who]; token != "" {
			request.Header.Set("X-Consul-Token", token)
		}
		recorder := httptest.NewRecorder()
		c.server.handler(fromTLS, nil).ServeHTTP(recorder, request)
		if recorder.Code != test.code {
			t.Errorf("%s: %s %s: %d %s, want %d", test.who, test.method, test.path, recorder.Code, strings.TrimSpace(recorder.Body.String()), test.code)
		}
	}
}
