package logrelay

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
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
// UDP input were opened, mostly since they had no room: nobody else can count them. Those
// with a wrong checksum are among them (sk_drops of Linux), and those of another
// process that has a socket at the same address and port.
func overflowed(addrs []netip.AddrPort) (datagrams uint64, err error) {
	return overflowedBy(socketTables[:], addrs)
}

// overflowedBy is overflowed, by these tables, of which one may be missing.
func overflowedBy(tables []string, addrs []netip.AddrPort) (datagrams uint64, err error) {
	sockets := make([]netip.AddrPort, len(addrs))
	for i, addr := range addrs {
		sockets[i] = netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
	}
	read := 0
	for _, table := range tables {
		file, err := os.Open(table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return 0, fmt.Errorf("logrelay: %w", err)
		}
		n, err := dropsOf(file, sockets)
		if err = errors.Join(err, file.Close()); err != nil {
			return 0, fmt.Errorf("logrelay: %s: %w", table, err)
		}
		datagrams += n
		read++
	}
	if read == 0 {
		return 0, fmt.Errorf("logrelay: none of %s is there: want one at least, of a mounted /proc", strings.Join(tables, " and "))
	}
	return datagrams, nil
}

// dropsOf sums up what these sockets threw away, in a table as the kernel writes it:
// below its head, the local address is the second word, and the number is the last of
// 13.
func dropsOf(table io.Reader, sockets []netip.AddrPort) (drops uint64, err error) {
	lines := bufio.NewScanner(table)
	lines.Scan() // the head
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 13 {
			return 0, fmt.Errorf("%q has %d words, want 13 of a socket", lines.Text(), len(words))
		}
		at, err := socketAt(words[1])
		if err != nil {
			return 0, fmt.Errorf("the local address %q: %w", words[1], err)
		}
		if !slices.Contains(sockets, at) {
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

// socketAt reads ADDRESS:PORT in hexadecimal digits, with the address in words of 32
// bits, each in the byte order of this machine.
func socketAt(text string) (at netip.AddrPort, err error) {
	address, digits, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(digits, 16, 16)
	if err != nil {
		return at, err
	}
	b, err := hex.DecodeString(address)
	if err != nil {
		return at, err
	}
	for word := b; len(word) >= 4; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return at, fmt.Errorf("%d bytes, want 4 or 16", len(b))
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}
