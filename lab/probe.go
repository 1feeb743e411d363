package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Probe says what keeps this process from making a lab, all of it; nil when
// nothing does. It changes nothing on the machine.
func Probe() error {
	if os.Geteuid() != 0 {
		return errors.New("lab: only root can make hosts")
	}
	var problems []error
	if _, err := exec.LookPath("nft"); err != nil {
		problems = append(problems, fmt.Errorf("the Debian package nftables is missing: %w", err))
	}
	problems = append(problems, probeNamespaces(), probeOverlay(), probeOpenat2())
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("lab: this machine can't make hosts: %w", err)
	}
	return nil
}

// probeNamespaces starts a process in all the namespaces that a host has.
func probeNamespaces() error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID,
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start a process in namespaces of its own (does a container forbid it?): %w", err)
	}
	return nil
}

func probeOverlay() error {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(string(data)), "overlay") {
		return nil
	}
	// A module that nobody needed yet is loaded by the mount.
	if _, err := os.Stat("/lib/modules/" + kernelRelease() + "/kernel/fs/overlayfs"); err != nil {
		return fmt.Errorf("the kernel has no overlayfs: %w", err)
	}
	return nil
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

func probeOpenat2() error {
	f, err := openIn("/", "/proc", unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("the kernel is older than 5.6: %w", err)
	}
	return f.Close()
}
