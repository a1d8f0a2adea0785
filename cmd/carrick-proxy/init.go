package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"

	"github.com/carrick-mesh/carrick/agent/redirect"
	"github.com/carrick-mesh/carrick/agent/redirect/spec"
)

// runInit is the verb init: what the init container of a pod does, with the flags of Istio's
// istio-iptables.
func runInit(ctx context.Context, e environment, args []string) error {
	c, o, err := redirectOptions(e, args)
	if err != nil {
		return err
	}
	log, _, err := newLogger(e.stdout, o.logLevel, false)
	if err != nil {
		return err
	}
	if o.dns {
		log.Warn("redirection of DNS is not supported; names resolve as in Kubernetes")
	}
	switch {
	case o.cleanup:
		return redirect.Remove(ctx)
	case o.dryRun:
		text, err := redirect.Text(c)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(e.stdout, text)
		return err
	}
	if !o.skip {
		if err := redirect.Apply(ctx, c, log); err != nil {
			return err
		}
	}
	if o.validate {
		return redirect.Validate(ctx, c)
	}
	return nil
}

// initOptions are the flags that are not of the rules.
type initOptions struct {
	cleanup, dryRun, skip, validate, dns bool
	logLevel                             string
}

func redirectOptions(e environment, args []string) (c redirect.Config, o initOptions, err error) {
	f := newFlags("init", e)
	proxy := f.text("envoy-port", "p", "15001", "port that outbound connections are redirected to")
	inbound := f.text("inbound-capture-port", "z", "15006", "port that inbound connections are redirected to")
	tunnel := f.text("inbound-tunnel-port", "e", "15008", "port of HBONE, not redirected")
	uids := f.text("proxy-uid", "u", "1337", "users of the proxy, whose connections are left alone")
	gids := f.text("proxy-gid", "g", "", "groups of the proxy (default as -u)")
	mode := f.text("istio-inbound-interception-mode", "m", "REDIRECT", "REDIRECT")
	inPorts := f.text("istio-inbound-ports", "b", "*", "inbound ports to redirect, * for all")
	notIn := f.text("istio-local-exclude-ports", "d", "", "inbound ports not to redirect, with -b *")
	notIfs := f.text("istio-exclude-interfaces", "c", "", "interfaces to leave alone")
	ranges := f.text("istio-service-cidr", "i", "*", "outbound IP ranges to redirect, * for all")
	notRanges := f.text("istio-service-exclude-cidr", "x", "", "outbound IP ranges not to redirect")
	outPorts := f.text("istio-outbound-ports", "q", "", "outbound ports to redirect whatever -i says")
	notOut := f.text("istio-local-outbound-ports-exclude", "o", "", "outbound ports not to redirect")
	virtual := f.text("kube-virt-interfaces", "k", "", "interfaces whose inbound connections count as outbound")
	groups := f.text("outbound-owner-groups", "", or(e.getenv("ISTIO_OUTBOUND_OWNER_GROUPS"), "*"), "groups whose connections are redirected, * for all")
	notGroups := f.text("outbound-owner-groups-exclude", "", e.getenv("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"), "groups whose connections are not redirected")
	dryRun := f.yes("dry-run", "n", "print the rules in nft's syntax and change nothing")
	cleanup := f.yes("cleanup", "", "remove the rules of an earlier run")
	skip := f.yes("skip-rule-apply", "", "load no rules")
	validate := f.yes("run-validation", "", "prove with a connection that redirection works")
	dns := f.yes("redirect-dns", "", "accepted, without effect")
	allDNS := f.yes("capture-all-dns", "", "accepted, without effect")
	dropInvalid := f.yes("drop-invalid", "", "not supported")
	level := f.text("log_output_level", "", "default:info", "log level")
	f.yes("dual-stack", "", "accepted, without effect: both families are redirected")
	f.yes("trace-logging", "", "accepted, without effect")
	f.yes("restore-format", "f", "accepted, without effect")
	f.accept("istio-inbound-tproxy-mark", "t", "istio-inbound-tproxy-route-table", "r", "iptables-probe-port", "probe-timeout")
	if _, err := f.parse(args, 0); err != nil {
		return c, o, err
	}
	if *gids == "" {
		*gids = *uids
	}
	o = initOptions{cleanup: *cleanup, dryRun: *dryRun, skip: *skip, validate: *validate, logLevel: *level,
		dns: *dns || *allDNS || e.getenv("ISTIO_META_DNS_CAPTURE") == "true"}

	var errs []error
	failed := func(flag string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("init: %s: %w", flag, err))
		}
	}
	port := func(flag, s string) uint16 {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			failed(flag, fmt.Errorf("%q is not a port (1-65535)", s))
		}
		return uint16(n)
	}
	c.ProxyPort, c.InboundPort, c.TunnelPort = port("-p", *proxy), port("-z", *inbound), port("-e", *tunnel)
	c.UIDs, err = spec.ParseIDs(*uids, userID)
	failed("-u", err)
	c.GIDs, err = spec.ParseIDs(*gids, groupID)
	failed("-g", err)
	c.Inbound, err = spec.ParsePortSet(*inPorts)
	failed("-b", err)
	c.ExcludeInboundPorts, err = spec.ParsePorts(*notIn)
	failed("-d", err)
	c.OutboundRanges, err = spec.ParseRangeSet(*ranges)
	failed("-i", err)
	c.ExcludeOutboundRanges, err = spec.ParseRanges(*notRanges)
	failed("-x", err)
	c.OutboundPorts, err = spec.ParsePorts(*outPorts)
	failed("-q", err)
	c.ExcludeOutboundPorts, err = spec.ParsePorts(*notOut)
	failed("-o", err)
	c.ExcludeInterfaces, err = spec.ParseInterfaces(*notIfs)
	failed("-c", err)
	c.VirtualInterfaces, err = spec.ParseInterfaces(*virtual)
	failed("-k", err)
	if c.OutboundGroups.All = *groups == "*"; !c.OutboundGroups.All {
		c.OutboundGroups.List, err = spec.ParseIDs(*groups, groupID)
		failed("--outbound-owner-groups", err)
	}
	c.ExcludeOutboundGroups, err = spec.ParseIDs(*notGroups, groupID)
	failed("--outbound-owner-groups-exclude", err)
	if *mode != "REDIRECT" && *mode != "" {
		failed("-m", fmt.Errorf("mode %q is not supported; use REDIRECT (annotation sidecar.istio.io/interceptionMode)", *mode))
	}
	if *dropInvalid || e.getenv("INVALID_DROP") == "true" {
		failed("--drop-invalid", errors.New("not supported"))
	}
	return c, o, errors.Join(errs...)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func userID(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func groupID(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}
