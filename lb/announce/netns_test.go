package announce

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// These tests run in a network namespace of their own, with one or two hosts in others,
// joined by a bridge: real kernels ask, and arping.

const inside = "-test.run=^TestOnLAN$"

// TestOnLAN starts itself again in a new network namespace.
func TestOnLAN(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if os.Args[len(os.Args)-1] == "speaking" {
		r := respond(t)
		r.Set(on("10.0.0.80", "fc00::80"))
		<-t.Context().Done() // killed
	}
	if !namespaced() {
		cmd := exec.Command(os.Args[0], inside, "-test.v="+fmt.Sprint(testing.Verbose()), "-test.timeout=60s")
		cmd.Args = append(cmd.Args, "namespaced")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	lan := newLAN(t)
	t.Run("arp", lan.testARP)
	t.Run("ndp", lan.testNDP)
	t.Run("conflict", lan.testConflict)
	t.Run("takeover", lan.testTakeover)
	t.Run("net_raw", lan.testNetRaw)
}

// NET_RAW is the only capability it needs.
func (l *lan) testNetRaw(t *testing.T) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv is not installed")
	}
	cmd := exec.Command("setpriv", "--bounding-set", "-all,+net_raw", "--inh-caps", "-all", "--no-new-privs", os.Args[0], inside, "-test.timeout=50s")
	cmd.Args = append(cmd.Args, "speaking")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	eventually(t, "it answers ARP", func() bool { return l.arping(t, "10.0.0.80") })
	eventually(t, "it answers NDP", func() bool {
		l.knock("fc00::80")
		return l.at("fc00::80") == l.mac.String()
	})
}

func namespaced() bool { return len(os.Args) > 0 && os.Args[len(os.Args)-1] == "namespaced" }

// lan is a veth between this namespace (eth0) and a neighbor's (eth0).
type lan struct {
	pid   int
	there *netlink.Handle
	mac   net.HardwareAddr // ours
	other net.HardwareAddr
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	neighbor := exec.Command("sleep", "60")
	neighbor.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	must(neighbor.Start())
	t.Cleanup(func() { neighbor.Process.Kill(); neighbor.Wait() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer0"}))
	peer, err := netlink.LinkByName("peer0")
	must(err)
	must(netlink.LinkSetNsPid(peer, neighbor.Process.Pid))
	ns, err := netns.GetFromPid(neighbor.Process.Pid)
	must(err)
	defer ns.Close()
	there, err := netlink.NewHandleAt(ns)
	must(err)
	here, err := netlink.NewHandle()
	must(err)
	up := func(h *netlink.Handle, name string, addrs ...string) net.HardwareAddr {
		t.Helper()
		l, err := h.LinkByName(name)
		must(err)
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			must(err)
			addr.Flags = syscall.IFA_F_NODAD
			must(h.AddrAdd(l, addr))
		}
		must(h.LinkSetUp(l))
		return l.Attrs().HardwareAddr
	}
	lo := func(h *netlink.Handle) { up(h, "lo") }
	lo(here)
	lo(there)
	l := &lan{pid: neighbor.Process.Pid, there: there}
	l.mac = up(here, "eth0", "10.0.0.1/24", "fc00::1/64")
	l.other = up(there, "peer0", "10.0.0.2/24", "fc00::2/64")
	// The link-local address is usable when duplicate address detection is over.
	eventually(t, "a link-local address", func() bool {
		e, err := here.LinkByName("eth0")
		if err != nil {
			return false
		}
		addrs, err := here.AddrList(e, netlink.FAMILY_V6)
		for _, a := range addrs {
			if err == nil && a.IP.IsLinkLocalUnicast() && a.Flags&syscall.IFA_F_TENTATIVE == 0 {
				return true
			}
		}
		return false
	})
	return l
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 15 s: %s", what)
}

// enter runs a command in the neighbor's namespace.
func (l *lan) enter(args ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(l.pid), "-n"}, args...)...).CombinedOutput()
	return string(out), err
}

// at returns where the neighbor believes addr to be; "" if it does not know.
func (l *lan) at(addr string) string {
	link, err := l.there.LinkByName("peer0")
	if err != nil {
		return ""
	}
	list, err := l.there.NeighList(link.Attrs().Index, 0)
	if err != nil {
		return ""
	}
	for _, n := range list {
		if n.IP.String() == addr && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

// knock makes the neighbor's kernel resolve addr.
func (l *lan) knock(addr string) { l.enter("bash", "-c", "echo >/dev/udp/"+addr+"/9") }

type running struct {
	*Responder
	mu        sync.Mutex
	claimed   map[netip.Addr]bool
	conflicts map[netip.Addr]string
}

func (r *running) has(addr string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.claimed[netip.MustParseAddr(addr)]
}

func (r *running) conflict(addr string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conflicts[netip.MustParseAddr(addr)]
}

func respond(t *testing.T, change ...func(*Config)) *running {
	t.Helper()
	r := &running{claimed: map[netip.Addr]bool{}, conflicts: map[netip.Addr]string{}}
	cfg := Config{
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Claimed: func(a netip.Addr) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.claimed[a] = true
		},
		Conflict: func(a netip.Addr, hw net.HardwareAddr) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.conflicts[a] = hw.String()
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	r.Responder = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func on(addrs ...string) (out []Address) {
	for _, a := range addrs {
		out = append(out, Address{IP: netip.MustParseAddr(a)})
	}
	return out
}

func (l *lan) arping(t *testing.T, addr string) bool {
	t.Helper()
	out, err := l.enter("arping", "-c", "1", "-w", "1", "-I", "peer0", addr)
	if strings.Contains(out, "Unicast reply") != (err == nil) {
		t.Fatalf("%v: %s", err, out)
	}
	return err == nil && strings.Contains(strings.ToLower(out), l.mac.String())
}

func (l *lan) testARP(t *testing.T) {
	if _, err := exec.LookPath("arping"); err != nil {
		t.Skip("arping is not installed")
	}
	r := respond(t)
	if l.arping(t, "10.0.0.75") {
		t.Error("answers for an address that is not its own")
	}
	r.Set(on("10.0.0.75", "10.0.0.76"))
	eventually(t, "the addresses are claimed", func() bool { return r.has("10.0.0.75") && r.has("10.0.0.76") })
	if !l.arping(t, "10.0.0.75") {
		t.Error("does not answer arping")
	}
	if l.arping(t, "10.0.0.77") {
		t.Error("answers for an address that is not its own")
	}
	l.knock("10.0.0.76")
	eventually(t, "the neighbor's kernel resolves the address", func() bool { return l.at("10.0.0.76") == l.mac.String() })
	r.Set(on("10.0.0.76"))
	eventually(t, "silence after an address is given up", func() bool { return !l.arping(t, "10.0.0.75") })
}

func (l *lan) testNDP(t *testing.T) {
	r := respond(t)
	l.knock("fc00::75")
	if l.at("fc00::75") != "" {
		t.Error("answers for an address that is not its own")
	}
	r.Set(on("fc00::75"))
	eventually(t, "the address is claimed", func() bool { return r.has("fc00::75") })
	eventually(t, "the neighbor's kernel resolves the address", func() bool {
		l.knock("fc00::75")
		return l.at("fc00::75") == l.mac.String()
	})
	// A unicast probe for a stale entry is answered, too.
	link, err := l.there.LinkByName("peer0")
	if err != nil {
		t.Fatal(err)
	}
	stale := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP("fc00::75"), HardwareAddr: l.mac, State: netlink.NUD_PROBE}
	if err := l.there.NeighSet(stale); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a unicast solicitation is answered", func() bool {
		list, err := l.there.NeighList(link.Attrs().Index, netlink.FAMILY_V6)
		for _, n := range list {
			if err == nil && n.IP.String() == "fc00::75" {
				return n.State == netlink.NUD_REACHABLE
			}
		}
		return false
	})
}

// An address that another host has is not taken; freed, it is.
func (l *lan) testConflict(t *testing.T) {
	r := respond(t)
	r.Set(on("10.0.0.2", "fc00::2", "10.0.0.90"))
	eventually(t, "the conflicts are found", func() bool {
		return r.conflict("10.0.0.2") == l.other.String() && r.conflict("fc00::2") == l.other.String()
	})
	eventually(t, "the free address is claimed", func() bool { return r.has("10.0.0.90") })
	if r.has("10.0.0.2") || r.has("fc00::2") {
		t.Error("an address in use was taken")
	}
	// Somebody takes our address later: it is reported, and we defend it.
	l.enter("ip", "addr", "add", "10.0.0.90/32", "dev", "peer0")
	defer l.enter("ip", "addr", "del", "10.0.0.90/32", "dev", "peer0")
	l.enter("arping", "-U", "-c", "1", "-w", "1", "-I", "peer0", "10.0.0.90")
	eventually(t, "the conflict is reported", func() bool { return r.conflict("10.0.0.90") == l.other.String() })
	if !l.arpingFrom(t, "10.0.0.90") {
		t.Error("the address is given up to a stranger")
	}
}

// A peer's address is taken over although the peer answers, everybody hears of it at once,
// and a peer that is no longer sure gives it up.
func (l *lan) testTakeover(t *testing.T) {
	l.enter("ip", "addr", "add", "10.0.0.95/32", "dev", "peer0")
	defer l.enter("ip", "addr", "del", "10.0.0.95/32", "dev", "peer0")
	r := respond(t, func(c *Config) {
		c.Peer = func(hw net.HardwareAddr) bool { return hw.String() == l.other.String() }
		c.Sure = func() bool { return false }
	})
	link, err := l.there.LinkByName("peer0")
	if err != nil {
		t.Fatal(err)
	}
	old := net.HardwareAddr{2, 0, 0, 0, 0, 99}
	if err := l.there.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP("10.0.0.96"), HardwareAddr: old, State: netlink.NUD_STALE}); err != nil {
		t.Fatal(err)
	}
	r.Set(on("10.0.0.95", "10.0.0.96"))
	eventually(t, "the peer's address is claimed", func() bool { return r.has("10.0.0.95") })
	if c := r.conflict("10.0.0.95"); c != "" {
		t.Errorf("a peer counts as a conflict: %s", c)
	}
	eventually(t, "the neighbor hears of the takeover without asking", func() bool { return l.at("10.0.0.96") == l.mac.String() })
	// The peer announces the address: now it is the peer's, for we are not sure.
	if _, err := l.enter("arping", "-U", "-c", "1", "-w", "1", "-I", "peer0", "10.0.0.95"); err == nil {
		eventually(t, "the address is left to the peer", func() bool { return !l.arpingFrom(t, "10.0.0.95") })
	}
}

// arpingFrom asks from another address than addr, which the neighbor itself has.
func (l *lan) arpingFrom(t *testing.T, addr string) bool {
	out, _ := l.enter("arping", "-c", "1", "-w", "1", "-s", "10.0.0.2", "-I", "peer0", addr)
	return strings.Contains(strings.ToLower(out), l.mac.String())
}
