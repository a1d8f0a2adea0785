// Package announce makes a host answer for addresses that are on none of its interfaces: who
// of several hosts is to do it (pure), and ARP and NDP for the addresses that are one's own.
// It knows nothing of Services, pools or Kubernetes.
package announce
