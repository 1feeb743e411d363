package aptproxy

import (
	"html/template"
	"net/http"
	"strings"
)

const pageText = `<!doctype html>
<title>Packages for this cluster</title>
<style>body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#eee;padding:1em}td,th{padding:.2em 1em .2em 0;text-align:left}</style>
<h1>Packages for this cluster</h1>
<p>To use this proxy, write on a client:</p>
<pre>echo 'Acquire::http::Proxy "http://{{.Host}}";' >/etc/apt/apt.conf.d/01proxy</pre>
<p>or put it before the server in sources.list:</p>
<pre>deb http://{{.Host}}/deb.debian.org/debian bookworm main</pre>
<h2>Repositories</h2>
<table><tr><th>repository</th><th>suite</th><th>released</th><th>valid until</th><th></th></tr>
{{range .Status.Suites}}<tr><td>{{.Repository}}</td><td>{{.Suite}}</td><td>{{.Released}}</td><td>{{.ValidUntil}}</td><td>{{.Trouble}}</td></tr>
{{end}}</table>
<h2>Store</h2>
<p>{{.Status.Store.Blobs}} files, {{.Status.Store.Bytes}} bytes. {{.Status.Trouble}}</p>
`

// page tells people how to use the proxy and how it is.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	page, err := template.New("page").Parse(pageText)
	if err != nil {
		panic(err) // a constant
	}
	host := r.Host
	if host == "" || strings.ContainsAny(host, "'\"<>\\ ") {
		host = "apt.service.virtual:3142"
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	_ = page.Execute(w, struct { // the client is gone: nobody to tell
		Host   string
		Status Status
	}{host, s.Status()})
}
