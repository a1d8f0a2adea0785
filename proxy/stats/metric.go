package stats

import (
	"math"
	"sync/atomic"
)

// Counter only grows. The zero value is 0. Safe for concurrent use; cheap as long as one loop
// writes it.
type Counter struct{ n atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Value returns the count.
func (c *Counter) Value() uint64 { return c.n.Load() }

// Gauge goes up and down. The shards' values of a gauge are added up: what is set rather than counted
// is set in one shard only.
type Gauge struct{ n atomic.Int64 }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.n.Add(n) }

// Inc adds one.
func (g *Gauge) Inc() { g.n.Add(1) }

// Dec takes one off.
func (g *Gauge) Dec() { g.n.Add(-1) }

// Set sets the value.
func (g *Gauge) Set(n int64) { g.n.Store(n) }

// Value returns the value.
func (g *Gauge) Value() int64 { return g.n.Load() }

// bounds are the upper ends of histogram buckets: Envoy's own, for milliseconds and bytes alike.
var bounds = [...]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000,
	300000, 600000, 1800000, 3600000}

// Histogram counts values in Envoy's buckets.
type Histogram struct {
	buckets [len(bounds) + 1]atomic.Uint64
	sum     atomic.Uint64 // in thousandths
}

// Observe counts a value: milliseconds, or bytes.
func (h *Histogram) Observe(v float64) {
	i := 0
	for i < len(bounds) && v > bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(uint64(max(v, 0) * 1000))
}

// distribution is a histogram at one moment, of all shards together.
type distribution struct {
	buckets [len(bounds) + 1]uint64
	sum     float64
}

func (d *distribution) add(h *Histogram) {
	for i := range h.buckets {
		d.buckets[i] += h.buckets[i].Load()
	}
	d.sum += float64(h.sum.Load()) / 1000
}

func (d *distribution) count() (n uint64) {
	for _, b := range d.buckets {
		n += b
	}
	return n
}

// quantile estimates the value below which the share q of all values lies, taking values to be evenly
// spread within a bucket; NaN without values.
func (d *distribution) quantile(q float64) float64 {
	n := d.count()
	if n == 0 {
		return math.NaN()
	}
	rank := q * float64(n)
	var below uint64
	for i, b := range d.buckets {
		if b == 0 || float64(below+b) < rank {
			below += b
			continue
		}
		lo, hi := 0.0, bounds[len(bounds)-1]
		if i > 0 {
			lo = bounds[i-1]
		}
		if i < len(bounds) {
			hi = bounds[i]
		}
		return lo + (hi-lo)*max(rank-float64(below), 0)/float64(b)
	}
	return bounds[len(bounds)-1]
}

// Codes counts HTTP statuses, by class and, for the first few that occur, one by one.
type Codes struct {
	classes [6]atomic.Uint64 // 1xx at 1
	list    [16]struct {
		code atomic.Uint32 // 0: free
		n    atomic.Uint64
	}
}

// Inc counts a status between 100 and 599.
func (c *Codes) Inc(status int) {
	if status < 100 || status > 599 {
		return
	}
	c.classes[status/100].Add(1)
	for i := range c.list {
		e := &c.list[i]
		got := e.code.Load()
		if got == 0 && !e.code.CompareAndSwap(0, uint32(status)) {
			got = e.code.Load()
		}
		if got == 0 || got == uint32(status) {
			e.n.Add(1)
			return
		}
	}
}
