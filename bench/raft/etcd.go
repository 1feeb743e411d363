package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// etcd is three of Debian's, with the timing that it has by default.
type etcd struct {
	*setup
	version string
	dir     string
	nodes   [nodes]*program
	http    [nodes]clients
}

func newEtcd(s *setup) (*etcd, error) {
	out, err := exec.Command("etcd", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("etcd is missing: apt-get install etcd-server (with a policy-rc.d that starts no daemon): %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return &etcd{setup: s, version: "etcd " + strings.TrimSpace(strings.TrimPrefix(line, "etcd Version:"))}, nil
}

func (e *etcd) name() string { return e.version }

func (e *etcd) start(ctx context.Context) (err error) {
	if e.dir, err = os.MkdirTemp(e.setup.dir, "etcd"); err != nil {
		return err
	}
	var initial []string
	for i := range nodes {
		initial = append(initial, fmt.Sprintf("%s=https://%s:2380", nodeName(i), address(2, i)))
	}
	for i := range nodes {
		client, between := fmt.Sprintf("https://%s:2379", address(2, i)), fmt.Sprintf("https://%s:2380", address(2, i))
		pki := filepath.Join(e.pki, nodeName(i))
		cert, key, ca := filepath.Join(pki, "node.crt"), filepath.Join(pki, "node.key"), filepath.Join(pki, "ca.crt")
		e.nodes[i] = &program{log: filepath.Join(e.dir, nodeName(i)+".log"), args: []string{
			"etcd", "--name", nodeName(i), "--data-dir", filepath.Join(e.dir, nodeName(i)),
			"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", between, "--initial-advertise-peer-urls", between,
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new",
			"--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth",
			"--peer-cert-file", cert, "--peer-key-file", key, "--peer-trusted-ca-file", ca, "--peer-client-cert-auth",
			"--log-level", "error", "--logger", "zap",
		}}
		e.http[i] = e.clients()
		if err := e.nodes[i].start(); err != nil {
			return err
		}
	}
	return e.settled(ctx)
}

func (e *etcd) settled(ctx context.Context) error {
	for i := range nodes {
		err := until(ctx, nodeName(i)+" takes writes (see "+logs(e.dir)+")", func(ctx context.Context) error { return e.put(ctx, i, "settled", []byte("x")) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *etcd) stop() {
	for i, p := range e.nodes {
		if p != nil {
			_ = p.kill()
			e.http[i].close()
		}
	}
	os.RemoveAll(e.dir)
}

// put is KV.Put: field 1 the key, field 2 the value.
func (e *etcd) put(ctx context.Context, node int, key string, value []byte) error {
	_, err := e.call(ctx, node, "/etcdserverpb.KV/Put", field(field(nil, 1, []byte(key)), 2, value))
	return err
}

// get is KV.Range of one key, linearizable unless said otherwise.
func (e *etcd) get(ctx context.Context, node int, key string) error {
	_, err := e.call(ctx, node, "/etcdserverpb.KV/Range", field(nil, 1, []byte(key)))
	return err
}

// field appends a length-delimited field of a protocol buffer.
func field(to []byte, number int, value []byte) []byte {
	to = binary.AppendUvarint(to, uint64(number)<<3|2)
	to = binary.AppendUvarint(to, uint64(len(value)))
	return append(to, value...)
}

// call makes a unary gRPC call: a prefix of five bytes, the message, and the
// status in the trailer.
func (e *etcd) call(ctx context.Context, node int, method string, message []byte) ([]byte, error) {
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("https://%s:2379%s", address(2, node), method), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := e.http[node].pick(ctx).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	status, text := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" { // a call that failed at once has no trailers but headers
		status, text = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if status != "0" || len(answer) < 5 {
		return nil, fmt.Errorf("%s: gRPC status %q: %s", method, status, text)
	}
	return answer[5:], nil
}

// status is Maintenance.Status: who answers, and who leads.
func (e *etcd) status(ctx context.Context, node int) (self, leader uint64, err error) {
	answer, err := e.call(ctx, node, "/etcdserverpb.Maintenance/Status", nil)
	if err != nil {
		return 0, 0, err
	}
	header, err := fields(answer)
	if err != nil {
		return 0, 0, err
	}
	inner, err := fields(header.bytes[1])
	return inner.numbers[2], header.numbers[4], err
}

// message is a decoded protocol buffer: the fields that this needs.
type message struct {
	numbers map[uint64]uint64
	bytes   map[uint64][]byte
}

func fields(data []byte) (message, error) {
	m := message{map[uint64]uint64{}, map[uint64][]byte{}}
	bad := errors.New("the answer is no protocol buffer")
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		if n <= 0 {
			return m, bad
		}
		value, k := binary.Uvarint(data[n:])
		if k <= 0 {
			return m, bad
		}
		data = data[n+k:]
		switch tag & 7 {
		case 0:
			m.numbers[tag>>3] = value
		case 2:
			if value > uint64(len(data)) {
				return m, bad
			}
			m.bytes[tag>>3], data = data[:value], data[value:]
		default:
			return m, bad
		}
	}
	return m, nil
}

func (e *etcd) leader(ctx context.Context) (leader int, err error) {
	err = until(ctx, "a leader", func(ctx context.Context) error {
		for i := range nodes {
			if self, id, err := e.status(ctx, i); err == nil && id != 0 && self == id {
				leader = i
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return leader, err
}

func (e *etcd) kill(node int) error { return e.nodes[node].kill() }

func (e *etcd) revive(ctx context.Context, node int) error {
	if err := e.nodes[node].start(); err != nil {
		return err
	}
	return e.settled(ctx)
}

// transfer is Maintenance.MoveLeader, asked of the leader: field 1 the ID.
func (e *etcd) transfer(ctx context.Context, to int) error {
	id, _, err := e.status(ctx, to)
	if err != nil {
		return err
	}
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	_, err = e.call(ctx, leader, "/etcdserverpb.Maintenance/MoveLeader", binary.AppendUvarint([]byte{1 << 3}, id))
	return err
}
