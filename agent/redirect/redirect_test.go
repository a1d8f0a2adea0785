package redirect

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carrick-mesh/carrick/agent/redirect/spec"
)

var update = flag.Bool("update", false, "write testdata anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

// everything sets each field.
func everything() Config {
	c := Default()
	c.UIDs = []uint32{1337, 1338}
	c.ExcludeInboundPorts = []uint16{15020, 9000}
	c.OutboundRanges = spec.Ranges{List: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/61"), netip.MustParsePrefix("127.0.0.5/32")}}
	c.ExcludeOutboundRanges = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/17"), netip.MustParsePrefix("fd00:1::/64")}
	c.OutboundPorts = []uint16{8443}
	c.ExcludeOutboundPorts = []uint16{3306, 27017}
	c.ExcludeInterfaces = []string{"eth1"}
	c.VirtualInterfaces = []string{"tap0"}
	c.OutboundGroups = spec.Groups{List: []uint32{100, 200}}
	return c
}

func TestText(t *testing.T) {
	none := Default()
	none.Inbound, none.OutboundRanges = spec.Ports{}, spec.Ranges{}
	some := Default()
	some.Inbound, some.ExcludeOutboundGroups = spec.Ports{List: []uint16{80, 15090}}, []uint32{7}
	for name, c := range map[string]Config{"default": Default(), "everything": everything(), "none": none, "some": some} {
		text, err := Text(c)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".nft", text)
		golden(t, name+".iptables", iptablesText(c, ip4)+iptablesText(c, ip6))
	}
}

func TestRefused(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"-p":               func(c *Config) { c.ProxyPort = 0 },
		"-z":               func(c *Config) { c.InboundPort = 0 },
		"-u, -g":           func(c *Config) { c.UIDs, c.GIDs = nil, nil },
		`"eth0; reboot"`:   func(c *Config) { c.ExcludeInterfaces = []string{"eth0; reboot"} },
		"an interface nam": func(c *Config) { c.VirtualInterfaces = []string{"interfacewithalongname"} },
	} {
		c := Default()
		change(&c)
		if _, err := Text(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Text = %v, want an error with %q", err, want)
		}
	}
}

func TestParse(t *testing.T) {
	if got, err := spec.ParsePortSet(" * "); err != nil || !got.All {
		t.Errorf("spec.ParsePortSet(*) = %v, %v", got, err)
	}
	if got, err := spec.ParsePortSet("80, 8080,"); err != nil || got.All || !cmp.Equal(got.List, []uint16{80, 8080}) {
		t.Errorf("ParsePortSet = %v, %v", got, err)
	}
	if got, err := spec.ParseRangeSet("10.1.2.3/8,fd00::/8"); err != nil || len(got.List) != 2 || got.List[0].String() != "10.0.0.0/8" {
		t.Errorf("ParseRangeSet = %v, %v", got, err)
	}
	if got, err := spec.ParseIDs("1337,proxy", func(string) (string, error) { return "13", nil }); err != nil || !cmp.Equal(got, []uint32{1337, 13}) {
		t.Errorf("ParseIDs = %v, %v", got, err)
	}
	for _, bad := range []string{"http", "0", "65536", "-1", "80 81"} {
		if got, err := spec.ParsePorts(bad); err == nil {
			t.Errorf("spec.ParsePorts(%q) = %v, want an error", bad, got)
		}
	}
	for _, bad := range []string{"10.0.0.1", "10.0.0.0/33", "example.org", "::ffff:10.0.0.0/104"} {
		if got, err := spec.ParseRanges(bad); err == nil {
			t.Errorf("spec.ParseRanges(%q) = %v, want an error", bad, got)
		}
	}
	if got, err := spec.ParseIDs("nobody", nil); err == nil {
		t.Errorf("spec.ParseIDs(nobody) = %v, want an error", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("80,10.0.0.0/8,*")
	f.Fuzz(func(t *testing.T, s string) {
		c := Default()
		var err error
		if c.Inbound, err = spec.ParsePortSet(s); err != nil {
			c.Inbound = spec.Ports{}
		}
		if c.OutboundRanges, err = spec.ParseRangeSet(s); err != nil {
			c.OutboundRanges = spec.Ranges{}
		}
		c.ExcludeInterfaces, _ = spec.ParseInterfaces(s)
		text, err := Text(c)
		if err == nil && strings.Count(text, "{") != 6 {
			t.Errorf("%q breaks out of its rule:\n%s", s, text)
		}
	})
}
