package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestAnotherMembersCertificateMayOnlyAskForHoldAndLeave: a node that is broken into
// must not look at, move or release another's addresses.
func TestAnotherMembersCertificateMayOnlyAskForHoldAndLeave(t *testing.T) {
	c := newCell(t)
	var served []string
	c.server.vips = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served = append(served, r.Method+" "+r.URL.Path)
		w.WriteHeader(http.StatusOK)
	})
	c.server.member = func(_ *http.Request, vip string) bool { return vip == "dns1" }
	for _, test := range []struct {
		from   origin
		method string
		path   string
		header string
		code   int
	}{
		{fromTLS, "POST", "/v1/holdfast/vip/hold/dns1", "", 200},
		{fromTLS, "POST", "/v1/holdfast/vip/leave/dns1", "", 200},
		{fromTLS, "POST", "/v1/holdfast/vip/leave/dns1", "https://evil.example", 403},
		{fromTLS, "POST", "/v1/holdfast/vip/leave/front", "", 403},
		{fromTLS, "GET", "/v1/holdfast/vip/leave/dns1", "", 403},
		{fromTLS, "POST", "/v1/holdfast/vip/tell/dns1?node=n2", "", 403}, // a node asks others itself
		{fromLoopback, "POST", "/v1/holdfast/vip/leave/dns1", "", 403},
		{fromTLS, "POST", "/v1/holdfast/vip/hold/dns1", "https://evil.example", 403},
		{fromTLS, "POST", "/v1/holdfast/vip/hold/front", "", 403}, // it is no member of that one
		{fromTLS, "POST", "/v1/holdfast/vip/hold/", "", 403},
		{fromTLS, "GET", "/v1/holdfast/vip/hold/dns1", "", 403},
		{fromTLS, "POST", "/v1/holdfast/vip/move/dns1", "", 403},
		{fromTLS, "POST", "/v1/holdfast/vip/release/dns1", "", 403},
		{fromTLS, "GET", "/v1/holdfast/vip/list", "", 403},
		{fromTLS, "GET", "/v1/kv/a", "", 403},
		{fromTLS, "PUT", "/v1/agent/leave", "", 403},
		{fromLoopback, "POST", "/v1/holdfast/vip/hold/dns1", "", 403},
		{fromLoopback, "GET", "/v1/holdfast/vip/list", "", 200},
		{fromSocket, "POST", "/v1/holdfast/vip/move/dns1?to=n2", "", 200},
	} {
		request := httptest.NewRequestWithContext(t.Context(), test.method, "http://localhost"+test.path, nil)
		request.RequestURI = test.path
		if test.header != "" {
			request.Header.Set("Origin", test.header)
		}
		recorder := httptest.NewRecorder()
		c.server.handler(test.from, nil).ServeHTTP(recorder, request)
		if recorder.Code != test.code {
			t.Errorf("%v %s %s: %d %s, want %d", test.from, test.method, test.path, recorder.Code, recorder.Body, test.code)
		}
	}
	if got := strings.Join(served, ", "); got != "POST /v1/holdfast/vip/hold/dns1, POST /v1/holdfast/vip/leave/dns1, GET /v1/holdfast/vip/list, POST /v1/holdfast/vip/move/dns1" {
		t.Errorf("served %s", got)
	}
	c.server.member = nil
	recorder := httptest.NewRecorder()
	request := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/holdfast/vip/hold/dns1", nil)
	c.server.handler(fromTLS, nil).ServeHTTP(recorder, request)
	if recorder.Code != http.StatusForbidden {
		t.Errorf("a stranger was let in: %d", recorder.Code)
	}
}

func TestAnAgentWithoutVirtualAddressesSaysSo(t *testing.T) {
	c := newCell(t)
	if code, _, text := c.get("/v1/holdfast/vip/list"); code != http.StatusNotFound || !strings.Contains(text, "net.sock") {
		t.Errorf("%d %s", code, text)
	}
}
