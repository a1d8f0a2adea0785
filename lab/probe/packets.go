package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"syscall"
	"time"
	"unsafe"
)

// soOriginalDst is SO_ORIGINAL_DST of linux/netfilter_ipv4.h.
const soOriginalDst = 80

// originalDestination answers each connection, as HTTP, with the address that
// it was meant for before netfilter redirected it here.
func originalDestination(addr string) error {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Read(make([]byte, 4096))
			text := fmt.Sprintf("caught from %s to %s\n", c.RemoteAddr(), meantFor(c.(*net.TCPConn)))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
		}()
	}
}

func meantFor(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	var sa syscall.RawSockaddrInet4
	size := uint32(unsafe.Sizeof(sa))
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_IP, soOriginalDst,
			uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err != nil {
		return err.Error()
	}
	if errno != 0 {
		return errno.Error()
	}
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	return fmt.Sprintf("%s:%d", net.IP(sa.Addr[:]), binary.BigEndian.Uint16(port[:]))
}

// etherARP is the protocol's number in network order.
const etherARP = 0x0608

// answerARP answers who-has IP with the interface's hardware address (RFC 826),
// after announcing it once.
func answerARP(name, address string) error {
	ip := net.ParseIP(address).To4()
	if ip == nil {
		return fmt.Errorf("%q is no IPv4 address", address)
	}
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM, etherARP)
	if err != nil {
		return fmt.Errorf("opening a packet socket: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: etherARP, Ifindex: ifi.Index}); err != nil {
		return err
	}
	send := func(op uint16, hardware, protocol, to []byte) error {
		b := make([]byte, 28)
		copy(b, []byte{0, 1, 8, 0, 6, 4})
		binary.BigEndian.PutUint16(b[6:], op)
		copy(b[8:], ifi.HardwareAddr)
		copy(b[14:], ip)
		copy(b[18:], hardware)
		copy(b[24:], protocol)
		sa := &syscall.SockaddrLinklayer{Protocol: etherARP, Ifindex: ifi.Index, Halen: 6}
		copy(sa.Addr[:], to)
		return syscall.Sendto(fd, b, 0, sa)
	}
	if err := send(1, make([]byte, 6), ip, bytes.Repeat([]byte{255}, 6)); err != nil {
		return fmt.Errorf("announcing %s: %w", ip, err)
	}
	fmt.Println("answering for", ip)
	buf := make([]byte, 1500)
	for {
		n, _, err := syscall.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		if n >= 28 && binary.BigEndian.Uint16(buf[6:]) == 1 && bytes.Equal(buf[24:28], ip) {
			if err := send(2, buf[8:14], buf[14:18], buf[8:14]); err != nil {
				return err
			}
		}
	}
}
