package main

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"holdfast/api"
)

// hidden stands where something was taken out.
const hidden = "(hidden)"

// redact takes out of a cluster file what is, or may be, a secret: what goes
// over the wire in a check, a script's arguments, what stands under a key that
// sounds like one, a URL's password and query, and comments.
func redact(file []byte) ([]byte, error) {
	var tree any
	if err := yaml.Unmarshal(file, &tree); err != nil {
		return nil, err
	}
	return yaml.Marshal(redacted(tree))
}

func redacted(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, below := range v {
			v[key] = redactedKey(key, below)
		}
	case []any:
		for i := range v {
			v[i] = redacted(v[i])
		}
	case string:
		return redactedText(v)
	}
	return v
}

// secretKey tells whether what a key holds was chosen by others than us, or is
// secret by the key's name.
func secretKey(key string) bool {
	key = strings.ToLower(key)
	switch key {
	case "header", "headers", "body", "send", "expect", "key", "auth":
		return true
	}
	return slices.ContainsFunc([]string{"secret", "token", "passw", "credential", "community", "psk", "_key", "auth_"}, func(part string) bool {
		return strings.Contains(key, part)
	})
}

func redactedKey(key string, below any) any {
	switch {
	case secretKey(key):
		if ref, ok := below.(map[string]any); ok && len(ref) == 1 && ref["file"] != nil {
			return below // where a secret is
		}
		return hidden
	case key == "script" || key == "command":
		argv, ok := below.([]any)
		if !ok {
			return redacted(below)
		}
		kept := slices.Clone(argv[:min(1, len(argv))])
		for range len(argv) - len(kept) {
			kept = append(kept, hidden)
		}
		return kept
	}
	return redacted(below)
}

// redactedText hides the password and the query of a URL or a path.
func redactedText(s string) string {
	if !strings.Contains(s, "://") && !(strings.HasPrefix(s, "/") && strings.Contains(s, "?")) {
		return s
	}
	u, err := url.Parse(s)
	if err != nil {
		return hidden
	}
	if u.User != nil {
		u.User = url.User("hidden")
	}
	if u.RawQuery != "" {
		u.RawQuery = "hidden"
	}
	u.Fragment = ""
	return u.String()
}

// withoutOutputs leaves out what checks said: programs of others chose it.
func withoutOutputs(s api.Status) api.Status {
	for i := range s.Failing {
		s.Failing[i].Output = ""
	}
	return s
}

// redactedLog hides what checks said and URLs' passwords and queries in lines
// of the log (logfmt).
func redactedLog(log []byte) []byte {
	said := regexp.MustCompile(`(\soutput=)("(\\.|[^"\\])*"|[^\s"]\S*)`)
	password := regexp.MustCompile(`(://)[^/\s"?@]*@`)
	query := regexp.MustCompile(`(://[^\s"?]*\?)[^\s"]*`)
	log = said.ReplaceAll(log, []byte("${1}"+hidden))
	log = password.ReplaceAll(log, []byte("${1}hidden@"))
	return query.ReplaceAll(log, []byte("${1}hidden"))
}
