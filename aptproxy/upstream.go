package aptproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Bounds on servers that we ask.
const (
	dialTimeout   = 5 * time.Second
	headerTimeout = 20 * time.Second // until a server begins to answer
	stallTimeout  = 30 * time.Second // without a byte
	maxRedirects  = 5
	userAgent     = "Holdfast apt proxy"
)

// errForbidden says that an address may not be asked.
var errForbidden = errors.New("this proxy does not ask that address for others: it is not the outside world's; name it in apt.origins if it should")

// upstream asks servers. It is immutable; another cluster file makes another.
type upstream struct {
	client *http.Client
	stall  time.Duration
}

// newUpstream makes the way to the outside. Hosts of the repositories' mirrors
// may be anywhere, since the admin named them; a host that a client names may
// not lead into the cluster, to this machine or to link-local addresses.
func newUpstream(set settings, peers []*mirror, stall time.Duration) *upstream {
	trusted := map[string]bool{}
	for _, r := range set.repositories {
		for _, m := range r.mirrors {
			trusted[m.url().Host] = true
		}
	}
	for _, p := range peers {
		trusted[p.base.host] = true
	}
	guard := &net.Dialer{Timeout: dialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		return mayAsk(set, address)
	}}
	open := &net.Dialer{Timeout: dialTimeout}
	return &upstream{stall: stall, client: &http.Client{
		Transport: &chooser{trusted: trusted, open: transport(open, set.proxy), guarded: transport(guard, set.proxy)},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return fmt.Errorf("more than %d redirections", maxRedirects)
			}
			if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return errors.New("a redirection from https to http")
			}
			return nil
		},
	}}
}

func transport(d *net.Dialer, proxy *url.URL) *http.Transport {
	t := &http.Transport{
		DialContext: d.DialContext, TLSHandshakeTimeout: headerTimeout, ResponseHeaderTimeout: headerTimeout,
		MaxIdleConnsPerHost: 32, MaxConnsPerHost: 64, IdleConnTimeout: time.Minute,
		DisableCompression: true, // what is hashed is what is sent
		ReadBufferSize:     64 << 10, MaxResponseHeaderBytes: 64 << 10,
	}
	if proxy != nil {
		t.Proxy = http.ProxyURL(proxy)
	}
	return t
}

// chooser guards requests to hosts that no admin named.
type chooser struct {
	trusted       map[string]bool
	open, guarded *http.Transport
}

func (c *chooser) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.trusted[r.URL.Host] {
		return c.open.RoundTrip(r)
	}
	return c.guarded.RoundTrip(r)
}

func (u *upstream) close() {
	c := u.client.Transport.(*chooser)
	c.open.CloseIdleConnections()
	c.guarded.CloseIdleConnections()
}

// mayAsk is the guard against requests that a client would have us make for it
// (SSRF). It sees the address that is dialled, after all names are resolved.
func mayAsk(set settings, address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%s: %w", address, errForbidden)
	}
	addr := at.Addr().Unmap().WithZone("")
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	switch {
	case slices.ContainsFunc(set.private, in):
		return nil
	case !addr.IsGlobalUnicast(), addr.IsPrivate(), slices.ContainsFunc(set.cluster, in), slices.ContainsFunc(special(), in):
		return fmt.Errorf("%s: %w", addr, errForbidden)
	}
	return nil
}

// special are addresses that look global and are not (RFC 6890), or have others
// inside them.
func special() []netip.Prefix {
	var list []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4",
		"64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "100::/64",
	} {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// ask makes a GET. The body of the answer fails when nothing comes for the
// stall timeout. The caller closes it.
func (u *upstream) ask(ctx context.Context, where *url.URL, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for name, values := range header {
		r.Header[name] = values
	}
	r.Header.Set("User-Agent", userAgent)
	response, err := u.client.Do(r)
	if err != nil {
		cancel(nil)
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return nil, fmt.Errorf("%s: %w", where.Redacted(), err)
	}
	stalled := fmt.Errorf("%s: nothing came for %s", where.Redacted(), u.stall)
	response.Body = &watched{body: response.Body, ctx: ctx, cancel: cancel, stall: u.stall,
		timer: time.AfterFunc(u.stall, func() { cancel(stalled) })}
	return response, nil
}

// watched is a body that must not stall.
type watched struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.stall)
	n, err := w.body.Read(p)
	// Between two reads we may be held up ourselves; that is no stall.
	w.timer.Stop()
	if err != nil && err != io.EOF && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}

// mirror is a server of a repository, and how it has been lately.
type mirror struct {
	base target

	mu       sync.Mutex
	failures int       // in a row
	until    time.Time // asked only after the others until then
	lastErr  string
	latency  time.Duration // to the first byte, smoothed
	requests int64         // answered
	bytes    int64         // of files that came
}

// gave notes bytes of a file.
func (m *mirror) gave(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += bytes
}

// Backoff of a mirror that fails.
const (
	mirrorMinRest = time.Second
	mirrorMaxRest = time.Minute
)

// at is where a file of the repository is on the mirror.
func (m *mirror) at(name string) *url.URL {
	u := m.base.url()
	u.Path += "/" + name
	return u
}

func (m *mirror) String() string { return m.base.url().String() }

// worked notes an answer, whatever it said, after took.
func (m *mirror) worked(took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures, m.until, m.lastErr = 0, time.Time{}, ""
	m.requests++
	if m.latency == 0 {
		m.latency = took
	}
	m.latency += (took - m.latency) / 8
}

// failed notes that the mirror did not answer, or lied.
func (m *mirror) failed(now time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
	m.until = now.Add(min(mirrorMaxRest, mirrorMinRest<<min(m.failures-1, 10)))
	m.lastErr = err.Error()
}

func (m *mirror) resting(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.Before(m.until)
}

// inOrder are the mirrors to ask one after the other: as the file names them,
// those that failed lately last.
func inOrder(mirrors []*mirror, now time.Time) []*mirror {
	list := slices.Clone(mirrors)
	slices.SortStableFunc(list, func(a, b *mirror) int {
		x, y := a.resting(now), b.resting(now)
		switch {
		case x == y:
			return 0
		case x:
			return 1
		}
		return -1
	})
	return list
}

// retriable tells whether another mirror may have what one answered with this
// status.
func statusError(where *url.URL, response *http.Response) error {
	e := &answerError{status: response.StatusCode, where: where.Redacted()}
	if s := response.Header.Get("Content-Type"); strings.HasPrefix(s, "text/") {
		_, _ = io.CopyN(io.Discard, response.Body, 4<<10) // so that the connection can be used again
	}
	return e
}

// answerError is a status that is not success.
type answerError struct {
	status int
	where  string
}

func (e *answerError) Error() string {
	return fmt.Sprintf("%s answers %d %s", e.where, e.status, http.StatusText(e.status))
}

// isAbsent tells whether a server says that there is no such file.
func isAbsent(err error) bool {
	e, ok := errors.AsType[*answerError](err)
	return ok && (e.status == http.StatusNotFound || e.status == http.StatusGone || e.status == http.StatusForbidden)
}
