package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"
)

func TestNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	prefix := fmt.Sprintf("lab-test.%d.", os.Getpid())
	name := prefix + "a"
	if err := Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Delete(name) })
	if err := Create(name); err == nil {
		t.Error("the same name twice is no error")
	}
	if err := IP("-n "+name+" link add br0 type bridge", "-n "+name+" addr add 198.51.100.1/24 dev br0"); err != nil {
		t.Fatal(err)
	}
	var inside, outside []net.Interface
	if err := Do(name, func() (err error) {
		if err := Sysctl("ipv4/conf/br0/rp_filter", "2"); err != nil {
			return err
		}
		inside, err = net.Interfaces()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	outside, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	isBr0 := func(i net.Interface) bool { return i.Name == "br0" }
	if !slices.ContainsFunc(inside, isBr0) || slices.ContainsFunc(outside, isBr0) {
		t.Errorf("br0 is not only inside: %v, %v", inside, outside)
	}

	// A listener made inside answers a dialer of the namespace and no other.
	var l net.Listener
	if err := Do(name, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.WriteString(c, "inside")
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := Dialer(name)(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); string(b) != "inside" {
		t.Errorf("read %q, %v", b, err)
	}

	names, err := List(prefix)
	if err != nil || !slices.Equal(names, []string{name}) {
		t.Errorf("names %v, %v", names, err)
	}
	if err := Delete(name); err != nil {
		t.Fatal(err)
	}
	if names, _ := List(prefix); len(names) != 0 {
		t.Errorf("%v is left", names)
	}
	if err := Do(name, func() error { return nil }); err == nil {
		t.Error("a deleted namespace can be entered")
	}
}
