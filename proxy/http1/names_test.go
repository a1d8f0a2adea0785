package http1

import (
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// TestNames: names are written as they came, in proper case, or in lower case, as it is configured.
func TestNames(t *testing.T) {
	const in = "GET / HTTP/1.1\r\nHOST: h\r\nX-MiXeD: 1\r\nlower: 2\r\nx-mixed: 3\r\n\r\n"
	for _, c := range []struct {
		o    Options
		f    Framing
		want string
	}{
		{Options{}, Framing{Chunked: true}, "host: h|x-mixed: 1|lower: 2|x-mixed: 3|new-name: 4|transfer-encoding: chunked"},
		{Options{}, Framing{Chunked: true, Proper: true}, "Host: h|X-Mixed: 1|Lower: 2|X-Mixed: 3|New-Name: 4|Transfer-Encoding: chunked"},
		{Options{KeepNames: true}, Framing{Chunked: true}, "HOST: h|X-MiXeD: 1|lower: 2|X-MiXeD: 3|new-name: 4|transfer-encoding: chunked"},
		{Options{KeepNames: true}, Framing{Chunked: true, Proper: true}, "HOST: h|X-MiXeD: 1|lower: 2|X-MiXeD: 3|new-name: 4|transfer-encoding: chunked"},
		{Options{KeepNames: true, OthersProper: true}, Framing{Close: true}, "HOST: h|X-MiXeD: 1|Lower: 2|X-MiXeD: 3|New-Name: 4|Connection: close"},
	} {
		var h, copied header.Header
		var m Message
		if err := ParseRequest([]byte(in), &h, &m, &c.o); err != nil {
			t.Fatal(err)
		}
		h.Add("new-name", "4")
		copied.CopyFrom(&h)
		got := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(string(AppendRequest(nil, &copied, c.f)), "GET / HTTP/1.1\r\n"), "\r\n\r\n"), "\r\n", "|")
		if got != c.want {
			t.Errorf("%+v %+v:\n got %s\nwant %s", c.o, c.f, got, c.want)
		}
		if h.Reset(); h.Spells() {
			t.Error("names outlive Reset")
		}
	}
}
