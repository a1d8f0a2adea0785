package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// A PROXY header is what a load balancer writes before a connection's first byte, to say whose it is (HAProxy's
// proxy-protocol.txt, versions 1 and 2).

var (
	errShortHeader = errors.New("the PROXY header is not complete")
	errNoHeader    = errors.New("the connection does not begin with a PROXY header")
)

const (
	maxProxyV1 = 107
	// maxProxyV2 bounds the addresses and extensions of version 2. Balancers send less than 1 KiB.
	maxProxyV2 = 4 << 10
)

var proxyV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")

// parseProxyHeader returns the length of the header that b begins with, and the addresses that it names: not valid
// where it says that the connection is the balancer's own.
func parseProxyHeader(b []byte) (n int, from, to netip.AddrPort, err error) {
	head := b[:min(len(b), len(proxyV2))]
	switch {
	case bytes.HasPrefix(proxyV2, head):
		if len(head) < len(proxyV2) {
			return 0, from, to, errShortHeader
		}
		return parseProxyV2(b)
	case bytes.HasPrefix([]byte("PROXY "), b[:min(len(b), 6)]):
		return parseProxyV1(b)
	}
	return 0, from, to, errNoHeader
}

func parseProxyV1(b []byte) (n int, from, to netip.AddrPort, err error) {
	end := bytes.Index(b[:min(len(b), maxProxyV1)], []byte("\r\n"))
	if end < 0 {
		if len(b) < maxProxyV1 {
			return 0, from, to, errShortHeader
		}
		return 0, from, to, errNoHeader
	}
	words := strings.Split(string(b[:end]), " ")
	if len(words) >= 2 && words[1] == "UNKNOWN" {
		return end + 2, from, to, nil
	}
	if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
		return 0, from, to, errNoHeader
	}
	address := func(ip, port string) (a netip.AddrPort, ok bool) {
		x, err := netip.ParseAddr(ip)
		p, err2 := strconv.ParseUint(port, 10, 16)
		return netip.AddrPortFrom(x, uint16(p)), err == nil && err2 == nil && x.Is4() == (words[1] == "TCP4") && x.Zone() == ""
	}
	from, ok := address(words[2], words[4])
	to, ok2 := address(words[3], words[5])
	if !ok || !ok2 {
		return 0, from, to, errNoHeader
	}
	return end + 2, from, to, nil
}

func parseProxyV2(b []byte) (n int, from, to netip.AddrPort, err error) {
	if len(b) < 16 {
		return 0, from, to, errShortHeader
	}
	size := int(binary.BigEndian.Uint16(b[14:]))
	command := b[12]
	if command>>4 != 2 || command&0xf > 1 || size > maxProxyV2 {
		return 0, from, to, errNoHeader
	}
	if len(b) < 16+size {
		return 0, from, to, errShortHeader
	}
	body := b[16 : 16+size]
	width := map[byte]int{0x11: 4, 0x21: 16}[b[13]] // TCP over IPv4 and IPv6
	if command&0xf == 0 || width == 0 {
		return 16 + size, from, to, nil // LOCAL, or a family that says nothing here
	}
	if len(body) < 2*width+4 {
		return 0, from, to, errNoHeader
	}
	x, _ := netip.AddrFromSlice(body[:width])
	y, _ := netip.AddrFromSlice(body[width : 2*width])
	ports := body[2*width:]
	return 16 + size, netip.AddrPortFrom(x, binary.BigEndian.Uint16(ports)), netip.AddrPortFrom(y, binary.BigEndian.Uint16(ports[2:])), nil
}

// unwrap takes the PROXY header off what has come, and has the connection be whose it says.
func (d *downstream) unwrap() error {
	n, from, to, err := parseProxyHeader(d.first)
	if err != nil {
		return err
	}
	d.unwrapped, d.first = true, append(d.first[:0], d.first[n:]...)
	if from.IsValid() {
		d.match.Remote, d.match.Local = from, to
	}
	return nil
}
