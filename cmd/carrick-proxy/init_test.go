package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The verb, in a network namespace with one interface: the rules come, are proved, come again,
// and go.
func TestInit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	failed := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // the thread, and its namespace, end with the goroutine
		failed <- func() string {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return "skip"
			}
			must := func(err error) {
				if err != nil {
					t.Error(err)
				}
			}
			must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}))
			for name, addr := range map[string]string{"lo": "", "eth0": "10.0.0.2/24", "eth1": ""} {
				l, err := netlink.LinkByName(name)
				must(err)
				must(netlink.LinkSetUp(l))
				if addr != "" {
					a, err := netlink.ParseAddr(addr)
					must(err)
					must(netlink.AddrAdd(l, a))
				}
			}
			must(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("10.0.0.1")}))
			rules := func() string {
				out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
				must(err)
				return string(out)
			}
			args := strings.Fields("-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020 --run-validation --log_output_level=default:info")
			for range 2 {
				e, out, errs := env()
				if code := run(context.Background(), e, append([]string{"init"}, args...)); code != exitOK {
					return errs.String()
				}
				if !strings.Contains(out.String(), "\tinfo\tredirection in place\tfamily=ip with=nftables") {
					return "log: " + out.String()
				}
				if got := rules(); strings.Count(got, "redirect to :15001") != 2 || strings.Count(got, "redirect to :15006") != 6 {
					return "rules:\n" + got
				}
			}
			e, _, errs := env()
			if code := run(context.Background(), e, []string{"init", "--cleanup"}); code != exitOK || strings.Contains(rules(), "redirect") {
				return "cleanup: " + errs.String() + rules()
			}
			return ""
		}()
	}()
	switch got := <-failed; got {
	case "":
	case "skip":
		t.Skip("no network namespaces here")
	default:
		t.Error(got)
	}
}
