package logrelay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// socketTables are where the kernel lists this network's UDP sockets, with what
// each had no room for (udp4_seq_show of Linux).
var socketTables = [...]string{"/proc/self/net/udp", "/proc/self/net/udp6"}

// overflowed is how many datagrams the kernel threw away since these sockets of the
// UDP input were opened, since they had no room: nobody else can count them.
func overflowed(addrs []netip.AddrPort) (datagrams uint64, err error) {
	var ports []uint16
	for _, addr := range addrs {
		ports = append(ports, addr.Port())
	}
	for _, table := range socketTables {
		file, err := os.Open(table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return 0, fmt.Errorf("logrelay: %w", err)
		}
		n, err := dropsOf(file, ports)
		if err = errors.Join(err, file.Close()); err != nil {
			return 0, fmt.Errorf("logrelay: %s: %w", table, err)
		}
		datagrams += n
	}
	return datagrams, nil
}

// dropsOf sums up what sockets at these ports had no room for, in a table as the
// kernel writes it: below its head, the local address is the second word, ADDRESS:PORT
// in hexadecimal digits, and the number is the last of 13.
func dropsOf(table io.Reader, ports []uint16) (drops uint64, err error) {
	lines := bufio.NewScanner(table)
	lines.Scan() // the head
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 13 {
			return 0, fmt.Errorf("%q has %d words, want 13 of a socket", lines.Text(), len(words))
		}
		_, digits, _ := strings.Cut(words[1], ":")
		port, err := strconv.ParseUint(digits, 16, 16)
		if err != nil {
			return 0, fmt.Errorf("the local address %q: %w", words[1], err)
		}
		if !slices.Contains(ports, uint16(port)) {
			continue
		}
		n, err := strconv.ParseUint(words[12], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("the drops %q: %w", words[12], err)
		}
		drops += n
	}
	return drops, lines.Err()
}
