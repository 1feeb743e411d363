package sockopt

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPeerCredentialsNameTheProcessAtTheOtherEnd(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	got, err := PeerCredentials(server.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	if got.PID != os.Getpid() || int(got.UID) != os.Getuid() || int(got.GID) != os.Getgid() {
		t.Errorf("credentials %+v, want pid %d uid %d gid %d", got, os.Getpid(), os.Getuid(), os.Getgid())
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, gid := range groups {
		if !got.InGroup(uint32(gid)) {
			t.Errorf("credentials %+v lack our group %d", got, gid)
		}
	}
	if !got.InGroup(uint32(os.Getgid())) {
		t.Errorf("credentials %+v lack the primary group", got)
	}
	if unused := uint32(4_000_000_000); got.InGroup(unused) || slices.Contains(got.Groups, unused) {
		t.Errorf("credentials %+v claim a group that no one has", got)
	}
}

func TestPeerCredentialsOfAClosedConnectionIsAnError(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	if _, err := PeerCredentials(client.(*net.UnixConn)); err == nil {
		t.Error("no error for a closed connection")
	}
}
