// Package pool decides which Service has which load-balancer address, with the meaning that
// MetalLB gives to IPAddressPools and annotations. It is pure: pools and Services in,
// addresses and refusals out; it knows nothing of how Services are watched or addresses
// announced.
package pool
