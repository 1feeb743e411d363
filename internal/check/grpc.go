package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The health checking protocol of gRPC, grpc.health.v1: one unary call to
// /grpc.health.v1.Health/Check over HTTP/2 (grpc/doc/health-checking.md,
// grpc/doc/PROTOCOL-HTTP2.md). One call of one message with one field is all
// there is to it, so there is no library.
const (
	grpcPath      = "/grpc.health.v1.Health/Check"
	grpcPrefix    = 5 // a byte for compression, four for the length
	maxHealth     = 1 << 10
	maxGRPCName   = 256
	grpcStatusOK  = "0"
	servingStatus = 1 // HealthCheckResponse.ServingStatus SERVING
)

// servingNames are those of HealthCheckResponse.ServingStatus.
var servingNames = map[uint64]string{0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}

// grpcProbe asks a gRPC server whether a service of its works; the empty name
// asks for the server as a whole. It makes a connection of its own.
type grpcProbe struct {
	address string
	service string
	secure  bool
	tls     TLS
	limit   time.Duration
}

func newGRPCProbe(d Definition) Probe {
	address, service, _ := strings.Cut(d.GRPC, "/")
	return grpcProbe{
		address: address, service: service, secure: d.GRPCTLS, limit: d.Timeout,
		tls: d.TLS,
	}
}

func (p grpcProbe) Probe(ctx context.Context) Result {
	what := "gRPC " + p.address
	if p.service != "" {
		what += " " + p.service
	}
	status, err := p.call(ctx)
	switch {
	case err != nil:
		return critical("%s: %s", what, clientError(err, p.limit))
	case status == servingStatus:
		return passing("%s: SERVING", what)
	}
	if name, ok := servingNames[status]; ok {
		return critical("%s: %s", what, name)
	}
	return critical("%s: status %d, which is none of the protocol's", what, status)
}

// call makes the one request.
func (p grpcProbe) call(ctx context.Context) (status uint64, err error) {
	protocols := new(http.Protocols)
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10, Protocols: protocols}
	scheme := "http"
	if p.secure {
		scheme = "https"
		protocols.SetHTTP2(true)
		if transport.TLSClientConfig, err = p.tls.config(); err != nil {
			return 0, err
		}
	} else {
		protocols.SetUnencryptedHTTP2(true)
	}
	defer transport.CloseIdleConnections()
	target := url.URL{Scheme: scheme, Host: p.address, Path: grpcPath}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(healthRequest(p.service)))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	request.Header.Set("User-Agent", "Holdfast Health Check")
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxHealth+1))
	if err != nil {
		return 0, err
	}
	return healthAnswer(answer.StatusCode, answer.Header, answer.Trailer, body)
}

// healthAnswer reads an answer that has come whole. The status of the call is
// in the trailers, or in the headers when there is nothing else ("Trailers-Only").
func healthAnswer(code int, header, trailer http.Header, body []byte) (status uint64, err error) {
	if code != http.StatusOK || !strings.HasPrefix(header.Get("Content-Type"), "application/grpc") {
		return 0, fmt.Errorf("HTTP %d, %q: no gRPC", code, header.Get("Content-Type"))
	}
	result, message := trailer.Get("Grpc-Status"), trailer.Get("Grpc-Message")
	if result == "" {
		result, message = header.Get("Grpc-Status"), header.Get("Grpc-Message")
	}
	switch result {
	case grpcStatusOK:
		return healthReply(body)
	case "5": // NOT_FOUND, as the protocol has it for a service that the server does not know
		return 0, errors.New("the server does not know this service")
	case "12": // UNIMPLEMENTED
		return 0, errors.New("the server does not offer grpc.health.v1.Health")
	case "":
		return 0, errors.New("the answer has no grpc-status")
	}
	return 0, fmt.Errorf("gRPC status %.20q: %.200q", result, message)
}

// healthRequest is a HealthCheckRequest with its prefix: field 1, the name.
func healthRequest(service string) []byte {
	var message []byte
	if service != "" {
		message = append(message, 1<<3|2)
		message = binary.AppendUvarint(message, uint64(len(service)))
		message = append(message, service...)
	}
	framed := make([]byte, grpcPrefix, grpcPrefix+len(message))
	binary.BigEndian.PutUint32(framed[1:], uint32(len(message)))
	return append(framed, message...)
}

// healthReply reads a HealthCheckResponse with its prefix: field 1, a varint,
// 0 when it is left out. Other fields are skipped.
func healthReply(body []byte) (status uint64, err error) {
	if len(body) < grpcPrefix {
		return 0, errors.New("the answer has no message")
	}
	message := body[grpcPrefix:]
	switch {
	case body[0] != 0:
		return 0, errors.New("the answer is compressed, which was not asked for")
	case uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(message)):
		return 0, errors.New("the answer is not one whole message")
	}
	for len(message) > 0 {
		key, n := binary.Uvarint(message)
		if n <= 0 {
			return 0, errBadReply
		}
		message = message[n:]
		field, value, rest, err := protoField(key, message)
		if err != nil {
			return 0, err
		}
		if message = rest; field == 1 && key&7 == 0 {
			status = value
		}
	}
	return status, nil
}

var errBadReply = errors.New("the answer is no HealthCheckResponse")

// protoField takes one field off the encoding (protobuf.dev/programming-guides/encoding).
func protoField(key uint64, data []byte) (field, value uint64, rest []byte, err error) {
	skip := uint64(0)
	switch key & 7 {
	case 0:
		v, n := binary.Uvarint(data)
		if n <= 0 {
			return 0, 0, nil, errBadReply
		}
		return key >> 3, v, data[n:], nil
	case 1:
		skip = 8
	case 2:
		length, n := binary.Uvarint(data)
		if n <= 0 {
			return 0, 0, nil, errBadReply
		}
		data, skip = data[n:], length
	case 5:
		skip = 4
	default:
		return 0, 0, nil, errBadReply
	}
	if skip > uint64(len(data)) {
		return 0, 0, nil, errBadReply
	}
	return key >> 3, 0, data[skip:], nil
}

// checkGRPC says what keeps a text from being "host:port" or "host:port/service".
func checkGRPC(s string) error {
	address, service, _ := strings.Cut(s, "/")
	switch err := checkHostPort(address); {
	case err != nil:
		return err
	case len(service) > maxGRPCName || strings.ContainsFunc(service, isControl):
		return fmt.Errorf("has a service's name that is longer than %d bytes or has control characters", maxGRPCName)
	}
	return nil
}
