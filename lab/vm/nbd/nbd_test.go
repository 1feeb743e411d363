package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// memory is a disk that counts its flushes.
type memory struct {
	data    []byte
	flushes int
}

func (m *memory) Size() int64  { return int64(len(m.data)) }
func (m *memory) Flush() error { m.flushes++; return nil }

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return copy(p, m.data[off:]), nil }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 && string(p) == "broken" {
		return 0, errors.New("broken")
	}
	return copy(m.data[off:], p), nil
}

// client speaks as QEMU does.
type client struct {
	t    *testing.T
	conn net.Conn
}

func connect(t *testing.T, b Backend) (client, <-chan error) {
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- Serve(theirs, b); theirs.Close() }()
	t.Cleanup(func() { ours.Close() })
	c := client{t, ours}
	c.expect([]byte("NBDMAGICIHAVEOPT\x00\x03"))
	return c, done
}

func (c client) send(parts ...any) {
	c.t.Helper()
	var buf bytes.Buffer
	for _, p := range parts {
		if err := binary.Write(&buf, binary.BigEndian, p); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.conn.Write(buf.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) expect(want []byte) {
	c.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c.conn, got); err != nil {
		c.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		c.t.Errorf("the server said % x, want % x", got, want)
	}
}

func (c client) option(option uint32, data string) {
	c.t.Helper()
	c.send([]byte("IHAVEOPT"), option, uint32(len(data)), []byte(data))
}

func (c client) expectOption(option, kind uint32, data string) {
	c.t.Helper()
	want := binary.BigEndian.AppendUint64(nil, magicReply)
	want = binary.BigEndian.AppendUint32(want, option)
	want = binary.BigEndian.AppendUint32(want, kind)
	want = binary.BigEndian.AppendUint32(want, uint32(len(data)))
	c.expect(append(want, data...))
}

func (c client) request(flags, command uint16, offset uint64, length uint32, data string) {
	c.t.Helper()
	c.send(uint32(magicRequest), flags, command, []byte("a cookie"), offset, length, []byte(data))
}

func (c client) expectReply(code uint32, data string) {
	c.t.Helper()
	want := binary.BigEndian.AppendUint32(nil, magicSimple)
	want = append(binary.BigEndian.AppendUint32(want, code), "a cookie"...)
	c.expect(append(want, data...))
}

func TestClientNegotiatesReadsWritesAndFlushes(t *testing.T) {
	disk := &memory{data: make([]byte, 4096)}
	c, done := connect(t, disk)
	c.send(uint32(flagFixedNewstyle | flagNoZeroes))
	c.option(8, "") // structured replies
	c.expectOption(8, replyUnsupported, "")
	c.option(optionGo, "\x00\x00\x00\x00\x00\x00")
	c.expectOption(optionGo, replyInfo, "\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x0d")
	c.expectOption(optionGo, replyAck, "")

	c.request(0, commandWrite, 4094, 2, "hi")
	c.expectReply(0, "")
	c.request(0, commandRead, 4092, 4, "")
	c.expectReply(0, "\x00\x00hi")
	c.request(0, commandFlush, 0, 0, "")
	c.expectReply(0, "")
	c.request(commandFUA, commandWrite, 0, 1, "x")
	c.expectReply(0, "")
	if disk.flushes != 2 {
		t.Errorf("%d flushes, want one asked for and one of a write with FUA", disk.flushes)
	}
	c.request(0, commandRead, 4095, 2, "")
	c.expectReply(uint32(syscall.EINVAL), "")
	c.request(0, commandWrite, 1<<63, 2, "hi")
	c.expectReply(uint32(syscall.EINVAL), "")
	c.request(0, 99, 0, 1, "")
	c.expectReply(uint32(syscall.EINVAL), "")
	c.request(0, commandWrite, 0, 6, "broken")
	c.expectReply(uint32(syscall.EIO), "")
	c.request(0, commandDisconnect, 0, 0, "")
	if err := <-done; err != nil {
		t.Errorf("a client that leaves: %v", err)
	}
}

func TestOldClientNamesAnExport(t *testing.T) {
	c, done := connect(t, &memory{data: make([]byte, 512)})
	c.send(uint32(flagFixedNewstyle))
	c.option(optionExportName, "any")
	c.expect(append([]byte("\x00\x00\x00\x00\x00\x00\x02\x00\x00\x0d"), make([]byte, 124)...))
	c.request(0, commandRead, 0, 2, "")
	c.expectReply(0, "\x00\x00")
	c.send([]byte("this is not a request, is it"))
	if err := <-done; err == nil {
		t.Error("what is no request was taken")
	}
}

// stream has all that a client ever says.
type stream struct {
	io.Reader
	io.Writer
}

func FuzzServe(f *testing.F) {
	begin := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00"
	f.Add([]byte(begin + "\x25\x60\x95\x13\x00\x01\x00\x01a cookie\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x02hi"))
	f.Add([]byte(begin + "\x25\x60\x95\x13\x00\x00\x00\x00a cookie\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x02"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = Serve(stream{bytes.NewReader(data), io.Discard}, &memory{data: make([]byte, 1024)})
	})
}
