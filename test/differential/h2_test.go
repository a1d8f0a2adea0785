package differential

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Preface is what a client of HTTP/2 begins with: SETTINGS, and the acknowledgement of those that come.
var h2Preface = http2.ClientPreface + frame(http2.FrameSettings, 0, 0, "") + frame(http2.FrameSettings, http2.FlagSettingsAck, 0, "")

// frame is the bytes of a frame, right or wrong.
func frame(typ http2.FrameType, flags http2.Flags, stream uint32, payload string) string {
	n := len(payload)
	return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), byte(typ), byte(flags), byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream)}) + payload
}

// block is a header block without compression: each field is "name: value", and ":path: /x".
func block(fields ...string) string {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range fields {
		i := strings.Index(f[1:], ":") + 1
		v := f[i+1:]
		if strings.HasPrefix(v, " ") {
			v = v[1:]
		}
		e.WriteField(hpack.HeaderField{Name: f[:i], Value: v, Sensitive: true})
	}
	return b.String()
}

const (
	endHeaders = http2.FlagHeadersEndHeaders
	endStream  = http2.FlagHeadersEndStream
)

// head is a HEADERS frame of a stream.
func head(stream uint32, flags http2.Flags, fields ...string) string {
	return frame(http2.FrameHeaders, flags|endHeaders, stream, block(fields...))
}

// get is a whole request, with more fields.
func h2get(stream uint32, path string, more ...string) string {
	return head(stream, endStream, append([]string{":method: GET", ":scheme: http", ":authority: h", ":path: " + path}, more...)...)
}

func data(stream uint32, flags http2.Flags, body string) string {
	return frame(http2.FrameData, flags, stream, body)
}

// frames calls f for each whole frame after the preface; header blocks come decoded.
func frames(b []byte, f func(h http2.FrameHeader, payload []byte, fields []hpack.HeaderField)) {
	d := hpack.NewDecoder(4096, nil)
	for len(b) >= 9 {
		h, err := http2.ReadFrameHeader(bytes.NewReader(b[:9]))
		if err != nil || len(b) < 9+int(h.Length) {
			return
		}
		payload := b[9 : 9+h.Length]
		b = b[9+h.Length:]
		var fields []hpack.HeaderField
		if h.Type == http2.FrameHeaders {
			fields, _ = d.DecodeFull(payload)
		}
		f(h, payload, fields)
	}
}

// endedStreams counts the streams that have come to their end; all have if there is a GOAWAY.
func endedStreams(b []byte) (n int) {
	frames(b, func(h http2.FrameHeader, _ []byte, _ []hpack.HeaderField) {
		switch {
		case h.Type == http2.FrameRSTStream, (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) && h.Flags.Has(http2.FlagDataEndStream):
			n++
		case h.Type == http2.FrameGoAway:
			n += 1000
		}
	})
	return n
}

// frameFacts notes what came over HTTP/2.
func frameFacts(got []byte, ended string, f facts) {
	bodies, over := map[uint32]string{}, false
	frames(got, func(h http2.FrameHeader, payload []byte, fields []hpack.HeaderField) {
		at := fmt.Sprintf("stream %d ", h.StreamID)
		switch h.Type {
		case http2.FrameHeaders:
			if _, again := f[at+":status"]; again && f[at+":status"] != "100" && f[at+":status"] != "103" {
				at += "trailer "
			}
			for _, x := range fields {
				if x.Name == ":status" {
					f[at+":status"] = x.Value
					continue
				}
				f.add(at, x.Name+": "+x.Value)
			}
		case http2.FrameData:
			bodies[h.StreamID] += string(payload)
		case http2.FrameRSTStream:
			f[at+"reset"] = errCode(payload)
		case http2.FrameGoAway:
			f["goaway"] = errCode(payload[4:])
			over = true
		}
		if (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) && h.Flags.Has(http2.FlagDataEndStream) {
			f[at+"end"] = "yes"
			f[fmt.Sprintf("stream %d end", h.StreamID)] = "yes"
		}
	})
	for s, b := range bodies {
		f[fmt.Sprintf("stream %d body", s)] = b
	}
	if over {
		ended = "closed" // when it closes after GOAWAY is each proxy's own affair
	}
	f["end"] = ended
}

func errCode(b []byte) string {
	if len(b) < 4 {
		return "?"
	}
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	s := http2.ErrCode(n).String()
	if strings.HasPrefix(s, "unknown") {
		return strconv.Itoa(int(n))
	}
	return s
}
