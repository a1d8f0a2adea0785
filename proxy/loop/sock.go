package loop

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions below are system calls on non-blocking descriptors, made without telling the
// scheduler, for they never wait. Buffers must be on the heap, where they do not move.

// Again is the error number of a call that would block.
const Again = syscall.EAGAIN

// Read reads what has come; n is 0 without an error at the end of the stream.
func Read(fd int, b []byte) (n int, e syscall.Errno) {
	for {
		r, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e == 0 {
			return int(r), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

// Peek reads without taking.
func Peek(fd int, b []byte) (n int, e syscall.Errno) {
	for {
		r, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_PEEK, 0, 0)
		if e == 0 {
			return int(r), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

// Write writes as much of b as there is room for.
func Write(fd int, b []byte) (n int, e syscall.Errno) {
	for n < len(b) {
		p := b[n:]
		// SIGPIPE: the Go runtime ignores it on descriptors but 1 and 2.
		r, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			return n, e
		}
		n += int(r)
	}
	return n, 0
}

// WriteBoth writes as much of a and then b as there is room for, in one call.
func WriteBoth(fd int, a, b []byte) (n int, e syscall.Errno) {
	v := [2]syscall.Iovec{{Base: unsafe.SliceData(a)}, {Base: unsafe.SliceData(b)}}
	v[0].SetLen(len(a))
	v[1].SetLen(len(b))
	for {
		r, _, e := syscall.RawSyscall(syscall.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&v)), uintptr(len(v)))
		if e == 0 {
			return int(r), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

// Splice moves up to n bytes between a pipe and a socket.
func Splice(from, to, n int) (int, syscall.Errno) {
	for {
		r, _, e := syscall.RawSyscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if e == 0 {
			return int(r), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

// Pipe returns a pipe that holds size bytes, if the system lets it.
func Pipe(size int) (r, w int, err error) {
	var f [2]int
	if err := syscall.Pipe2(f[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		return 0, 0, os.NewSyscallError("pipe", err)
	}
	unix.FcntlInt(uintptr(f[1]), unix.F_SETPIPE_SZ, size) // the default size does, too
	return f[0], f[1], nil
}

// CloseFD closes a descriptor that no loop watches.
func CloseFD(fd int) { syscall.Close(fd) }

// CloseWrite sends the end of the stream.
func CloseWrite(fd int) { syscall.RawSyscall(syscall.SYS_SHUTDOWN, uintptr(fd), syscall.SHUT_WR, 0) }

// Unacknowledged returns how many bytes were written that the peer does not have yet (SIOCOUTQ, tcp(7)).
func Unacknowledged(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// ResetOnClose makes closing the socket send a reset.
func ResetOnClose(fd int) {
	syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
}

// ListenOptions are options of a listening socket.
type ListenOptions struct {
	Backlog     int // 0: 4096, bounded by the system
	Transparent bool
	Freebind    bool
}

// Listen returns a listening socket. An IPv6 address takes IPv6 only.
func Listen(addr netip.AddrPort, o ListenOptions) (int, error) {
	fd, err := socket(addr.Addr())
	if err != nil {
		return -1, err
	}
	if err := listen(fd, addr, o); err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

func listen(fd int, addr netip.AddrPort, o ListenOptions) error {
	v6 := addr.Addr().Is6()
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if v6 {
		syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, 1)
	}
	if o.Transparent {
		if err := ipOption(fd, v6, unix.IP_TRANSPARENT, unix.IPV6_TRANSPARENT); err != nil {
			return fmt.Errorf("setting IP_TRANSPARENT (needs CAP_NET_ADMIN): %w", err)
		}
	}
	if o.Freebind {
		if err := ipOption(fd, v6, unix.IP_FREEBIND, unix.IPV6_FREEBIND); err != nil {
			return fmt.Errorf("setting IP_FREEBIND: %w", err)
		}
	}
	if err := syscall.Bind(fd, sockaddr(addr)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	backlog := o.Backlog
	if backlog <= 0 {
		backlog = 4096
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		return os.NewSyscallError("listen", err)
	}
	return nil
}

// ListenUnix returns a listening unix socket at path; a socket file that is there already and that
// nobody listens on is replaced.
func ListenUnix(path string, backlog int) (int, error) {
	if c, err := ConnectUnix(path); err == nil {
		syscall.Close(c)
		return -1, syscall.EADDRINUSE
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	if backlog <= 0 {
		backlog = 4096
	}
	if err := syscall.Listen(fd, backlog); err != nil {
		syscall.Close(fd)
		return -1, os.NewSyscallError("listen", err)
	}
	return fd, nil
}

func ipOption(fd int, v6 bool, opt4, opt6 int) error {
	if v6 {
		return syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, opt6, 1)
	}
	return syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, opt4, 1)
}

func socket(a netip.Addr) (int, error) {
	family := syscall.AF_INET
	if a.Is6() && !a.Is4In6() {
		family = syscall.AF_INET6
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// Accept takes a connection off a listening socket; Again if there is none.
func Accept(fd int) (conn int, peer netip.AddrPort, e syscall.Errno) {
	sa := new(rawAddr)
	n := uint32(unsafe.Sizeof(*sa))
	r, _, e := syscall.RawSyscall6(syscall.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&n)), syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, netip.AddrPort{}, e
	}
	return int(r), sa.addrPort(), 0
}

// ConnectOptions are options of an outgoing connection.
type ConnectOptions struct {
	Source   netip.Addr // not valid: the system chooses
	Port     uint16     // of the source; 0: any
	Freebind bool       // the source need not be an address of this host
}

// Connect begins a connection, which is made when the socket becomes writable without an error.
func Connect(to netip.AddrPort, o ConnectOptions) (fd int, err error) {
	if fd, err = socket(to.Addr()); err != nil {
		return -1, err
	}
	NoDelay(fd)
	if o.Source.IsValid() {
		v6 := o.Source.Is6()
		if o.Freebind {
			ipOption(fd, v6, unix.IP_FREEBIND, unix.IPV6_FREEBIND)
		}
		if o.Port == 0 {
			// Let connect choose the port, so that one port serves for many destinations.
			syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		}
		if err := syscall.Bind(fd, sockaddr(netip.AddrPortFrom(o.Source, o.Port))); err != nil {
			syscall.Close(fd)
			return -1, os.NewSyscallError("bind", err)
		}
	}
	if err := syscall.Connect(fd, sockaddr(to)); err != nil && err != syscall.EINPROGRESS {
		syscall.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// ConnectUnix connects to a unix socket.
func ConnectUnix(path string) (fd int, err error) {
	if fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// Failure returns and clears the pending error of a socket (SO_ERROR).
func Failure(fd int) error {
	n, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ERROR)
	if err != nil {
		return err
	}
	if n != 0 {
		return syscall.Errno(n)
	}
	return nil
}

// NoDelay switches Nagle's algorithm off.
func NoDelay(fd int) { syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1) }

// Keepalive switches TCP keepalive on. Zero values leave the system's.
func Keepalive(fd int, idle, interval time.Duration, probes int, userTimeout time.Duration) {
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1)
	set := func(opt int, d time.Duration) {
		if d > 0 {
			syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, opt, int(max(1, (d+time.Second/2)/time.Second)))
		}
	}
	set(syscall.TCP_KEEPIDLE, idle)
	set(syscall.TCP_KEEPINTVL, interval)
	if probes > 0 {
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, probes)
	}
	if userTimeout > 0 {
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
	}
}

// Unanswered returns how many retransmissions in a row the peer of a TCP connection has not
// acknowledged.
func Unanswered(fd int) int {
	i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int(i.Retransmits)
}

// LocalAddr returns the address that a socket is bound to.
func LocalAddr(fd int) netip.AddrPort {
	sa := new(rawAddr)
	n := uint32(unsafe.Sizeof(*sa))
	syscall.RawSyscall(syscall.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&n)))
	return sa.addrPort()
}

const soOriginalDst = 80 // SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, linux/netfilter_ipv4.h

// OriginalDst returns where a redirected connection was going (netfilter REDIRECT), if it was.
func OriginalDst(fd int, v6 bool) (netip.AddrPort, bool) {
	sa := new(rawAddr)
	n := uint32(unsafe.Sizeof(*sa))
	level := syscall.IPPROTO_IP
	if v6 {
		level = syscall.IPPROTO_IPV6
	}
	_, _, e := syscall.RawSyscall6(syscall.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), soOriginalDst, uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return netip.AddrPort{}, false
	}
	a := sa.addrPort()
	return a, a.IsValid()
}

// rawAddr is a sockaddr_in or sockaddr_in6.
type rawAddr struct {
	family uint16
	port   [2]byte // big-endian
	v4     [4]byte // in sockaddr_in6: flow
	v6     [16]byte
	scope  uint32
}

func (r *rawAddr) addrPort() netip.AddrPort {
	port := uint16(r.port[0])<<8 | uint16(r.port[1])
	switch r.family {
	case syscall.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4(r.v4), port)
	case syscall.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(r.v6).Unmap(), port)
	}
	return netip.AddrPort{}
}

func sockaddr(a netip.AddrPort) syscall.Sockaddr {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	return &syscall.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
