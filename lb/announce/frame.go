package announce

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
)

// A message is what an ARP packet or an NDP neighbor message says.
type message struct {
	ask    bool             // who has target?
	target netip.Addr       // asked for
	from   netip.Addr       // the sender's address, or the address said to be at hw; may be unspecified
	hw     net.HardwareAddr // the sender, or where from is
}

var errIrrelevant = errors.New("no neighbor message")

// parseARP reads an Ethernet frame with an ARP packet (RFC 826).
func parseARP(b []byte) (message, error) {
	var f ethernet.Frame
	if err := f.UnmarshalBinary(b); err != nil {
		return message{}, err
	}
	if f.EtherType != ethernet.EtherTypeARP {
		return message{}, errIrrelevant
	}
	var p arp.Packet
	if err := p.UnmarshalBinary(f.Payload); err != nil {
		return message{}, err
	}
	if p.HardwareType != 1 || p.ProtocolType != 0x0800 || !p.SenderIP.Is4() || !p.TargetIP.Is4() || len(p.SenderHardwareAddr) != 6 {
		return message{}, errIrrelevant
	}
	m := message{from: p.SenderIP, hw: p.SenderHardwareAddr}
	switch p.Operation {
	case arp.OperationRequest:
		m.target = p.TargetIP
		m.ask = p.TargetIP != p.SenderIP // else it is an announcement
	case arp.OperationReply:
	default:
		return message{}, errIrrelevant
	}
	return m, nil
}

// arpFrame returns a broadcast (to nil) or unicast ARP packet.
func arpFrame(op arp.Operation, srcHW net.HardwareAddr, src netip.Addr, dstHW net.HardwareAddr, dst netip.Addr) ([]byte, error) {
	to, target := dstHW, dstHW
	if to == nil {
		to = ethernet.Broadcast
		target = make(net.HardwareAddr, 6) // unknown, or for announcements ignored
	}
	p, err := arp.NewPacket(op, srcHW, src, target, dst)
	if err != nil {
		return nil, err
	}
	payload, err := p.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return (&ethernet.Frame{Destination: to, Source: srcHW, EtherType: ethernet.EtherTypeARP, Payload: payload}).MarshalBinary()
}

const (
	ipv6Header = 40
	icmpv6     = 58
)

// parseNDP reads an Ethernet frame with a neighbor solicitation or advertisement (RFC 4861).
// The ICMPv6 checksum is not looked at: between interfaces of one machine it is left to
// hardware that is not there. The hop limit of 255 shows that it comes from the link.
func parseNDP(b []byte) (message, error) {
	var f ethernet.Frame
	if err := f.UnmarshalBinary(b); err != nil {
		return message{}, err
	}
	p := f.Payload
	if f.EtherType != ethernet.EtherTypeIPv6 || len(p) < ipv6Header || p[0]>>4 != 6 || p[6] != icmpv6 || p[7] != ndp.HopLimit {
		return message{}, errIrrelevant
	}
	n := int(binary.BigEndian.Uint16(p[4:6]))
	if ipv6Header+n > len(p) {
		return message{}, errIrrelevant
	}
	src, _ := netip.AddrFromSlice(p[8:24])
	msg, err := ndp.ParseMessage(p[ipv6Header : ipv6Header+n])
	if err != nil {
		return message{}, err
	}
	switch msg := msg.(type) {
	case *ndp.NeighborSolicitation:
		m := message{ask: true, target: msg.TargetAddress, from: src, hw: f.Source}
		if src.IsUnspecified() {
			// Duplicate address detection: somebody else is about to take the target.
			return m, nil
		}
		if hw := linkLayer(msg.Options, ndp.Source); hw != nil {
			m.hw = hw
		}
		return m, nil
	case *ndp.NeighborAdvertisement:
		m := message{from: msg.TargetAddress, hw: f.Source}
		if hw := linkLayer(msg.Options, ndp.Target); hw != nil {
			m.hw = hw
		}
		return m, nil
	}
	return message{}, errIrrelevant
}

func linkLayer(options []ndp.Option, d ndp.Direction) net.HardwareAddr {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == d && len(l.Addr) == 6 {
			return l.Addr
		}
	}
	return nil
}
