package debian

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
)

// unpackImage returns the ELF kernel that a bzImage carries. QEMU starts it at
// its PVH entry and so skips the kernel's own unpacking, which takes seconds
// under emulation (Documentation/arch/x86/boot.rst, payload_offset).
func unpackImage(image []byte) ([]byte, error) {
	const (
		setupSectors  = 0x1f1
		magic         = 0x202
		version       = 0x206
		payloadOffset = 0x248
		payloadLength = 0x24c
		headerEnd     = 0x250
	)
	if len(image) < headerEnd || string(image[magic:magic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	if v := binary.LittleEndian.Uint16(image[version:]); v < 0x0208 {
		return nil, fmt.Errorf("boot protocol %#x has no payload", v)
	}
	sectors := int64(image[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	begin := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := begin + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if begin >= end || end > int64(len(image)) {
		return nil, fmt.Errorf("its payload %d-%d is not within its %d bytes", begin, end, len(image))
	}
	kernel, err := decompress(image[begin:end])
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return nil, errors.New("its payload is no ELF file")
	}
	return kernel, nil
}

// decompress undoes the compressions that Debian's kernels had. The build
// appends the unpacked size, which no format wants to see.
func decompress(data []byte) ([]byte, error) {
	var program []string
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b")):
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		r.Multistream(false)
		return io.ReadAll(r)
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		program = []string{"xz", "-dc", "--single-stream"}
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		program, data = []string{"zstd", "-dc"}, data[:len(data)-4]
	default:
		return nil, fmt.Errorf("its payload begins with % x: an unknown compression", data[:min(6, len(data))])
	}
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
