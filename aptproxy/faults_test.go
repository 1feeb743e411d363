package aptproxy

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/lab/aptorigin"
)

// file reads what the origin has.
func (o *origin) file(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(o.repo.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// breakOff sends a part of a body whose whole length was announced, and resets.
func breakOff(w http.ResponseWriter, length int, part []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(length))
	_, _ = w.Write(part)
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler)
}

// faults are ways in which a mirror may answer other than right.
func faults() map[string]func(w http.ResponseWriter, r *http.Request, data []byte, dice *rand.Rand) {
	type answerer = func(w http.ResponseWriter, r *http.Request, data []byte, dice *rand.Rand)
	return map[string]answerer{
		"flips a byte": func(w http.ResponseWriter, r *http.Request, data []byte, dice *rand.Rand) {
			bad := bytes.Clone(data)
			bad[dice.IntN(len(bad))] ^= 1 << dice.IntN(8)
			http.ServeContent(w, r, "x.deb", time.Unix(1, 0), bytes.NewReader(bad))
		},
		"zeroes its tail": func(w http.ResponseWriter, r *http.Request, data []byte, dice *rand.Rand) {
			bad := bytes.Clone(data)
			clear(bad[dice.IntN(len(bad)):])
			http.ServeContent(w, r, "x.deb", time.Unix(1, 0), bytes.NewReader(bad))
		},
		"is too short": func(w http.ResponseWriter, r *http.Request, data []byte, dice *rand.Rand) {
			http.ServeContent(w, r, "x.deb", time.Unix(1, 0), bytes.NewReader(data[:dice.IntN(len(data))]))
		},
		"is too long": func(w http.ResponseWriter, r *http.Request, data []byte, dice *rand.Rand) {
			http.ServeContent(w, r, "x.deb", time.Unix(1, 0), bytes.NewReader(append(bytes.Clone(data), 'x')))
		},
		"is too long and says no length": func(w http.ResponseWriter, _ *http.Request, data []byte, _ *rand.Rand) {
			_, _ = w.Write(data)
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("more"))
		},
		"ends early and says no length": func(w http.ResponseWriter, _ *http.Request, data []byte, dice *rand.Rand) {
			_, _ = w.Write(data[:dice.IntN(len(data))])
			w.(http.Flusher).Flush()
		},
		"resets": func(w http.ResponseWriter, _ *http.Request, data []byte, dice *rand.Rand) {
			breakOff(w, len(data), data[:dice.IntN(len(data))])
		},
		"sends a page with 200": func(w http.ResponseWriter, _ *http.Request, _ []byte, _ *rand.Rand) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html>Please log in to the hotel's network</html>")
		},
		"answers 500": func(w http.ResponseWriter, _ *http.Request, _ []byte, _ *rand.Rand) {
			http.Error(w, "no", http.StatusInternalServerError)
		},
		"answers 404": func(w http.ResponseWriter, _ *http.Request, _ []byte, _ *rand.Rand) {
			http.Error(w, "no", http.StatusNotFound)
		},
		"sends another range": func(w http.ResponseWriter, r *http.Request, data []byte, _ *rand.Rand) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data)
		},
	}
}

// TestNoClientGetsACompleteBodyWithAWrongHash is the promise: whatever mirrors
// do, in whatever order, a body that ends properly is the right one.
func TestNoClientGetsACompleteBodyWithAWrongHash(t *testing.T) {
	repo := newRepository(t)
	bad, other := newOrigin(t, repo), newOrigin(t, repo)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for name, fault := range faults() {
		t.Run(name, func(t *testing.T) {
			for round := range 5 {
				dice := rand.New(rand.NewPCG(seed, uint64(round)))
				p := startProxy(t, t.TempDir(), oneRepository(repo.Keyring, bad, other))
				p.update(bad)
				spoil := func(o *origin, chance float64, stream uint64) {
					var mu sync.Mutex
					dice := rand.New(rand.NewPCG(seed, stream<<32|uint64(round)))
					o.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
						mu.Lock()
						defer mu.Unlock()
						if dice.Float64() >= chance || !strings.HasPrefix(r.URL.Path, "/pool/") {
							return false
						}
						fault(w, r, o.file(t, r.URL.Path[1:]), rand.New(rand.NewPCG(dice.Uint64(), 1)))
						return true
					})
				}
				spoil(bad, 1, 1)
				spoil(other, float64(round%2)/2, 2) // at times it is right, at times not
				ask(t, p, repo, dice)
				bad.spoiling(nil)
				other.spoiling(nil)
				p.clock.pass(time.Hour)
				// And nothing wrong was kept.
				p.must(bad, largeDeb)
				p.must(bad, smallDeb)
				p.stop()
			}
		})
	}
}

// ask has several clients ask for the same files at once, some for a part.
func ask(t *testing.T, p *proxy, repo *aptorigin.Repository, dice *rand.Rand) {
	var clients sync.WaitGroup
	for range 4 {
		for _, name := range []string{largeDeb, smallDeb} {
			var header []string
			if dice.IntN(3) == 0 {
				header = []string{"Range", fmt.Sprintf("bytes=%d-", dice.IntN(4000))}
			}
			clients.Go(func() {
				a := p.get("/debian/"+name, header...)
				if a.err != nil || a.status != http.StatusOK && a.status != http.StatusPartialContent {
					return
				}
				want, err := os.ReadFile(filepath.Join(repo.Dir, name))
				if err != nil {
					t.Error(err)
					return
				}
				if a.status == http.StatusPartialContent {
					from := 0
					if _, err := fmt.Sscanf(a.header.Get("Content-Range"), "bytes %d-", &from); err != nil {
						t.Error(err)
					}
					want = want[from:]
				}
				if !bytes.Equal(a.body, want) {
					t.Errorf("%s: a complete body of %d bytes, status %d, that is not the file", name, len(a.body), a.status)
				}
			})
		}
	}
	clients.Wait()
}

func TestAMirrorThatLiesIsReplacedByTheNextUnseen(t *testing.T) {
	repo := newRepository(t)
	for name, fault := range faults() {
		t.Run(name, func(t *testing.T) {
			bad, good := newOrigin(t, repo), newOrigin(t, repo)
			p := startProxy(t, t.TempDir(), oneRepository(repo.Keyring, bad, good))
			p.update(good)
			bad.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
				fault(w, r, bad.file(t, r.URL.Path[1:]), rand.New(rand.NewPCG(1, 1)))
				return true
			})
			// A small file is withheld whole until its hash is right.
			p.must(good, smallDeb)
		})
	}
}

func TestADownloadThatBreaksGoesOnWhereItWas(t *testing.T) {
	repo := newRepository(t)
	bad, good := newOrigin(t, repo), newOrigin(t, repo)
	p := startProxy(t, t.TempDir(), oneRepository(repo.Keyring, bad, good))
	p.update(good)
	data := bad.file(t, largeDeb)
	bad.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		breakOff(w, len(data), data[:600<<10])
		return true
	})
	from := make(chan string, 10)
	good.spoiling(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/"+largeDeb {
			from <- r.Header.Get("Range")
		}
		return false
	})
	p.must(good, largeDeb)
	if got := <-from; got == "" || got == "bytes=0-" {
		t.Errorf("the next mirror was asked for %q, not for the rest", got)
	}
}

func TestAStalledMirrorIsLeftForTheNext(t *testing.T) {
	repo := newRepository(t)
	bad, good := newOrigin(t, repo), newOrigin(t, repo)
	apt := oneRepository(repo.Keyring, bad, good)
	p := startProxy(t, t.TempDir(), apt)
	p.update(good)
	p.stall = time.Second
	p.SetFile(clusterFile(t, apt))
	data, file := bad.file(t, largeDeb), clusterFile(t, apt)
	bad.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		// A pause of the machine must not make a stall of what the next one sends.
		p.stall = patience
		p.SetFile(file)
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:300<<10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	p.must(good, largeDeb)
}

func TestSixteenClientsOfAColdFileMakeOneRequest(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	begun, proceed := make(chan struct{}), make(chan struct{})
	letGo := sync.OnceFunc(func() { close(proceed) })
	defer letGo() // or the origin, which waits for its answers, never ends
	var once sync.Once
	data := o.file(t, largeDeb)
	o.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:500<<10])
		w.(http.Flusher).Flush()
		once.Do(func() { close(begun) })
		<-proceed
		_, _ = w.Write(data[500<<10:])
		return true
	})
	var clients sync.WaitGroup
	streamed := make(chan int, 16)
	for range 16 {
		clients.Go(func() {
			response, err := http.Get(p.url + "/debian/" + largeDeb)
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			head := make([]byte, 400<<10) // comes while the origin holds the rest back
			if _, err := io.ReadFull(response.Body, head); err != nil {
				t.Error(err)
			}
			streamed <- 1
			rest, err := io.ReadAll(response.Body)
			if err != nil || !bytes.Equal(append(head, rest...), data) {
				t.Errorf("%d bytes came, %v", len(head)+len(rest), err)
			}
		})
	}
	<-begun
	for range 16 {
		select {
		case <-streamed:
		case <-time.After(patience):
			t.Fatal("a client waits for the whole file")
		}
	}
	letGo()
	clients.Wait()
	if n := o.got(largeDeb); n != 1 {
		t.Errorf("the origin was asked %d times", n)
	}
}

func TestTheEndIsWithheldUntilTheHashIsRight(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	data := bytes.Clone(o.file(t, largeDeb))
	data[0] ^= 1
	o.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = w.Write(data)
		return true
	})
	a := p.get("/debian/" + largeDeb)
	if a.err == nil || len(a.body) > len(data)-withheld {
		t.Errorf("%d of %d bytes of a wrong file came, %v", len(a.body), len(data), a.err)
	}
}

func TestASlowReaderHoldsNobodyUp(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /debian/%s HTTP/1.1\r\nHost: x\r\n\r\n", largeDeb); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // one byte, and no more
		t.Fatal(err)
	}
	p.must(o, largeDeb)
}
