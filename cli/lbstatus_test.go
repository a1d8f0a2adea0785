package cli

import (
	"bytes"
	"testing"
)

func TestLBStatus(t *testing.T) {
	var out bytes.Buffer
	v := &lbView{Pools: []lbPool{{"first", []string{"10.0.0.1-10.0.0.9"}, true, ""}, {"second", []string{"10.0.0.9/32"}, true, "overlaps first"}}, Speakers: []lbSpeaker{{"node1", "alive"}},
		Services: []lbService{{"a/b", []string{"10.0.0.1"}, ""}, {"a/c", nil, "no address is free"}}}
	if err := v.print(&out); err != nil {
		t.Fatal(err)
	}
	const want = `POOL       ADDRESSES             AUTO ASSIGN     STATE
first      10.0.0.1-10.0.0.9     true            in use
second     10.0.0.9/32           true            refused: overlaps first

SPEAKER     STATE
node1       alive

SERVICE     ADDRESS       LAST EVENT
a/b         10.0.0.1      
a/c         <pending>     no address is free
`
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
}
