package check

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
)

// healthServer answers as a gRPC server does, over HTTP/2 in plain text.
func healthServer(t *testing.T, answer func(service string, w http.ResponseWriter)) string {
	t.Helper()
	server := httptest.NewUnstartedServer(healthHandler(answer))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func healthHandler(answer func(service string, w http.ResponseWriter)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != grpcPath || r.Header.Get("Te") != "trailers" || r.ProtoMajor != 2 || len(body) < grpcPrefix {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/grpc+proto")
		service := ""
		if len(body) > grpcPrefix+2 {
			service = string(body[grpcPrefix+2:])
		}
		answer(service, w)
	})
}

// serving answers with a HealthCheckResponse of the given status.
func serving(status byte) func(string, http.ResponseWriter) {
	return func(_ string, w http.ResponseWriter) {
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 1 << 3, status})
		w.Header().Set("Grpc-Status", "0")
	}
}

func TestGRPCStatusDecides(t *testing.T) {
	for name, test := range map[string]struct {
		answer func(string, http.ResponseWriter)
		status state.Status
		want   string
	}{
		"serving":     {serving(1), state.Passing, "SERVING"},
		"not serving": {serving(2), state.Critical, "NOT_SERVING"},
		"unknown":     {serving(3), state.Critical, "SERVICE_UNKNOWN"},
		"odd":         {serving(99), state.Critical, "status 99"},
		"no such service": {func(_ string, w http.ResponseWriter) { w.Header().Set("Grpc-Status", "5") },
			state.Critical, "does not know this service"},
		"no health service": {func(_ string, w http.ResponseWriter) { w.Header().Set("Grpc-Status", "12") },
			state.Critical, "does not offer grpc.health.v1.Health"},
		"unavailable": {func(_ string, w http.ResponseWriter) {
			w.Header().Set("Grpc-Status", "14")
			w.Header().Set("Grpc-Message", "try later")
		}, state.Critical, "try later"},
		"no status": {func(_ string, w http.ResponseWriter) { _, _ = w.Write([]byte{0, 0, 0, 0, 0}) },
			state.Critical, "no grpc-status"},
		"a web page": {func(_ string, w http.ResponseWriter) { w.Header().Set("Content-Type", "text/html") },
			state.Critical, "no gRPC"},
	} {
		t.Run(name, func(t *testing.T) {
			address := healthServer(t, test.answer)
			expect(t, probe(t, Definition{GRPC: address}, nil), test.status, test.want)
		})
	}
}

func TestGRPCAsksForTheServiceAndTrustsByCA(t *testing.T) {
	answer := func(service string, w http.ResponseWriter) {
		if service == "accounts" {
			serving(1)(service, w)
		} else {
			serving(2)(service, w)
		}
	}
	plain := healthServer(t, answer)
	expect(t, probe(t, Definition{GRPC: plain + "/accounts"}, nil), state.Passing, "accounts: SERVING")
	expect(t, probe(t, Definition{GRPC: plain + "/other"}, nil), state.Critical, "NOT_SERVING")

	secure := httptest.NewUnstartedServer(healthHandler(answer))
	secure.EnableHTTP2 = true
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // a handshake fails on purpose
	secure.StartTLS()
	defer secure.Close()
	d := Definition{GRPC: secure.Listener.Addr().String() + "/accounts", GRPCTLS: true}
	expect(t, probe(t, d, nil), state.Critical, "certificate")
	d.TLS.CAFile = caFile(t, secure)
	expect(t, probe(t, d, nil), state.Passing, "SERVING")
}

func TestGRPCSilence(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	expect(t, probe(t, Definition{GRPC: listener.Addr().String(), Timeout: 200 * time.Millisecond}, nil), state.Critical, "no answer within 200ms")
}

// etcd offers the health service of grpc-go: the real thing.
func TestGRPCAgainstEtcd(t *testing.T) {
	program, err := exec.LookPath("etcd")
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("%v: hack/deps installs etcd-server", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Of the ports that the kernel gives to nobody who asks for any.
	base := 20_000 + os.Getpid()%5_000*2
	client, peer := fmt.Sprintf("127.0.0.1:%d", base), fmt.Sprintf("127.0.0.1:%d", base+1)
	var said bytes.Buffer
	command := exec.CommandContext(t.Context(), program, "--data-dir", t.TempDir(), "--name", "one",
		"--listen-client-urls", "http://"+client, "--advertise-client-urls", "http://"+client,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster", "one=http://"+peer)
	command.Stdout, command.Stderr = &said, &said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	}
	t.Cleanup(stop)
	deadline := time.Now().Add(3 * time.Minute)
	for probe(t, Definition{GRPC: client}, nil).Status != state.Passing {
		if time.Now().After(deadline) {
			stop()
			t.Fatalf("etcd never served: %s", said.String())
		}
		<-time.After(50 * time.Millisecond)
	}
	expect(t, probe(t, Definition{GRPC: client + "/no.such.Service"}, nil), state.Critical, "does not know this service")
	stop()
	expect(t, probe(t, Definition{GRPC: client}, nil), state.Critical, "connection refused")
}

func FuzzHealthReply(f *testing.F) {
	f.Add("application/grpc", "0", []byte{0, 0, 0, 0, 2, 8, 1})
	f.Add("application/grpc", "0", []byte{0, 0, 0, 0, 0})
	f.Add("application/grpc", "0", []byte{0, 0, 0, 0, 5, 0x12, 1, 'x', 8, 2})
	f.Add("application/grpc", "5", []byte{})
	f.Fuzz(func(t *testing.T, kind, status string, body []byte) {
		got, err := healthAnswer(http.StatusOK, http.Header{"Content-Type": {kind}}, http.Header{"Grpc-Status": {status}}, body)
		if err != nil {
			if text := err.Error(); strings.ContainsFunc(text, isControl) {
				t.Errorf("the message has control characters: %q", text)
			}
			return
		}
		// What was read and written again reads the same.
		again := []byte{0, 0, 0, 0, 0}
		if got != 0 {
			again = append(again, 1<<3)
			again = fmt.Append(again, "")
			for v := got; ; v >>= 7 {
				if v < 0x80 {
					again = append(again, byte(v))
					break
				}
				again = append(again, byte(v)|0x80)
			}
			again[4] = byte(len(again) - grpcPrefix)
		}
		if same, err := healthReply(again); err != nil || same != got {
			t.Errorf("%d becomes %d, %v", got, same, err)
		}
	})
}
