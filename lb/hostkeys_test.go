package lb

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
)

// Two servers of OpenSSH with keys of their own, and a third with the first's.
func TestHostKeysOfRealServersAreTold(t *testing.T) {
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	here, err := l.AddHost("director", lab.On("adm", "10.1.0.9/24"))
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for i, name := range []string{"f1", "f2", "f3"} {
		addr := netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + i)})
		h, err := l.AddHost(name, lab.On("adm", addr.String()+"/24"))
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			err = h.Write("/etc/ssh/key", first(t, l))
		} else {
			_, err = h.Run(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/key")
		}
		if err != nil {
			t.Fatal(err)
		}
		if out, err := h.Run(t.Context(), "sh", "-c", "chmod 600 /etc/ssh/key; mkdir -p /run/sshd"); err != nil {
			t.Fatal(out, err)
		}
		if _, err := h.Start(lab.Cmd{Name: "sshd", Args: []string{"/usr/sbin/sshd", "-D", "-e", "-f", os.DevNull, "-h", "/etc/ssh/key"}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err = site.Poll(ctx, func(context.Context) error {
			return here.Do(func() (err error) {
				keys[name], err = hostKeyHere(addr)
				return err
			})
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	if !strings.HasPrefix(keys["f1"], "ssh-ed25519 SHA256:") || keys["f1"] == keys["f2"] || keys["f1"] != keys["f3"] {
		t.Errorf("keys %v; f1 and f3 have the same", keys)
	}
}

func hostKeyHere(addr netip.Addr) (string, error) {
	return hostKey(context.Background(), netip.AddrPortFrom(addr, 22))
}

// first is the key of f1.
func first(t *testing.T, l *lab.Lab) []byte {
	t.Helper()
	key, err := l.Host("f1").Read(filepath.Join("/etc", "ssh", "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}
