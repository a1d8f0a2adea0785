package wan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/carrick-mesh/carrick/lab/netns"
)

// Segment is one side of the link as the router has it.
type Segment struct {
	Interface string
	Net       netip.Prefix
}

// Link is the link in a router's namespace. The kernel forwards by itself while
// nothing is asked for. A fault other than a cut sends what leaves a segment for
// another through a tun device of that segment and this process, which gives it
// back to the same device when its time has come.
type Link struct {
	ns       string
	segments []Segment
	tuns     []*os.File
	log      *slog.Logger

	mu    sync.Mutex
	fault Fault
	read  atomic.Pointer[Fault] // the pumps' view of fault
}

// Routing rules of the router: a cut comes before the pump, both before the
// main table.
const (
	cutPref   = 500
	pumpPref  = 1000
	firstPump = 101 // routing table of the first segment's pump
)

// New opens the tun devices in the router's namespace.
func New(ns string, segments []Segment, mtu int, log *slog.Logger) (*Link, error) {
	l := &Link{ns: ns, segments: segments, log: log}
	l.read.Store(&Fault{})
	for i := range segments {
		name := fmt.Sprintf("wan%d", i+1)
		err := netns.Do(ns, func() error {
			f, err := openTun(name)
			if err == nil {
				l.tuns = append(l.tuns, f)
			}
			return err
		})
		if err == nil {
			err = netns.IP(
				fmt.Sprintf("-n %s link set %s up mtu %d txqueuelen 10000", ns, name, mtu),
				fmt.Sprintf("-n %s route add default dev %s table %d", ns, name, firstPump+i))
		}
		if err != nil {
			return nil, fmt.Errorf("making %s: %w", name, err)
		}
	}
	return l, nil
}

func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	var req struct { // struct ifreq
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], name)
	req.flags = unix.IFF_TUN | unix.IFF_NO_PI
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); e != 0 {
		unix.Close(fd)
		return nil, fmt.Errorf("making tun device %s: %w", name, e)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Run moves packets until ctx ends.
func (l *Link) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		for _, t := range l.tuns {
			t.Close()
		}
	})()
	errs := make(chan error, len(l.tuns))
	for _, t := range l.tuns {
		go func() { errs <- l.pump(ctx, t) }()
	}
	var err error
	for range l.tuns {
		err = errors.Join(err, <-errs)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Fault tells what is wrong with the link.
func (l *Link) Fault() Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// Do changes the fault by Parse's words and returns the new one.
func (l *Link) Do(words []string) (Fault, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := Parse(l.fault, words)
	if err != nil {
		return l.fault, err
	}
	if f.Cut != l.fault.Cut {
		if err := l.rules(f.Cut, cutPref, func(int) string { return "blackhole" }); err != nil {
			return l.fault, err
		}
		l.fault.Cut = f.Cut
	}
	l.read.Store(&f)
	if f.Slow() != l.fault.Slow() {
		if err := l.rules(f.Slow(), pumpPref, func(i int) string { return fmt.Sprint("lookup ", firstPump+i) }); err != nil {
			return l.fault, err
		}
	}
	l.fault = f
	l.log.Info("wan", "fault", f.String())
	return f, nil
}

// rules adds or removes one rule for each ordered pair of segments.
func (l *Link) rules(on bool, pref int, action func(from int) string) error {
	verb := "del"
	if on {
		verb = "add"
	}
	for i, from := range l.segments {
		for j, to := range l.segments {
			if i == j {
				continue
			}
			if err := netns.IP(fmt.Sprintf("-n %s rule %s pref %d iif %s to %s %s",
				l.ns, verb, pref, from.Interface, to.Net, action(i))); err != nil {
				return err
			}
		}
	}
	return nil
}

// queue bounds the packets under way in one direction: 150 ms at 1 Gbit/s.
const queue = 20000

type packet struct {
	data []byte
	due  time.Time
}

// pump reads what leaves one segment and gives it back when it is due, in order.
func (l *Link) pump(ctx context.Context, tun *os.File) error {
	waiting := make(chan packet, queue)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for p := range waiting {
			if d := time.Until(p.due); d > 0 {
				select {
				case <-time.After(d):
				case <-ctx.Done():
				}
			}
			tun.Write(p.data) // a packet that does not go is lost
		}
	}()
	defer func() { close(waiting); <-done }()
	buf := make([]byte, 64<<10)
	var last time.Time
	for {
		n, err := tun.Read(buf)
		if err != nil {
			return fmt.Errorf("reading %s: %w", tun.Name(), err)
		}
		f := l.read.Load()
		if f.Loss > 0 && rand.Float64() < f.Loss {
			continue
		}
		last = due(f, time.Now(), last, n)
		select {
		case waiting <- packet{append([]byte(nil), buf[:n]...), last}:
		default: // the queue is full
		}
	}
}

// due is when a packet of n bytes that came now is given back, if the one
// before it is at last.
func due(f *Fault, now, last time.Time, n int) time.Time {
	at := now.Add(f.Delay)
	if f.Jitter > 0 {
		at = at.Add(time.Duration((rand.Float64()*2 - 1) * float64(f.Jitter)))
	}
	if at.Before(last) {
		at = last
	}
	if f.Rate > 0 {
		at = at.Add(time.Duration(float64(n) / f.Rate * float64(time.Second)))
	}
	return at
}
