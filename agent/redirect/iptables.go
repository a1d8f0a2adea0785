package redirect

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// flavours are the iptables that may stand in for nftables, in the order they are tried.
var flavours = []string{"nft", "legacy"}

// hooks says from which built-in chain ours are called.
var hooks = map[string]string{"inbound": "PREROUTING", "outbound": "OUTPUT"}

// binary returns the name of a program of that flavour, such as ip6tables-legacy-restore.
func binary(f family, flavour, suffix string) string {
	return f.name + "tables-" + flavour + suffix
}

// loadIptables replaces our chains of that family and calls them once from the built-in ones.
func loadIptables(ctx context.Context, c Config, f family, flavour string) error {
	if err := run(ctx, iptablesText(c, f), binary(f, flavour, "-restore"), "--noflush", "-w", "5"); err != nil {
		return err
	}
	for name, from := range hooks {
		jump := []string{"-p", "tcp", "-j", iptablesChain(name)}
		tables := func(verb string) error {
			return run(ctx, "", binary(f, flavour, ""), append([]string{"-w", "5", "-t", "nat", verb, from}, jump...)...)
		}
		if tables("-C") == nil {
			continue
		}
		if err := tables("-A"); err != nil {
			return err
		}
	}
	return nil
}

// unloadIptables removes our chains, if they exist.
func unloadIptables(ctx context.Context, f family, flavour string) error {
	prog := binary(f, flavour, "")
	for name, from := range hooks {
		ours := iptablesChain(name)
		if run(ctx, "", prog, "-w", "5", "-t", "nat", "-S", ours) != nil {
			continue
		}
		for run(ctx, "", prog, "-w", "5", "-t", "nat", "-D", from, "-p", "tcp", "-j", ours) == nil {
		}
		for _, verb := range []string{"-F", "-X"} {
			if err := run(ctx, "", prog, "-w", "5", "-t", "nat", verb, ours); err != nil {
				return err
			}
		}
	}
	return nil
}

// has reports whether the programs of that flavour are there.
func has(f family, flavour string) bool {
	for _, suffix := range []string{"", "-restore"} {
		if _, err := exec.LookPath(binary(f, flavour, suffix)); err != nil {
			return false
		}
	}
	return true
}

func run(ctx context.Context, input, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, firstLine(out.String()))
	}
	return nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}
