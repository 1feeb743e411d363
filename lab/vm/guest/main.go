// Command guest is the first process of a virtual machine of the lab: it loads
// the modules of the initrd, makes the root, and then starts the processes that
// the test asks for. It is part of the initrd and useless elsewhere.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/lab/vm/channel"
)

const (
	moduleDir   = "/modules" // of the initrd; the names begin with their order
	path        = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	portTimeout = 20 * time.Second
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: only for the first process of a virtual machine")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("guest:", err) // the console
	}
	// Without sync: what a test needs on a disk it has synced itself, and a
	// sync hangs on a dead NFS server.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("guest: power off:", err)
	}
	select {}
}

func run() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	conn := channel.New(port)
	if err := conn.Send(channel.Frame{Kind: channel.Hello}); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	if err := boot(conn); err != nil {
		return errors.Join(err, conn.Send(channel.Frame{Kind: channel.Failed, Data: []byte(err.Error())}))
	}
	if err := conn.Send(channel.Frame{Kind: channel.Booted}); err != nil {
		return fmt.Errorf("say booted: %w", err)
	}
	err = serve(conn)
	if errors.Is(err, io.EOF) {
		return errors.New("the test is gone")
	}
	return err
}

// openPort loads what the initrd brings, and opens the serial port to the test.
func openPort() (*os.File, error) {
	for _, m := range []struct{ fstype, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil {
			return nil, err
		}
	}
	modules, err := filepath.Glob(moduleDir + "/*.ko")
	if err != nil {
		return nil, err
	}
	for _, file := range modules { // in the order of their names
		if err := loadModule(file); err != nil {
			return nil, err
		}
	}
	// The port appears when the host answered the driver.
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if name := findPort(); name != "" {
			// Blocking: the poller gains nothing for one descriptor.
			fd, err := unix.Open("/dev/"+name, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open the port to the test: %w", err)
			}
			return os.NewFile(uintptr(fd), name), nil
		}
		if time.Since(start) > portTimeout {
			return nil, fmt.Errorf("no virtio serial port %q after %s", channel.Port, portTimeout)
		}
	}
}

func findPort() string {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return ""
	}
	for _, file := range names {
		if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == channel.Port {
			return filepath.Base(filepath.Dir(file))
		}
	}
	return ""
}

// loadModule loads a module file. One that is loaded already is no error.
func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("load a module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load the module %s: %w", file, err)
	}
	return nil
}
