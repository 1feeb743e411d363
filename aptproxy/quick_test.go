package aptproxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/lab/aptorigin"
)

// lastly is a request after which the server closes.
const lastly = "GET /acng-report.html HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

// exchange sends text at once and gives all that is answered, without the time.
// It is an error when the server does not close for so long.
func exchange(addr, text string, limit time.Duration) (string, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(conn, text) // it may close before it read all
	}()
	out, err := io.ReadAll(conn)
	<-sent
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", err
	}
	return dates.ReplaceAllString(string(out), "\r\nDate: *\r\n"), nil
}

var dates = regexp.MustCompile(`\r\nDate: [^\r]*\r\n`)

// both is a proxy whose files are here, and the same behind net/http alone.
func both(t testing.TB) (o *origin, p *proxy, quick, plain string) {
	o = newOrigin(t, newRepository(t))
	p = startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)+"  others: refuse\n")
	p.update(o)
	p.must(o, smallDeb)
	p.must(o, largeDeb)
	p.settled()
	alone := httptest.NewUnstartedServer(p.Server)
	alone.Config.MaxHeaderBytes = maxClientHeader
	alone.Start()
	t.Cleanup(alone.Close)
	return o, p, strings.TrimPrefix(p.url, "http://"), alone.Listener.Addr().String()
}

// TestThePlainWayAnswersWordForWordAsNetHTTP sends each request over both ways.
func TestThePlainWayAnswersWordForWordAsNetHTTP(t *testing.T) {
	o, _, quick, alone := both(t)
	host := strings.TrimPrefix(o.URL, "http://")
	byHash := fmt.Sprintf("dists/test/main/binary-amd64/by-hash/SHA256/%x", sha(o.file(t, packages)))
	get := func(target, more string) string { return "GET " + target + " HTTP/1.1\r\nHost: x\r\n" + more + "\r\n" }
	for name, test := range map[string]struct {
		text  string
		plain bool // what the parser says of it; that it is long is seen elsewhere
	}{
		"a small package":     {get("/debian/"+smallDeb, ""), true},
		"apt's headers":       {get("/debian/"+smallDeb, "Cache-Control: max-age=0\r\nAccept: text/*\r\nUser-Agent: Debian APT-HTTP/1.3 (2.6.1)\r\n"), true},
		"a large package":     {get("/debian/"+largeDeb, ""), true},
		"an index":            {get("/debian/"+packages, ""), true},
		"an index by hash":    {get("/debian/"+byHash, ""), true},
		"by its host":         {get("/"+host+"/debian/"+smallDeb, ""), true},
		"as a proxy":          {get(o.URL+"/debian/"+smallDeb, ""), true},
		"an escaped letter":   {get("/debian/"+strings.Replace(smallDeb, "small1_", "%73mall1_", 1), ""), true},
		"an escaped slash":    {get("/debian%2f"+smallDeb, ""), true},
		"two slashes":         {get("/debian//"+smallDeb, ""), true},
		"a query":             {get("/debian/"+smallDeb+"?x=1", ""), true},
		"a Release":           {get("/debian/"+inRelease, ""), true},
		"nothing":             {get("/debian/pool/nosuch.deb", ""), true},
		"a climbing path":     {get("/debian/../secret", ""), true},
		"our page":            {get("/", ""), true},
		"another server":      {get("http://example.com/x", ""), true},
		"no path":             {get("debian", ""), true},
		"a star":              {get("*", ""), true},
		"a broken escape":     {get("/debian/%zz", ""), true},
		"two at once":         {get("/debian/"+smallDeb, "") + get("/debian/"+packages, ""), true},
		"a part":              {get("/debian/"+smallDeb, "Range: bytes=10-19\r\n"), false},
		"a condition":         {get("/debian/"+smallDeb, "If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT\r\n"), false},
		"a body":              {get("/debian/"+smallDeb, "Content-Length: 3\r\n") + "abc", false},
		"chunks":              {get("/debian/"+smallDeb, "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", false},
		"an expectation":      {get("/debian/"+smallDeb, "Expect: 100-continue\r\n"), false},
		"the last":            {get("/debian/"+smallDeb, "Connection: close\r\n"), false},
		"two hosts":           {get("/debian/"+smallDeb, "Host: y\r\n"), false},
		"no host":             {"GET /debian/" + smallDeb + " HTTP/1.1\r\n\r\n", false},
		"an odd host":         {"GET /debian/" + smallDeb + " HTTP/1.1\r\nHost: a b\r\n\r\n", false},
		"a folded line":       {get("/debian/"+smallDeb, "Accept: a\r\n b\r\n"), false},
		"a space before it":   {get("/debian/"+smallDeb, "Accept : a\r\n"), false},
		"lines without CR":    {"GET /debian/" + smallDeb + " HTTP/1.1\nHost: x\n\n", false},
		"HTTP/1.0":            {"GET /debian/" + smallDeb + " HTTP/1.0\r\n\r\n", false},
		"an empty line first": {"\r\n" + get("/debian/"+smallDeb, ""), false},
		"HEAD":                {"HEAD /debian/" + smallDeb + " HTTP/1.1\r\nHost: x\r\n\r\n", false},
		"a long header":       {get("/debian/"+smallDeb, "Accept: "+strings.Repeat("a", 2*quickBuffer)+"\r\n"), true},
		"a giant header":      {get("/debian/"+smallDeb, "Accept: "+strings.Repeat("a", 2*maxClientHeader)+"\r\n"), true},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, v := parseHead([]byte(test.text)); (v == plainGet) != test.plain {
				t.Errorf("verdict %d, plain %v", v, test.plain)
			}
			// Before and after it a plain one, then one for net/http.
			for _, text := range []string{test.text, get("/debian/"+packages, "") + test.text + get("/debian/"+smallDeb, "")} {
				one, err := exchange(quick, text+lastly, patience)
				other, err2 := exchange(alone, text+lastly, patience)
				if err != nil || err2 != nil || one != other {
					t.Errorf("%q: %v, %v; the plain way:\n%.700q\nnet/http:\n%.700q", clip(text), err, err2, one, other)
				}
			}
		})
	}
}

// FuzzBothWays sends anything over both ways.
func FuzzBothWays(f *testing.F) {
	_, _, quick, alone := both(f)
	for _, text := range []string{
		"GET /debian/" + smallDeb + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /debian/" + packages + " HTTP/1.1\r\nHost: x\r\nAccept: a\r\n\r\nGET / HTTP/1.1\r\n",
		"GET /debian/" + smallDeb + " HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
		"GET /debian/" + smallDeb + " HTTP/1.1\nHost: x\n\n",
		"GET //debian/./pool//x?y#z HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 3*quickBuffer || strings.Contains(text, "by-hash") {
			return
		}
		one, err := exchange(quick, text+lastly, time.Second)
		other, err2 := exchange(alone, text+lastly, time.Second)
		if err != nil || err2 != nil {
			return // a body that is awaited, or a machine that is busy
		}
		if one != other {
			t.Errorf("%q: %v, %v; the plain way:\n%.700q\nnet/http:\n%.700q", text, err, err2, one, other)
		}
	})
}

// FuzzAPlainHeadIsWhatNetHTTPReads holds the parser against the standard one.
func FuzzAPlainHeadIsWhatNetHTTPReads(f *testing.F) {
	for _, text := range []string{
		"GET /x HTTP/1.1\r\nHost: x\r\n\r\n", "GET /x HTTP/1.1\r\nhOST:x:1\r\nUser-Agent: \t a b \r\nPragma:\r\n\r\nGET", "GET /x HTTP/1.1\nHost: x\n\n",
		"GET  /x HTTP/1.1\r\nHost: x\r\n\r\n", "GET /x HTTP/1.1\r\nHost: x\r\nAccept: a\r\n b\r\n\r\n", "GET HTTP/1.1\r\nHost: x\r\n\r\n", "G", "",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, n, v := parseHead(data)
		in := bufio.NewReaderSize(bytes.NewReader(data), len(data)+16)
		r, err := http.ReadRequest(in)
		switch v {
		case incomplete:
			if err == nil {
				t.Fatalf("%q is awaited, and net/http has a whole request", data)
			}
		case plainGet:
			if err != nil {
				// A target that is none is found later; nothing else is.
				if _, _, ok := (&Server{}).quickTarget(h.target); ok {
					t.Fatalf("%q is plain, and net/http says %v", data, err)
				}
				return
			}
			if in.Buffered() != len(data)-n {
				t.Fatalf("%q: %d bytes were read, net/http read %d", data, n, len(data)-in.Buffered())
			}
			if r.Method != http.MethodGet || r.Proto != "HTTP/1.1" || r.RequestURI != h.target || r.ContentLength != 0 || r.TransferEncoding != nil || r.Close || r.UserAgent() != h.agent {
				t.Fatalf("%q is %+v for us, %+v for net/http", data, h, r)
			}
			for name := range r.Header {
				if harmless([]byte(name)) == "" {
					t.Fatalf("%q: %s went unseen", data, name)
				}
			}
			for i := range n {
				if _, _, v := parseHead(data[:i]); v != incomplete {
					t.Fatalf("%q: verdict %d after %d bytes of it", data, v, i)
				}
			}
		}
	})
}

func TestStoppingEndsConnectionsThatWaitAndThoseThatDoNotRead(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	add(t, o.repo, "huge", "1.0", 32<<20)
	publish(t, o.repo, aptorigin.Release{})
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	const huge = "pool/main/h/huge/huge_1.0_all.deb"
	p.must(o, huge)
	p.settled()
	var conns []net.Conn
	for _, text := range []string{"", "GET /deb", "GET /debian/" + packages + " HTTP/1.1\r\nHost: x\r\n\r\n", "GET /debian/" + huge + " HTTP/1.1\r\nHost: x\r\n\r\n"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(text, "\r\n\r\n") {
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		conns = append(conns, conn)
	}
	p.stop() // it blocks until they have ended
	for i, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d outlives the proxy", i)
		}
	}
}

// TestTheStoreIsClosedBehindTheLastRequest: net/http waits for no request that it
// broke, which may begin work and read the store for a while.
func TestTheStoreIsClosedBehindTheLastRequest(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)+"  access_log: true\n")
	p.update(o)
	held := make(chan struct{})
	p.logs.held.Store(&held)
	letGo := sync.OnceFunc(func() { close(held) })
	defer letGo()
	asked, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(asked)
		p.get("/debian/"+smallDeb, "Range", "bytes=1-2") // net/http's, which ends in the log
	}()
	eventually(t, "the request is answered but for its line", func() bool { return o.got(smallDeb) > 0 })
	go func() { defer close(stopped); p.stop() }()
	select {
	case <-stopped:
		t.Error("the proxy has ended, and a request has not")
	case <-time.After(stopTimeout + time.Second): // after which net/http breaks it
	}
	letGo()
	<-stopped
	<-asked
}

// TestAHeadThatDoesNotComeEndsItsConnection moves the time at which the head began.
func TestAHeadThatDoesNotComeEndsItsConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, test := range map[string]struct {
		waited time.Duration
		have   int
		served bool
		ends   bool
	}{
		"no byte since it was accepted":     {clientHeaderTimeout, 0, false, true},
		"half a head":                       {clientHeaderTimeout, 3, true, true},
		"idle as long as a head may take":   {clientHeaderTimeout, 0, true, false},
		"idle for too long":                 {clientIdleTimeout, 0, true, true},
		"a head whose time is not over yet": {clientHeaderTimeout / 2, 3, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := &quickConn{quick: newQuick(nil), tcp: conn.(*net.TCPConn), buf: make([]byte, 16), w: test.have, served: test.served}
			c.since = time.Now().Add(-test.waited)
			if !test.ends { // it goes on to wait, so let something come
				if _, err := client.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.more(); errors.Is(err, os.ErrDeadlineExceeded) != test.ends {
				t.Errorf("%v", err)
			}
			if wait := time.Since(c.since); !test.ends && test.have == 0 && wait > clientHeaderTimeout/2 {
				t.Errorf("the head that begins now is %v old", wait)
			}
		})
	}
}

func TestWhatIsInMemoryIsBoundedAndGoesWithTheStores(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	for range 3 {
		p.must(o, smallDeb)
		p.settled()
	}
	held := 0
	p.hot.mu.Lock()
	for _, b := range p.hot.by {
		held += len(b.data)
	}
	if p.hot.by[sha(o.file(t, smallDeb))] == nil || p.hot.bytes != held {
		t.Errorf("%d bodies of %d bytes are in memory, %d are counted", len(p.hot.by), held, p.hot.bytes)
	}
	p.hot.mu.Unlock()
	if report, err := p.Purge(t.Context(), PurgeRequest{Files: []string{"debian/" + smallDeb}}); err != nil || report.Removed != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	p.must(o, smallDeb)
	if n := o.got(smallDeb); n != 2 {
		t.Errorf("what was purged came from memory: the mirror was asked %d times", n)
	}
	for i := range 4 * maxHot / smallBody {
		data := noise(fmt.Sprint(i), smallBody)
		p.hot.keep(sha(data), &hotBlob{data: data})
		p.hot.mu.Lock()
		held := p.hot.bytes
		p.hot.mu.Unlock()
		if held > maxHot {
			t.Fatalf("%d bytes are held", held)
		}
	}
}
