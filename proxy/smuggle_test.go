package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSmuggling: a request that two parsers could take apart in two ways is refused, its connection
// ends, and nothing of what follows it reaches the application as a request.
func TestSmuggling(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, r.URL.Path+" "+string(b))
		mu.Unlock()
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", app)), nil)
	const hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, in := range map[string]string{
		"length and chunked":         "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG" + hidden,
		"chunked and length":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden,
		"two lengths":                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 38\r\n\r\n" + hidden,
		"list of lengths":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 38\r\n\r\n" + hidden,
		"signed length":              "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n" + hidden,
		"negative length":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n" + hidden,
		"hexadecimal length":         "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0\r\n\r\n" + hidden,
		"blank before the colon":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
		"vertical tab before value":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n" + hidden,
		"coding other than chunked":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
		"chunked twice":              "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + hidden,
		"two codings":                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"chunks in HTTP/1.0":         "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"line feed only, line":       "GET / HTTP/1.1\nHost: a\n\n" + hidden,
		"line feed only, field":      "GET / HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 38\r\n\r\n" + hidden,
		"carriage return in a value": "GET / HTTP/1.1\r\nHost: a\r\nX: y\rContent-Length: 38\r\n\r\n" + hidden,
		"folded line":                "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 38\r\n\r\n" + hidden,
		"folded coding":              "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + hidden,
		"two hosts":                  "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + hidden,
		"null in a name":             "GET / HTTP/1.1\r\nHost: a\r\nTransfer\x00-Encoding: chunked\r\n\r\n" + hidden,
		"line feed in extension":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n3\r\n0\r\n\r\n" + hidden,
		"size with a line feed":      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n" + hidden,
		"no line after the chunk":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy0\r\n\r\n" + hidden,
		"size too large":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n100000000000000001\r\nx\r\n0\r\n\r\n" + hidden,
		"size with 0x":               "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n" + hidden,
		"framing as a trailer":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad field: 1\x00\r\n\r\n" + hidden,
		"blank in the target":        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n" + hidden,
		"other version":              "GET / HTTP/3.7\r\nHost: a\r\n\r\n" + hidden,
	} {
		resp, rest, err := exchange(port, in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if resp.StatusCode/100 != 4 && resp.StatusCode != 505 && resp.StatusCode != 501 || rest != "" {
			t.Errorf("%s: %s, then %q", name, resp.Status, rest)
		}
	}
	// What is unusual and means one thing only is taken.
	for name, c := range map[string]struct{ in, want string }{
		"chunk extensions":       {"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2;a=b;c=\"d\"\r\nxy\r\n0;e\r\n\r\n", "/a xy"},
		"length named to drop":   {"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close, content-length, transfer-encoding\r\n\r\nxy", "/b xy"},
		"empty line before":      {"\r\nGET /c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "/c "},
		"upper case and no more": {"POST /d HTTP/1.1\r\nHOST: a\r\nTRANSFER-ENCODING: CHUNKED\r\nConnection: close\r\n\r\n2\r\nxy\r\n0\r\n\r\n", "/d xy"},
	} {
		resp, rest, err := exchange(port, c.in)
		if err != nil || resp.StatusCode != 200 || rest != "" {
			t.Errorf("%s: %v %v, then %q", name, resp, err, rest)
		}
		mu.Lock()
		if n := len(seen); n == 0 || seen[n-1] != c.want {
			t.Errorf("%s: the application saw %q, want %q", name, seen, c.want)
		}
		mu.Unlock()
	}
	mu.Lock()
	defer mu.Unlock()
	for _, s := range seen {
		if strings.Contains(s, "hidden") {
			t.Errorf("the application saw %q", s)
		}
	}
}

// exchange sends bytes and returns the first response with all that follows until the proxy closes.
func exchange(port int, in string) (*http.Response, string, error) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, in); err != nil {
		return nil, "", err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, "", err
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		return resp, "", err
	}
	rest, err := io.ReadAll(r)
	return resp, string(rest), err
}

// TestResponseSmuggling: what an application sends beyond its response is nobody's response, and one
// whose end can be seen in two ways is none at all.
func TestResponseSmuggling(t *testing.T) {
	const extra = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhidden"
	answers := map[string]string{
		"/more":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + extra,
		"/nobody":  "HTTP/1.1 204 No Content\r\n\r\n" + extra,
		"/both":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"/lengths": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokx",
		"/folded":  "HTTP/1.1 200 OK\r\nX: y\r\n Content-Length: 7\r\nContent-Length:\r\n\t2\r\n\r\nok",
		"/newline": "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"/plain":   "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain",
	}
	server := tcpServer(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.WriteString(c, answers[req.URL.Path])
		}
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", server)), nil)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	for range 3 {
		for path, want := range map[string]string{"/more": "200 ok", "/nobody": "204 ", "/both": "502", "/lengths": "502", "/folded": "200 ok", "/newline": "502"} {
			code, body, _ := get(t, client, fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
			if got := fmt.Sprintf("%d %s", code, body); !strings.HasPrefix(got, want) || strings.Contains(got, "hidden") {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
			if _, body, _ := get(t, client, fmt.Sprintf("http://127.0.0.1:%d/plain", port)); body != "plain" {
				t.Errorf("after %s: %q", path, body)
			}
		}
	}
}
