package announce

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
)

// virtual are interfaces of container networks, bridges and tunnels, where no LAN is.
var virtual = regexp.MustCompile(`^(docker|cbr|br-[0-9a-f]{12}$|cni|dummy|virbr|lxcbr|lxc|veth|lo$|cali|tunl|flannel|vxlan|kube-ipvs|nodelocaldns|cilium|antrea|weave|ovn|genev|wg|tun|tap|nerdctl|podman)`)

// LANInterfaces returns the host's interfaces that can be on a LAN: up, broadcast, with an
// Ethernet address, and not by their name those of a container network.
func LANInterfaces() ([]net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	var out []net.Interface
	for _, i := range all {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagBroadcast != 0 && i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 && !virtual.MatchString(i.Name) {
			out = append(out, i)
		}
	}
	return out, nil
}

// writeTimeout bounds a write to a link that does not take it.
const writeTimeout = time.Second

// link is one interface with its sockets.
type link struct {
	ifi    net.Interface
	nets   []netip.Prefix // of its addresses
	arp    *packet.Conn
	ndp    *ndp.Conn    // writes and group membership; nil without IPv6
	read6  *packet.Conn // reads neighbor messages; nil without IPv6
	groups map[netip.Addr]int
	failed atomic.Bool // a reader has given up: the link is to be opened again
}

// heard is a message and the link it came on.
type heard struct {
	link *link
	message
}

// openLink opens the sockets of an interface; NET_RAW is all that it needs. An interface
// without IPv6 answers ARP only.
func openLink(ifi net.Interface, log *slog.Logger) (*link, error) {
	l := &link{ifi: ifi, groups: map[netip.Addr]int{}}
	l.nets = prefixes(ifi)
	var err error
	if l.arp, err = packet.Listen(&ifi, packet.Raw, int(ethernet.EtherTypeARP), nil); err != nil {
		return nil, fmt.Errorf("interface %s: opening an ARP socket: %w", ifi.Name, err)
	}
	conn, _, err := ndp.Listen(&ifi, ndp.LinkLocal)
	if err != nil {
		log.Debug("no NDP on this interface", "interface", ifi.Name, "error", err)
		return l, nil
	}
	// The ICMPv6 socket hears only what is sent to the host's own addresses and groups, not
	// the unicast solicitations to ours, with which neighbors ask whether we are still there.
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 14 + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmpv6, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 14 + ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipTrue: 2}, // neighbor solicitation
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 136, SkipTrue: 1}, // neighbor advertisement
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 2048},
	})
	if err == nil {
		l.read6, err = packet.Listen(&ifi, packet.Raw, int(ethernet.EtherTypeIPv6), &packet.Config{Filter: filter})
	}
	if err != nil {
		conn.Close()
		l.arp.Close()
		return nil, fmt.Errorf("interface %s: opening an NDP socket: %w", ifi.Name, err)
	}
	var none ipv6.ICMPFilter
	none.SetAll(true) // this socket only sends
	if err := conn.SetICMPFilter(&none); err != nil {
		log.Debug("filtering ICMPv6", "interface", ifi.Name, "error", err)
	}
	l.ndp = conn
	return l, nil
}

func prefixes(ifi net.Interface) (out []netip.Prefix) {
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Masked())
		}
	}
	return out
}

func (l *link) close() {
	l.arp.Close()
	if l.ndp != nil {
		l.ndp.Close()
		l.read6.Close()
	}
}

// read hands on what is heard until the link is closed.
func (l *link) read(c *packet.Conn, parse func([]byte) (message, error), to func(heard) bool, log *slog.Logger) {
	buf := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
				log.Warn("reading neighbor messages", "interface", l.ifi.Name, "error", err)
				l.failed.Store(true)
			}
			return
		}
		m, err := parse(buf[:n])
		if err != nil {
			continue // whatever is on a LAN
		}
		m.hw = append(net.HardwareAddr(nil), m.hw...)
		if !to(heard{l, m}) {
			return
		}
	}
}

func (l *link) can(a netip.Addr) bool { return a.Is4() || l.ndp != nil }

// join makes the interface hear solicitations for an IPv6 address.
func (l *link) join(a netip.Addr) error {
	return l.group(a, 1)
}

func (l *link) leave(a netip.Addr) error {
	return l.group(a, -1)
}

// group counts addresses for each solicited-node group: several may have the same.
func (l *link) group(a netip.Addr, n int) error {
	if a.Is4() || l.ndp == nil {
		return nil
	}
	g, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return err
	}
	before := l.groups[g]
	l.groups[g] = before + n
	switch {
	case before == 0 && n > 0:
		return l.ndp.JoinGroup(g)
	case before > 0 && before+n == 0:
		return l.ndp.LeaveGroup(g)
	}
	return nil
}

// probe asks who has a, in a way that changes nobody's tables (RFC 5227, 2.1.1).
func (l *link) probe(a netip.Addr) error {
	if a.Is4() {
		return l.writeARP(arp.OperationRequest, netip.IPv4Unspecified(), nil, a)
	}
	g, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return err
	}
	return l.writeNDP(&ndp.NeighborSolicitation{TargetAddress: a, Options: []ndp.Option{l.option(ndp.Source)}}, g)
}

// announce tells everybody that a is here: for IPv4 in both forms, for there are hosts that
// update their tables by only one of them.
func (l *link) announce(a netip.Addr) error {
	if a.Is4() {
		return errors.Join(l.writeARP(arp.OperationRequest, a, nil, a), l.writeARP(arp.OperationReply, a, nil, a))
	}
	return l.advertise(a, netip.IPv6LinkLocalAllNodes(), false)
}

// reply answers a question for a.
func (l *link) reply(a netip.Addr, to message) error {
	if a.Is4() {
		return l.writeARP(arp.OperationReply, a, to.hw, to.from)
	}
	if to.from.IsUnspecified() {
		return l.advertise(a, netip.IPv6LinkLocalAllNodes(), false)
	}
	return l.advertise(a, to.from, true)
}

func (l *link) advertise(a, to netip.Addr, solicited bool) error {
	return l.writeNDP(&ndp.NeighborAdvertisement{
		Solicited: solicited, Override: true, TargetAddress: a, Options: []ndp.Option{l.option(ndp.Target)},
	}, to)
}

func (l *link) option(d ndp.Direction) ndp.Option {
	return &ndp.LinkLayerAddress{Direction: d, Addr: l.ifi.HardwareAddr}
}

func (l *link) writeNDP(m ndp.Message, to netip.Addr) error {
	if err := l.ndp.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return l.ndp.WriteTo(m, nil, to)
}

func (l *link) writeARP(op arp.Operation, src netip.Addr, dstHW net.HardwareAddr, dst netip.Addr) error {
	b, err := arpFrame(op, l.ifi.HardwareAddr, src, dstHW, dst)
	if err != nil {
		return err
	}
	to := dstHW
	if to == nil {
		to = ethernet.Broadcast
	}
	if err := l.arp.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err = l.arp.WriteTo(b, &packet.Addr{HardwareAddr: to})
	return err
}
