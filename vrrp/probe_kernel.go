package vrrp

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/internal/kernel/rawsock"
)

// How long answers to who-has are collected, and how often the question is
// put: one may get lost.
const (
	askFor   = 300 * time.Millisecond
	askTimes = 2
	askPoll  = 5 * time.Millisecond
)

// LiveKernel is the kernel of this process's network namespace. It needs
// CAP_NET_RAW.
type LiveKernel struct{}

// Link implements Kernel.
func (LiveKernel) Link(name string) (KernelLink, error) {
	found, err := net.InterfaceByName(name)
	if err != nil {
		return KernelLink{}, fmt.Errorf("interface %s: %w", name, err)
	}
	base := filepath.Join("/sys/class/net", filepath.Clean("/"+name))
	return KernelLink{MTU: found.MTU, Snoops: cmp.Or(snoops(base), snoops(filepath.Join(base, "master")))}, nil
}

// snoops names the bridge of a folder of sysfs when it snoops and is no querier.
func snoops(dir string) string {
	says := func(file string) bool {
		text, err := os.ReadFile(filepath.Join(dir, "bridge", file))
		return err == nil && bytes.HasPrefix(text, []byte("1"))
	}
	bridge, err := filepath.EvalSymlinks(dir)
	if err != nil || !says("multicast_snooping") || says("multicast_querier") {
		return ""
	}
	return filepath.Base(bridge)
}

// Sysctl implements Kernel.
func (LiveKernel) Sysctl(name string) (string, error) {
	value, err := os.ReadFile(filepath.Join("/proc/sys", filepath.Clean("/"+name)))
	return string(value), err
}

// WhoHas implements Kernel.
func (LiveKernel) WhoHas(ctx context.Context, link string, from netip.Addr, addrs []netip.Addr) (map[netip.Addr][]net.HardwareAddr, error) {
	found, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", link, err)
	}
	broadcast, err := broadcastOf(link)
	if err != nil {
		return nil, err
	}
	neighbors, err := rawsock.OpenNeighbors(rawsock.Interface{Index: found.Index, Name: link, MAC: found.HardwareAddr, Broadcast: broadcast})
	if err != nil {
		return nil, err
	}
	defer neighbors.Close()
	if err := neighbors.Watch(addrs); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	again := time.NewTicker(askFor / askTimes)
	defer again.Stop()
	poll := time.NewTicker(askPoll)
	defer poll.Stop()
	answers := map[netip.Addr][]net.HardwareAddr{}
	if err := askAll(neighbors, addrs, from); err != nil {
		return nil, err
	}
	for {
		if err := collect(neighbors, answers); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return answers, nil
		case <-again.C:
			if err := askAll(neighbors, addrs, from); err != nil {
				return nil, err
			}
		case <-poll.C:
		}
	}
}

func askAll(neighbors *rawsock.Neighbors, addrs []netip.Addr, from netip.Addr) error {
	for _, addr := range addrs {
		if err := neighbors.Ask(addr, from); err != nil {
			return err
		}
	}
	return nil
}

// collect takes the answers that are queued.
func collect(neighbors *rawsock.Neighbors, answers map[netip.Addr][]net.HardwareAddr) error {
	for {
		claim, err := neighbors.Receive()
		if err == rawsock.ErrEmpty {
			return nil
		}
		if err != nil {
			return err
		}
		known := slices.ContainsFunc(answers[claim.Addr], func(mac net.HardwareAddr) bool { return bytes.Equal(mac, claim.MAC) })
		if !known {
			answers[claim.Addr] = append(answers[claim.Addr], claim.MAC)
		}
	}
}

// broadcastOf reads an interface's broadcast address, which InfiniBand's
// partitions make differ.
func broadcastOf(link string) (net.HardwareAddr, error) {
	text, err := os.ReadFile(filepath.Join("/sys/class/net", filepath.Clean("/"+link), "broadcast"))
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", link, err)
	}
	mac, err := net.ParseMAC(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("interface %s: its broadcast address: %w", link, err)
	}
	return mac, nil
}
