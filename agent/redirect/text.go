package redirect

import (
	"fmt"
	"net/netip"
	"strings"
)

// Text returns the rules in nft's syntax, for both families: what Apply loads, as a file for nft -f.
func Text(c Config) (string, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range []family{ip4, ip6} {
		fmt.Fprintf(&b, "table %s %s\ndelete table %s %s\ntable %s %s {\n", f.name, tableName, f.name, tableName, f.name, tableName)
		for _, ch := range chains(c, f) {
			fmt.Fprintf(&b, "\tchain %s {\n\t\ttype nat hook %s priority -100; policy accept;\n", ch.name, hookName(ch.name))
			for _, r := range ch.rules {
				fmt.Fprintf(&b, "\t\t%s\n", nftRule(r, f))
			}
			b.WriteString("\t}\n")
		}
		b.WriteString("}\n")
	}
	return b.String(), nil
}

func hookName(chain string) string {
	if chain == "inbound" {
		return "prerouting"
	}
	return "output"
}

func nftRule(r rule, f family) string {
	w := []string{}
	add := func(format string, a ...any) { w = append(w, fmt.Sprintf(format, a...)) }
	add("meta l4proto tcp")
	if r.in != "" {
		add("iifname %q", r.in)
	}
	if r.out != "" {
		add("oifname %q", r.out)
	}
	if r.src.IsValid() {
		add("%s saddr %s", f.name, prefix(r.src))
	}
	if r.dst.IsValid() {
		add("%s daddr %s", f.name, prefix(r.dst))
	}
	if r.notDst.IsValid() {
		add("%s daddr != %s", f.name, prefix(r.notDst))
	}
	if r.dport != 0 {
		add("tcp dport %d", r.dport)
	}
	if r.notDport != 0 {
		add("tcp dport != %d", r.notDport)
	}
	if r.uid != nil {
		add("meta skuid %d", *r.uid)
	}
	if r.gid != nil {
		add("meta skgid %d", *r.gid)
	}
	for _, g := range r.notGIDs {
		add("meta skgid != %d", g)
	}
	if r.to == 0 {
		add("return")
	} else {
		add("redirect to :%d", r.to)
	}
	return strings.Join(w, " ")
}

// prefix writes a host without its length, as nft lists it.
func prefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// iptablesText returns the rules of one family as input of iptables-restore --noflush: chains of
// our own, emptied if they exist, without the jumps to them.
func iptablesText(c Config, f family) string {
	var b strings.Builder
	b.WriteString("*nat\n")
	cs := chains(c, f)
	for _, ch := range cs {
		fmt.Fprintf(&b, ":%s - [0:0]\n", iptablesChain(ch.name))
	}
	for _, ch := range cs {
		for _, r := range ch.rules {
			fmt.Fprintf(&b, "-A %s %s\n", iptablesChain(ch.name), iptablesRule(r))
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func iptablesChain(name string) string { return "CARRICK_" + strings.ToUpper(name) }

func iptablesRule(r rule) string {
	w := []string{"-p tcp"}
	add := func(format string, a ...any) { w = append(w, fmt.Sprintf(format, a...)) }
	if r.in != "" {
		add("-i %s", r.in)
	}
	if r.out != "" {
		add("-o %s", r.out)
	}
	if r.src.IsValid() {
		add("-s %s", r.src)
	}
	if r.dst.IsValid() {
		add("-d %s", r.dst)
	}
	if r.notDst.IsValid() {
		add("! -d %s", r.notDst)
	}
	if r.dport != 0 {
		add("--dport %d", r.dport)
	}
	if r.notDport != 0 {
		add("! --dport %d", r.notDport)
	}
	if r.uid != nil {
		add("-m owner --uid-owner %d", *r.uid)
	}
	if r.gid != nil {
		add("-m owner --gid-owner %d", *r.gid)
	}
	for _, g := range r.notGIDs {
		add("-m owner ! --gid-owner %d", g)
	}
	if r.to == 0 {
		add("-j RETURN")
	} else {
		add("-j REDIRECT --to-ports %d", r.to)
	}
	return strings.Join(w, " ")
}
