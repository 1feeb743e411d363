package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"holdfast/cluster"
	"holdfast/lab"
)

// stubEnv tells a process that it is a stub: "http:PORT", "tcp:PORT" or "idle".
const stubEnv = "HOLDFAST_SITE_STUB"

// Init must be called first in main or TestMain of a program that uses a
// site. When it returns true the process was a host's init or a service's
// stub, and is to end.
func Init() bool {
	if what := os.Getenv(stubEnv); what != "" {
		if err := serveStub(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return true
	}
	return lab.Init()
}

func serveStub(what string) error {
	kind, port, _ := strings.Cut(what, ":")
	switch kind {
	case "http":
		name, _ := os.Hostname()
		return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "served by %s\n", name)
		}))
	case "tcp":
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		for {
			conn, err := listener.Accept()
			if err != nil {
				return err
			}
			conn.Close()
		}
	case "idle":
		// Not select {}: a program with nothing else to do would call that a
		// deadlock.
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGTERM)
		<-ended
		return nil
	}
	return errors.New("unknown stub " + what)
}

// StartServices starts a small server for each of the node's services that is
// checked and does not run yet.
func (n *Node) StartServices(ctx context.Context) error {
	for _, service := range n.site.File.ServicesOn(n.Name()) {
		if err := n.StartService(ctx, service.Name); err != nil {
			return err
		}
	}
	return nil
}

// StartService starts the server behind one service.
func (n *Node) StartService(ctx context.Context, name string) error {
	if p := n.stubs[name]; p != nil && !ended(p) {
		return nil
	}
	service, what, comm, err := n.stub(name)
	if err != nil || what == "" {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{self}
	if comm != "" { // the check looks for a process of this name
		link := filepath.Join("/run/site", comm)
		if _, err := n.Host.Run(ctx, "mkdir", "-p", "/run/site"); err != nil {
			return err
		}
		if _, err := n.Host.Run(ctx, "ln", "-sf", self, link); err != nil {
			return err
		}
		args = []string{link}
	}
	p, err := n.Host.Start(lab.Cmd{Args: args, Env: []string{stubEnv + "=" + what}, Name: "stub-" + service.Name})
	if err != nil {
		return err
	}
	if n.stubs == nil {
		n.stubs = map[string]*lab.Proc{}
	}
	n.stubs[name] = p
	return nil
}

// StopService kills the server behind a service: its check fails from now on.
func (n *Node) StopService(name string) error {
	p := n.stubs[name]
	if p == nil {
		return fmt.Errorf("site: %s runs no server for service %s", n.Name(), name)
	}
	return p.Kill()
}

// stub says what stands behind a service, by its check.
func (n *Node) stub(name string) (service cluster.Service, what, comm string, err error) {
	for _, s := range n.site.File.ServicesOn(n.Name()) {
		if s.Name == name {
			service = s
		}
	}
	if service.Name == "" {
		return service, "", "", fmt.Errorf("site: %s has no service %s", n.Name(), name)
	}
	if service.Check.IsZero() {
		return service, "", "", nil
	}
	port := strconv.Itoa(int(service.Port))
	for _, key := range service.Check.Keys() {
		switch key {
		case "http":
			return service, "http:" + port, "", nil
		case "tcp":
			return service, "tcp:" + port, "", nil
		case "process":
			err = service.Check.At("process").Decode(&comm)
			return service, "idle", comm, err
		}
	}
	return service, "", "", nil
}

func ended(p *lab.Proc) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}
