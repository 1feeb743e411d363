package check

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	maxAnswer = 1 << 10 // bytes of an answer's body that go into the output
	// maxAnswerTime is how long bad news waits for a body that comes slowly.
	maxAnswerTime = 50 * time.Millisecond
	maxRedirects  = 3
)

// httpProbe makes one request on a connection of its own: that a new client
// gets through is what is to be known. 2xx is passing, 429 (Too Many
// Requests) is warning, everything else is critical, as for Consul.
type httpProbe struct {
	definition Definition
	url        *url.URL
}

func newHTTPProbe(d Definition) (Probe, error) {
	u, err := url.Parse(d.HTTP)
	if err != nil {
		return nil, fmt.Errorf("http %q: %w", d.HTTP, err)
	}
	return httpProbe{definition: d, url: u}, nil
}

func (p httpProbe) Probe(ctx context.Context) Result {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	what := fmt.Sprintf("HTTP %s %s", p.definition.Method, p.url.Redacted())
	request, err := p.request(ctx)
	if err != nil {
		return critical("%s: %s", what, err)
	}
	trust, err := p.definition.TLS.config()
	if err != nil {
		return critical("%s: %s", what, err)
	}
	transport := &http.Transport{
		TLSClientConfig:        trust,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		DialContext:            p.definition.Via.dial,
	}
	client := &http.Client{Transport: transport, CheckRedirect: sameOrigin}
	answer, err := client.Do(request)
	if err != nil {
		return critical("%s: %s", what, clientError(err, p.definition.Timeout))
	}
	defer answer.Body.Close()
	defer time.AfterFunc(maxAnswerTime, cancel).Stop()
	said := fmt.Sprintf("%s: %s", what, answer.Status)
	switch {
	case answer.StatusCode >= 200 && answer.StatusCode <= 299:
		return passing("%s", said)
	case answer.StatusCode == http.StatusTooManyRequests:
		return warning("%s%s", said, excerpt(answer.Body))
	}
	return critical("%s%s", said, excerpt(answer.Body))
}

func (p httpProbe) request(ctx context.Context) (*http.Request, error) {
	body := bytes.NewReader([]byte(p.definition.Body))
	request, err := http.NewRequestWithContext(ctx, p.definition.Method, p.url.String(), body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "Holdfast Health Check")
	request.Header.Set("Accept", "text/plain, text/*, */*")
	for name, values := range p.definition.Header {
		request.Header.Del(name)
		for _, value := range values {
			request.Header.Add(name, value)
		}
	}
	if host := request.Header.Get("Host"); host != "" {
		request.Host = host
		request.Header.Del("Host")
	}
	return request, nil
}

// config reads the CA file at every probe, so that a renewed one counts.
func (settings TLS) config() (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         settings.ServerName,
		InsecureSkipVerify: settings.SkipVerify, // as its definition asks
	}
	if settings.CAFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(settings.CAFile)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: holds no certificate", settings.CAFile)
	}
	return config, nil
}

// sameOrigin follows a few redirects, but not to another server: that would
// say nothing about this one.
func sameOrigin(request *http.Request, via []*http.Request) error {
	if origin(request.URL) != origin(via[0].URL) {
		return fmt.Errorf("redirected to elsewhere: %s", request.URL.Redacted())
	}
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	return nil
}

// origin is scheme, host and port (RFC 6454 §4); servers leave out the port
// that is their scheme's own.
func origin(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	return strings.ToLower(u.Scheme + "://" + net.JoinHostPort(u.Hostname(), port))
}

func clientError(err error, limit time.Duration) string {
	if wrapped, ok := errors.AsType[*url.Error](err); ok && !wrapped.Timeout() {
		err = wrapped.Err // method and URL stand in the output already
	}
	return reason(err, limit)
}

// excerpt is the beginning of a body, for the output; what can't be read is
// left out.
func excerpt(body io.Reader) string {
	data, _ := io.ReadAll(io.LimitReader(body, maxAnswer))
	text := strings.TrimSpace(string(data))
	if text == "" {
		return ""
	}
	return ": " + text
}
