package redirect

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/carrick-mesh/carrick/agent/redirect/spec"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The test binary is also the process that dials, as another user: dial ADDRESS [SOURCE].
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "dial" {
		d := net.Dialer{Timeout: 3 * time.Second}
		if len(os.Args) > 3 {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(os.Args[3])}
		}
		c, err := d.Dial("tcp", os.Args[2])
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(0)
		}
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		io.Copy(os.Stdout, c)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A pod is two network namespaces joined by a cable: the pod's own, where the rules are, and
// the world's. Sockets are made on the goroutine of in or out.
type pod struct {
	t       *testing.T
	in, out chan func()
}

const (
	podIP, worldIP   = "10.99.0.2", "10.99.0.1"
	podIP6, worldIP6 = "fd99::2", "fd99::1"
)

func newPod(t *testing.T) *pod {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	p := &pod{t: t}
	var tids [2]int
	spaces := [2]*chan func(){&p.in, &p.out}
	for i, ch := range spaces {
		*ch = make(chan func())
		ready := make(chan error)
		go func() {
			runtime.LockOSThread() // and the thread ends with the goroutine, and the namespace with it
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				ready <- err
				return
			}
			tids[i] = unix.Gettid()
			ready <- nil
			for f := range *ch {
				f()
			}
		}()
		if err := <-ready; err != nil {
			t.Skipf("no network namespaces here: %v", err)
		}
		t.Cleanup(func() { close(*ch) })
	}
	p.do(p.in, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsPid(tids[1])}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return addresses(podIP+"/24", podIP6+"/64")
	})
	p.do(p.out, func() error { return addresses(worldIP+"/24", worldIP6+"/64", "10.99.0.7/24", "fd99::7/64") })
	p.do(p.in, func() error {
		for _, gw := range []string{worldIP, worldIP6} {
			if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}); err != nil {
				return err
			}
		}
		return nil
	})
	return p
}

// addresses sets up lo and eth0 of the current namespace.
func addresses(as ...string) error {
	for _, name := range []string{"lo", "eth0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, a := range as {
			if name == "lo" {
				continue
			}
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// do runs f in a namespace.
func (p *pod) do(ns chan func(), f func() error) {
	p.t.Helper()
	done := make(chan error)
	ns <- func() { done <- f() }
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

// listen answers connections in a namespace with the port that took them, the address they
// were meant for and whom they are from.
func (p *pod) listen(ns chan func(), addrs ...string) {
	p.t.Helper()
	for _, addr := range addrs {
		var l net.Listener
		p.do(ns, func() (err error) {
			l, err = net.Listen("tcp", addr)
			return err
		})
		p.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, port, _ := net.SplitHostPort(l.Addr().String())
				from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s for %s from %s", port, originalDst(c.(*net.TCPConn)), from)
				c.Close()
			}
		}()
	}
}

// dial connects from a namespace as a user and group and returns the answer.
func (p *pod) dial(ns chan func(), id uint32, args ...string) string {
	return p.dialAs(ns, id, id, args...)
}

func (p *pod) dialAs(ns chan func(), uid, gid uint32, args ...string) string {
	p.t.Helper()
	var out []byte
	p.do(ns, func() (err error) {
		cmd := exec.Command("/proc/self/exe", append([]string{"dial"}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
		out, err = cmd.Output()
		return err
	})
	return string(out)
}

// originalDst asks the kernel where a redirected connection was meant to go; the connection's
// own address if it was not redirected.
func originalDst(c *net.TCPConn) string {
	rc, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	dst := c.LocalAddr().String()
	rc.Control(func(fd uintptr) {
		var sa unix.RawSockaddrInet6
		size := uint32(unsafe.Sizeof(sa))
		level := unix.SOL_IPV6
		if a := netip.MustParseAddrPort(dst); a.Addr().Unmap().Is4() {
			level = unix.SOL_IP
		}
		const soOriginalDst = 80
		if _, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), soOriginalDst, uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0); e != 0 {
			return
		}
		port := strconv.Itoa(int(sa.Port>>8 | sa.Port<<8))
		if level == unix.SOL_IP {
			a := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa)).Addr
			dst = net.JoinHostPort(netip.AddrFrom4(a).String(), port)
		} else {
			dst = net.JoinHostPort(netip.AddrFrom16(sa.Addr).String(), port)
		}
	})
	return dst
}

const app, proxy = 1000, 1337

// listenAll brings up the proxy and the application in the pod and a server in the world.
func (p *pod) listenAll() {
	p.t.Helper()
	p.listen(p.in, ":15001", ":15006", ":15020", ":15008", ":8080", ":9000")
	p.listen(p.out, ":80", ":3306", ":15020")
}

func (p *pod) expect(what, got, want string) {
	p.t.Helper()
	if got != want {
		p.t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// checkDefault proves what Default promises, by real connections.
func (p *pod) checkDefault() {
	p.t.Helper()
	for _, a := range []struct{ pod, world, other, lo, in string }{
		{podIP, worldIP, "10.99.0.7", "127.0.0.1", "127.0.0.6"},
		{podIP6, worldIP6, "fd99::7", "::1", "::6"},
	} {
		at := func(host, port string) string { return net.JoinHostPort(host, port) }
		p.expect("application to world", p.dial(p.in, app, at(a.world, "80")), "15001 for "+at(a.world, "80")+" from "+a.pod)
		p.expect("application to an own port of the mesh elsewhere", p.dial(p.in, app, at(a.world, "15020")), "15001 for "+at(a.world, "15020")+" from "+a.pod)
		p.expect("proxy to world", p.dial(p.in, proxy, at(a.other, "80")), "80 for "+at(a.other, "80")+" from "+a.pod)
		p.expect("proxy's user with another group", p.dialAs(p.in, proxy, app, at(a.other, "80")), "80 for "+at(a.other, "80")+" from "+a.pod)
		p.expect("proxy's group with another user", p.dialAs(p.in, app, proxy, at(a.other, "80")), "80 for "+at(a.other, "80")+" from "+a.pod)
		p.expect("application to localhost", p.dial(p.in, app, at(a.lo, "8080")), "8080 for "+at(a.lo, "8080")+" from "+a.lo)
		p.expect("application to its own address", p.dial(p.in, app, at(a.pod, "8080")), "8080 for "+at(a.pod, "8080")+" from "+a.pod)
		p.expect("proxy to the own pod (the pod calls its own Service)", p.dial(p.in, proxy, at(a.pod, "8080")), "15006 for "+at(a.pod, "8080")+" from "+a.pod)
		p.expect("the same by group", p.dialAs(p.in, app, proxy, at(a.pod, "8080")), "15006 for "+at(a.pod, "8080")+" from "+a.pod)
		p.expect("proxy to localhost", p.dial(p.in, proxy, at(a.lo, "8080")), "8080 for "+at(a.lo, "8080")+" from "+a.lo)
		p.expect("proxy's inbound to the application", p.dial(p.in, proxy, at(a.pod, "8080"), a.in), "8080 for "+at(a.pod, "8080")+" from "+a.in)
		p.expect("world to the application", p.dial(p.out, 0, at(a.pod, "8080"), a.world), "15006 for "+at(a.pod, "8080")+" from "+a.world)
		p.expect("kubelet to the agent", p.dial(p.out, 0, at(a.pod, "15020"), a.world), "15020 for "+at(a.pod, "15020")+" from "+a.world)
		p.expect("world to the tunnel port", p.dial(p.out, 0, at(a.pod, "15008"), a.world), "15008 for "+at(a.pod, "15008")+" from "+a.world)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestNftables(t *testing.T) {
	p := newPod(t)
	p.listenAll()
	p.expect("before", p.dial(p.in, app, worldIP+":80"), "80 for "+worldIP+":80 from "+podIP)
	for range 2 { // the second time changes nothing
		p.do(p.in, func() error { return Apply(context.Background(), Default(), quiet()) })
		p.checkDefault()
	}
	for range 2 {
		p.do(p.in, func() error { return Remove(context.Background()) })
		p.expect("after", p.dial(p.in, app, worldIP+":80"), "80 for "+worldIP+":80 from "+podIP)
	}
	if got := p.dial(p.in, proxy, net.JoinHostPort(podIP6, "8080"), "::6"); !strings.Contains(got, "error") {
		t.Errorf("::6 is still on lo: %q", got)
	}
}

func TestIptables(t *testing.T) {
	for _, flavour := range flavours {
		t.Run(flavour, func(t *testing.T) {
			p := newPod(t)
			if !has(ip4, flavour) || !has(ip6, flavour) {
				t.Skip("not installed")
			}
			p.listenAll()
			p.do(p.in, addInboundAddress)
			for range 2 {
				for _, f := range []family{ip4, ip6} {
					p.do(p.in, func() error { return loadIptables(context.Background(), Default(), f, flavour) })
				}
				p.checkDefault()
			}
			p.do(p.in, func() error { return Remove(context.Background()) })
			p.expect("after", p.dial(p.in, app, worldIP+":80"), "80 for "+worldIP+":80 from "+podIP)
		})
	}
}

func TestSelections(t *testing.T) {
	p := newPod(t)
	p.listenAll()
	apply := func(change func(*Config)) {
		t.Helper()
		c := Default()
		change(&c)
		p.do(p.in, func() error { return Apply(context.Background(), c, quiet()) })
	}
	to := func(ns chan func(), id uint32, addr string) string {
		t.Helper()
		port, _, _ := strings.Cut(p.dial(ns, id, addr), " ")
		return port
	}

	apply(func(c *Config) { c.ExcludeOutboundPorts, c.ExcludeInboundPorts = []uint16{3306}, []uint16{9000} })
	p.expect("excluded outbound port", to(p.in, app, worldIP+":3306"), "3306")
	p.expect("other outbound port", to(p.in, app, worldIP+":80"), "15001")
	p.expect("excluded inbound port", to(p.out, 0, podIP+":9000"), "9000")
	p.expect("other inbound port", to(p.out, 0, podIP+":8080"), "15006")

	apply(func(c *Config) {
		c.OutboundRanges.All, c.OutboundRanges.List = false, []netip.Prefix{netip.MustParsePrefix("10.99.0.7/32"), netip.MustParsePrefix("fd99::/125")}
		c.OutboundPorts = []uint16{3306}
		c.Inbound = spec.Ports{List: []uint16{8080}}
	})
	p.expect("included range", to(p.in, app, "10.99.0.7:80"), "15001")
	p.expect("included IPv6 range", to(p.in, app, "[fd99::7]:80"), "15001")
	p.expect("outside the range", to(p.in, app, worldIP+":80"), "80")
	p.expect("included port outside the range", to(p.in, app, worldIP+":3306"), "15001")
	p.expect("included inbound port", to(p.out, 0, podIP+":8080"), "15006")
	p.expect("not included inbound port", to(p.out, 0, podIP+":9000"), "9000")

	apply(func(c *Config) {
		c.ExcludeOutboundRanges = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/30")}
		c.ExcludeOutboundGroups = []uint32{4242}
	})
	p.expect("excluded range", to(p.in, app, worldIP+":80"), "80")
	p.expect("beside it", to(p.in, app, "10.99.0.7:80"), "15001")
	p.expect("excluded group", to(p.in, 4242, "10.99.0.7:80"), "80")

	apply(func(c *Config) { c.OutboundGroups = spec.Groups{List: []uint32{4242, 4243}} })
	p.expect("included group", to(p.in, 4243, worldIP+":80"), "15001")
	p.expect("no group of those", to(p.in, app, worldIP+":80"), "80")

	apply(func(c *Config) { c.ExcludeInterfaces = []string{"eth0"} })
	p.expect("excluded interface, out", to(p.in, app, worldIP+":80"), "80")
	p.expect("excluded interface, in", to(p.out, 0, podIP+":8080"), "8080")

	apply(func(c *Config) { c.VirtualInterfaces = []string{"eth0"} })
	p.expect("virtual interface", to(p.out, 0, podIP+":8080"), "15001")

	apply(func(c *Config) { c.OutboundRanges, c.Inbound = spec.Ranges{}, spec.Ports{} })
	p.expect("nothing, out", to(p.in, app, worldIP+":80"), "80")
	p.expect("nothing, in", to(p.out, 0, podIP+":8080"), "8080")
}

// The kernel's rules, listed by nft, are those of nft loading our text.
func TestTextIsWhatIsLoaded(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("no nft")
	}
	p := newPod(t)
	list := func() (s string) {
		p.do(p.in, func() error {
			b, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
			s = string(b)
			return err
		})
		return s
	}
	for _, c := range []Config{Default(), everything()} {
		p.do(p.in, func() error { return Apply(context.Background(), c, quiet()) })
		loaded := list()
		text, err := Text(c)
		if err != nil {
			t.Fatal(err)
		}
		p.do(p.in, func() error {
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = bufio.NewReader(strings.NewReader("flush ruleset\n" + text))
			if b, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, b)
			}
			return nil
		})
		if d := cmp.Diff(list(), loaded); d != "" || !strings.Contains(loaded, "redirect to :15001") {
			t.Errorf("nft lists (-of the text +of Apply):\n%s", d)
		}
	}
}

func TestWithoutIPv6(t *testing.T) {
	p := newPod(t)
	p.do(p.in, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	})
	p.listenAll()
	p.do(p.in, func() error { return Apply(context.Background(), Default(), quiet()) })
	p.expect("application to world", p.dial(p.in, app, worldIP+":80"), "15001 for "+worldIP+":80 from "+podIP)
	p.do(p.in, func() error { return Remove(context.Background()) })
}

func TestWithoutCapability(t *testing.T) {
	p := newPod(t)
	done := make(chan error)
	p.in <- func() {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			done <- err
			return
		}
		done <- Apply(context.Background(), Default(), quiet())
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("Apply without CAP_NET_ADMIN = %v, want an error that names it", err)
	}
}

func TestValidate(t *testing.T) {
	p := newPod(t)
	validate := func() (err error) {
		p.do(p.in, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err = Validate(ctx, Default())
			return nil
		})
		return err
	}
	if err := validate(); err == nil || !strings.Contains(err.Error(), "15001") {
		t.Errorf("without rules: Validate = %v, want an error", err)
	}
	p.do(p.in, func() error { return Apply(context.Background(), Default(), quiet()) })
	if err := validate(); err != nil {
		t.Errorf("with rules: Validate = %v", err)
	}
}
