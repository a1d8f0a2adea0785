package announce

import (
	"net"
	"net/netip"
	"testing"

	"github.com/mdlayher/arp"
)

func FuzzParseARP(f *testing.F) {
	hw := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, to := range []net.HardwareAddr{nil, {2, 0, 0, 0, 0, 2}} {
		b, err := arpFrame(arp.OperationRequest, hw, netip.MustParseAddr("10.0.0.1"), to, netip.MustParseAddr("10.0.0.2"))
		if err != nil {
			f.Fatal(err)
		}
		m, err := parseARP(b)
		if err != nil || !m.ask || m.target.String() != "10.0.0.2" || m.from.String() != "10.0.0.1" || m.hw.String() != hw.String() {
			f.Fatalf("%+v, %v", m, err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseARP(b); err == nil && (len(m.hw) != 6 || m.ask && !m.target.Is4()) {
			t.Errorf("%+v", m)
		}
	})
}

func FuzzParseNDP(f *testing.F) {
	f.Add([]byte("\x33\x33\xff\x00\x00\x01\x02\x00\x00\x00\x00\x01\x86\xdd\x60\x00\x00\x00\x00\x20\x3a\xff" +
		"\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\x00\x00\x01" +
		"\x87\x00\x00\x00\x00\x00\x00\x00\xfc\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01\x02\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseNDP(b); err == nil && (len(m.hw) != 6 || m.ask && !m.target.IsValid()) {
			t.Errorf("%+v", m)
		}
	})
}

func TestVirtual(t *testing.T) {
	for name, want := range map[string]bool{
		"eth0": false, "ens3": false, "bond0": false, "eth0.100": false, "br0": false, "br-ex": false, "vmbr0": false, "wlan0": false, "lan1": false,
		"lo": true, "docker0": true, "br-0123456789ab": true, "cni0": true, "veth12ab": true, "cali1234": true, "tunl0": true, "flannel.1": true, "kube-ipvs0": true, "cilium_host": true,
	} {
		if virtual.MatchString(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
