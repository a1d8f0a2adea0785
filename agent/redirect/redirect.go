package redirect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Apply makes the rules of c hold in the caller's network namespace, in place of those of an
// earlier Apply. It prefers nftables, which needs no program, and falls back to iptables of
// either flavour. IPv6 is left out where the namespace has none. It needs CAP_NET_ADMIN (and
// iptables-legacy CAP_NET_RAW).
func Apply(ctx context.Context, c Config, log *slog.Logger) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("redirection: %w", err)
	}
	fams := []family{ip4}
	if ipv6Enabled() {
		if err := addInboundAddress(); err != nil {
			return fmt.Errorf("adding %s to lo: %w", ip6.inbound, capability(err))
		}
		fams = append(fams, ip6)
	}
	for _, f := range fams {
		with, err := load(ctx, c, f)
		if err != nil {
			return err
		}
		log.Info("redirection in place", "family", f.name, "with", with,
			"outbound", c.ProxyPort, "inbound", c.InboundPort)
	}
	return nil
}

// load loads the rules of one family by the first means that works, and names it.
func load(ctx context.Context, c Config, f family) (with string, err error) {
	err = loadNftables(c, f)
	if err == nil {
		return "nftables", nil
	}
	if denied(err) {
		return "", fmt.Errorf("loading the %s redirection: %w", f.name, capability(err))
	}
	tried := []string{"nftables: " + err.Error()}
	for _, flavour := range flavours {
		if !has(f, flavour) {
			tried = append(tried, binary(f, flavour, "")+": not in the image")
			continue
		}
		err := loadIptables(ctx, c, f, flavour)
		if err == nil {
			return binary(f, flavour, ""), nil
		}
		tried = append(tried, err.Error())
	}
	return "", fmt.Errorf("loading the %s redirection: the node's kernel needs %s (tried %s)",
		f.name, options(f), strings.Join(tried, "; "))
}

// options names the kernel options of which each alternative needs one.
func options(f family) string {
	if f.bits == 32 {
		return "CONFIG_NF_TABLES_IPV4 with CONFIG_NFT_NAT and CONFIG_NFT_REDIR, or CONFIG_IP_NF_NAT with CONFIG_NETFILTER_XT_TARGET_REDIRECT and CONFIG_NETFILTER_XT_MATCH_OWNER"
	}
	return "CONFIG_NF_TABLES_IPV6 with CONFIG_NFT_NAT and CONFIG_NFT_REDIR, or CONFIG_IP6_NF_NAT with CONFIG_NETFILTER_XT_TARGET_REDIRECT and CONFIG_NETFILTER_XT_MATCH_OWNER"
}

// Remove takes away all that Apply may have made. It is no error if there is nothing.
func Remove(ctx context.Context) error {
	var errs []error
	for _, f := range []family{ip4, ip6} {
		err := unloadNftables(f)
		switch {
		case err == nil:
		case denied(err):
			return fmt.Errorf("removing the %s redirection: %w", f.name, capability(err))
		default: // no nf_tables, so no table
		}
		for _, flavour := range flavours {
			if has(f, flavour) {
				errs = append(errs, unloadIptables(ctx, f, flavour))
			}
		}
	}
	errs = append(errs, removeInboundAddress())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the redirection: %w", err)
	}
	return nil
}

func denied(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// capability adds the fix to an error of a process without the right to do it.
func capability(err error) error {
	if denied(err) {
		return fmt.Errorf("%w: the container needs the capability NET_ADMIN", err)
	}
	return err
}

// ipv6Enabled reports whether lo of this namespace can have IPv6 addresses.
func ipv6Enabled() bool {
	b, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	if err != nil || len(b) == 0 { // no IPv6 in the kernel, or switched off on every interface
		return false
	}
	b, err = os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

// addInboundAddress adds ::6/128 to lo: 127.0.0.6 is there by lo's /8, but of IPv6 only ::1 is.
func addInboundAddress() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	err = netlink.AddrAdd(lo, inboundAddress())
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func removeInboundAddress() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	err = netlink.AddrDel(lo, inboundAddress())
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func inboundAddress() *netlink.Addr {
	a, err := netlink.ParseAddr(host(ip6.inbound).String())
	if err != nil {
		panic(err) // a constant
	}
	return a
}
