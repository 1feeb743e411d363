package peer

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// rotating is a cluster whose authority is being changed: issue and reload what
// a test says, as an admin would.
type rotating struct {
	t     *testing.T
	ca    string
	dirs  map[string]string
	trust map[string]*Trust
}

func newRotating(t *testing.T, names ...string) *rotating {
	t.Helper()
	r := &rotating{t: t, ca: newAuthority(t, "foobar"), dirs: map[string]string{}, trust: map[string]*Trust{}}
	for _, name := range names {
		r.dirs[name] = issueTo(t, r.ca, RoleServer, name)
		r.trust[name] = mustLoad(t, r.dirs[name])
	}
	return r
}

// install issues for a node in place and has it take that up.
func (r *rotating) install(name string) Reloaded {
	r.t.Helper()
	if err := Issue(r.ca, r.dirs[name], Request{Identity: Identity{Name: name, Role: RoleServer}}); err != nil {
		r.t.Fatal(err)
	}
	got, err := r.trust[name].Reload()
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

func (r *rotating) step(do func(string) (Rotation, error), want RotationStep) Rotation {
	r.t.Helper()
	at, err := do(r.ca)
	if err != nil || at.Step != want {
		r.t.Fatalf("%+v, %v, want step %s", at, err, want)
	}
	return at
}

// talk: may a dial b, by configurations that were made before the change?
func (r *rotating) talk(client, server *tls.Config) error {
	_, serverErr, clientErr := shake(r.t, server, client)
	if serverErr != nil {
		return serverErr
	}
	return clientErr
}

// A cluster of two goes from one authority to the next, node by node, and at no
// moment do the two refuse each other.
func TestNodesTrustEachOtherThroughEveryStepOfARotation(t *testing.T) {
	r := newRotating(t, "fb1", "fb2")
	listen := map[string]*tls.Config{}
	dial := map[string]*tls.Config{}
	for name, trust := range r.trust { // made once, as by long-lived tasks
		listen[name], dial[name] = trust.Server(RoleServer), trust.Client("")
	}
	both := func(when string) {
		t.Helper()
		for _, pair := range [][2]string{{"fb1", "fb2"}, {"fb2", "fb1"}} {
			if err := r.talk(dial[pair[0]], listen[pair[1]]); err != nil {
				t.Errorf("%s: %s dials %s: %v", when, pair[0], pair[1], err)
			}
		}
	}
	both("before")
	old := r.step(RotateBegin, RotationBegun)
	for _, name := range []string{"fb1", "fb2"} {
		if got := r.install(name); len(got.Added) != 1 || got.Added[0] != old.New || len(got.Dropped) != 0 {
			t.Errorf("begun: %s took up %+v", name, got)
		}
		both("begun, " + name)
	}
	if _, issuer := r.trust["fb1"].Authorities(); issuer != old.Old {
		t.Errorf("after the beginning %s issues, not the old %s", issuer, old.Old)
	}
	r.step(RotateSwitch, RotationSwitched)
	for _, name := range []string{"fb2", "fb1"} {
		if got := r.install(name); !got.Certificate || len(got.Added)+len(got.Dropped) != 0 {
			t.Errorf("switched: %s took up %+v", name, got)
		}
		if _, issuer := r.trust[name].Authorities(); issuer != old.New {
			t.Errorf("%s has a certificate of %s, want the new %s", name, issuer, old.New)
		}
		both("switched, " + name)
	}
	r.step(RotateFinish, RotationNone)
	for _, name := range []string{"fb1", "fb2"} {
		if got := r.install(name); !slices.Equal(got.Dropped, []string{old.Old}) {
			t.Errorf("finished: %s took up %+v", name, got)
		}
		both("finished, " + name)
	}
}

// Who slept through it is refused by the others, refuses them, and both are told
// of the authority.
func TestWhoSleptThroughARotationIsRefusedAndTold(t *testing.T) {
	r := newRotating(t, "fb1", "fb2", "fb3")
	for _, do := range []func(string) (Rotation, error){RotateBegin, RotateSwitch, RotateFinish} {
		at, err := do(r.ca)
		if err != nil {
			t.Fatal(err)
		}
		r.install("fb1") // fb2 sleeps
		if at.Step == RotationBegun {
			r.install("fb3") // and fb3 does after the first step
		}
	}
	_, serverErr, clientErr := shake(t, r.trust["fb1"].Server(RoleServer), r.trust["fb3"].Client("fb1"))
	if !Distrusted(serverErr) || !Distrusted(clientErr) {
		t.Errorf("one that knows both, with a certificate of the old: server %v, client %v", serverErr, clientErr)
	}
	awake, asleep := r.trust["fb1"], r.trust["fb2"]
	_, _, err := shake(t, awake.Server(RoleServer), asleep.Client("fb1"))
	if !Distrusted(err) || !strings.Contains(asleep.Explain(err).Error(), "pki rotate status") {
		t.Errorf("the sleeper dials: %v", err)
	}
	_, _, err = shake(t, asleep.Server(RoleServer), awake.Client("fb2"))
	if !Distrusted(err) || !strings.Contains(awake.Explain(err).Error(), "has not got the new files") {
		t.Errorf("the sleeper is dialled: %v", err)
	}
	_, err, _ = shake(t, awake.Server(RoleServer), blind(asleep))
	if !Distrusted(err) {
		t.Errorf("a certificate of the dropped authority: %v", err)
	}
	// What it is given then is of an authority that it never heard of.
	if err := os.RemoveAll(r.dirs["fb2"]); err != nil {
		t.Fatal(err)
	}
	if err := Issue(r.ca, r.dirs["fb2"], Request{Identity: Identity{Name: "fb2", Role: RoleServer}}); err != nil {
		t.Fatal(err)
	}
	if _, err := asleep.Reload(); err == nil || !strings.Contains(err.Error(), "restart to take it up") {
		t.Errorf("taken up while running: %v", err)
	}
	if err := r.talk(mustLoad(t, r.dirs["fb2"]).Client("fb1"), awake.Server(RoleServer)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// A connection that stands when its authority is dropped is closed and counted,
// one by the new authority goes on, and one by the old is nobody from then on.
func TestWhatHangsOnADroppedAuthorityIsClosedAndCounted(t *testing.T) {
	r := newRotating(t, "fb1", "late", "fb2")
	server := r.trust["fb1"].Server(RoleServer)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	connect := func(name string) (client net.Conn, accepted *tls.Conn) {
		t.Helper()
		type outcome struct {
			conn *tls.Conn
			err  error
		}
		done := make(chan outcome, 1)
		go func() {
			raw, err := listener.Accept()
			if err != nil {
				done <- outcome{nil, err}
				return
			}
			conn := tls.Server(raw, server)
			done <- outcome{conn, conn.Handshake()}
		}()
		client, err := tls.Dial("tcp", listener.Addr().String(), r.trust[name].Client("fb1"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		got := <-done
		if got.err != nil {
			t.Fatal(got.err)
		}
		return client, got.conn
	}
	r.step(RotateBegin, RotationBegun)
	r.install("fb1")
	r.install("fb2")
	r.install("late")
	r.step(RotateSwitch, RotationSwitched)
	r.install("fb1")
	r.install("fb2")
	late, lateSide := connect("late") // has a certificate of the old one still
	gone, _ := connect("late")
	gone.Close()
	_, fresh := connect("fb2")
	if id, err := r.trust["fb1"].PeerIdentity(lateSide.ConnectionState()); err != nil || id.Name != "late" {
		t.Fatalf("before: %v, %v", id, err)
	}
	r.step(RotateFinish, RotationNone)
	if got := r.install("fb1"); got.Closed < 1 || got.Closed > 2 { // the closed one may not have been noticed
		t.Errorf("%+v, want one connection closed", got)
	}
	late.SetDeadline(time.Now().Add(time.Minute))
	if _, err := late.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection of the dropped authority stands: %v", err)
	}
	if id, err := r.trust["fb1"].PeerIdentity(lateSide.ConnectionState()); err == nil {
		t.Errorf("it is %v still", id)
	}
	if id, err := r.trust["fb1"].PeerIdentity(fresh.ConnectionState()); err != nil || id.Name != "fb2" {
		t.Errorf("the one of the new authority: %v, %v", id, err)
	}
	if _, err := fresh.Write([]byte("x")); err != nil {
		t.Errorf("the one of the new authority was closed: %v", err)
	}
}

// Each step can be cut short at each of its files, and done again.
func TestARotationIsSafeToInterrupt(t *testing.T) {
	ca := newAuthority(t, "foobar")
	// begin wrote the key and no certificate
	if err := os.WriteFile(filepath.Join(ca, fileNextKey), mustRead(t, filepath.Join(newAuthority(t, "foobar"), fileCAKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	if at, err := RotationOf(ca); err != nil || at.Step != RotationNone {
		t.Fatalf("a lone key: %+v, %v", at, err)
	}
	begun, err := RotateBegin(ca)
	if err != nil || begun.Step != RotationBegun {
		t.Fatalf("begin again: %+v, %v", begun, err)
	}
	oldKey := mustRead(t, filepath.Join(ca, fileCAKey))
	if _, err := RotateSwitch(ca); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateFinish(ca); err != nil {
		t.Fatal(err)
	}
	// finish wrote the certificate, and the keys are as before
	newKey := mustRead(t, filepath.Join(ca, fileCAKey))
	for name, data := range map[string][]byte{fileCAKey: oldKey, fileNextKey: newKey} {
		if err := os.WriteFile(filepath.Join(ca, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	issueTo(t, ca, RoleServer, "fb1")
	if at, err := RotateFinish(ca); err != nil || at.Step != RotationNone || at.Old != begun.New {
		t.Fatalf("finish again: %+v, %v", at, err)
	}
	if _, err := os.Stat(filepath.Join(ca, fileNextKey)); err == nil {
		t.Error("the key of the old authority is still there")
	}
	issueTo(t, ca, RoleServer, "fb1")
}

func TestStepsOfARotationAreRefusedOutOfOrder(t *testing.T) {
	ca := newAuthority(t, "foobar")
	refused := func(do func(string) (Rotation, error), words string) {
		t.Helper()
		if at, err := do(ca); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v, %v, want %q", at, err, words)
		}
	}
	must := func(do func(string) (Rotation, error)) {
		t.Helper()
		if _, err := do(ca); err != nil {
			t.Fatal(err)
		}
	}
	refused(RotateSwitch, "no change of the authority has begun")
	refused(RotateFinish, "no change of the authority has begun")
	must(RotateBegin)
	refused(RotateBegin, "begun already")
	refused(RotateFinish, "switch first")
	must(RotateSwitch)
	refused(RotateBegin, "switched already")
	refused(RotateSwitch, "issues already")
	must(RotateFinish)
	refused(RotateFinish, "no change of the authority has begun")
}

// The file of a node may not hold what is not its cluster's.
func TestBundleRefuses(t *testing.T) {
	ca, other, stranger := newAuthority(t, "foobar"), newAuthority(t, "foobar"), newAuthority(t, "elsewhere")
	dir := issueTo(t, ca, RoleServer, "fb1")
	own := mustRead(t, filepath.Join(ca, fileCA))
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"twice the same":         {append(slices.Clone(own), own...), "twice"},
		"another cluster's too":  {append(slices.Clone(own), mustRead(t, filepath.Join(stranger, fileCA))...), "another cluster"},
		"not that of its issuer": {mustRead(t, filepath.Join(other, fileCA)), "was not issued by the authority"},
		"a node's certificate":   {append(slices.Clone(own), mustRead(t, filepath.Join(dir, fileNode))...), "not the certificate of an authority"},
		"a key":                  {append(slices.Clone(own), mustRead(t, filepath.Join(dir, fileNodeKey))...), "PRIVATE KEY"},
		"nothing":                {nil, "does not hold"},
	} {
		if err := os.WriteFile(filepath.Join(dir, fileCA), c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzBundle: no file makes the parser fail otherwise than by an error, and what
// it takes it writes and takes again.
func FuzzBundle(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "ca")
	if err := Init(dir, "foobar"); err != nil {
		f.Fatal(err)
	}
	one, err := os.ReadFile(filepath.Join(dir, fileCA))
	if err != nil {
		f.Fatal(err)
	}
	if _, err := RotateBegin(dir); err != nil {
		f.Fatal(err)
	}
	two, err := os.ReadFile(filepath.Join(dir, fileCA))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{one, two, append(slices.Clone(one), one...), []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseBundle(data)
		if err != nil {
			return
		}
		again, err := parseBundle(encodeBundle(list))
		if err != nil || !slices.Equal(idsOf(again), idsOf(list)) || len(list) == 0 || len(list) > maxAuthorities {
			t.Errorf("%d authorities, again %d: %v", len(list), len(again), err)
		}
	})
}
